"""A mean over repetitions with its confidence interval, and curves averaged point by point.

Pure functions of numbers. Differences between two techniques, in pairs, are in `paired.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.analysis.paired import student_t_quantile
from fedopt.errors import DataError

Floats = npt.NDArray[np.float64]
Curve = tuple[Floats, Floats]

LEVEL = 0.95
MOST_POINTS = 1000
"""Points of a common grid, at most."""


@dataclass(frozen=True)
class MeanInterval:
    """A mean and its interval.

    Args:
        mean: of the values.
        low: lower end; None for a single value, of which nothing is known.
        high: upper end, as `low`.
        n: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the interval's width, None for a single value."""
        return None if self.high is None else self.high - self.mean


def mean_interval(values: Sequence[float], level: float = LEVEL) -> MeanInterval:
    """Return the mean of independent values with the interval of Student's t.

        mean -+ t s / sqrt(n),    t the (1 + level) / 2 quantile with n - 1 degrees of freedom

    Args:
        values: one a repetition, finite, at least one.
        level: confidence level, in (0, 1).

    Raises:
        DataError: there is no value, or one is not finite.

    Source: Student (1908), The probable error of a mean.
    """
    numbers = [float(value) for value in values]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise DataError(f"a mean needs finite numbers, at least one, got {numbers}")
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return MeanInterval(mean, None, None, 1)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)
    half = student_t_quantile(level, n - 1) * math.sqrt(variance / n)
    return MeanInterval(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Band:
    """A mean curve with a pointwise interval.

    Args:
        x: where, ascending, `[T]`.
        mean: mean over the curves, `[T]`.
        low: lower ends, `[T]`; None for a single curve.
        high: upper ends, as `low`.
        n: number of curves.
    """

    x: Floats
    mean: Floats
    low: Floats | None
    high: Floats | None
    n: int


def mean_curve(curves: Sequence[Curve], level: float = LEVEL) -> Band:
    """Return the mean of curves with the interval of Student's t at each point.

    Curves measured at the same places are averaged as they are. Others, such as those of seeds
    that sent unequal bytes, are interpolated linearly onto all places of any of them that lie
    where every curve has been measured (at most 1000, evenly thinned); nothing is extrapolated.

    Args:
        curves: places, ascending, and finite values of each curve, at least one.
        level: confidence level, in (0, 1).

    Raises:
        DataError: the curves have no place in common.
    """
    if len(curves) == 1:
        x, y = curves[0]
        return Band(x, y, None, None, 1)
    first = curves[0][0]
    if all(np.array_equal(x, first) for x, _ in curves):
        grid, rows = first, np.stack([y for _, y in curves])
    else:
        grid = _common_grid([x for x, _ in curves])
        rows = np.stack([np.interp(grid, x, y) for x, y in curves])
    n = len(rows)
    mean: Floats = rows.mean(axis=0)
    half: Floats = student_t_quantile(level, n - 1) * rows.std(axis=0, ddof=1) / math.sqrt(n)
    return Band(grid, mean, mean - half, mean + half, n)


def have_common_place(curves: Sequence[Curve]) -> bool:
    """Return whether some place of the horizontal axis lies within every curve."""
    return bool(curves) and max(x[0] for x, _ in curves) <= min(x[-1] for x, _ in curves)


def _common_grid(places: Sequence[Floats]) -> Floats:
    low, high = max(x[0] for x in places), min(x[-1] for x in places)
    every = np.unique(np.concatenate([*places, np.array([low, high])]))
    grid: Floats = every[(every >= low) & (every <= high)]
    if not len(grid):
        raise DataError("the curves have no part of the horizontal axis in common")
    if len(grid) > MOST_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, MOST_POINTS).round().astype(np.int64)]
    return grid


def running_mean(values: Floats, window: int) -> Floats:
    """Return the centred mean of `window` neighbours, of fewer at the two ends, `[T]`.

    Args:
        values: `[T]`.
        window: an odd number >= 1; 1 changes nothing.
    """
    if window == 1:
        return values
    reach = window // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    # As far to one side as to the other, so that the ends are not drawn towards the middle.
    side = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    means: Floats = (total[index + side + 1] - total[index - side]) / (2 * side + 1)
    return means
