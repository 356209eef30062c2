"""A curriculum for a `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from fedopt.curriculum.ordering import difficulty_order
from fedopt.curriculum.pacing import available, pacing_share


class CurriculumSampler(Sampler[int]):
    """Draws from the examples that are available in an epoch, easiest first, shuffled.

        sampler = CurriculumSampler(scores, epochs=20, pacing="root")
        loader = DataLoader(data, batch_size=32, sampler=sampler)
        for epoch in range(20):
            sampler.set_epoch(epoch)
            ...

    Args:
        scores: difficulty of each example, `[n]`.
        epochs: of the training, >= 1.
        pacing: see `pacing_share`.
        order: `curriculum`, `anti` or `random`.
        start: share of the examples in the first epoch, in (0, 1].
        full_at: share of the training after which all are available, in (0, 1].
        seed: of the shuffling, and of the order `random`.

    Raises:
        ValueError: an option is out of range, or not all examples are available in the last epoch.

    Source: Wu, Dyer and Neyshabur 2021, algorithm 1.
    """

    def __init__(
        self,
        scores: npt.ArrayLike,
        epochs: int,
        pacing: str = "linear",
        order: str = "curriculum",
        start: float = 0.2,
        full_at: float = 0.8,
        seed: int = 0,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {epochs}")
        if pacing_share(pacing, (epochs - 1) / epochs, start, full_at) < 1:
            raise ValueError(
                f"full_at = {full_at} never reaches all data: the last of {epochs} epochs begins "
                f"at {(epochs - 1) / epochs:.3g} of the training"
            )
        self._order = difficulty_order(scores, order, np.random.default_rng([seed, 0]))
        self._epochs = epochs
        self._pacing = (pacing, start, full_at)
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch is next, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Return how many examples are available in the epoch."""
        name, start, full_at = self._pacing
        progress = min(1.0, self._epoch / self._epochs)
        return available(pacing_share(name, progress, start, full_at), len(self._order))

    def __iter__(self) -> Iterator[int]:
        """Return the positions of the available examples, shuffled."""
        rng = np.random.default_rng([self._seed, 1, self._epoch])
        return iter(rng.permutation(self._order[: len(self)]).tolist())
