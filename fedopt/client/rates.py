"""Learning rates and momenta of local steps: a schedule, and what its time counts.

A schedule is a closed form of t (see `fedopt.schedules`). What t counts is its scope: `within`,
the local steps of a round; `round`, communication rounds; `across`, the steps of the whole run.
A client with more or fewer steps than others runs through the same stretch of t in each round, so
that clients never drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.schedules import make_schedule
from fedopt.schedules.closed_forms import Schedule

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RatePlan:
    """A schedule over the rounds of a run.

    Args:
        schedule: closed form of the learning rate, and of the momentum where it is cycled.
        scope: `within`, `round` or `across`.
        rounds: communication rounds of the run, R.
        nominal_steps: N, the local steps that a round counts for, the same for all clients.
    """

    schedule: Schedule
    scope: str
    rounds: int
    nominal_steps: int

    def at(self, round: int, steps: int, planned_steps: int) -> tuple[Values, Values | None]:
        """Return learning rates `[S]`, and momenta `[S]` or None, of a client's steps.

        Args:
            round: communication round, from 1.
            steps: S, the steps that happen, 1..planned_steps.
            planned_steps: the steps of a full round.
        """
        step = np.arange(steps, dtype=np.float64)
        if self.scope == "within":
            time, span = step, planned_steps
        elif self.scope == "round":
            time, span = np.full(1, round - 1, dtype=np.float64), self.rounds
        else:
            share = step * self.nominal_steps / planned_steps
            time = (round - 1) * self.nominal_steps + share
            span = self.rounds * self.nominal_steps
        rates = self.schedule.lr(time, span)
        momenta = self.schedule.momentum(time, span)
        if self.scope == "round":
            rates = np.repeat(rates, steps)
            momenta = None if momenta is None else np.repeat(momenta, steps)
        return rates, momenta

    def first_step(self, round: int) -> int:
        """Return the nominal number of a round's first step in the run, from 0."""
        return (round - 1) * self.nominal_steps


def constant_rates(lr: float) -> RatePlan:
    """Return the same learning rate for every step.

    Args:
        lr: learning rate.
    """
    return RatePlan(make_schedule("constant", lr), "round", 1, 1)
