"""Which clients take part in a round: functions of (seed, round)."""

from __future__ import annotations

from collections.abc import Callable

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
        self, round: int, count: int, pool: npt.NDArray[np.int64], purpose: str = "cohort"
    ) -> npt.NDArray[np.int64]:
        """Return `count` client ids of a pool, in the order of the pool.

        Args:
            round: communication round, from 1.
            count: clients wanted, at most as many as in the pool.
            pool: positions among the clients that have examples.
            purpose: what the draw is for.
        """
        return self._ids(pool[self._drawn(round, len(pool), count, purpose)])

    def poisson(self, round: int, rate: float) -> npt.NDArray[np.int64]:
        """Return client ids, ascending, each of them drawn independently with a probability.

        Their number is drawn first, and then that many clients, so that the cost grows with the
        sampled alone.
        """
        count = int(generator(self._seed, "cohort_size", round).binomial(self.clients, rate))
        return self.sample(round, count)

    def sample_there(
        self, round: int, count: int, is_there: Callable[[int], bool], attempt: int = 0
    ) -> npt.NDArray[np.int64]:
        """Return ids of at most `count` clients that are there, ascending, uniform among these.

        Where all are there it is `sample(round, count)`. Otherwise further clients are drawn until
        enough are found, or all have been asked.

        Args:
            round: communication round, from 1.
            count: clients wanted.
            is_there: whether a client may be taken.
            attempt: number of the draw in the round.
        """
        purpose = f"cohort {attempt}" if attempt else "cohort"
        asked = self.sample(round, min(count, self.clients), purpose).tolist()
        found = [client for client in asked if is_there(client)]
        known, wave = set(asked), 0
        while len(found) < count and len(known) < self.clients:
            wave += 1
            rng = generator(self._seed, f"{purpose} more", round, wave)
            among = min(self.clients, len(known) + count * 2**wave)
            for client in self._ids(rng.choice(self.clients, among, replace=False)).tolist():
                if len(found) == count:
                    break
                if client not in known:
                    known.add(client)
                    if is_there(client):
                        found.append(client)
        return np.array(sorted(found), dtype=np.int64)

    def ids(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the ids of clients at some positions among those that have examples."""
        return self._ids(positions)

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
