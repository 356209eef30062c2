"""A population of any size over a fixed pool of examples: an array of sizes and no more a client.

Client i has `examples` rows of the pool from a place that follows from i. What is measured with it
is the cost of the engine, not that of making data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedopt.data.population import Examples

POOL = 4096


class PooledPopulation:
    """N clients with equally many examples of a shared pool.

    Args:
        clients: N.
        examples: of each client, at most 2,048.
        features: width of an input.
        classes: number of labels.
    """

    name = "pool"
    has_validation = False

    def __init__(
        self, clients: int, examples: int = 20, features: int = 60, classes: int = 10
    ) -> None:
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((POOL, features), dtype=np.float32)
        self._y = rng.integers(0, classes, POOL)
        self.sizes: npt.NDArray[np.int64] = np.full(clients, examples)
        self.clients = clients
        self.classes = classes
        self.input_shape = (features,)
        self._examples = examples

    def train(self, client: int) -> Examples:
        """Return the examples of a client."""
        first = client * 2654435761 % (POOL - self._examples)
        rows = slice(first, first + self._examples)
        return Examples(self._x[rows].copy(), self._y[rows].copy())

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the examples of some clients."""
        parts = [self.train(client) for client in clients]
        return Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))

    def validation(self, client: int) -> Examples:
        """Return no examples."""
        return Examples(self._x[:0], self._y[:0])

    def test(self) -> Examples | None:
        """Return None: there is no test set."""
        return None

    def label_counts(self, clients: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the examples of each class of some clients."""
        labels = [self.train(int(client)).y for client in clients]
        return np.stack([np.bincount(y, minlength=self.classes) for y in labels])

    def describe(self) -> dict[str, object]:
        """Return a name."""
        return {"name": self.name}
