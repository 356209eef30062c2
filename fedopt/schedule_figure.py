"""The learning rates that a configuration's clients will train at, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedopt.errors import ConfigError
from fedopt.experiment import Experiment

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_schedule(experiment: Experiment) -> Figure:
    """Draw learning rates, and momenta where they are cycled, of a client with nominal steps.

    Raises:
        ConfigError: the schedule depends on how training goes.
    """
    from fedopt.analysis.schedule_plots import schedule_figure

    config, steps = experiment.config, experiment.nominal_steps
    name = config.schedule.name
    if name == "plateau":
        raise ConfigError(
            '"plateau" falls when a metric no longer improves: it cannot be drawn beforehand; '
            "a run's rates are in the column lr of rounds.csv",
            key="local.schedule.name",
        )
    plan = experiment.rates()
    per_round = 1 if plan.scope == "round" else steps
    parts = [plan.at(round, per_round, per_round) for round in range(1, config.rounds + 1)]
    momenta = [m for _, m in parts if m is not None]
    counted = {
        "within": f"within each round of {steps} steps",
        "round": "one value a round",
        "across": f"across {config.rounds} rounds of {steps} steps",
    }[plan.scope]
    return schedule_figure(
        np.concatenate([rates for rates, _ in parts]),
        np.concatenate(momenta) if momenta else None,
        title=f"{name}, {counted}",
        steps_per_round=per_round,
    )
