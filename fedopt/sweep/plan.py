"""From words to runs: the configuration of each point and seed, and the order of the runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from fedopt.analysis.groups import short_keys, value_text
from fedopt.analysis.targets import is_higher_better
from fedopt.config import Config, load, read_toml
from fedopt.errors import ConfigError
from fedopt.sweep.book import State, Task
from fedopt.sweep.space import (
    Dimension,
    Interval,
    Point,
    Space,
    Value,
    flat_point,
    key_hint,
)

_MOST_LETTERS = 70


class Design:
    """How the runs of a sweep are configured.

    Args:
        path: a TOML file, or None.
        space: what is varied.

    Raises:
        ConfigError: the file cannot be read.
    """

    def __init__(self, path: Path | None, space: Space) -> None:
        self.path = path
        self.space = space
        self.tree = read_toml(path) if path is not None else {}
        # Cores are shared out among runs: each is computed in one process, to the same bits, unless
        # the user says where.
        stated = [
            word for word in space.fixed if re.match(r"engine(\.(name|workers|address))?=", word)
        ]
        engine = self.tree.get("engine", {})
        is_stated = isinstance(engine, str) or bool({"name", "workers", "address"} & set(engine))
        is_varied = any(key.startswith("engine") for key in space.keys)
        self._engine = [] if stated or is_stated or is_varied else ["engine.name=inline"]
        self._short = short_keys(space.keys)

    @cached_property
    def base(self) -> Config:
        """The configuration with the first value of each key.

        Raises:
            ConfigError: it is not allowed.
        """
        first = tuple((d.key, self._ends(d)[0]) for d in self.space.dimensions)
        return self.config(first, self.seeds[0])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every point."""
        return self.space.seeds or (self.tree.get("seed", 0),)

    def config(self, point: Point, seed: int) -> Config:
        """Return the configuration of a point.

        Raises:
            ConfigError: it is not allowed; a near key is named where one is not known.
        """
        return self._load([*(f"{key}={value.text}" for key, value in point), f"seed={seed}"])

    def task(self, trial: int, point: Point, seed: int, has_words: bool = True) -> Task:
        """Return a run.

        Args:
            trial: number of the point, from 0.
            point: what is varied.
            seed: of the run.
            has_words: whether the folder's name tells the values.

        Raises:
            ConfigError: as `config`.
        """
        values = {**flat_point(point), "seed": seed}
        name = f"{trial:03d}"
        if has_words:
            name += "".join(f"_{_slug(self._short[k])}-{_slug(v.text)}" for k, v in point)
        name = f"{name[:_MOST_LETTERS].rstrip('-._')}_seed-{seed}"
        return Task(name, self.label(point), values, self.config(point, seed), trial)

    def label(self, point: Point) -> str:
        """Return what is varied, for people."""
        words = [
            value_text(value.plain)
            if key in ("strategy", "strategy.name")
            else f"{self._short[key]}={value_text(value.plain)}"
            for key, value in point
        ]
        return ", ".join(words) or self.base.strategy.name

    def tasks(self, points: Sequence[Point]) -> list[Task]:
        """Return the runs of all points, seeds side by side.

        Raises:
            ConfigError: a point is not allowed: the first of them are named.
        """
        tasks, problems = [], []
        for trial, point in enumerate(points):
            try:
                tasks += [self.task(trial, point, seed) for seed in self.seeds]
            except ConfigError as error:
                problems.append((self.label(point), str(error)))
        if problems:
            shown = "\n".join(f"{label}: {text}" for label, text in problems[:3])
            more = f"\n... and {len(problems) - 3} more" if len(problems) > 3 else ""
            which = (
                "every combination is"
                if len(problems) == len(points)
                else (f"{len(problems)} of {len(points)} combinations are")
            )
            raise ConfigError(f"{which} not allowed:\n{shown}{more}")
        return tasks

    def check_ends(self) -> None:
        """Check that the values of each key, or the ends of its interval, are allowed.

        The other keys have their first value.

        Raises:
            ConfigError: one is not.
        """
        ends = [self._ends(d) for d in self.space.dimensions]
        first = [some[0] for some in ends]
        for place, some in enumerate(ends):
            for value in some:
                values = [*first[:place], value, *first[place + 1 :]]
                self.config(tuple(zip(self.space.keys, values, strict=True)), self.seeds[0])

    def metric(self, asked: str | None) -> str:
        """Return the metric that points are ranked by.

        Raises:
            ConfigError: neither more nor less of it is better.
        """
        if asked is not None:
            is_higher_better(asked)
            return asked
        if self.base.local.loss != "cross_entropy":
            return "test_loss"
        return "validation_accuracy" if self.base.evaluation.validation_clients else "test_accuracy"

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, by which two sweeps can be told apart."""
        return {"config": self.tree, **self.space.plain()}

    @staticmethod
    def _ends(dimension: Dimension) -> tuple[Value, ...]:
        """Return the values of a key, or the ends of its interval."""
        if isinstance(dimension, Interval):
            return dimension.at(0.0), dimension.at(1.0)
        return dimension.values

    def _load(self, words: Sequence[str]) -> Config:
        try:
            return load(self.path, [*self.space.fixed, *words, *self._engine])
        except ConfigError as error:
            keys = [word.partition("=")[0] for word in self.space.fixed]
            raise ConfigError(f"{error}{key_hint([*keys, *self.space.keys])}") from None


class Listing:
    """Runs one after another, all of them known from the start.

    Args:
        tasks: the runs.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.total = len(tasks)
        self._left = iter(tasks)

    def next(self) -> Task | None:
        """Return the next run."""
        return next(self._left, None)

    def ended(self, task: Task, state: State) -> None:
        """Nothing depends on it."""

    def is_hopeless(self, task: Task) -> bool:
        """Return False: all runs are wanted whole."""
        return False


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text).strip("-")
