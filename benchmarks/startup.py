"""Seconds from the command to the first round, with and without Ray.

`python -m benchmarks.startup` starts `fedopt run` on the default task (digits, a small
perceptron) in a fresh process, waits for the first row of the run's table, then for its end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.measuring import Row, machine, show, warn_if_busy, write_csv
from fedopt.analysis.store import ROUNDS_FILE

COMMANDS: dict[str, list[str]] = {
    "fedopt run, inline": ["engine.name=inline"],
    "fedopt run, Ray, 2 workers": ["engine.name=ray", "engine.workers=2"],
}
POLL_SECONDS = 0.005
LIMIT_SECONDS = 120


def seconds_of(arguments: Sequence[str]) -> tuple[float, float]:
    """Return the seconds to the first round and to the end of a run of one round."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fedopt", "run", "rounds=1", *arguments]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--out", str(out), "--quiet"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        first = None
        while process.poll() is None and time.perf_counter() - began < LIMIT_SECONDS:
            if first is None and has_row(out / ROUNDS_FILE):
                first = time.perf_counter() - began
            time.sleep(POLL_SECONDS)
        if process.poll() is None:
            process.kill()
        error = process.communicate()[1]
        total = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{error.decode()[-2000:]}")
        return first or total, total


def has_row(table: Path) -> bool:
    """Return whether a table has a line below its header."""
    return table.exists() and table.read_bytes().count(b"\n") > 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    console = Console(width=120)
    facts = machine()
    warn_if_busy(console)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(options.repeats):
        for name, command in COMMANDS.items():
            found[name].append(seconds_of(command))
    rows: list[Row] = [
        {
            "command": name,
            "seconds to round 1": statistics.median(first for first, _ in times),
            "least": min(first for first, _ in times),
            "seconds to the end": statistics.median(total for _, total in times),
            "least of those": min(total for _, total in times),
            "repeats": len(times),
        }
        for name, times in found.items()
    ]
    show(console, "from the command to the first round", rows)
    write_csv(options.out / "startup.csv", rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
