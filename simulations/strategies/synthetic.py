"""Strategies on Synthetic(1,1), where clients drift: who converges, and who does not.

    python simulations/strategies/synthetic.py [--seeds 3] [--out DIR] [--quick]

Prints, for each strategy, test loss and accuracy after the last round on each data seed, and the
highest test loss of the second half of the rounds: what diverges has a late loss far above its
last. Writes results.csv (a line per strategy and seed).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from table_study import TableStudy

from fedopt import simulate
from fedopt.config import load
from fedopt.errors import DivergenceError, NotFiniteError

TOML = Path(__file__).with_suffix(".toml")

STRATEGIES: dict[str, tuple[str, ...]] = {
    "fedavg": (),
    "fedprox, mu 1": ("strategy=fedprox", "strategy.mu=1.0"),
    "scaffold": ("strategy=scaffold",),
    "scaffold, by examples": (
        "strategy=scaffold",
        "strategy.weighting=examples",
        "strategy.force=true",
    ),
    "fednova": ("strategy=fednova",),
    "feddyn, alpha 0.1": ("strategy=feddyn",),
    "fedavgm": ("strategy=fedavgm",),
    "fedadam": ("strategy=fedadam", "strategy.server_lr=0.03"),
    "fedyogi": ("strategy=fedyogi", "strategy.server_lr=0.03"),
    "qfedavg, q 1": ("strategy=qfedavg",),
}
"""Name for people -> the words of a strategy."""


def measured(words: Sequence[str]) -> tuple[float, float, float]:
    """Return last loss and accuracy, and the highest late loss; infinite where it diverged."""
    try:
        history = simulate(load(TOML, words)).history
    except (DivergenceError, NotFiniteError):
        return math.inf, math.nan, math.inf
    last = history.iloc[-1]
    late = history[history["round"] > history["round"].max() / 2]
    return float(last["test_loss"]), float(last["test_accuracy"]), float(late["test_loss"].max())


def results(seeds: Sequence[int], extra: Sequence[str], console: Console) -> pd.DataFrame:
    """Run everything; return a line per strategy and seed."""
    rows = []
    for strategy, chosen in STRATEGIES.items():
        for seed in seeds:
            console.print(f"seed {seed}: {strategy}")
            rows.append((strategy, seed, *measured([*chosen, *extra, f"seed={seed}"])))
    columns = ["strategy", "seed", "test_loss", "test_accuracy", "highest_late_loss"]
    return pd.DataFrame(rows, columns=columns)


def result_table(found: pd.DataFrame, seeds: Sequence[int]) -> Table:
    """Return a line a strategy: the numbers of each seed."""
    table = Table(box=SIMPLE)
    table.add_column("strategy", no_wrap=True)
    for name in ("test loss", "test accuracy", "highest late loss"):
        table.add_column(f"{name}, seeds {', '.join(map(str, seeds))}", justify="right")
    for strategy in STRATEGIES:
        mine = found[found["strategy"] == strategy].sort_values("seed")
        cells = [
            "  ".join(f"{value:.{digits}f}" for value in mine[column])
            for column, digits in (
                ("test_loss", 2),
                ("test_accuracy", 3),
                ("highest_late_loss", 2),
            )
        ]
        table.add_row(strategy, *cells)
    return table


STUDY = TableStudy(
    name="synthetic",
    description="Strategies on Synthetic(1,1).",
    results=results,
    table=result_table,
    heading="Synthetic(1,1): 30 devices, 10 a round, 20 local epochs, 100 rounds",
    quick=("rounds=2", "local.epochs=1"),
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
