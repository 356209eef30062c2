"""Reduce on plateau: a learning rate that falls when a metric no longer improves.

It depends on what training comes to, so it is no function of time: the state is a few numbers,
and `update` a pure function of state and metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass

from fedopt.errors import unknown_name
from fedopt.schedules.catalogue import PlateauOptions
from fedopt.validation import validate


@dataclass(frozen=True)
class PlateauState:
    """What a plateau remembers.

    Args:
        lr: the learning rate now.
        best: the best metric so far, infinite before the first.
        bad_checks: checks since then without a better one.
        cooldown_left: checks for which bad ones are not counted.
    """

    lr: float
    best: float
    bad_checks: int = 0
    cooldown_left: int = 0

    def to_list(self) -> list[float]:
        """Return the state as numbers."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def from_list(cls, values: Sequence[float]) -> PlateauState:
        """Return the state that `to_list` gave."""
        lr, best, bad, cooldown = values
        return cls(lr, best, int(bad), int(cooldown))


@dataclass(frozen=True)
class Plateau:
    """lr <- max(factor lr, min_lr) after more than `patience` checks in a row without progress.

    Args:
        metric: name of the column that is watched.
        mode: "min" where a smaller metric is better, or "max".
        factor: what the learning rate is multiplied by, in (0, 1).
        patience: checks without progress that are borne, >= 0.
        threshold: what counts as progress, >= 0.
        threshold_mode: "rel", as a share of the best metric, or "abs".
        cooldown: checks after a reduction for which none is counted as bad, >= 0.
        min_lr: the least learning rate, >= 0.
        eps: a reduction by no more than this does not happen, >= 0.

    Raises:
        ConfigError: an option is out of its range.

    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, with the same options.
    """

    metric: str = "validation_loss"
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0.0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise unknown_name("plateau.mode", self.mode, ("min", "max"))
        options = asdict(self)
        del options["mode"], options["metric"]  # any column may be watched
        validate(PlateauOptions, options, "plateau")

    def begin(self, lr: float) -> PlateauState:
        """Return the state before the first check, at a learning rate."""
        return PlateauState(lr, math.inf if self.mode == "min" else -math.inf)

    def update(self, state: PlateauState, metric: float) -> PlateauState:
        """Return the state after a check; a metric that is NaN is no progress."""
        lr, best, bad, cooldown = state.lr, state.best, state.bad_checks, state.cooldown_left
        if self._is_better(metric, best):
            best, bad = metric, 0
        else:
            bad += 1
        if cooldown > 0:
            cooldown, bad = cooldown - 1, 0
        if bad > self.patience:
            lower = max(lr * self.factor, self.min_lr)
            lr = lower if lr - lower > self.eps else lr
            cooldown, bad = self.cooldown, 0
        return PlateauState(lr, best, bad, cooldown)

    def _is_better(self, metric: float, best: float) -> bool:
        if self.threshold_mode == "rel":
            if self.mode == "min":
                return metric < best * (1 - self.threshold)
            return metric > best * (1 + self.threshold)
        if self.mode == "min":
            return metric < best - self.threshold
        return metric > best + self.threshold
