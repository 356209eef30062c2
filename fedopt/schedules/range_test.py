"""The learning-rate range test: which bounds a curve of loss against learning rate proposes.

Source: Smith 2017, section 3.3; Smith & Topin 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError

Values = npt.NDArray[np.float64]

EDGE = 0.05
"""The fall begins and ends where this share of it is done, and is left to do."""

BETA = 0.7
"""Smoothing of the curve."""

NOISE = 4.0
"""A curve that falls by fewer standard deviations of its own noise has not fallen."""


@dataclass(frozen=True)
class RangeSuggestion:
    """What a range test proposes; None where the curve does not say.

    Args:
        base_lr: where the smoothed loss begins to fall: the lower bound of a cyclical schedule.
        max_lr: where it has all but stopped falling, before it rises or becomes ragged: the upper
            bound, and 1Cycle's greatest rate.
        steepest_lr: where it falls fastest: a constant rate that is safe.
        diverged_at: the first rate at which the loss is not finite, if any.
        reason: why nothing is proposed, or empty.
        best_lr: where the smoothed loss is least, >= max_lr.
    """

    base_lr: float | None
    max_lr: float | None
    steepest_lr: float | None
    diverged_at: float | None
    reason: str = ""
    best_lr: float | None = None


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

    m_i = beta m_(i-1) + (1 - beta) x_i from m_0 = 0; the average is m_i / (1 - beta^i). From the
    first value that is not finite on, it is infinite.

    Args:
        losses: `[N]`.
        beta: weight of the past, in [0, 1).

    Raises:
        ConfigError: beta is outside its range.

    Source: the correction is that of Kingma & Ba 2015, section 3.
    """
    if not 0 <= beta < 1:
        raise ConfigError(f"got {beta!r}; must be in [0, 1)", key="beta")
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

    The loss is smoothed. Its fall is from its greatest to its least value, the least being
    best_lr's. base_lr is the first rate from which on 5 % of the fall is done, max_lr the first
    at which 95 % is; steepest_lr, between them, where it falls fastest over log(rate). There are
    no bounds where the curve falls by less than four standard deviations of its own noise, or to
    its very end, or rises from the beginning.

    Args:
        rates: learning rates > 0, rising, `[N]`.
        losses: loss at each, `[N]`; not finite where training diverged.

    Raises:
        ConfigError: rates and losses are not of one length, or the rates do not rise from > 0.

    Source: Smith 2017, section 3.3: "Note the learning rate value when the accuracy starts to
        increase and when the accuracy slows, becomes ragged, or starts to fall."
    """
    rates, losses = np.asarray(rates, np.float64), np.asarray(losses, np.float64)
    if rates.ndim != 1 or rates.shape != losses.shape:
        raise ConfigError(
            f"a curve needs one loss for each rate, got shapes {rates.shape} and {losses.shape}"
        )
    if not (np.diff(rates, prepend=0.0) > 0).all():
        raise ConfigError("a curve needs rates > 0 that rise")
    broken = np.flatnonzero(~np.isfinite(losses))
    diverged_at = float(rates[broken[0]]) if len(broken) else None
    curve = smooth(losses)
    known = curve[np.isfinite(curve)]

    def nothing(reason: str) -> RangeSuggestion:
        return RangeSuggestion(None, None, None, diverged_at, reason)

    if len(known) < 3:
        return nothing("fewer than three finite losses: begin with a lower rate")
    least = int(known.argmin())
    top = int(known[: least + 1].argmax())
    fall = float(known[top] - known[least])
    flat = 1e-3 * abs(float(known[top]))
    if least - top < 2 or fall <= max(flat, NOISE * _noise(losses[: len(known)])):
        return nothing(
            "the loss never falls by more than its noise: begin with a lower rate, or give it more "
            "rounds"
        )
    if least == len(known) - 1 and diverged_at is None:
        return nothing("the loss still falls at the highest rate: end with a higher rate")
    done = (known[top] - known[: least + 1]) / fall
    first = int(np.flatnonzero(done < EDGE)[-1]) + 1
    last = max(first, int(np.flatnonzero(done >= 1 - EDGE)[0]))
    slopes = np.gradient(known[: least + 1], np.log(rates[: least + 1]))
    steepest = first + int(slopes[first : last + 1].argmin())
    return RangeSuggestion(
        base_lr=float(rates[first]),
        max_lr=float(rates[last]),
        steepest_lr=float(rates[steepest]),
        diverged_at=diverged_at,
        best_lr=float(rates[least]),
    )


def _noise(losses: Values) -> float:
    """Return the standard deviation of a curve's noise, from its median second difference."""
    if len(losses) < 4:
        return 0.0
    # Of white noise of deviation s the second difference has sqrt(6) s; 0.6745 of a deviation is
    # the median of a normal variable's size.
    return float(np.median(np.abs(np.diff(losses, 2)))) / (0.6745 * 6**0.5)
