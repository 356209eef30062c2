"""Drifting populations: which clients drift, and a population as it is in a round.

The examples of a round are a function of (seed, round, client), whoever asks for them and where.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.data.population import Examples, Population
from fedopt.drift.concepts import Concept, Group
from fedopt.drift.transition import Transition
from fedopt.seeds import generator

TRAIN, VALIDATION, TEST = range(3)
"""The splits of the data, among the ids of draws."""


class Drift:
    """Who drifts, when, and how.

    Args:
        concept: what changes.
        transition: when.
        groups: group of each client, `[N]`; 0: it does not drift.
        sizes: examples of each client, `[N]`, in proportion to which the test set is shared out.
        seed: the run's seed.
        classes: number of classes; None: regression.
    """

    def __init__(
        self,
        concept: Concept,
        transition: Transition,
        groups: npt.NDArray[np.int32],
        sizes: npt.NDArray[np.int64],
        seed: int,
        classes: int | None,
    ) -> None:
        self.concept = concept
        self.transition = transition
        self.groups = groups
        self.count = int(groups.max())
        self._classes = classes
        self._seed = seed
        weights = np.bincount(groups, weights=sizes, minlength=self.count + 1)
        self._shares: npt.NDArray[np.float64] = np.cumsum(weights) / weights.sum()
        self._drifting = np.bincount(groups, minlength=self.count + 1)[1:]

    @property
    def clients(self) -> int:
        """The number of clients that drift."""
        return int(self._drifting.sum())

    def facts(self) -> dict[str, object]:
        """Return who drifts from when on, of plain values."""
        groups = range(1, self.count + 1)
        return {
            "kind": self.transition.kind,
            "clients": self.clients,
            "groups": self._drifting.tolist(),
            "first_rounds": [self.transition.first_round(group) for group in groups],
        }

    def is_still(self, round: int) -> bool:
        """Return whether all examples of a round are of the old concept."""
        return not any(self.amounts(round))

    def amounts(self, round: int) -> list[float]:
        """Return how far each group is in a round, from the first on."""
        return [self.transition.amount(round, group) for group in range(1, self.count + 1)]

    def amount(self, round: int) -> float:
        """Return the mean over the drifting clients of how far they are in a round."""
        return float(np.dot(self.amounts(round), self._drifting) / self._drifting.sum())

    def examples(self, examples: Examples, client: int, round: int, split: int) -> Examples:
        """Return a client's examples as they are in a round.

        Args:
            examples: as they were at first.
            client: its id.
            round: communication round, from 1.
            split: `TRAIN` or `VALIDATION`.
        """
        return self._changed(examples, int(self.groups[client]), round, split, client)

    def test(self, examples: Examples, round: int) -> Examples:
        """Return the test set as it is in a round.

        Each example belongs to a group, drawn once in proportion to the groups' examples, and
        is changed as those of the group's clients.
        """
        if self.is_still(round):
            return examples
        draws = generator(self._seed, "drift test")
        group_of = np.searchsorted(self._shares, draws.random(examples.size), side="right")
        group_of = np.minimum(group_of, self.count)
        x, y = np.array(examples.x), np.array(examples.y)
        for group in range(1, self.count + 1):
            own = np.flatnonzero(group_of == group)
            part = Examples(examples.x[own], examples.y[own])
            x[own], y[own] = self._changed(part, group, round, TEST, group)
        return Examples(x, y)

    def _changed(
        self, examples: Examples, group: int, round: int, split: int, client: int
    ) -> Examples:
        amount = self.transition.amount(round, group)
        if not amount:
            return examples
        facts = Group(group, self.count, self._seed, self._classes)
        draws = generator(self._seed, "drift examples", split, client)
        is_incremental = self.transition.kind == "incremental"
        new = self.concept.examples(examples, facts, amount if is_incremental else 1.0, draws)
        if self.transition.kind != "gradual" or amount == 1:
            return new
        # Each example changes once its own threshold is passed, and then stays so.
        thresholds = generator(self._seed, "drift thresholds", split, client)
        is_new = thresholds.random(examples.size) < amount
        x, y = np.array(examples.x), np.array(examples.y)
        x[is_new], y[is_new] = new.x[is_new], new.y[is_new]
        return Examples(x, y)


class DriftedPopulation:
    """A population as it is in a round; what does not change with rounds is that of the first.

    Args:
        population: as it was at first.
        drift: what becomes of it.
        round: communication round, from 1.
    """

    def __init__(self, population: Population, drift: Drift, round: int) -> None:
        self._population = population
        self._drift = drift
        self._round = round

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_population"], name)

    def train(self, client: int) -> Examples:
        """Return the training examples of a client in this round."""
        examples = self._population.train(client)
        return self._drift.examples(examples, client, self._round, TRAIN)

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of some clients in this round, one after another's."""
        amounts = [0.0, *self._drift.amounts(self._round)]
        drifting = [k for k, c in enumerate(clients) if amounts[self._drift.groups[c]]]
        examples = self._population.train_many(clients)
        if not drifting:
            return examples
        ends = np.cumsum(self._population.sizes[list(clients)])
        x, y = np.array(examples.x), np.array(examples.y)
        for place in drifting:
            client = clients[place]
            own = slice(int(ends[place] - self._population.sizes[client]), int(ends[place]))
            part = Examples(examples.x[own], examples.y[own])
            x[own], y[own] = self._drift.examples(part, client, self._round, TRAIN)
        return Examples(x, y)

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a client in this round."""
        examples = self._population.validation(client)
        return self._drift.examples(examples, client, self._round, VALIDATION)

    def test(self) -> Examples | None:
        """Return the test set as it is in this round: a mixture of the groups'."""
        examples = self._population.test()
        return None if examples is None else self._drift.test(examples, self._round)


def drift_groups(
    sizes: npt.NDArray[np.int64], share: float, groups: int, seed: int
) -> npt.NDArray[np.int32]:
    """Return the group of each client, `[N]`; 0: it does not drift.

    A share of the clients that have examples drifts, of few clients at least one. The groups
    differ by at most one client.

    Args:
        sizes: examples of each client, `[N]`.
        share: in (0, 1].
        groups: >= 1.
        seed: the run's seed.
    """
    eligible = np.flatnonzero(sizes)
    count = max(1, round(share * len(eligible)))
    order = generator(seed, "drift clients").permutation(len(eligible))[:count]
    found = np.zeros(len(sizes), dtype=np.int32)
    found[eligible[order]] = 1 + np.arange(count) * groups // count
    return found
