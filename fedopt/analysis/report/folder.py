"""The report of a folder of runs: of a sweep, an ablation, or whatever somebody put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedopt.analysis.report.comparison import ExtraTable, comparison_report
from fedopt.analysis.report.record import find_runs
from fedopt.analysis.targets import Target
from fedopt.errors import ConfigError

MOST_ROWS = 500

TABLES = (
    ("ablation.csv", "What each technique brings"),
    ("points.csv", "Points of the sweep"),
    ("results.csv", "Runs of the sweep"),
)
"""Files that a sweep or an ablation leaves beside its runs, and what they are called."""


def folder_report(
    directory: str | Path, title: str | None = None, targets: Sequence[Target] = ()
) -> str:
    """Return the report of the runs in a folder, with the tables that a sweep has left there.

    Args:
        directory: the folder; runs are in it or in its folder `runs`.
        title: heading; None: the folder's name.
        targets: values whose cost is told.

    Raises:
        ConfigError: there are no runs, none has a finished round, or a table is damaged.
    """
    folder = Path(directory)
    heading = title or folder.resolve().name
    return comparison_report(find_runs([folder]), heading, folder_tables(folder), targets)


def folder_tables(folder: Path) -> list[ExtraTable]:
    """Return the tables of a sweep's or an ablation's folder, those that are there.

    Raises:
        ConfigError: one is damaged.
    """
    found = []
    for name, title in TABLES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            frame = pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is damaged: {error}.") from error
        frame = frame.dropna(axis="columns", how="all")
        rows = [list(row) for row in frame.head(MOST_ROWS).itertuples(index=False, name=None)]
        note = "" if len(frame) <= MOST_ROWS else f"The first {MOST_ROWS} of {len(frame):,} rows."
        found.append(ExtraTable(title, [str(c) for c in frame.columns], rows, note))
    return found
