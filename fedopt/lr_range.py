"""The learning-rate range test, federated: training at a rate that grows from round to round.

Each round is an ordinary round of the configured strategy, at one learning rate; the rates grow
geometrically. The loss of a round is its training loss, the mean over all local steps of the
cohort. What is proposed, and by which rule, is in `fedopt.schedules.range_test`.

Source: Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fedopt.analysis.progress import Progress
from fedopt.config import Choice, Config
from fedopt.errors import ConfigError, DivergenceError, NotFiniteError
from fedopt.experiment import Experiment
from fedopt.local import base_lr
from fedopt.recorder import Recorder
from fedopt.registry import get
from fedopt.run import train
from fedopt.schedules.range_test import RangeSuggestion, range_rates, suggest
from fedopt.single_thread import single_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOWN_UP = 4.0
"""The test ends once the loss is so many times the least so far."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test measured.

    Args:
        rates: learning rate of each round.
        losses: training loss of each round; infinite where training diverged.
        suggestion: the proposed bounds.
    """

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    suggestion: RangeSuggestion

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, numbers that are not finite as None."""
        losses = [float(v) if np.isfinite(v) else None for v in self.losses]
        return {
            "rates": self.rates.tolist(),
            "losses": losses,
            "suggestion": vars(self.suggestion),
        }

    def figure(self) -> Figure:
        """Return the loss against the learning rate, with the proposed bounds."""
        from fedopt.analysis.schedule_plots import range_figure

        return range_figure(self.rates, self.losses, self.suggestion)

    def text(self) -> str:
        """Return what is proposed, for people."""
        found = self.suggestion
        if found.reason:
            return f"no bounds: {found.reason}"
        lines = [
            f"cyclical: base_lr = {found.base_lr:.2g}, max_lr = {found.max_lr:.2g}",
            f"1Cycle:   max_lr = {found.max_lr:.2g}",
            f"constant: lr = {found.steepest_lr:.2g} (where the loss falls fastest)",
        ]
        if found.diverged_at is not None:
            lines.append(f"training diverged at lr = {found.diverged_at:.2g}")
        return "\n".join(lines)


class _EnoughError(Exception):
    """Ends a run whose loss has blown up."""


class _Watch:
    """Collects the losses of the rounds, and ends the run once they have blown up."""

    def __init__(self, shown: Progress) -> None:
        self.losses: list[float] = []
        self._shown = shown

    def start(self, rounds: int, header: str) -> None:
        """Show the test's beginning."""
        self._shown.start(rounds, header)

    def update(self, row: Mapping[str, object]) -> None:
        """Take a round in."""
        self._shown.update(row)
        loss = row["train_loss"]
        assert isinstance(loss, float)
        self.losses.append(loss)
        if loss > BLOWN_UP * min(self.losses):
            raise _EnoughError

    def message(self, text: str) -> None:
        """Show a line."""
        self._shown.message(text)

    def finish(self, summary: Mapping[str, object]) -> None:
        """Show nothing: the test has its own result."""

    def close(self) -> None:
        """Stop showing."""
        self._shown.close()


def range_test(
    config: Config, low: float, high: float, rounds: int, progress: Progress
) -> RangeTest:
    """Train at growing learning rates and propose bounds for cyclical and 1Cycle schedules.

    Args:
        config: the run whose rates are sought; its schedule and number of rounds are not used.
        low: learning rate of the first round, > 0.
        high: that of the last, > low.
        rounds: communication rounds, >= 3.
        progress: shows the rounds.

    Raises:
        ConfigError: the bounds or the number of rounds are not allowed, or the configuration.
        RunError: a round failed for another reason than divergence.
    """
    if not 0 < low < high < float("inf"):
        raise ConfigError(f"needs 0 < low < high, got low {low:g} and high {high:g}", key="--low")
    if rounds < 3:
        raise ConfigError(f"needs at least 3 rounds, got {rounds}", key="--rounds")
    rates = range_rates(low, high, rounds)
    base = base_lr(config)
    tested = replace(
        config,
        run=config.run.model_copy(update={"rounds": rounds}),
        schedule=Choice("constant", get("schedules", "constant").options()),
        evaluation=config.evaluation.model_copy(
            update={
                "every": rounds,
                "validation_clients": 0,
                "training_clients": 0,
                "gradients": False,
                "sharpness_every": 0,
            }
        ),
        server_swa=type(config.server_swa)(),
        engine=config.engine.model_copy(update={"on_client_error": "fail"}),
    )
    experiment = Experiment.from_config(tested)
    watch = _Watch(progress)
    grid_class = get("engines", tested.engine.name).load()
    grid_class.check(experiment)
    with single_thread(), Recorder(experiment, None, watch, False, False) as recorder:
        recorder.strategy.lr_factors = {
            round: rate / base for round, rate in enumerate(rates.tolist(), start=1)
        }
        diverged = False
        try:
            with grid_class(experiment) as grid:
                train(experiment, recorder, grid)
        except _EnoughError:
            pass
        except (DivergenceError, NotFiniteError):
            diverged = True  # in the round after those that were recorded
    losses = np.array([*watch.losses, *([np.inf] if diverged else [])])
    done = len(losses)
    return RangeTest(rates[:done], losses, suggest(rates[:done], losses))
