"""Which clients take part in a round: functions of (seed, round)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedopt.seeds import generator


class UniformSampler:
    """Samples uniformly without replacement among the clients that have examples.

    Args:
        sizes: training examples of each client, `[N]`; those with none are never sampled.
        seed: the run's seed.
    """

    def __init__(self, sizes: npt.NDArray[np.int64], seed: int) -> None:
        self._seed = seed
        empty = int(np.count_nonzero(sizes == 0))
        self._eligible = np.flatnonzero(sizes) if empty else None
        self.clients = len(sizes) - empty

    def sample(self, round: int, count: int, purpose: str = "cohort") -> npt.NDArray[np.int64]:
        """Return `count` client ids in ascending order; cost grows with `count` alone."""
        return self._ids(self._drawn(round, self.clients, count, purpose))

    def sample_from(
        self, round: int, count: int, pool: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return `count` client ids of a pool, in ascending order.

        Args:
            round: communication round, from 1.
            count: clients wanted, at most as many as in the pool.
            pool: positions among the clients that have examples, ascending.
        """
        return self._ids(pool[self._drawn(round, len(pool), count, "cohort")])

    def poisson(self, round: int, rate: float) -> npt.NDArray[np.int64]:
        """Return client ids, ascending, each of them drawn independently with a probability.

        Their number is drawn first, and then that many clients, so that the cost grows with the
        sampled alone.
        """
        count = int(generator(self._seed, "cohort_size", round).binomial(self.clients, rate))
        return self.sample(round, count)

    def everyone(self) -> npt.NDArray[np.int64]:
        """Return the ids of all clients that have examples, ascending."""
        return self._ids(np.arange(self.clients))

    def positions(self, clients: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of client ids among the clients that have examples."""
        return clients if self._eligible is None else np.searchsorted(self._eligible, clients)

    def _drawn(self, round: int, among: int, count: int, purpose: str) -> npt.NDArray[np.int64]:
        rng = generator(self._seed, purpose, round)
        return np.sort(rng.choice(among, count, replace=False, shuffle=False))

    def _ids(self, drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        ids = drawn if self._eligible is None else self._eligible[drawn]
        return ids.astype(np.int64)
