"""Where the gradients of stacked clients go: into plain SGD as they are made, or kept.

The sinks of `fedopt.client.stacked_layers`. For plain SGD, with or without proximal term,
correction and weight decay, a gradient is applied by the very product that makes it; for any
other recipe the gradients are kept, and `fedopt.client.steps` takes the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import LocalTerms
from fedopt.client.gradients import owned
from fedopt.models.layout import ModelState, ParameterLayout


class FusedSgd:
    """Applies plain SGD as gradients are made: W <- W - lr (gradient + shrink W - drift).

    Args:
        parameters: stacked parameters, changed in place.
        shrink: mu + weight_decay.
        rates: learning rate of each active client, `[A]`.
        drift: mu x - correction, per parameter, or None.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        shrink: float,
        rates: npt.NDArray[np.float64],
        drift: Sequence[Tensor] | None,
    ) -> None:
        self._parameters = parameters
        self._active = len(rates)
        self._uniform = bool((rates == rates[0]).all())
        self._lr = float(rates[0])
        self._rates = rates
        self._shrink = shrink
        self._drift = drift

    def product(self, index: int, left: Tensor, right: Tensor) -> None:
        """Step along `left @ right`, accumulated into the parameter."""
        weight = self._parameters[index][: self._active]
        if (
            not self._uniform
            or right.dtype != weight.dtype
            or torch.is_autocast_enabled(weight.device.type)
        ):
            self.tensor(index, torch.bmm(left, right))
            return
        weight.baddbmm_(left, right, beta=1 - self._lr * self._shrink, alpha=-self._lr)
        if self._drift is not None:
            weight.add_(self._drift[index][: self._active], alpha=self._lr)

    def tensor(self, index: int, gradient: Tensor) -> None:
        """Step along a gradient."""
        weight = self._parameters[index][: self._active]
        gradient = gradient.to(weight.dtype)
        if self._shrink:
            gradient = gradient + self._shrink * weight
        if self._drift is not None:
            gradient = gradient - self._drift[index][: self._active]
        if self._uniform:
            weight.add_(gradient, alpha=-self._lr)
            return
        rates = torch.as_tensor(self._rates, dtype=weight.dtype, device=weight.device)
        weight.sub_(rates.view(-1, *(1,) * (gradient.dim() - 1)) * gradient)


class Collect:
    """Keeps the gradients, `[A, *shape]` by position.

    Args:
        parameters: the stacked parameters that they belong to, which give their dtype.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self.gradients: list[Tensor | None] = [None] * len(parameters)

    def product(self, index: int, left: Tensor, right: Tensor) -> None:
        """Keep `left @ right`."""
        self.tensor(index, torch.bmm(left, right))

    def tensor(self, index: int, gradient: Tensor) -> None:
        """Keep a gradient."""
        self.gradients[index] = gradient.to(self._parameters[index].dtype)

    def all(self) -> list[Tensor]:
        """Return the gradients of all parameters, each with memory of its own."""
        return owned([gradient for gradient in self.gradients if gradient is not None])


def drift(
    terms: LocalTerms, layout: ParameterLayout, start: ModelState, clients: int
) -> list[Tensor] | None:
    """Return what plain SGD is pulled along besides its gradients, `[G, *shape]` each.

    That is mu x - correction, or None where the strategy adds neither term.
    """
    if not terms.proximal and terms.correction is None:
        return None
    pulls = [terms.proximal * view.unsqueeze(0) for view in layout.views(start.parameters)]
    if terms.correction is None:
        return [pull.expand(clients, *pull.shape[1:]) for pull in pulls]
    rows = terms.correction.expand(clients, -1)
    correction = [view.contiguous() for view in layout.views(rows)]
    return [pull - c if terms.proximal else -c for pull, c in zip(pulls, correction, strict=True)]
