"""Several runs beside each other: what they reached, and what it cost them to get there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from rich.table import Table

COSTS = (
    ("rounds", "rounds", 1.0),
    ("bytes", "MB", 1e-6),
    ("sim_seconds", "virtual s", 1.0),
    ("client_gradients", "gradients", 1.0),
)
"""Name, heading and factor of what a target costs."""


def comparison(
    histories: Sequence[tuple[str, pd.DataFrame]], metric: str, target: float | None
) -> list[dict[str, object]]:
    """Return a row a run: final and best value of a metric, and the cost of reaching a target.

    Args:
        histories: name and rounds of each run.
        metric: a column of `rounds.csv` that has a better direction.
        target: a value of it; None: none.

    Returns:
        For each run `run`, `final`, `best`, `best_round`, and with a target `reached` (whether) and
        `rounds`, `bytes`, `sim_seconds`, `client_gradients` up to the first round at the target:
        NaN where it was not reached or not measured.

    Raises:
        ConfigError: the metric is not known or has no better direction, or a run did not measure
            it.
    """
    better = {column.name: column.better for column in ROUND_COLUMNS}
    if metric not in better:
        raise unknown_name("--metric", metric, [name for name, way in better.items() if way])
    if better[metric] is None:
        allowed = ", ".join(name for name, way in better.items() if way)
        raise ConfigError(
            f'got "{metric}", of which neither more nor less is better; use one of {allowed}',
            key="--metric",
        )
    is_higher = better[metric] == "higher"
    rows: list[dict[str, object]] = []
    for name, history in histories:
        values = history.set_index("round")[metric].dropna()
        if values.empty:
            raise ConfigError(f'"{name}" did not measure it', key=f"--metric {metric}")
        best_round = int(str(values.idxmax() if is_higher else values.idxmin()))
        row: dict[str, object] = {
            "run": name,
            "final": float(values.iloc[-1]),
            "best": float(values.loc[best_round]),
            "best_round": best_round,
        }
        if target is not None:
            there = values[values >= target] if is_higher else values[values <= target]
            row["reached"] = bool(len(there))
            first = int(there.index[0]) if len(there) else None
            row |= _cost(history, first)
        rows.append(row)
    return rows


def _cost(history: pd.DataFrame, round: int | None) -> dict[str, float]:
    """Return what the rounds up to one cost."""
    if round is None:
        return {name: math.nan for name, _, _ in COSTS}
    row = history[history["round"] == round].iloc[-1]
    return {
        "rounds": float(round),
        "bytes": float(row["bytes_up"] + row["bytes_down"]),
        "sim_seconds": float(row["sim_seconds"]),
        "client_gradients": float(row["client_gradients"]),
    }


def comparison_table(
    rows: Sequence[Mapping[str, object]], metric: str, target: float | None
) -> Table:
    """Return the rows as a table for the terminal (rich), without columns that no run measured.

    Args:
        rows: from `comparison`.
        metric: their metric.
        target: their target.
    """
    from rich.table import Table

    table = Table(title=metric, title_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("final", "best", "in round"):
        table.add_column(heading, justify="right")
    shown = []
    if target is not None:
        shown = [cost for cost in COSTS if any(_is_number(row[cost[0]]) for row in rows)]
        for _, heading, _ in shown:
            table.add_column(f"{heading} to {target:g}", justify="right")
        if not shown:
            table.add_column(f"rounds to {target:g}", justify="right")
    for row in rows:
        cells = [str(row["run"]), f"{row['final']:.4f}", f"{row['best']:.4f}"]
        cells.append(str(row["best_round"]))
        for name, _, factor in shown:
            value = row[name]
            assert isinstance(value, float)
            cells.append(_amount(value * factor) if row["reached"] else "not reached")
        if target is not None and not shown:
            cells.append("not reached")
        table.add_row(*cells)
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _amount(value: float) -> str:
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
