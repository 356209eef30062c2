"""Self-paced steps: the loss of each example alone, and the objective sum v l / sum v."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedopt.client.algorithm import LocalTerms
from fedopt.client.losses import Loss, mean_squared_error
from fedopt.curriculum.self_paced import self_paced_weights


@dataclass(frozen=True)
class SelfPace:
    """How a client weighs the examples of a step.

    Args:
        name: `hard`, `linear`, `log` or `mixture`.
        ratio: of `mixture`, in (0, 1).

    Source: Kumar et al. 2010; Jiang et al. 2014.
    """

    name: str
    ratio: float = 0.5

    def weights(self, losses: Tensor, threshold: Tensor) -> Tensor:
        """Return the weights of some losses, 0 where a loss is not finite."""
        sound = losses.isfinite()
        found = self_paced_weights(
            losses.where(sound, 0).clamp(min=0), threshold, self.name, self.ratio
        )
        return found * sound


def example_losses(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each example alone, `[B]`, differentiable.

    Args:
        loss: the mean over a batch.
        output: `[B, ...]`.
        target: `[B, ...]`.
    """
    if loss is nn.functional.cross_entropy:
        found = nn.functional.cross_entropy(output, target, reduction="none")
        return found.flatten(1).mean(1) if found.dim() > 1 else found
    if loss in (nn.functional.mse_loss, mean_squared_error):
        difference = output - target.view_as(output).to(output.dtype)
        return difference.square().flatten(1).mean(1) if output.dim() > 1 else difference.square()
    return torch.stack([loss(output[i : i + 1], target[i : i + 1]) for i in range(len(target))])


def thresholds_of(terms: LocalTerms, clients: int) -> Tensor:
    """Return the threshold of each client, `[G]`; infinite where the terms have none."""
    if terms.thresholds is None:
        return torch.full((clients,), torch.inf, dtype=torch.float64)
    return terms.thresholds


def normalised(weights: Tensor) -> Tensor:
    """Return v / sum v over the last axis; 0 where all weights are 0."""
    total = weights.sum(-1, keepdim=True)
    return torch.where(total > 0, weights / total, torch.zeros_like(weights))


class Selection:
    """The weights of the examples of one step, fixed by its first pass.

    Args:
        pace: how losses become weights.
        thresholds: of each client, `[A]`.
        mask: which examples of a padded batch there are, `[A, B]`; None for all.
    """

    def __init__(self, pace: SelfPace, thresholds: Tensor, mask: Tensor | None = None) -> None:
        self._pace = pace
        self._thresholds = thresholds
        self._mask = mask
        self._weights: Tensor | None = None
        self._chosen = torch.empty(0)
        self.values = torch.empty(0)

    def objective(self, losses: Tensor) -> Tensor:
        """Return sum v l / sum v of each client, `[A]`, 0 where no example is selected.

        Args:
            losses: of each example, `[A, B]`; those of the first call make the weights.
        """
        if self._weights is None:
            found = losses.detach()
            chosen = self._pace.weights(found, self._thresholds.to(found).unsqueeze(-1))
            self._chosen = chosen if self._mask is None else chosen * self._mask
            self._weights = normalised(self._chosen)
        # What is not selected is not multiplied by 0: it may be infinite.
        kept = torch.where(self._weights > 0, losses, torch.zeros_like(losses))
        objective = (self._weights * kept).sum(-1)
        if self.values.numel() == 0:
            self.values = objective.detach()
        return objective

    @property
    def weights(self) -> Tensor:
        """V / sum v of each example, `[A, B]`; known after the first pass."""
        assert self._weights is not None, "no pass was made"
        return self._weights

    @property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """Whether a client has an example to learn from, `[A]`."""
        found: npt.NDArray[np.bool_] = (self._chosen > 0).any(-1).cpu().numpy()
        return found

    @property
    def counts(self) -> Tensor:
        """Examples with a weight > 0, `[A]`."""
        return (self._chosen > 0).sum(-1)


class Selected:
    """Counts the examples that clients selected over a round.

    Args:
        clients: G.
    """

    def __init__(self, clients: int) -> None:
        self._counts = torch.zeros(clients, dtype=torch.float64)
        self._offered = torch.zeros(clients, dtype=torch.float64)

    def add(self, counts: Tensor, offered: Tensor) -> None:
        """Add what was selected, and what was there, in a step of the first clients, `[A]`."""
        self._counts[: len(counts)] += counts.cpu()
        self._offered[: len(counts)] += offered.cpu()

    @property
    def shares(self) -> Tensor:
        """Share of the examples of the steps, `[G]`."""
        return self._counts / self._offered
