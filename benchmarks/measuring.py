"""How things are measured and written down: turns, medians, the machine, tables and files."""

from __future__ import annotations

import csv
import logging
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.quiet import FOREIGN_CORES, Watch
from fedopt.recorder import environment

Row = Mapping[str, object]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""The palette of Okabe and Ito (2008), which colour-blind people can tell apart."""
QUIET = 0.7
"""Load average up to which the machine counts as quiet."""
PATIENCE_SECONDS = float(os.environ.get("BENCHMARK_PATIENCE", "60"))
"""How long quiet turns are waited for."""

log = logging.getLogger("benchmarks")


class Contender(Protocol):
    """Something that does rounds."""

    name: str

    def round(self) -> None:
        """Do one round."""

    def close(self) -> None:
        """Release processes and memory."""


def interleave(
    contenders: Sequence[Contender], rounds: int, warm_up: int, burst: int = 1
) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of each round, by contender, and the cores that others used meanwhile.

    The contenders take turns of `burst` rounds. Turns in which other processes used the machine
    are left out; if there are too few others in the time allowed, the quietest ones count.

    Args:
        contenders: what to measure.
        rounds: rounds of each that count, at least this many.
        warm_up: rounds of each before them.
        burst: rounds a turn.
    """
    for contender in contenders:
        for _ in range(warm_up):
            contender.round()
    wanted = -(-rounds // burst)
    watch, began = Watch(), time.perf_counter()
    turns: list[tuple[float, dict[str, list[float]]]] = []
    quiet = 0
    while quiet < wanted:
        watch.restart()
        seconds = {contender.name: timed(contender, burst) for contender in contenders}
        turns.append((watch.foreign_cores(), seconds))
        quiet += turns[-1][0] <= FOREIGN_CORES
        if len(turns) >= wanted and time.perf_counter() - began > PATIENCE_SECONDS:
            break
    kept = sorted(turns, key=lambda turn: turn[0])[:wanted]
    foreign = kept[-1][0]
    log.info(f"{len(kept)} of {len(turns)} turns kept; others used at most {foreign:.2f} cores")
    seconds = {c.name: [s for _, turn in kept for s in turn[c.name]] for c in contenders}
    return seconds, foreign


def timed(contender: Contender, rounds: int) -> list[float]:
    """Return the seconds of each of some rounds."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        contender.round()
        seconds.append(time.perf_counter() - began)
    return seconds


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    if len(seconds) < 2:
        return seconds[0], seconds[0], seconds[0]
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return low, middle, high


def machine() -> dict[str, str]:
    """Return versions and machine, as they go at the top of every file."""
    import ray

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        **environment(),
        "ray": ray.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "memory": f"{memory:.0f} GiB",
        "threads a process": os.environ["OMP_NUM_THREADS"],
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }


def warn_if_busy(console: Console) -> None:
    """Say so where something else is running; have the turns that are left out told."""
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
    load = os.getloadavg()[0]
    if load > QUIET:
        console.print(f"[yellow]load {load:.2f}: something else is running")


def write_csv(path: Path, rows: Sequence[Row], facts: Mapping[str, str]) -> None:
    """Write rows under comments that say where they come from (`pandas.read_csv(comment="#")`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        for name, fact in facts.items():
            file.write(f"# {name}: {fact}\n")
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print rows as a table; numbers with three significant digits."""
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(text(row.get(column)) for column in columns))
    console.print(table)


def text(value: object) -> str:
    """Return a cell: nothing for None, thousands separated, small numbers to three digits."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"
