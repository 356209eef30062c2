"""The functions of `fedopt.schedules`: a schedule by name, and its values over time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError
from fedopt.registry import entries, get
from fedopt.schedules.closed_forms import Schedule, WarmedUp
from fedopt.validation import validate

Values = npt.NDArray[np.float64]


def make_schedule(name: str, lr: float, **options: Any) -> Schedule:
    """Return the schedule called `name`.

    Args:
        name: one of `list_schedules()`.
        lr: the optimizer's learning rate, > 0, that the schedule begins with or derives its
            bounds from.
        options: as in `[local.schedule]`; `scope` is checked and has no effect here. Where
            `cycle_momentum` is not given momentum is not cycled.

    Raises:
        ConfigError: the name or an option is unknown or out of range, or `plateau`, which is no
            function of time (see `fedopt.schedules.plateau`).
    """
    if isinstance(lr, bool) or not isinstance(lr, int | float | np.number) or not 0 < lr < np.inf:
        raise ConfigError(f"got {lr!r}; must be a number > 0", key="lr")
    entry = get("schedules", name, key="schedule")
    checked = validate(entry.options, options, name)
    chosen = checked.model_dump()
    if name == "plateau":
        raise ConfigError(
            '"plateau" depends on a metric, not on time: use fedopt.schedules.plateau.Plateau',
            key="schedule",
        )
    chosen.pop("scope")
    warmup, start_factor = chosen.pop("warmup", 0), chosen.pop("warmup_start_factor", 1.0)
    try:
        schedule = entry.load().create(float(lr), **chosen)
    except ValueError as error:  # begins with the name of the option to blame
        raise ConfigError(f"{name}.{error}") from None
    return WarmedUp(schedule, warmup, start_factor) if warmup else schedule


def values(name: str, steps: int, lr: float = 0.1, **options: Any) -> Values:
    """Return lr(t) for t = 0..steps-1.

    Args:
        name: one of `list_schedules()`.
        steps: length of the result, and the span of schedules that have none of their own, >= 1.
        lr: the optimizer's learning rate, > 0.
        options: the schedule's, with torch's names.

    Raises:
        ConfigError: as `make_schedule`; or `steps` is not >= 1.
    """
    return make_schedule(name, lr, **_sized(name, steps, options)).lr(_times(steps), steps)


def momenta(name: str, steps: int, lr: float = 0.1, **options: Any) -> Values | None:
    """Return momentum(t) for t = 0..steps-1, or None where the schedule does not cycle it.

    Cyclical and 1Cycle schedules cycle it unless `cycle_momentum` is false, as in torch.

    Args:
        name: one of `list_schedules()`.
        steps: length of the result, >= 1.
        lr: the optimizer's learning rate, > 0.
        options: the schedule's, with torch's names.

    Raises:
        ConfigError: as `make_schedule`; or `steps` is not >= 1.
    """
    options = _sized(name, steps, options)
    known = get("schedules", name, key="schedule").options.model_fields
    if "cycle_momentum" in known and options.get("cycle_momentum") is None:
        options["cycle_momentum"] = True
    return make_schedule(name, lr, **options).momentum(_times(steps), steps)


def list_schedules() -> list[str]:
    """Return the names of all schedules."""
    return [entry.name for entry in entries("schedules")]


def _times(steps: int) -> Values:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ConfigError(f"got {steps!r}; must be an integer >= 1", key="steps")
    return np.arange(steps, dtype=np.float64)


def _sized(name: str, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without torch's `total_steps`, which must be `steps`."""
    rest = dict(options)
    if name == "one_cycle" and rest.pop("total_steps", steps) != steps:
        raise ConfigError(
            f"got {options['total_steps']!r}; the cycle lasts steps = {steps}", key="total_steps"
        )
    return rest
