"""What it cost a run to reach a target: rounds, bytes, seconds, steps.

The running best decides, so that a curve that falls below the target again has reached it; the
place between two measurements is interpolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.errors import ConfigError, unknown_name


@dataclass(frozen=True)
class Cost:
    """Something that rounds cost.

    Args:
        name: in tables and files.
        heading: for people.
        columns: of `rounds.csv`, whose sum it is.
        factor: from the columns' unit to that of the heading.
    """

    name: str
    heading: str
    columns: tuple[str, ...]
    factor: float = 1.0


COSTS: tuple[Cost, ...] = (
    Cost("rounds", "rounds", ("round",)),
    Cost("bytes", "MB", ("bytes_up", "bytes_down"), 1e-6),
    Cost("sim_seconds", "virtual s", ("sim_seconds",)),
    Cost("client_steps", "steps", ("client_steps",)),
    Cost("client_gradients", "gradients", ("client_gradients",)),
    Cost("wall_seconds", "wall s", ("wall_seconds",)),
)


@dataclass(frozen=True)
class Target:
    """A value of a metric that runs are to reach.

    Args:
        metric: a column of `rounds.csv` with a better direction.
        value: what is to be reached.
    """

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `METRIC=VALUE`.

        Raises:
            ConfigError: it is something else, or the metric has no better direction.
        """
        name, sign, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not sign or not math.isfinite(value):
            raise ConfigError(
                f'got "{text}", expected METRIC=VALUE, such as test_accuracy=0.9', key="--target"
            )
        is_higher_better(name.strip(), key="--target")
        return cls(name.strip(), value)

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


def is_higher_better(metric: str, key: str = "--metric") -> bool:
    """Return whether more of a metric is better, rather than less.

    Raises:
        ConfigError: the metric is not known, or neither is better.
    """
    better = {column.name: column.better for column in ROUND_COLUMNS}
    if metric not in better:
        raise unknown_name(key, metric, [name for name, way in better.items() if way])
    if better[metric] is None:
        allowed = ", ".join(name for name, way in better.items() if way)
        raise ConfigError(
            f'got "{metric}", of which neither more nor less is better; use one of {allowed}',
            key=key,
        )
    return better[metric] == "higher"


def crossing(values: Sequence[float], target: float, is_higher: bool) -> tuple[int, float] | None:
    """Return where the running best of measurements reaches a target.

        b_i = best of v_0..v_i,   i the first with b_i at the target or beyond,
        fraction = (target - b_(i-1)) / (b_i - b_(i-1))

    Args:
        values: measurements in order, finite.
        target: what is to be reached.
        is_higher: whether more is better.

    Returns:
        (i, fraction): the target lies at that fraction in (0, 1] of the way from measurement
        i - 1 to i. (0, 1) where the first measurement is there already: nothing is known of
        before. None where no measurement is.
    """
    sign = 1.0 if is_higher else -1.0
    best = -math.inf
    for index, value in enumerate(values):
        now = sign * value
        if now >= sign * target:
            return (0, 1.0) if index == 0 else (index, (sign * target - best) / (now - best))
        best = max(best, now)
    return None


def cost_to_target(history: pd.DataFrame, target: Target) -> dict[str, float] | None:
    """Return what a run cost up to a target, by the names of `COSTS`; None if it is not reached.

    Rounds in which the metric was not measured are passed over. A cost that was not measured is
    NaN. The fraction of a round is one of all its costs alike.

    Args:
        history: a run's rounds.
        target: what is to be reached.
    """
    is_higher = is_higher_better(target.metric, "--target")
    if target.metric not in history:
        return None
    values = history[target.metric].to_numpy(np.float64)
    known = np.flatnonzero(np.isfinite(values))
    found = crossing(values[known].tolist(), target.value, is_higher)
    if found is None:
        return None
    index, fraction = found
    return {cost.name: _between(history, cost, known, index, fraction) for cost in COSTS}


def _between(
    history: pd.DataFrame, cost: Cost, known: np.ndarray, index: int, fraction: float
) -> float:
    """Return a cost at a fraction of the way from one measured round to the next."""
    if any(column not in history for column in cost.columns):
        return math.nan
    total = sum(history[column].to_numpy(np.float64) for column in cost.columns)
    after = float(np.asarray(total)[known[index]])
    if index == 0:
        return after
    before = float(np.asarray(total)[known[index - 1]])
    return before + fraction * (after - before)
