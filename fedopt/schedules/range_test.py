"""The learning-rate range test: which bounds a curve of loss against learning rate proposes.

Source: Smith 2017, section 3.3; Smith & Topin 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError

Values = npt.NDArray[np.float64]

FALLS_BY = 0.05
"""The loss begins to fall where it has lost this share of what it loses in all."""

BETA = 0.7
"""Smoothing of the curve."""


@dataclass(frozen=True)
class RangeSuggestion:
    """What a range test proposes; None where the curve does not say.

    Args:
        base_lr: where the smoothed loss begins to fall: the lower bound of a cyclical schedule.
        max_lr: where it stops falling: the upper bound, and 1Cycle's greatest rate.
        steepest_lr: where it falls fastest: a constant rate that is safe.
        diverged_at: the first rate at which the loss is not finite, if any.
        reason: why nothing is proposed, or empty.
    """

    base_lr: float | None
    max_lr: float | None
    steepest_lr: float | None
    diverged_at: float | None
    reason: str = ""


def range_rates(low: float, high: float, count: int) -> Values:
    """Return `count` rates that grow geometrically from low to high, `[count]`.

    Raises:
        ConfigError: not 0 < low < high, or fewer than two.
    """
    if not 0 < low < high < np.inf:
        raise ConfigError(f"a range needs 0 < low < high, got low {low:g} and high {high:g}")
    if count < 2:
        raise ConfigError(f"a range needs at least 2 rates, got {count}")
    rates: Values = np.geomspace(low, high, count)
    return rates


def smooth(losses: Values, beta: float = BETA) -> Values:
    """Return the exponential moving average, corrected for its start, `[N]`.

    From the first value that is not finite on, it is infinite.

    Args:
        losses: `[N]`.
        beta: weight of the past, in [0, 1).
    """
    out = np.full(len(losses), np.inf)
    mean = 0.0
    for i, loss in enumerate(losses):
        if not np.isfinite(loss):
            break
        mean = beta * mean + (1 - beta) * loss
        out[i] = mean / (1 - beta ** (i + 1))
    return out


def suggest(rates: Values, losses: Values) -> RangeSuggestion:
    """Return the bounds that a curve proposes, or why it proposes none.

    The loss is smoothed. max_lr is the rate of its minimum; base_lr the first rate at which it
    has lost 5 % of what it loses down to there; steepest_lr, between them, where it falls fastest
    over log(rate). A curve that never falls, or falls to its very end, has no upper bound.

    Args:
        rates: learning rates, rising, `[N]`.
        losses: loss at each, `[N]`; not finite where training diverged.
    """
    rates, losses = np.asarray(rates, float), np.asarray(losses, float)
    broken = np.flatnonzero(~np.isfinite(losses))
    diverged_at = float(rates[broken[0]]) if len(broken) else None
    curve = smooth(losses)
    finite = int(np.isfinite(curve).sum())

    def nothing(reason: str) -> RangeSuggestion:
        return RangeSuggestion(None, None, None, diverged_at, reason)

    if finite < 3:
        return nothing("fewer than three finite losses: begin with a lower rate")
    known = curve[:finite]
    lowest = int(known.argmin())
    drop = float(known[: lowest + 1].max() - known[lowest])
    if lowest == 0 or drop <= 1e-3 * abs(float(known[0])):
        return nothing("the loss never falls: begin with a lower rate, or give it more rounds")
    if lowest == finite - 1 and diverged_at is None:
        return nothing("the loss still falls at the highest rate: end with a higher rate")
    top = int(known[: lowest + 1].argmax())
    fallen = known[top : lowest + 1] <= known[top] - FALLS_BY * drop
    begins = top + int(fallen.argmax())
    slopes = np.gradient(known[: lowest + 1], np.log(rates[: lowest + 1]))
    steepest = begins + int(slopes[begins:].argmin())
    return RangeSuggestion(
        float(rates[begins]), float(rates[lowest]), float(rates[steepest]), diverged_at
    )
