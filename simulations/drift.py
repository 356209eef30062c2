"""How far accuracy falls when labels change their meaning, and what recovers, on digits.

    python simulations/drift.py [--seeds 3] [--out DIR] [--quick]

Prints a table of accuracies in the last round of the old concept, the first of the new one and the
last of the run, mean over the seeds, and writes results.csv (a line per arm, seed and round).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from table_study import TableStudy

from fedopt import simulate
from fedopt.config import load

TOML = Path(__file__).with_suffix(".toml")

ARMS: dict[str, tuple[str, ...]] = {
    "all clients, sudden": ("drift.share=1.0",),
    "all clients, gradual": ("drift.share=1.0", "drift.kind=gradual", "drift.length=40"),
    "half of them, sudden": (),
    "half of them, Ditto": ("strategy=ditto",),
}
"""Name for people -> words that make an arm from the TOML."""

COLUMNS = ("test_accuracy", "drift_test_accuracy", "validation_accuracy", "unseen_accuracy")


def accuracies(words: Sequence[str]) -> pd.DataFrame:
    """Return the accuracies of a run before, at and after the drift, a row each."""
    history = simulate(load(TOML, words)).history.set_index("round")
    start = int((history["drift"] > 0).idxmax())
    moments = {"before": start - 1, "at once": start, "at last": int(history.index[-1])}
    found = history.loc[list(moments.values()), list(COLUMNS)]
    return found.assign(moment=list(moments)).reset_index()


def results(seeds: Sequence[int], extra: Sequence[str], console: Console) -> pd.DataFrame:
    """Run everything; return a line per arm, seed and moment."""
    parts = []
    for arm, words in ARMS.items():
        for seed in seeds:
            console.print(f"seed {seed}: {arm}")
            parts.append(accuracies([*words, *extra, f"seed={seed}"]).assign(arm=arm, seed=seed))
    return pd.concat(parts, ignore_index=True)


def result_table(found: pd.DataFrame) -> Table:
    """Return the means over the seeds."""
    table = Table(box=SIMPLE)
    for name in ("who drifts", "moment"):
        table.add_column(name, no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for arm in ARMS:
        for moment in found["moment"].unique():
            mine = found[(found["arm"] == arm) & (found["moment"] == moment)]
            means = (f"{mine[column].mean():.3f}" for column in COLUMNS)
            table.add_row(arm, moment, *means)
    return table


STUDY = TableStudy(
    name="drift",
    description="Who recovers from labels that change.",
    results=results,
    table=lambda found, seeds: result_table(found),
    heading="accuracy, mean over {seeds} seeds",
    quick=("rounds=4",),
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
