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
        rng = generator(self._seed, purpose, round)
        drawn = np.sort(rng.choice(self.clients, count, replace=False, shuffle=False))
        ids = drawn if self._eligible is None else self._eligible[drawn]
        return ids.astype(np.int64)
