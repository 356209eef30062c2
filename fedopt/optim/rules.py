"""Elementwise update rules, each written once for every engine.

A rule acts in place on lists of tensors: the parameters of one client, or of a block of clients
stacked along a leading axis (elementwise arithmetic does not know the difference). The learning
rate of a step is given by the caller, so schedules live outside. `RuleOptimizer` in
`fedopt.optim.adapter` shows any rule to torch users as a `torch.optim.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


@dataclass
class RuleState:
    """What a rule remembers between steps: a step counter and named lists of tensors."""

    step: int = 0
    slots: dict[str, list[Tensor]] = field(default_factory=dict)


class Rule(Protocol):
    """An update rule: `init` makes its state, `update` applies one step in place."""

    def init(self, parameters: Tensors) -> RuleState:
        """Return the state before the first step."""
        ...

    def update(
        self, parameters: Tensors, gradients: list[Tensor], state: RuleState, lr: float
    ) -> None:
        """Apply one step in place; the list `gradients` may be overwritten."""
        ...

    def effective_lr_sum(self, lrs: Sequence[float]) -> float | None:
        """Return sum_k of the coefficients with which the gradients g_k entered the parameters.

        For plain SGD this is sum_k lr_k; momentum adds what earlier gradients still move. `None`
        where the update is not linear in the gradients (Adam).
        """
        ...


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent: v <- momentum v + (1 - dampening) g; w <- w - lr v.

    Nesterov's form steps along g + momentum v. The first v is g itself, as in torch.

    Source: Sutskever et al. 2013; torch.optim.SGD.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def init(self, parameters: Tensors) -> RuleState:
        """Return an empty state; the velocity is made by the first step."""
        return RuleState()

    def update(
        self, parameters: Tensors, gradients: list[Tensor], state: RuleState, lr: float
    ) -> None:
        """Apply one step in place."""
        state.step += 1
        if self.weight_decay:
            gradients = list(
                torch._foreach_add(gradients, list(parameters), alpha=self.weight_decay)
            )
        if self.momentum:
            velocity = state.slots.get("velocity")
            if velocity is None:
                velocity = state.slots["velocity"] = [g.clone() for g in gradients]
            else:
                torch._foreach_mul_(velocity, self.momentum)
                torch._foreach_add_(velocity, gradients, alpha=1 - self.dampening)
            if self.nesterov:
                gradients = list(torch._foreach_add(gradients, velocity, alpha=self.momentum))
            else:
                gradients = velocity
        torch._foreach_add_(list(parameters), gradients, alpha=-lr)

    def effective_lr_sum(self, lrs: Sequence[float]) -> float | None:
        """Return minus the displacement that unit gradients cause (the update is linear)."""
        if not self.momentum:
            return float(sum(lrs))
        moved, velocity = 0.0, 0.0
        for step, lr in enumerate(lrs):
            velocity = 1.0 if step == 0 else self.momentum * velocity + 1 - self.dampening
            moved += lr * (1 + self.momentum * velocity if self.nesterov else velocity)
        return moved


@dataclass(frozen=True)
class Adam:
    """Adam: w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).

    Source: Kingma & Ba 2015, algorithm 1; weight decay is an L2 penalty in the gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def init(self, parameters: Tensors) -> RuleState:
        """Return zero moments."""
        return RuleState(
            slots={
                "first_moment": [torch.zeros_like(p) for p in parameters],
                "second_moment": [torch.zeros_like(p) for p in parameters],
            }
        )

    def update(
        self, parameters: Tensors, gradients: list[Tensor], state: RuleState, lr: float
    ) -> None:
        """Apply one step in place."""
        if self.weight_decay:
            gradients = list(
                torch._foreach_add(gradients, list(parameters), alpha=self.weight_decay)
            )
        self._step(parameters, gradients, state, lr)

    def _step(
        self, parameters: Tensors, gradients: list[Tensor], state: RuleState, lr: float
    ) -> None:
        state.step += 1
        first, second = state.slots["first_moment"], state.slots["second_moment"]
        torch._foreach_lerp_(first, gradients, 1 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - self.beta2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - self.beta2**state.step) ** 0.5)
        torch._foreach_add_(denominator, self.eps)
        rate = lr / (1 - self.beta1**state.step)
        torch._foreach_addcdiv_(list(parameters), first, denominator, -rate)

    def effective_lr_sum(self, lrs: Sequence[float]) -> float | None:
        """Return None: the update is not linear in the gradients."""
        return None


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: w <- (1 - lr weight_decay) w before Adam's step.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    weight_decay: float = 1e-2

    def update(
        self, parameters: Tensors, gradients: list[Tensor], state: RuleState, lr: float
    ) -> None:
        """Apply one step in place."""
        if self.weight_decay:
            torch._foreach_mul_(list(parameters), 1 - lr * self.weight_decay)
        self._step(parameters, gradients, state, lr)
