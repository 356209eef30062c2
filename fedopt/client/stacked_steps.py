"""The steps of stacked clients: gradients fused into plain SGD, or collected for another rule.

A `Stepper` gives each step its sink (see `fedopt.client.stacked_layers`): for plain SGD one that
applies the gradient where it is made, otherwise one that keeps the gradients, adds the objective
terms and lets the rule act on all clients at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.optim.rules import Rule, RuleState, Sgd


@dataclass(frozen=True)
class Batch:
    """A step of the active clients.

    Args:
        rows: positions in the group's concatenated examples, `[A, B]`.
        lengths: examples of each client in this step, `[A]`.
        is_padded: whether some client has fewer than B.
        rates: learning rate of each client, `[A]`.
    """

    rows: Tensor
    lengths: Tensor
    is_padded: bool
    rates: npt.NDArray[np.float64]


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
        if not self._uniform:
            self.tensor(index, torch.bmm(left, right))
            return
        weight = self._parameters[index][: self._active]
        weight.baddbmm_(left, right, beta=1 - self._lr * self._shrink, alpha=-self._lr)
        if self._drift is not None:
            weight.add_(self._drift[index][: self._active], alpha=self._lr)

    def tensor(self, index: int, gradient: Tensor) -> None:
        """Step along a gradient."""
        weight = self._parameters[index][: self._active]
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
    """Keeps the gradients, `[A, *shape]` by position."""

    def __init__(self, count: int) -> None:
        self.gradients: list[Tensor | None] = [None] * count

    def product(self, index: int, left: Tensor, right: Tensor) -> None:
        """Keep `left @ right`."""
        self.gradients[index] = torch.bmm(left, right)

    def tensor(self, index: int, gradient: Tensor) -> None:
        """Keep a gradient."""
        self.gradients[index] = gradient

    def all(self) -> list[Tensor]:
        """Return the gradients of all parameters."""
        return [gradient for gradient in self.gradients if gradient is not None]


class Deferred(Collect):
    """Keeps the gradients of a step and applies a rule to them afterwards."""

    def __init__(self, stepper: Stepper, batch: Batch) -> None:
        super().__init__(len(stepper.parameters))
        self._stepper = stepper
        self._rates = batch.rates

    def step(self) -> None:
        """Add the terms and apply the rule to the active clients."""
        self._stepper.apply(self.all(), self._rates)


class Stepper:
    """Makes the sink of each step: fused for plain SGD, deferred for other rules."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rule: Rule,
        proximal: float,
        anchor: Sequence[Tensor],
        correction: Sequence[Tensor] | None,
        state: RuleState | None,
    ) -> None:
        self.parameters = parameters
        self._rule = rule
        self._proximal = proximal
        self._anchor = anchor
        self._correction = correction
        self._state = state
        self._drift: list[Tensor] | None = None
        if state is None and (proximal or correction is not None):
            pulls = [proximal * view.unsqueeze(0) for view in anchor]
            clients = len(correction[0]) if correction is not None else parameters[0].shape[0]
            self._drift = [
                pull.expand(clients, *pull.shape[1:])
                if correction is None
                else (pull - correction[i] if proximal else -correction[i])
                for i, pull in enumerate(pulls)
            ]

    def __call__(self, batch: Batch) -> FusedSgd | Deferred:
        """Return the sink of a step."""
        if self._state is not None:
            return Deferred(self, batch)
        assert isinstance(self._rule, Sgd)
        shrink = self._proximal + self._rule.weight_decay
        return FusedSgd(self.parameters, shrink, batch.rates, self._drift)

    def apply(self, gradients: list[Tensor], rates: npt.NDArray[np.float64]) -> None:
        """Add the terms to the gradients and let the rule act on the active clients."""
        assert self._state is not None
        active = len(rates)
        parameters = [p[:active] for p in self.parameters]
        if self._proximal:
            pulls = torch._foreach_sub(parameters, list(self._anchor))  # exactly 0 at the start
            torch._foreach_add_(gradients, pulls, alpha=self._proximal)
        if self._correction is not None:
            torch._foreach_add_(gradients, [c[:active] for c in self._correction])
        # What the rule remembers so far: slots that a step makes are not read in that step.
        slots = dict(self._state.slots)
        if (rates == rates[0]).all():
            self._update(parameters, gradients, slots, slice(active), float(rates[0]))
        else:
            for i, lr in enumerate(rates.tolist()):
                one = slice(i, i + 1)
                mine, its_gradients = [p[one] for p in parameters], [g[one] for g in gradients]
                self._update(mine, its_gradients, slots, one, lr)
        self._state.step += 1

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        slots: Mapping[str, Sequence[Tensor]],
        clients: slice,
        lr: float,
    ) -> None:
        """Let the rule act on some clients, with their part of the state."""
        assert self._state is not None
        part = {name: [t[clients] for t in tensors] for name, tensors in slots.items()}
        state = RuleState(self._state.step, part)
        self._rule.update(parameters, gradients, state, lr)
        for name in state.slots.keys() - slots.keys():
            # Made by the first step, in which all clients take part.
            room = [torch.empty_like(p) for p in self.parameters]
            whole = self._state.slots.setdefault(name, room)
            for target, made in zip(whole, state.slots[name], strict=True):
                target[clients] = made
