"""Schedules that rise again: warm restarts, cyclical, 1Cycle, and the cyclic rate of SWA."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from fedopt.schedules.closed_forms import RateOnly, Values


@dataclass(frozen=True)
class CosineRestarts(RateOnly):
    """Cosine annealing that begins again after T_0, T_0 T_mult, T_0 T_mult^2, ... units.

    lr(t) = eta_min + (lr - eta_min) (1 + cos(pi t_i / T_i)) / 2, t_i since the last restart.

    Source: Loshchilov & Hutter 2017, equation 5;
        torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.
    """

    T_0: int = 10
    T_mult: int = 1
    eta_min: float = 0.0

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        t = np.asarray(t, dtype=np.float64)
        if self.T_mult == 1:
            since, length = np.mod(t, self.T_0), np.full(t.shape, float(self.T_0))
        else:
            # Cycle n begins at T_0 (m^n - 1) / (m - 1): all beginnings up to the latest t.
            starts, at, size = [], 0, self.T_0
            while at <= t.max(initial=0):
                starts.append(at)
                at, size = at + size, size * self.T_mult
            index = np.searchsorted(starts, t, side="right") - 1
            since = t - np.array(starts)[index]
            length = self.T_0 * float(self.T_mult) ** index
        turn: Values = (1 + np.cos(np.pi * since / length)) / 2
        return self.eta_min + (self.base - self.eta_min) * turn


@dataclass(frozen=True)
class Cyclical:
    """lr(t) = base_lr + (max_lr - base_lr) s(t), a triangle between two rates.

    With up = step_size_up and down = step_size_down (None: up), cycle = floor(1 + t / (up + down))
    and x = 1 + t / (up + down) - cycle in [0, 1): the tent is x / r up to r = up / (up + down),
    (1 - x) / (1 - r) from there on. s is the tent times 1 (`triangular`), 2^(1 - cycle)
    (`triangular2`) or gamma^t (`exp_range`). Momentum mirrors it:
    max_momentum - (max_momentum - base_momentum) s(t).

    Source: Smith 2017, section 3.1; torch.optim.lr_scheduler.CyclicLR.
    """

    base_lr: float
    max_lr: float
    step_size_up: int | None = None
    step_size_down: int | None = None
    mode: str = "triangular"
    gamma: float = 1.0
    cycle_momentum: bool = False
    base_momentum: float = 0.8
    max_momentum: float = 0.9

    @classmethod
    def create(
        cls,
        lr: float,
        base_lr: float | None = None,
        max_lr: float | None = None,
        cycle_momentum: bool | None = None,
        **options: Any,
    ) -> Self:
        """Return the schedule of an optimizer.

        Args:
            lr: the optimizer's learning rate, > 0.
            base_lr: the lower rate; by default a quarter of the upper (Smith 2017, section 3.3:
                1/3 or 1/4).
            max_lr: the upper rate; by default `lr`.
            cycle_momentum: whether momentum is cycled; None: not.
            options: the other fields.

        Raises:
            ValueError: `base_lr` is above `max_lr`; the text begins with the option.
        """
        top = lr if max_lr is None else max_lr
        base = top / 4 if base_lr is None else base_lr
        if base > top:
            raise ValueError(
                f"base_lr: must be <= max_lr = {top:g} (the optimizer's lr, where max_lr is not "
                f"given), got {base:g}"
            )
        return cls(base, top, cycle_momentum=bool(cycle_momentum), **options)

    @property
    def base(self) -> float:
        """The learning rate that warm-up leads to."""
        return self.base_lr

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        return self.base_lr + (self.max_lr - self.base_lr) * self._shape(t, span)

    def momentum(self, t: Values, span: int) -> Values | None:
        """Return the momenta, where they are cycled."""
        if not self.cycle_momentum:
            return None
        return self.max_momentum - (self.max_momentum - self.base_momentum) * self._shape(t, span)

    def _shape(self, t: Values, span: int) -> Values:
        t = np.asarray(t, dtype=np.float64)
        up = float(self.step_size_up or max(1.0, span / 2))
        down = float(self.step_size_down or up)
        total, ratio = up + down, up / (up + down)
        cycle = np.floor(1 + t / total)
        x = 1 + t / total - cycle
        # torch places a point that rounding leaves at r on the rising side.
        tent: Values = np.where(x <= ratio, x / ratio, (x - 1) / (ratio - 1))
        if self.mode == "triangular2":
            tent = tent / 2 ** (cycle - 1)
        if self.mode == "exp_range":
            tent = tent * self.gamma**t
        return tent


@dataclass(frozen=True)
class OneCycle:
    """One rise to max_lr and one fall far below the start, over the span.

    With T the span and p = pct_start in (0, 1): from max_lr / div_factor at t = 0 to max_lr at
    p T - 1, then down to max_lr / (div_factor final_div_factor) at T - 1, and no further. With
    `three_phase`, as in the paper, first down to the start, at 2 (p T - 1), and then to the end;
    there p < 0.5, or the run ends before the fall does. From a to b, s of the way, is
    a + (b - a) s (`linear`) or b + (a - b) (1 + cos(pi s)) / 2 (`cos`). Momentum goes the other
    way, between max_momentum and base_momentum.

    Source: Smith & Topin 2019, section 3; torch.optim.lr_scheduler.OneCycleLR.
    """

    max_lr: float
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    three_phase: bool = False
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    cycle_momentum: bool = False
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    @classmethod
    def create(
        cls,
        lr: float,
        max_lr: float | None = None,
        cycle_momentum: bool | None = None,
        **options: Any,
    ) -> Self:
        """Return the schedule of an optimizer.

        Args:
            lr: the optimizer's learning rate, > 0.
            max_lr: the greatest rate; by default `lr`.
            cycle_momentum: whether momentum is cycled; None: not.
            options: the other fields.
        """
        top = lr if max_lr is None else max_lr
        return cls(top, cycle_momentum=bool(cycle_momentum), **options)

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        levels = [first, self.max_lr, first, last] if self.three_phase else []
        return self._through(t, span, levels or [first, self.max_lr, last])

    def momentum(self, t: Values, span: int) -> Values | None:
        """Return the momenta, where they are cycled."""
        if not self.cycle_momentum:
            return None
        high, low = self.max_momentum, self.base_momentum
        levels = [high, low, high, high] if self.three_phase else [high, low, high]
        return self._through(t, span, levels)

    def _through(self, t: Values, span: int, levels: list[float]) -> Values:
        """Return the values on the way through the levels, one a phase's end."""
        t = np.asarray(t, dtype=np.float64)
        turn = self.pct_start * span - 1
        ends = [turn, 2 * turn, span - 1.0] if self.three_phase else [turn, span - 1.0]
        found = np.full(t.shape, levels[-1])
        start = 0.0
        done = np.zeros(t.shape, dtype=bool)
        for end, (a, b) in zip(ends, pairwise(levels), strict=True):
            length = end - start
            # A client with more steps than others has times between T - 1 and T.
            share = np.minimum((t - start) / length, 1.0) if length else np.ones(t.shape)
            inside = ~done & ((t <= end) | (end == ends[-1]))
            found = np.where(inside, self._anneal(a, b, share), found)
            done |= inside
            start = end
        return found

    def _anneal(self, a: float, b: float, share: Values) -> Values:
        if self.anneal_strategy == "linear":
            return (b - a) * share + a
        return b + (a - b) / 2 * (np.cos(np.pi * share) + 1)


@dataclass(frozen=True)
class SwaCyclic(RateOnly):
    """The cyclic rate of SWA: within each cycle of c units from lr1 down to lr2.

    From start span on, at the i-th unit (i from 1): lr = (1 - s) lr1 + s lr2,
    s = (mod(i - 1, c) + 1) / c; models are best averaged where s = 1. Before that the base rate.

    Source: Izmailov et al. 2018 (cyclical rate); Caldarola et al. 2022 (FedAvg + SWA).
    """

    lr1: float
    lr2: float
    cycle: int = 5
    start: float = 0.75

    @classmethod
    def create(
        cls, lr: float, lr1: float | None = None, lr2: float | None = None, **options: Any
    ) -> Self:
        """Return the schedule of an optimizer.

        Args:
            lr: the optimizer's learning rate, > 0.
            lr1: the rate that a cycle falls from; by default `lr`.
            lr2: the rate that it ends with; by default `lr1` / 100.
            options: the other fields.

        Raises:
            ValueError: `lr2` is above `lr1`; the text begins with the option.
        """
        high = lr if lr1 is None else lr1
        low = high / 100 if lr2 is None else lr2
        if low > high:
            raise ValueError(
                f"lr2: must be <= lr1 = {high:g} (the optimizer's lr, where lr1 is not given), "
                f"got {low:g}"
            )
        return cls(lr, high, low, **options)

    def lr(self, t: Values, span: int) -> Values:
        """Return the learning rates."""
        t = np.asarray(t, dtype=np.float64)
        since = t - np.floor(self.start * span)
        share = (np.mod(np.floor(since), self.cycle) + 1) / self.cycle
        return np.where(since < 0, self.base, (1 - share) * self.lr1 + share * self.lr2)
