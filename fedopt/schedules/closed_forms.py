"""Learning-rate schedules as closed forms: lr(t), and momentum(t) where it is cycled.

Nothing is stepped and nothing remembered: t may be any array of real times in [0, span), so that
a client anywhere in a run knows its rates without a history. At whole t each equals torch's
scheduler of the same options. Here are constant rates and decays; `fedopt.schedules.cycles` has
those that rise again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


class Schedule(Protocol):
    """A learning rate as a function of time."""

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates.

        Args:
            t: times in [0, span), any shape.
            span: the whole time that the schedule is made for, >= 1.
        """
        ...

    def momentum(self, t: Values, span: int) -> Values | None:
        """Return the momenta, or None where the schedule leaves momentum alone."""
        ...


class WarmSchedule(Schedule, Protocol):
    """A schedule that may be warmed up."""

    @property
    def base(self) -> float:
        """The learning rate that warm-up leads to."""
        ...


@dataclass(frozen=True)
class RateOnly:
    """Base of the schedules that change the learning rate alone.

    Args:
        base: the optimizer's learning rate, > 0.
    """

    base: float

    @classmethod
    def create(cls, lr: float, **options: Any) -> Self:
        """Return the schedule of an optimizer.

        Args:
            lr: the optimizer's learning rate, > 0.
            options: the other fields.

        Raises:
            ValueError: `eta_min` is above `lr`; the text begins with the option.
        """
        least = options.get("eta_min", 0.0)
        if least > lr:
            raise ValueError(f"eta_min: must be <= lr = {lr:g}, got {least:g}")
        return cls(lr, **options)

    def momentum(self, t: Values, span: int) -> Values | None:
        """Return None."""
        return None


@dataclass(frozen=True)
class Constant(RateOnly):
    """lr(t) = lr."""

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        return np.full(np.shape(t), self.base)


@dataclass(frozen=True)
class Step(RateOnly):
    """lr(t) = lr gamma^floor(t / step_size), step_size >= 1, gamma in (0, 1].

    Source: torch.optim.lr_scheduler.StepLR.
    """

    step_size: int
    gamma: float = 0.1

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        return self.base * self.gamma ** np.floor(np.asarray(t) / self.step_size)


@dataclass(frozen=True)
class MultiStep(RateOnly):
    """lr(t) = lr gamma^(number of milestones <= t), gamma in (0, 1].

    Source: torch.optim.lr_scheduler.MultiStepLR.
    """

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        passed = np.searchsorted(np.sort(self.milestones), np.asarray(t), side="right")
        rates: Values = self.base * self.gamma ** passed.astype(np.float64)
        return rates


@dataclass(frozen=True)
class Exponential(RateOnly):
    """lr(t) = lr gamma^t, gamma in (0, 1].

    Source: torch.optim.lr_scheduler.ExponentialLR.
    """

    gamma: float

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        return self.base * self.gamma ** np.asarray(t)


@dataclass(frozen=True)
class InverseTime(RateOnly):
    """lr(t) = lr / (1 + k t), k >= 0.

    Source: Robbins & Monro 1951; Li et al. 2020 (convergence of FedAvg), theorem 1.
    """

    k: float

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        return self.base / (1 + self.k * np.asarray(t))


@dataclass(frozen=True)
class Polynomial(RateOnly):
    """lr(t) = lr (1 - min(t, T) / T)^power, T = total_iters, or the span.

    Source: torch.optim.lr_scheduler.PolynomialLR.
    """

    total_iters: int | None = None
    power: float = 1.0

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        total = self.total_iters or span
        return self.base * (1 - np.minimum(t, total) / total) ** self.power


@dataclass(frozen=True)
class Linear(RateOnly):
    """lr(t) = lr (a + (b - a) min(t, T) / T): linear warm-up where a < b.

    a = start_factor in (0, 1], b = end_factor in [0, 1], T = total_iters >= 1.

    Source: torch.optim.lr_scheduler.LinearLR.
    """

    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        share = np.minimum(t, self.total_iters) / self.total_iters
        return self.base * (self.start_factor + (self.end_factor - self.start_factor) * share)


@dataclass(frozen=True)
class Cosine(RateOnly):
    """lr(t) = eta_min + (lr - eta_min) (1 + cos(pi t / T)) / 2, T = T_max, or the span.

    Beyond T it rises again, as in torch.

    Source: Loshchilov & Hutter 2017, equation 5; torch.optim.lr_scheduler.CosineAnnealingLR.
    """

    T_max: int | None = None
    eta_min: float = 0.0

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        turn = np.cos(np.pi * np.asarray(t) / (self.T_max or span))
        return self.eta_min + (self.base - self.eta_min) * (1 + turn) / 2


@dataclass(frozen=True)
class WarmedUp:
    """Linear warm-up over the first `warmup` units of t, then a schedule from its own t = 0.

    During warm-up lr(t) = b (f + (1 - f) t / warmup), f = start_factor; b is lr, or base_lr of a
    cyclical schedule. The schedule's span is what warm-up leaves of the span.

    Source: Goyal et al. 2017, section 2.2; torch.optim.lr_scheduler.SequentialLR of LinearLR.
    """

    inner: WarmSchedule
    warmup: int
    start_factor: float

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        t = np.asarray(t, dtype=np.float64)
        warming = Linear(self.inner.base, self.start_factor, 1.0, self.warmup).lr(t, span)
        after = self.inner.lr(np.maximum(t - self.warmup, 0), max(1, span - self.warmup))
        return np.where(t < self.warmup, warming, after)

    def momentum(self, t: Values, span: int) -> Values | None:
        """Return the schedule's momenta; during warm-up its first."""
        later = np.maximum(np.asarray(t, dtype=np.float64) - self.warmup, 0)
        return self.inner.momentum(later, max(1, span - self.warmup))
