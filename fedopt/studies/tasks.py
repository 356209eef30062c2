"""Which runs a study needs, and in which order: first those that choose, then those that count.

Runs are named by a digest of their configuration, so that arms that come to the same configuration
share a run, and a changed study never takes an old one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from fedopt.config import Config, load
from fedopt.studies.study import Arm, Condition, Rung, Study, Tuning, Words

_ENGINE = ("engine.name=inline",)
"""Runs are computed in one process each; cores are shared out among them."""


@dataclass(frozen=True)
class RunTask:
    """A run of a study.

    Args:
        condition: name of its condition.
        words: of the run, after the study's base.
        seed: of the run.
        label: for people.
        name: of its files: a digest of its configuration.
        rounds: that it has.
    """

    condition: str
    words: Words
    seed: int
    label: str
    name: str
    rounds: int


@dataclass(frozen=True)
class Form:
    """A study in the form in which it is run: whole, or quick.

    Args:
        study: the study, cut to what is run.
        words: added to every run.
        is_quick: which form it is.
    """

    study: Study
    words: Words = ()
    is_quick: bool = False

    @cached_property
    def cells(self) -> tuple[tuple[Condition, Arm], ...]:
        """Conditions and the arms that are run in them."""
        study = self.study
        return tuple((c, arm) for c in study.conditions for arm in study.arms_of(c))

    def config(self, words: Sequence[str], seed: int) -> Config:
        """Return the configuration of a run.

        Raises:
            ConfigError: it is not allowed, which is a mistake in the study.
        """
        return load(tomllib.loads(self.study.base), [*words, f"seed={seed}", *_ENGINE])

    def task(
        self, condition: Condition, arm: Arm, point: Words, seed: int, extra: Words = ()
    ) -> RunTask:
        """Return a run of an arm with one of its alternatives."""
        words = (*condition.words, *arm.words, *point, *self.words, *extra)
        config = self.config(words, seed)
        # What is made in memory is known by the condition's name alone.
        made = condition.name if condition.maker is not None else ""
        facts = json.dumps([self.study.name, made, config.dump()], sort_keys=True, default=str)
        label = " ".join(part for part in (condition.name, arm.name, *point) if part)
        digest = hashlib.sha256(facts.encode()).hexdigest()[:16]
        return RunTask(condition.name, words, seed, label, digest, config.rounds)


def whole(study: Study, seeds: int | None = None) -> Form:
    """Return a study in full.

    Args:
        study: the study.
        seeds: how many seeds are reported; None: the study's.
    """
    if seeds is not None:
        full, short = study.seconds
        seconds = full * seeds / len(study.seeds), short  # tuning aside
        study = dataclasses.replace(study, seeds=tuple(range(seeds)), seconds=seconds)
    return Form(study)


def quick(study: Study) -> Form:
    """Return a study in its quick form."""
    cut = study.quick
    conditions = [c for c in study.conditions if not cut.conditions or c.name in cut.conditions]
    arms = []
    for arm in study.arms:
        if cut.arms and arm.name not in cut.arms:
            continue
        grid = cut.grids.get(arm.name, arm.grid)
        arms.append(dataclasses.replace(arm, grid=grid if cut.tuning else grid[:1]))
    names = {c.name for c in conditions}
    arms = [a for a in arms if not a.conditions or names & set(a.conditions)]
    return Form(
        dataclasses.replace(
            study,
            conditions=tuple(conditions),
            arms=tuple(arms),
            seeds=cut.seeds,
            tuning=cut.tuning,
        ),
        cut.words,
        is_quick=True,
    )


Scores = dict[tuple[str, str, int], dict[Words, float]]
"""(condition, arm, rung) -> score of each alternative that was tried there."""


class Schedule:
    """The runs of a form, each handed out as soon as what it depends on is known.

    Args:
        form: what is run.
        score: from runs that ended to the mean of the tuning measure; the worst there is where
            one has none.

    `reported` holds the runs that count, by condition, arm and seed, of what is chosen so far.
    """

    def __init__(self, form: Form, score: Callable[[Arm, Sequence[RunTask]], float]) -> None:
        self.form = form
        self.scores: Scores = {}
        self.chosen: dict[tuple[str, str], Words] = {}
        self.reported: dict[tuple[str, str, int], RunTask] = {}
        self._score = score
        self._ready: list[RunTask] = []
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._open: dict[tuple[str, str], tuple[int, dict[Words, list[RunTask]]]] = {}
        for condition, arm in form.cells:
            self._begin(condition, arm, 0, arm.grid)

    @property
    def total(self) -> int:
        """Runs in all; those that depend on what is not known yet are counted as well."""
        study, tuning = self.form.study, self.form.study.tuning
        waiting = len(self._open) * len(study.seeds)
        for rung, points in self._open.values():
            count = len(points)
            for later in (tuning.rungs if tuning else ())[rung:-1]:
                count = min(count, later.keep)
                waiting += count * len(tuning.seeds if tuning else ())
        return len(self._seen) + waiting

    def next(self) -> RunTask | None:
        """Return a run that can start now, or None."""
        return self._ready.pop(0) if self._ready else None

    def ended(self, task: RunTask) -> None:
        """Take note of a run that has ended, and see what can start after it."""
        self._done.add(task.name)
        for condition, arm in self.form.cells:
            key = condition.name, arm.name
            if key not in self._open:
                continue
            rung, points = self._open[key]
            if all(run.name in self._done for runs in points.values() for run in runs):
                del self._open[key]
                self._choose(condition, arm, rung, points)

    def _begin(self, condition: Condition, arm: Arm, rung: int, points: Sequence[Words]) -> None:
        tuning = self.form.study.tuning
        if len(points) == 1 or tuning is None:
            self.chosen[condition.name, arm.name] = points[0]
            for seed in self.form.study.seeds:
                task = self.form.task(condition, arm, points[0], seed)
                self.reported[condition.name, arm.name, seed] = task
                self._add(task)
            return
        words = tuning.rungs[rung].words
        tasks = {
            point: [self.form.task(condition, arm, point, seed, words) for seed in tuning.seeds]
            for point in points
        }
        self._open[condition.name, arm.name] = rung, tasks
        for seed in range(len(tuning.seeds)):
            for runs in tasks.values():
                self._add(runs[seed])

    def _choose(
        self, condition: Condition, arm: Arm, rung: int, points: Mapping[Words, list[RunTask]]
    ) -> None:
        tuning = self.form.study.tuning
        assert tuning is not None
        scores = {point: self._score(arm, runs) for point, runs in points.items()}
        self.scores[condition.name, arm.name, rung] = scores
        keep = keep_of(tuning, rung)
        sign = -1.0 if tuning.by.better == "higher" else 1.0
        ranked = sorted(scores, key=lambda point: sign * scores[point])  # stable: first of equals
        left = [point for point in points if point in ranked[:keep]]
        if keep > 1 and len(left) > 1:
            self._begin(condition, arm, rung + 1, left)
        else:
            self._begin(condition, arm, rung, ranked[:1])

    def _add(self, task: RunTask) -> None:
        if task.name not in self._seen:
            self._seen.add(task.name)
            self._ready.append(task)


def keep_of(tuning: Tuning, rung: int) -> int:
    """Return how many alternatives are left after a rung; the last leaves one."""
    step: Rung = tuning.rungs[rung]
    return 1 if rung == len(tuning.rungs) - 1 else step.keep


def worst(better: str | None) -> float:
    """Return the score of an alternative that has none."""
    return -math.inf if better == "higher" else math.inf
