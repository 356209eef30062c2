"""`python -m benchmarks.peers`: other frameworks' rounds beside the bare torch loop.

Makes an environment for each peer, runs each mode on each workload in a process of its own, prints
a table and writes a CSV file. A peer that cannot be installed or run keeps its line, with the
reason.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import tempfile
from dataclasses import fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.peers import environments
from benchmarks.peers.common import WORKLOADS, Row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(environments.PEERS), default=list(environments.PEERS)
    )
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, help="rounds measured, in place of each workload's")
    parser.add_argument("--warmup", type=int, help="rounds left out first, in place of 10")
    parser.add_argument("--repeats", type=int, default=1, help="runs of everything, in turn")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one run")
    parser.add_argument("--out", type=Path, help="CSV file of the rows")
    parser.add_argument("--venvs", type=Path, default=environments.default_folder())
    return parser.parse_args()


def _measure(
    peer: environments.Peer,
    mode: str,
    workload: str,
    given: argparse.Namespace,
    failures: dict[str, str],
) -> Row:
    defaults = WORKLOADS[workload]
    rounds = defaults.rounds if given.rounds is None else given.rounds
    warmup = defaults.warmup if given.warmup is None else given.warmup
    try:
        if peer.name in failures:
            raise environments.PeerError(failures[peer.name])
        try:
            python = environments.make(peer, given.venvs.resolve())
        except environments.PeerError as error:
            failures[peer.name] = str(error)
            raise
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            environments.run(peer, python, mode, workload, rounds, warmup, out, given.timeout)
            return Row(**json.loads(out.read_text()))
    except environments.PeerError as error:
        return Row(peer.name, mode, workload, error=str(error))


def _table(rows: list[Row]) -> Table:
    table = Table(title="Clients a second, medians; the bare loop ran between the peer's rounds")
    for name in ("workload", "peer", "mode"):
        table.add_column(name)
    for name in ("clients/s", "bare loop", "ratio", "of two loops", "steps", "max difference"):
        table.add_column(name, justify="right")
    for row in sorted(rows, key=lambda r: list(WORKLOADS).index(r.workload)):
        head = (row.workload, row.peer, row.mode)
        if row.clients_per_s is None or row.bare_clients_per_s is None or row.ratio is None:
            table.add_row(*head, "did not run", "", "", "", "", "")
            continue
        steps = "-" if row.steps_per_client is None else f"{row.steps_per_client:g}"
        difference = "" if row.max_abs_difference is None else f"{row.max_abs_difference:.1e}"
        table.add_row(
            *head,
            f"{row.clients_per_s:,.1f}",
            f"{row.bare_clients_per_s:,.1f}",
            f"{row.ratio:.2f}",
            "" if row.ratio_to_two is None else f"{row.ratio_to_two:.2f}",
            steps,
            difference,
        )
    return table


def _write(rows: list[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f.name for f in fields(Row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, "python", "machine", "cores"])
        writer.writeheader()
        for row in rows:
            values = {name: getattr(row, name) for name in names}
            values["versions"] = " ".join(f"{k}={v}" for k, v in row.versions.items())
            values["python"] = platform.python_version()
            values["machine"] = platform.machine()
            values["cores"] = os.cpu_count()
            writer.writerow(values)


def main() -> None:
    """Measure what was asked for; the CSV file is rewritten after every run."""
    given = _arguments()
    console = Console(width=max(100, Console().width))
    rows: list[Row] = []
    failures: dict[str, str] = {}  # peers that could not be installed: tried once
    for repeat in range(given.repeats):
        for workload in given.workloads:
            for peer in (environments.PEERS[name] for name in given.only):
                for mode in peer.modes:
                    with console.status(f"{peer.name}, {mode}, {workload}"):
                        rows.append(_measure(peer, mode, workload, given, failures))
                    rows[-1].repeat = repeat
                    if given.out is not None:
                        _write(rows, given.out)
    console.print(_table(rows))
    for row in rows:
        if row.error:
            console.print(f"{row.workload} {row.peer}, {row.mode}: {row.error}", markup=False)
    for note in dict.fromkeys(f"{r.peer}, {r.mode}: {r.note}" for r in rows if r.note):
        console.print(note, markup=False)


if __name__ == "__main__":
    main()
