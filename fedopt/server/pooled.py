"""All clients of a population as one, for training without federation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.data.population import Examples, Population


class PooledPopulation:
    """All clients of a population as one.

    Args:
        population: the clients; their data are read when they are wanted, and kept.

    Attributes:
        members: the clients, one by one.
        member_sizes: training examples of each client that is in it, `[N]`.
    """

    def __init__(self, population: Population) -> None:
        self._population = population
        self.members = population
        self._train: Examples | None = None
        self.member_sizes = population.sizes
        self.sizes = np.array([int(population.sizes.sum())], dtype=np.int64)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__dict__["_population"], name)

    @property
    def clients(self) -> int:
        """One."""
        return 1

    def use_integer_inputs(self) -> None:
        """Give inputs as int64 from now on: a model looks them up."""
        self._train = None
        inner: Any = self._population
        inner.use_integer_inputs()

    def train(self, client: int) -> Examples:
        """Return the training examples of all clients."""
        if self._train is None:
            some: npt.NDArray[np.int64] = np.flatnonzero(self._population.sizes)
            self._train = self._population.train_many(some.tolist())
        return self._train

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of all clients."""
        return self.train(0)

    def validation(self, client: int) -> Examples:
        """Return the validation splits of all clients."""
        parts = [self._population.validation(c) for c in range(self._population.clients)]
        return Examples(
            np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
        )
