"""The schedules that a configuration can name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from fedopt.registry import Entry, Options, register

SCOPE = (
    "what t counts: within, the local steps of a round (begins again each round); round, rounds; "
    "across, the steps of the whole run"
)


class ScheduleOptions(Options):
    """What every schedule but 1Cycle and plateau takes."""

    scope: Literal["within", "round", "across"] = Field("round", description=SCOPE)
    warmup: int = Field(
        0, ge=0, description="units of t of linear warm-up, after which the schedule begins, >= 0"
    )
    warmup_start_factor: float = Field(
        1 / 3, gt=0, le=1, description="what warm-up begins with, times lr, in (0, 1]"
    )


class StepOptions(ScheduleOptions):
    """lr gamma^floor(t / step_size)."""

    step_size: int = Field(30, ge=1, description="units of t between decays, >= 1")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of a decay, in (0, 1]")


class MultiStepOptions(ScheduleOptions):
    """lr gamma^(milestones passed)."""

    milestones: tuple[int, ...] = Field(
        strict=False, description="t of the decays, rising integers >= 1"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor of a decay, in (0, 1]")

    @model_validator(mode="after")
    def _rising(self) -> MultiStepOptions:
        values = self.milestones
        if not values or values[0] < 1 or any(b <= a for a, b in pairwise(values)):
            raise ValueError(f"milestones: must be rising integers >= 1, got {list(values)}")
        return self


class ExponentialOptions(ScheduleOptions):
    """lr gamma^t."""

    gamma: float = Field(0.99, gt=0, le=1, description="factor a unit of t, in (0, 1]")


class InverseTimeOptions(ScheduleOptions):
    """lr / (1 + k t)."""

    k: float = Field(0.01, ge=0, description="speed of the decay a unit of t, >= 0")


class PolynomialOptions(ScheduleOptions):
    """lr (1 - t / T)^power."""

    total_iters: int | None = Field(
        None, ge=1, description="T, after which lr is 0, >= 1 (default: the span)"
    )
    power: float = Field(1.0, gt=0, description="power of the decay, > 0")


class LinearOptions(ScheduleOptions):
    """lr times a factor that goes from one number to another."""

    start_factor: float = Field(1 / 3, gt=0, le=1, description="factor at t = 0, in (0, 1]")
    end_factor: float = Field(1.0, ge=0, le=1, description="factor from T on, in [0, 1]")
    total_iters: int = Field(5, ge=1, description="T, the units of t it takes, >= 1")


class CosineOptions(ScheduleOptions):
    """Half a cosine from lr to eta_min."""

    T_max: int | None = Field(
        None, ge=1, description="units of t to eta_min, >= 1 (default: the span)"
    )
    eta_min: float = Field(0.0, ge=0, description="the least learning rate, in [0, lr]")


class CosineRestartsOptions(ScheduleOptions):
    """Half cosines from lr to eta_min, one after another."""

    T_0: int = Field(10, ge=1, description="units of t of the first, >= 1")
    T_mult: int = Field(1, ge=1, description="factor of each one's length to the last, >= 1")
    eta_min: float = Field(0.0, ge=0, description="the least learning rate, in [0, lr]")


def _no_warm_up(table: Any, reason: str) -> None:
    """Refuse the options of warm-up, with a reason."""
    for key in ("warmup", "warmup_start_factor"):
        if isinstance(table, Mapping) and key in table:
            raise ValueError(f"{key}: {reason}")


def _momentum_range(base: float, most: float) -> None:
    if base > most:
        raise ValueError(
            f"base_momentum: must be <= max_momentum = {most:g}, got {base:g} (both in [0, 1))"
        )


class CyclicalOptions(ScheduleOptions):
    """A triangle between two rates."""

    scope: Literal["within", "round", "across"] = Field("within", description=SCOPE)
    base_lr: float | None = Field(
        None, gt=0, description="the lower rate, > 0 (default: max_lr / 4)"
    )
    max_lr: float | None = Field(
        None, gt=0, description="the upper rate, >= base_lr (default: the optimizer's lr)"
    )
    step_size_up: int | None = Field(
        None, ge=1, description="units of t to rise, >= 1 (default: half the span)"
    )
    step_size_down: int | None = Field(
        None, ge=1, description="units of t to fall, >= 1 (default: step_size_up)"
    )
    mode: Literal["triangular", "triangular2", "exp_range"] = Field(
        "triangular",
        description="triangular: equal cycles; triangular2: each half as high as the last; "
        "exp_range: height gamma^t",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="of exp_range, in (0, 1]")
    cycle_momentum: bool | None = Field(
        None,
        description="whether momentum (Adam: beta1) falls while the rate rises (default: where "
        "the optimizer has momentum)",
    )
    base_momentum: float = Field(0.8, ge=0, lt=1, description="at max_lr, in [0, 1)")
    max_momentum: float = Field(0.9, ge=0, lt=1, description="at base_lr, in [0, 1)")

    @model_validator(mode="after")
    def _ordered(self) -> CyclicalOptions:
        if self.base_lr is not None and self.max_lr is not None and self.max_lr < self.base_lr:
            raise ValueError(f"max_lr: must be >= base_lr = {self.base_lr:g}, got {self.max_lr:g}")
        _momentum_range(self.base_momentum, self.max_momentum)
        return self


class OneCycleOptions(Options):
    """One rise and one long fall over the span."""

    scope: Literal["within", "round", "across"] = Field("within", description=SCOPE)
    max_lr: float | None = Field(
        None, gt=0, description="the greatest rate, > 0 (default: the optimizer's lr)"
    )
    pct_start: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="share of the rise, in (0, 1); below 0.5 with three_phase, or the end is cut "
        "off, as in torch",
    )
    anneal_strategy: Literal["cos", "linear"] = Field("cos", description="form of rise and fall")
    three_phase: bool = Field(
        False,
        description="the paper's form: the fall ends where the rise began, a third phase goes "
        "far below",
    )
    div_factor: float = Field(25.0, ge=1, description="max_lr over the first rate, >= 1")
    final_div_factor: float = Field(1e4, ge=1, description="first rate over the last, >= 1")
    cycle_momentum: bool | None = Field(
        None,
        description="whether momentum (Adam: beta1) falls while the rate rises (default: where "
        "the optimizer has momentum)",
    )
    base_momentum: float = Field(0.85, ge=0, lt=1, description="at max_lr, in [0, 1)")
    max_momentum: float = Field(0.95, ge=0, lt=1, description="at both ends, in [0, 1)")

    @model_validator(mode="before")
    @classmethod
    def _warms_up_itself(cls, value: Any) -> Any:
        _no_warm_up(value, "1Cycle begins with its own warm-up, pct_start of the span")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> OneCycleOptions:
        _momentum_range(self.base_momentum, self.max_momentum)
        return self


class SwaCyclicOptions(ScheduleOptions):
    """The cyclic rate of SWA."""

    start: float = Field(
        0.75, ge=0, lt=1, description="share of the span before the cycles begin, in [0, 1)"
    )
    cycle: int = Field(5, ge=1, description="c, units of t in a cycle, >= 1; average every c")
    lr1: float | None = Field(
        None, gt=0, description="rate that a cycle falls from, > 0 (default: the optimizer's lr)"
    )
    lr2: float | None = Field(
        None, gt=0, description="rate that it ends with, in (0, lr1] (default: lr1 / 100)"
    )

    @model_validator(mode="after")
    def _falls(self) -> SwaCyclicOptions:
        if self.lr1 is not None and self.lr2 is not None and self.lr2 > self.lr1:
            raise ValueError(f"lr2: must be <= lr1 = {self.lr1:g}, got {self.lr2:g}")
        return self


class PlateauOptions(Options):
    """Falls when a metric no longer improves."""

    scope: Literal["round"] = Field("round", description="one value a round")
    metric: Literal["validation_loss", "validation_accuracy", "train_loss"] = Field(
        "validation_loss", description="what is watched, whenever it is measured"
    )
    factor: float = Field(0.1, gt=0, lt=1, description="factor of a reduction, in (0, 1)")
    patience: int = Field(
        10, ge=0, description="measurements in a row without progress that are borne, >= 0"
    )
    threshold: float = Field(1e-4, ge=0, description="what counts as progress, >= 0")
    threshold_mode: Literal["rel", "abs"] = Field(
        "rel", description="whether threshold is a share of the best value"
    )
    cooldown: int = Field(
        0, ge=0, description="measurements after a reduction that are not counted, >= 0"
    )
    min_lr: float = Field(0.0, ge=0, description="the least learning rate, >= 0")
    eps: float = Field(1e-8, ge=0, description="smaller reductions do not happen, >= 0")

    @model_validator(mode="before")
    @classmethod
    def _has_no_time(cls, value: Any) -> Any:
        _no_warm_up(value, "a plateau follows a metric, not time; it has no warm-up")
        return value


def _schedule(name: str, options: type[Options], target: str, text: str, source: str) -> None:
    register(
        Entry(
            kind="schedules",
            name=name,
            target=f"fedopt.schedules.{target}",
            options=options,
            description=text,
            source=source,
        )
    )


_schedule("constant", ScheduleOptions, "closed_forms:Constant", "always lr", "-")
_schedule("step", StepOptions, "closed_forms:Step", "lr gamma^floor(t / step_size)", "torch StepLR")
_schedule(
    "multi_step",
    MultiStepOptions,
    "closed_forms:MultiStep",
    "lr times gamma at each milestone",
    "torch MultiStepLR",
)
_schedule(
    "exponential",
    ExponentialOptions,
    "closed_forms:Exponential",
    "lr gamma^t",
    "torch ExponentialLR",
)
_schedule(
    "inverse_time",
    InverseTimeOptions,
    "closed_forms:InverseTime",
    "lr / (1 + k t)",
    "Robbins & Monro 1951",
)
_schedule(
    "polynomial",
    PolynomialOptions,
    "closed_forms:Polynomial",
    "lr (1 - t / T)^power",
    "torch PolynomialLR",
)
_schedule(
    "linear",
    LinearOptions,
    "closed_forms:Linear",
    "lr times a factor that grows or falls evenly: linear warm-up",
    "torch LinearLR",
)
_schedule(
    "cosine",
    CosineOptions,
    "closed_forms:Cosine",
    "half a cosine from lr to eta_min",
    "Loshchilov & Hutter 2017, equation 5; torch CosineAnnealingLR",
)
_schedule(
    "cosine_restarts",
    CosineRestartsOptions,
    "cycles:CosineRestarts",
    "half cosines one after another, each T_mult times as long as the last",
    "Loshchilov & Hutter 2017, equation 5; torch CosineAnnealingWarmRestarts",
)
_schedule(
    "cyclical",
    CyclicalOptions,
    "cycles:Cyclical",
    "a triangle between base_lr and max_lr",
    "Smith 2017, section 3.1; torch CyclicLR",
)
_schedule(
    "one_cycle",
    OneCycleOptions,
    "cycles:OneCycle",
    "1Cycle: one rise to max_lr, one fall far below, momentum the other way",
    "Smith & Topin 2019, section 3; torch OneCycleLR",
)
_schedule(
    "swa_cyclic",
    SwaCyclicOptions,
    "cycles:SwaCyclic",
    "constant, then falling from lr1 to lr2 in each cycle: the rate to average under",
    "Izmailov et al. 2018 (cyclical rate); Caldarola et al. 2022 (FedAvg + SWA)",
)
_schedule(
    "plateau",
    PlateauOptions,
    "plateau:Plateau",
    "falls on the server when a metric no longer improves",
    "torch ReduceLROnPlateau",
)
