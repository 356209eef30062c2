"""Which means withstand which hostile clients, on digits spread by Dirichlet(0.5).

    python simulations/strategies/hostile.py [--seeds 3] [--out DIR] [--quick]

Prints a table, the late accuracy (mean of the last tenth of the rounds) of each strategy under each
attack, mean over the seeds, and writes results.csv (a line per strategy, attack and seed). One
client in five is hostile. A run that diverges has no accuracy left: it counts as 0 and is marked.
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
    "fedavg, clipped to 1": ("uplink.clip.norm=1.0",),
    "median": ("strategy=median",),
    "trimmed_mean, beta 0.3": ("strategy=trimmed_mean", "strategy.beta=0.3"),
    "krum, 10 of 25": ("strategy=krum", "strategy.hostile=8", "strategy.selected=10"),
    "rfa": ("strategy=rfa",),
}
"""Name for people -> the words of a strategy; the first is what the others are compared with."""

ATTACKS: dict[str, tuple[str, ...]] = {
    "none": (),
    "label flip": ("attack=label_flip",),
    "sign flip x 10": ("attack=sign_flip", "attack.scale=10.0"),
    "noise x 10": ("attack=noise",),
    "alie, z 1.5": ("attack=alie",),
}
"""Name for people -> the words of an attack by a fifth of the clients."""


def late_accuracy(words: Sequence[str]) -> float:
    """Return the mean test accuracy of a run's last tenth; NaN where it diverged."""
    try:
        history = simulate(load(TOML, words)).history
    except (DivergenceError, NotFiniteError):
        return math.nan
    late = history[history["round"] > 0.9 * history["round"].max()]
    return float(late["test_accuracy"].mean())


def results(seeds: Sequence[int], extra: Sequence[str], console: Console) -> pd.DataFrame:
    """Run everything; return a line per strategy, attack and seed."""
    rows = []
    for strategy, chosen in STRATEGIES.items():
        for attack, harm in ATTACKS.items():
            if "alie" in attack and "clipped" in strategy:
                continue  # fedopt refuses it: colluding clients send after the channel
            for seed in seeds:
                console.print(f"seed {seed}: {strategy}, {attack}")
                found = late_accuracy([*chosen, *harm, *extra, f"seed={seed}"])
                rows.append((strategy, attack, seed, found))
    return pd.DataFrame(rows, columns=["strategy", "attack", "seed", "late_accuracy"])


def result_table(found: pd.DataFrame) -> Table:
    """Return the means over the seeds."""
    table = Table(box=SIMPLE)
    table.add_column("strategy", no_wrap=True)
    for attack in ATTACKS:
        table.add_column(attack, justify="right", no_wrap=True)
    for strategy in STRATEGIES:
        cells = []
        for attack in ATTACKS:
            mine = found[(found["strategy"] == strategy) & (found["attack"] == attack)]
            values = mine["late_accuracy"]
            diverged = int(values.isna().sum())
            mean = f"{values.fillna(0.0).mean():.3f}" if len(values) else "-"
            cells.append(f"{mean} ({diverged} diverged)" if diverged else mean)
        table.add_row(strategy, *cells)
    return table


STUDY = TableStudy(
    name="hostile",
    description="Which means withstand which hostile clients.",
    results=results,
    table=lambda found, seeds: result_table(found),
    heading="late accuracy, mean over {seeds} seeds; a fifth of 50 clients is hostile",
    quick=("rounds=2",),
)

if __name__ == "__main__":
    sys.exit(STUDY.main())
