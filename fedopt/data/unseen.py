"""A population of which some clients are held out of training altogether."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedopt.data.partitioners import IntArray
from fedopt.data.protocol import Examples, Population
from fedopt.seeds import generator


class PartlyUnseen:
    """A population in which some clients have nothing to train on or to validate by.

    Their training examples can still be asked for, with `train`.

    Args:
        population: all clients.
        unseen: ids of those held out, ascending.

    Attributes:
        everyone: the population given.
        all_sizes: training examples of each client, those held out included, `[N]`.
        unseen: ids of those held out, ascending.
        sizes: training examples of each client, 0 of those held out, `[N]`.
    """

    def __init__(self, population: Population, unseen: IntArray) -> None:
        self._population = population
        self.everyone = population
        self.unseen = unseen
        self.all_sizes = population.sizes
        self.sizes = np.array(population.sizes)
        self.sizes[unseen] = 0
        self._is_unseen = np.zeros(population.clients, dtype=bool)
        self._is_unseen[unseen] = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_population"], name)

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a client; none of a client that is held out."""
        examples = self._population.validation(client)
        return Examples(examples.x[:0], examples.y[:0]) if self._is_unseen[client] else examples

    def label_counts(self, clients: IntArray) -> IntArray:
        """Return the training examples of each class; none of clients that are held out."""
        counts = self._population.label_counts(clients)
        counts[self._is_unseen[clients]] = 0
        return counts

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files, and how many clients are held out."""
        facts = dict(self._population.describe())
        facts["train_examples"] = int(self.sizes.sum())
        facts["empty_clients"] = int(np.count_nonzero(self.all_sizes == 0))
        facts["unseen_clients"] = len(self.unseen)
        return facts


def draw_unseen(sizes: IntArray, count: int, seed: int) -> IntArray:
    """Return the ids of clients to hold out, ascending, drawn among those that have examples.

    Args:
        sizes: training examples of each client, `[N]`.
        count: how many.
        seed: the run's seed.
    """
    eligible = np.flatnonzero(sizes)
    drawn = generator(seed, "unseen").choice(len(eligible), count, replace=False, shuffle=False)
    found: IntArray = np.sort(eligible[drawn]).astype(np.int64)
    return found
