"""The clients' optimizer state as the server keeps it, for `local.optimizer_state = "average"`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedopt.client.algorithm import OPTIMIZER
from fedopt.client.optimizer_state import STEPS
from fedopt.client.trainer import Reports
from fedopt.server.rounds import RoundSums


class SharedOptimizerState:
    """The weighted mean of the last cohort's optimizer states, sent to the next.

    Args:
        sizes: length of each of the optimizer's vectors, by slot.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._vectors = {
            OPTIMIZER + slot: torch.zeros(size, dtype=torch.float64) for slot, size in sizes.items()
        }
        self._steps = torch.zeros(1, dtype=torch.float64)

    def vectors(self) -> dict[str, Tensor]:
        """Return the slots `[size]` and the step counter `[1]`, in float64."""
        return {**self._vectors, STEPS: self._steps}

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        self._vectors = {name: vectors[name].clone() for name in self._vectors}
        self._steps = vectors[STEPS].clone()

    def update(self, sums: RoundSums, reports: Reports) -> None:
        """Take the mean of the cohort's states; the counter grows by their mean applied steps."""
        self._vectors = {name: sums.mean(name) for name in self._vectors}
        applied = [
            steps - skipped
            for steps, skipped, weight in zip(
                reports.steps, reports.skipped_steps, reports.weight, strict=True
            )
            if weight > 0
        ]
        if any(applied):
            self._steps = self._steps + max(1, round(sum(applied) / len(applied)))
