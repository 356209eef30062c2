"""Whether one technique beats another over the same seeds: the interval of a mean difference.

Pure functions of numbers; which runs are compared, and by what metric, is not decided here.
Student's t is computed from the incomplete beta function, so that no statistics package is
needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedopt.errors import DataError

_EPSILON = 2.0**-52
_MOST_TERMS = 10_000


@dataclass(frozen=True)
class PairedInterval:
    """A confidence interval of the mean of paired differences a_i - b_i.

    Args:
        mean: mean difference.
        low: lower end of the interval.
        high: upper end of the interval.
        pairs: number of pairs, n.
        level: share of such intervals that cover the true mean, in (0, 1).
        p_value: two-sided p-value of the hypothesis that the mean difference is 0.
    """

    mean: float
    low: float
    high: float
    pairs: int
    level: float
    p_value: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0: at this level, there is a difference."""
        return self.low > 0 or self.high < 0


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> PairedInterval:
    """Return the interval of the mean difference a - b by Student's t on the n differences.

        d_i = a_i - b_i,    mean = 1/n sum_i d_i,    s^2 = 1/(n - 1) sum_i (d_i - mean)^2
        mean -+ t s / sqrt(n),    t the (1 + level) / 2 quantile with n - 1 degrees of freedom

    What both members of a pair share, such as a seed's split of the data and initial model,
    cancels in d_i. The differences are taken to be independent and about normal. Where all are
    equal the interval is that point, and the p-value 0, or 1 if they are all 0.

    Args:
        a: one number a pair, finite.
        b: the other number of each pair, in the same order.
        level: confidence level, in (0, 1).

    Raises:
        DataError: there are fewer than two pairs, the two differ in length, a number is not
            finite, or the level is out of range.

    Source: Student (1908), The probable error of a mean.
    """
    if len(a) != len(b):
        raise DataError(f"pairs need two numbers each, got {len(a)} and {len(b)} numbers")
    if len(a) < 2:
        raise DataError(
            f"an interval needs at least 2 pairs, got {len(a)}: one difference says nothing of "
            "how much differences vary"
        )
    if not 0 < level < 1:
        raise DataError(f"level: must be in (0, 1), got {level}")
    for name, values in (("a", a), ("b", b)):
        for pair, value in enumerate(values):
            if not math.isfinite(value):
                raise DataError(f"pair {pair}: {name} is {value}; pairs need finite numbers")
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    count = len(differences)
    if min(differences) == max(differences):
        mean = differences[0]
        return PairedInterval(mean, mean, mean, count, level, 1.0 if mean == 0 else 0.0)
    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    error = math.sqrt(variance / count)
    half = student_t_quantile(level, count - 1) * error
    p_value = student_t_tails(abs(mean) / error, count - 1)
    return PairedInterval(mean, mean - half, mean + half, count, level, p_value)


def student_t_tails(t: float, degrees: float) -> float:
    """Return the probability that |T| > t, for T of Student's distribution.

    P(|T| > t) = I_x(degrees / 2, 1 / 2) at x = degrees / (degrees + t^2), I the regularised
    incomplete beta function.

    Args:
        t: >= 0.
        degrees: degrees of freedom, > 0.

    Source: Abramowitz & Stegun, 26.7.1 and 26.5.27.
    """
    square = t * t
    x, rest = degrees / (degrees + square), square / (degrees + square)
    a, b = degrees / 2, 0.5
    if x == 0 or rest == 0:
        return x
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_scale += b * math.log(rest) - a * math.log1p(square / degrees)
    # The fraction converges fast below the mean; above it, the other tail is computed.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_scale) * _beta_fraction(a, b, x) / a
    return 1 - math.exp(log_scale) * _beta_fraction(b, a, rest) / b


def student_t_quantile(level: float, degrees: float) -> float:
    """Return the t for which P(|T| <= t) = level, to the last bits of a double.

    Args:
        level: in (0, 1).
        degrees: degrees of freedom, > 0.
    """
    outside = 1 - level
    low, high = 0.0, 1.0
    while student_t_tails(high, degrees) > outside:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if student_t_tails(middle, degrees) > outside:
            low = middle
        else:
            high = middle
    return high


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function by Lentz's algorithm.

    Source: Abramowitz & Stegun, 26.5.8; Thompson & Barnett (1986), Coulomb and Bessel functions
        of complex arguments and order, appendix.
    """
    tiny = 1e-300
    above, below = 1.0, 1 - (a + b) * x / (a + 1)
    below = 1 / (below or tiny)
    value = below
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        factor = 1.0
        for term in (even, odd):
            below = 1 / (1 + term * below or tiny)
            above = 1 + term / above or tiny
            factor = above * below
            value *= factor
        if abs(factor - 1) < 4 * _EPSILON:
            break
    return value
