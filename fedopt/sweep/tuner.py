"""A search that learns from its runs: Optuna's TPE, with successive halving over the rounds.

A trial is a point. Its first seed is run and compared, at a few numbers of rounds, with the same
seed of the other trials: where it is not among the best third it is stopped (asynchronous
successive halving). The other seeds are run for what survives. A trial's value is the mean over the
seeds of the best value of the metric.

Sources: Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011 (TPE); Li et
al., "A system for massively parallel hyperparameter tuning", MLSys 2020 (ASHA); Akiba et al.,
"Optuna", KDD 2019.
"""

from __future__ import annotations

import csv
import logging
import math
import time
import warnings
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from fedopt.analysis.store import ROUNDS_FILE
from fedopt.analysis.targets import is_higher_better
from fedopt.errors import ConfigError
from fedopt.seeds import derive
from fedopt.sweep.book import Book, State, Task
from fedopt.sweep.plan import Design
from fedopt.sweep.space import Interval, Listed, Point, Value

log = logging.getLogger("fedopt")

ETA = 3
"""One in so many goes on at each step of the halving."""

_DRAWN = 5  # first trials, that are drawn evenly
_LOOK_EVERY = 0.5  # seconds between looks at a run's rounds


@dataclass
class _Trial:
    """A point that is being tried."""

    number: int
    asked: Any
    point: Point
    values: dict[int, float] = field(default_factory=dict)  # by seed
    reported: int = 0  # last round
    looked: float = 0.0
    is_over: bool = False


class Tuner:
    """Runs that are chosen as results come in; a source for `drive`.

    Args:
        design: how runs are configured.
        book: where results are read.
        metric: a column of `rounds.csv` with a better direction.
        count: number of trials.
        seed: of the search.
        halves: whether hopeless trials are stopped early.
        jobs: runs that may go on at once.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(
        self,
        design: Design,
        book: Book,
        metric: str,
        count: int,
        seed: int,
        halves: bool,
        jobs: int,
    ) -> None:
        self._optuna = import_optuna()
        self._design, self._book, self._metric = design, book, metric
        self._count, self._seed, self._halves, self._jobs = count, seed, halves, jobs
        self._sign = 1.0 if is_higher_better(metric) else -1.0
        self._first = design.seeds[0]
        rounds = design.base.rounds
        pruner = self._optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, math.ceil(rounds / ETA**2)), reduction_factor=ETA
        )
        self._study = self._optuna.create_study(direction="maximize", pruner=pruner)
        self._trials: dict[int, _Trial] = {}
        self._ready: deque[Task] = deque()
        self.total = count * len(design.seeds)

    def next(self) -> Task | None:
        """Return the next run: another seed of a trial that survived, or a new trial."""
        if self._ready:
            return self._ready.popleft()
        while (number := len(self._trials)) < self._count:
            trial = self._ask(number)
            try:
                return self._design.task(number, trial.point, self._first, has_words=False)
            except ConfigError as error:  # values that do not go together
                log.warning("trial %d (%s): %s", number, self._design.label(trial.point), error)
                self._tell_failure(trial, is_stopped=False)
                self.total -= len(self._design.seeds)
        return None

    def ended(self, task: Task, state: State) -> None:
        """Tell the study, or go on with the other seeds."""
        trial = self._trials[task.trial]
        if trial.is_over:
            return
        if task.seed == self._first:
            self._report(task, trial)
        if state.status == "completed":
            value = self._value(task)
            if value is not None:
                trial.values[task.seed] = value
                self._go_on(task, trial)
                return
        if task.seed == self._first:  # the other seeds are not run
            self.total -= len(self._design.seeds) - 1
        self._tell_failure(trial, is_stopped=state.status == "stopped" and trial.reported > 0)

    def _tell_failure(self, trial: _Trial, is_stopped: bool) -> None:
        trial.is_over = True
        states = self._optuna.trial.TrialState
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(trial.asked, state=states.PRUNED if is_stopped else states.FAIL)

    def is_hopeless(self, task: Task) -> bool:
        """Return whether the first seed of a trial is behind those of other trials."""
        trial = self._trials[task.trial]
        now = time.monotonic()
        if not self._halves or task.seed != self._first or now - trial.looked < _LOOK_EVERY:
            return False
        trial.looked = now
        # A run that has done its rounds meanwhile costs nothing more.
        return self._report(task, trial) and trial.reported < task.config.rounds

    def _go_on(self, task: Task, trial: _Trial) -> None:
        seeds = self._design.seeds
        if task.seed == self._first:
            self._ready.extend(
                self._design.task(trial.number, trial.point, seed, has_words=False)
                for seed in seeds[1:]
            )
        if len(trial.values) == len(seeds):
            trial.is_over = True
            value = math.fsum(trial.values.values()) / len(seeds)
            self._study.tell(trial.asked, value)

    def _ask(self, number: int) -> _Trial:
        """Return a new trial: that of an earlier call, or one that the sampler proposes."""
        study, optuna = self._study, self._optuna
        held = [s for s in self._book.states.values() if s.trial == number]
        distributions = {d.key: self._distribution(d) for d in self._design.space.dimensions}
        if held:
            study.enqueue_trial(self._asked_for(held[0].values))
        # A sampler of its own for each trial, so that what is proposed depends on the trials so
        # far alone, also in a later call.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = optuna.samplers.TPESampler(
                seed=derive(self._seed, "tuner", number) % 2**32,
                n_startup_trials=_DRAWN,
                constant_liar=self._jobs > 1,
            )
            asked = study.ask(distributions)
        point = tuple(
            (d.key, _value(d, asked.params[d.key])) for d in self._design.space.dimensions
        )
        self._trials[number] = _Trial(number, asked, point)
        return self._trials[number]

    def _distribution(self, dimension: Listed | Interval) -> Any:
        found = self._optuna.distributions
        if isinstance(dimension, Interval):
            return found.FloatDistribution(
                dimension.low, dimension.high, log=dimension.scale == "log"
            )
        if dimension.is_integer_span:
            return found.IntDistribution(dimension.values[0].plain, dimension.values[-1].plain)
        return found.CategoricalDistribution([value.text for value in dimension.values])

    def _asked_for(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return plain values as parameters of the study."""
        parameters = {}
        for d in self._design.space.dimensions:
            plain = values[d.key]
            if isinstance(d, Interval) or d.is_integer_span:
                parameters[d.key] = plain
            else:
                parameters[d.key] = next(v.text for v in d.values if v.plain == plain)
        return parameters

    def _report(self, task: Task, trial: _Trial) -> bool:
        """Report the best so far at each new evaluation; return whether the trial is behind."""
        is_behind = False
        best = -math.inf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for round, value in self._measured(task):
                best = max(best, self._sign * value)
                if round > trial.reported:
                    trial.asked.report(best, round)
                    trial.reported = round
                    is_behind = is_behind or bool(trial.asked.should_prune())
        return is_behind

    def _value(self, task: Task) -> float | None:
        """Return the best value of a run, more being better; None where it measured none."""
        values = [self._sign * value for _, value in self._measured(task)]
        return max(values) if values else None

    def _measured(self, task: Task) -> list[tuple[int, float]]:
        """Return the rounds in which a run measured the metric, whole lines alone."""
        path = self._book.run_folder(task.name) / ROUNDS_FILE
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            return []
        lines = text[: text.rfind("\n") + 1].splitlines()
        rows = csv.DictReader(lines)
        found = [(int(row["round"]), row[self._metric]) for row in rows]
        numbers = [(round, float(value)) for round, value in found if value and round]
        return [(round, value) for round, value in numbers if math.isfinite(value)]


def import_optuna() -> Any:
    """Return Optuna, told to be silent.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            'needs Optuna, which is not installed: pip install "fedopt[search]"',
            key="--search tpe",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _value(dimension: Listed | Interval, parameter: Any) -> Value:
    if isinstance(dimension, Interval):
        return Value(repr(float(parameter)), float(parameter))
    if dimension.is_integer_span:
        return Value(str(int(parameter)), int(parameter))
    return next(value for value in dimension.values if value.text == parameter)
