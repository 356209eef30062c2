"""The `loop` engine: one client after another, for any model, any loss, any rule.

Parameters are views into one flat vector, convolution weights channels-last; nothing but
activations and gradients is allocated in a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.losses import Loss
from fedopt.client.plan import ClientPlan
from fedopt.data.population import Examples
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout
from fedopt.optim.rules import Rule
from fedopt.seeds import seed_torch, torch_seed


class LoopEngine:
    """Trains one client at a time.

    Args:
        model: the module to train; its parameters are moved into one flat vector.
        loss: function of (output, target) that returns the batch mean as a scalar.
        rule: the update rule.
        seed: the run's seed, from which dropout and the like draw.
        device: where to train.
    """

    group_size: ClassVar[int] = 1

    def __init__(
        self, model: nn.Module, loss: Loss, rule: Rule, seed: int, device: torch.device
    ) -> None:
        self._bound = BoundModel(model, device)
        self._loss = loss
        self._rule = rule
        self._seed = seed
        self.device = device
        self._has_images = any(len(s.shape) == 4 for s in self._bound.layout.parameters)

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model's parameters."""
        return self._bound.layout

    def train(
        self,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        terms: LocalTerms,
    ) -> LocalResult:
        """Train a group of one client from `start`.

        Args:
            start: the server's parameters and buffers, on the engine's device.
            round: communication round, from 1.
            plans: what the client does; one plan.
            examples: the client's examples.
            terms: what is added to its gradients.
        """
        (plan,) = plans
        bound, module = self._bound, self._bound.module
        parameters, rule = bound.parameters, self._rule
        bound.load(start)
        module.train()
        seed_torch(torch_seed(self._seed, "train", round, plan.client), self.device)
        inputs, targets = self._tensors(examples)
        full = self._gradient(inputs, targets) if terms.full_gradient else None
        if full is not None:
            bound.load(start)
        anchor = self.layout.views(start.parameters) if terms.proximal else []
        correction = (
            self.layout.views(terms.correction[0]) if terms.correction is not None else None
        )
        state = rule.init(parameters)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, lr in self._batches(plan, inputs, targets):
            loss = self._loss(module(batch[0]), batch[1])
            gradients = _gradients(loss, parameters)
            with torch.no_grad():
                if terms.proximal:
                    pulls = torch._foreach_sub(list(parameters), anchor)  # exactly 0 at the start
                    torch._foreach_add_(gradients, pulls, alpha=terms.proximal)
                if correction is not None:
                    torch._foreach_add_(gradients, correction)
                rule.update(parameters, gradients, state, lr)
                loss_sum += loss.detach() * len(batch[1])
        seen = int(plan.offsets[-1])
        lr_sum = rule.effective_lr_sum(plan.learning_rates.tolist())
        return LocalResult(
            delta=(bound.flat - start.parameters).unsqueeze(0),
            buffers=(bound.buffers() - start.buffers.cpu()).unsqueeze(0),
            train_loss=(loss_sum / seen).unsqueeze(0),
            lr_sum=None if lr_sum is None else torch.tensor([lr_sum], dtype=torch.float64),
            full_gradient=None if full is None else full.unsqueeze(0),
        )

    def _tensors(self, data: Examples) -> tuple[Tensor, Tensor]:
        inputs = _to_tensor(data.x).to(self.device)
        targets = _to_tensor(data.y).to(self.device)
        if self._has_images and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets

    def _batches(
        self, plan: ClientPlan, inputs: Tensor, targets: Tensor
    ) -> Iterable[tuple[tuple[Tensor, Tensor], float]]:
        rates = plan.learning_rates.tolist()
        if plan.order is None:
            return [((inputs, targets), lr) for lr in rates]
        order = torch.from_numpy(plan.order).to(self.device)
        pieces = [order[a:b] for a, b in pairwise(plan.offsets.tolist())]
        return (((inputs[p], targets[p]), lr) for p, lr in zip(pieces, rates, strict=True))

    def _gradient(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient over all examples at the current parameters, `[P]`."""
        module, parameters = self._bound.module, self._bound.parameters
        flat = torch.empty_like(self._bound.flat)
        gradients = _gradients(self._loss(module(inputs), targets), parameters)
        for view, gradient in zip(self.layout.views(flat), gradients, strict=True):
            view.copy_(gradient)
        return flat


def _gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
