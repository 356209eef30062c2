"""Pacing: how much of the data is available at each moment of training."""

from __future__ import annotations

import math
from collections.abc import Callable

from fedopt.errors import did_you_mean


def _polynomial(power: float) -> Callable[[float], float]:
    return lambda x: x**power


PACINGS: dict[str, Callable[[float], float]] = {
    "linear": _polynomial(1),
    "quadratic": _polynomial(2),
    "root": _polynomial(0.5),
    "exponential": lambda x: math.expm1(10 * x) / math.expm1(10),
    "logarithmic": lambda x: 1 + 0.1 * math.log(x + math.exp(-10)),
    "step": lambda x: float(math.floor(x)),
}
"""Name -> growth from 0 at x = 0 to 1 at x = 1, where x = 1 is when all data are available."""


def pacing_share(name: str, progress: float, start: float = 0.2, full_at: float = 0.8) -> float:
    """Return the share of the data that is available, start + (1 - start) growth(t / full_at).

    Args:
        name: `linear`, `quadratic`, `root`, `exponential`, `logarithmic` or `step`.
        progress: t, the share of training that is over, in [0, 1].
        start: b, the share at t = 0, in (0, 1].
        full_at: a, when all data are available, in (0, 1].

    Returns:
        The share, in [start, 1]; exactly 1 from t = full_at on.

    Raises:
        ValueError: a name that is not known, or a number out of range: a pacing with full_at > 1
            never reaches all data.

    Source: Wu, Dyer and Neyshabur 2021, "When Do Curricula Work?", table 2.
    """
    if name not in PACINGS:
        raise ValueError(
            f'pacing: "{name}" is not known.{did_you_mean(name, list(PACINGS))} '
            f"One of: {', '.join(PACINGS)}."
        )
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}")
    if not 0 < start <= 1:
        raise ValueError(f"start must be in (0, 1], got {start}")
    if not 0 < full_at <= 1:
        more = ": the pacing never reaches all data" if full_at > 1 else ""
        raise ValueError(f"full_at must be in (0, 1], got {full_at}{more}")
    if progress >= full_at:
        return 1.0
    grown = start + (1 - start) * PACINGS[name](progress / full_at)
    return min(1.0, max(start, grown))


def available(share: float, examples: int) -> int:
    """Return how many of some examples a share is: at least 1, rounded up but for rounding errors.

    Args:
        share: in (0, 1].
        examples: n >= 1.
    """
    return min(examples, max(1, math.ceil(share * examples - 1e-9)))
