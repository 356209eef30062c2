"""How things are measured and written down: turns, medians, the machine, tables and files."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from fedopt.recorder import environment

Row = Mapping[str, object]
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
"""The palette of Okabe and Ito (2008), which colour-blind people can tell apart."""
QUIET = 0.7
"""Load average up to which the machine counts as quiet."""


class Contender(Protocol):
    """Something that does rounds."""

    name: str

    def round(self) -> None:
        """Do one round."""

    def close(self) -> None:
        """Release processes and memory."""


def interleave(
    contenders: Sequence[Contender], rounds: int, warm_up: int, burst: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each round, by contender.

    The contenders take turns of `burst` rounds, so that whatever else the machine does falls on
    all of them alike.

    Args:
        contenders: what to measure.
        rounds: rounds of each that count, at least this many.
        warm_up: rounds of each before them.
        burst: rounds a turn.
    """
    for contender in contenders:
        for _ in range(warm_up):
            contender.round()
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(-(-rounds // burst)):
        for contender in contenders:
            for _ in range(burst):
                began = time.perf_counter()
                contender.round()
                seconds[contender.name].append(time.perf_counter() - began)
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
    """Say so where something else is running."""
    load = os.getloadavg()[0]
    if load > QUIET:
        console.print(f"[yellow]load {load:.2f}: the machine is not quiet; ratios hold better "
                      "than seconds")  # fmt: skip


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
