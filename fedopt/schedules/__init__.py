"""Learning-rate schedules for any project, as functions of time. Imports no torch.

    from fedopt.schedules import values
    rates = values("one_cycle", 1000, max_lr=0.5)       # lr(t) for t = 0..999

The same closed forms drive the clients of a federated run; `make_schedule` returns one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.schedules.closed_forms import Schedule
    from fedopt.schedules.rates import list_schedules, make_schedule, momenta, values

__all__ = ["Schedule", "list_schedules", "make_schedule", "momenta", "values"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        home = "closed_forms" if name == "Schedule" else "rates"
        return getattr(import_module(f"fedopt.schedules.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
