"""Elementwise update rules, each written once for every engine.

A rule acts in place on lists of tensors: the parameters of one client, or of a block of clients
stacked along a leading axis (elementwise arithmetic does not know the difference). The learning
rate of a step is given by the caller, and so is its momentum where a schedule cycles it; schedules
live outside. Here are the protocol, SGD and the Adam family; `fedopt.optim.adaptive` has the other
rules, `fedopt.optim.torch_rule` shows any `torch.optim.Optimizer` as a rule, and `RuleOptimizer`
in `fedopt.optim.adapter` shows any rule to torch users as a `torch.optim.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

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

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the tensors kept for each parameter, of its shape."""
        ...

    @property
    def momentum_like(self) -> float | None:
        """What a schedule may cycle: momentum, or beta1; None or 0 where there is none."""
        ...

    @property
    def is_elementwise(self) -> bool:
        """Whether clients may be stacked and the state is the counter and the slots alone."""
        ...

    def init(self, parameters: Tensors) -> RuleState:
        """Return the state before the first step: all slots, counter 0."""
        ...

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place; the list `gradients` and its tensors may be overwritten.

        Args:
            parameters: what is trained.
            gradients: one for each parameter, of its shape.
            state: from `init`, or this rule's state after the same number of steps.
            lr: learning rate of this step.
            momentum: replaces `momentum_like` in this step, in [0, 1); None leaves it.

        Raises:
            ValueError: `momentum` is given, but the rule has none.
        """
        ...

    def effective_lr_sum(
        self,
        lrs: Sequence[float],
        momenta: Sequence[float] | None = None,
        proximal: float = 0.0,
    ) -> float | None:
        """Return sum_k of the coefficients with which the gradients g_k entered the parameters.

        For plain SGD this is sum_k lr_k; momentum adds what earlier gradients still move, and a
        proximal term takes away what it pulls back. `None` where the update is not linear in the
        gradients (Adam).

        Args:
            lrs: learning rate of each step.
            momenta: momentum of each step, where it is not the rule's.
            proximal: mu of the term mu/2 |w - x|^2, >= 0, x being where the steps began.
        """
        ...


def zeros(parameters: Tensors) -> list[Tensor]:
    """Return zeros of each parameter's shape."""
    return [torch.zeros_like(p) for p in parameters]


def decayed(gradients: list[Tensor], parameters: Tensors, weight_decay: float) -> list[Tensor]:
    """Return g + weight_decay w, the gradient with an L2 penalty; without one, g itself."""
    if not weight_decay:
        return gradients
    return list(torch._foreach_add(gradients, list(parameters), alpha=weight_decay))


def chosen_momentum(own: float, given: float | None, rule: object) -> float:
    """Return the momentum of a step.

    Raises:
        ValueError: one is given to a rule that has none, or it is not in [0, 1).
    """
    if given is None:
        return own
    if not own:
        raise ValueError(f"momentum cannot be set in a step: {rule} has none")
    if not 0 <= given < 1:
        raise ValueError(f"momentum must be in [0, 1), got {given}")
    return given


@dataclass(frozen=True)
class Sgd:
    """Stochastic gradient descent: v <- momentum v + (1 - dampening) g; w <- w - lr v.

    Nesterov's form steps along g + momentum v. The first v is g itself, whatever the dampening,
    as in torch.

    Source: Sutskever et al. 2013; torch.optim.SGD.
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    is_elementwise: ClassVar[bool] = True

    @property
    def slots(self) -> tuple[str, ...]:
        """The velocity v, where there is momentum."""
        return ("velocity",) if self.momentum else ()

    @property
    def momentum_like(self) -> float | None:
        """The momentum."""
        return self.momentum

    def init(self, parameters: Tensors) -> RuleState:
        """Return a velocity of zero, which the first step replaces by the gradient."""
        return RuleState(slots={name: zeros(parameters) for name in self.slots})

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        momentum = chosen_momentum(self.momentum, momentum, self)
        is_first = state.step == 0
        state.step += 1
        gradients = decayed(gradients, parameters, self.weight_decay)
        if self.momentum:
            velocity = state.slots["velocity"]
            if is_first:
                torch._foreach_copy_(velocity, gradients)
            else:
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, gradients, alpha=1 - self.dampening)
            if self.nesterov:
                gradients = list(torch._foreach_add(gradients, velocity, alpha=momentum))
            else:
                gradients = velocity
        torch._foreach_add_(list(parameters), gradients, alpha=-lr)

    def effective_lr_sum(
        self,
        lrs: Sequence[float],
        momenta: Sequence[float] | None = None,
        proximal: float = 0.0,
    ) -> float | None:
        """Return minus the displacement that unit gradients cause (the update is linear)."""
        if not self.momentum and not proximal:
            return float(sum(lrs))
        if momenta is None:
            momenta = [self.momentum] * len(lrs)
        moved, velocity = 0.0, 0.0
        for step, (lr, momentum) in enumerate(zip(lrs, momenta, strict=True)):
            gradient = 1 - proximal * moved
            if step == 0:
                velocity = gradient
            else:
                velocity = momentum * velocity + (1 - self.dampening) * gradient
            direction = gradient + momentum * velocity if self.nesterov else velocity
            moved += lr * direction if self.momentum else lr * gradient
        return moved


class Nonlinear:
    """What rules share whose update is elementwise, but not linear in the gradients."""

    is_elementwise: ClassVar[bool] = True

    def effective_lr_sum(
        self,
        lrs: Sequence[float],
        momenta: Sequence[float] | None = None,
        proximal: float = 0.0,
    ) -> float | None:
        """Return None: the update is not linear in the gradients."""
        return None


@dataclass(frozen=True)
class Adam(Nonlinear):
    """Adam: w <- w - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps).

    m and v are moving averages of g and g^2; AMSGrad divides by the largest v so far. Where a
    schedule changes beta1, the correction of step t uses the beta1 of that step, as torch does.

    Source: Kingma & Ba 2015, algorithm 1; Reddi et al. 2018, algorithm 2 (AMSGrad, here with bias
    correction); weight decay is an L2 penalty in the gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """The moments m and v, and AMSGrad's largest v."""
        moments = ("first_moment", "second_moment")
        return (*moments, "largest_second_moment") if self.amsgrad else moments

    @property
    def momentum_like(self) -> float | None:
        """The decay of the first moment."""
        return self.beta1

    def init(self, parameters: Tensors) -> RuleState:
        """Return zero moments."""
        return RuleState(slots={name: zeros(parameters) for name in self.slots})

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        gradients = decayed(gradients, parameters, self.weight_decay)
        self._step(parameters, gradients, state, lr, momentum)

    def _step(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None,
    ) -> None:
        beta1 = chosen_momentum(self.beta1, momentum, self)
        state.step += 1
        first, second = state.slots["first_moment"], state.slots["second_moment"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - self.beta2)
        if self.amsgrad:
            largest = state.slots["largest_second_moment"]
            torch._foreach_maximum_(largest, second)
            second = largest
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, (1 - self.beta2**state.step) ** 0.5)
        torch._foreach_add_(denominator, self.eps)
        rate = lr / (1 - beta1**state.step)
        torch._foreach_addcdiv_(list(parameters), first, denominator, -rate)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: w <- (1 - lr weight_decay) w before Adam's step.

    Source: Loshchilov & Hutter 2019, algorithm 2.
    """

    weight_decay: float = 1e-2

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        if self.weight_decay:
            torch._foreach_mul_(list(parameters), 1 - lr * self.weight_decay)
        self._step(parameters, gradients, state, lr, momentum)
