"""Elementwise rules that adapt to the gradients' scale or sign: Adagrad, RMSprop and Lion.

The protocol, SGD and the Adam family are in `fedopt.optim.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.optim.rules import Nonlinear, RuleState, Tensors, chosen_momentum, decayed, zeros


@dataclass(frozen=True)
class Adagrad(Nonlinear):
    """Adagrad: s <- s + g^2; w <- w - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps).

    Source: Duchi et al. 2011, equation 1 (its diagonal form); torch.optim.Adagrad.
    """

    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    @property
    def slots(self) -> tuple[str, ...]:
        """The sum of squares s."""
        return ("square_sum",)

    @property
    def momentum_like(self) -> float | None:
        """None."""
        return None

    def init(self, parameters: Tensors) -> RuleState:
        """Return the sum of squares at its initial value."""
        start = self.initial_accumulator_value
        return RuleState(slots={"square_sum": [torch.full_like(p, start) for p in parameters]})

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        chosen_momentum(0.0, momentum, self)
        rate = lr / (1 + state.step * self.lr_decay)
        state.step += 1
        gradients = decayed(gradients, parameters, self.weight_decay)
        sums = state.slots["square_sum"]
        torch._foreach_addcmul_(sums, gradients, gradients, 1.0)
        denominator = torch._foreach_sqrt(sums)
        torch._foreach_add_(denominator, self.eps)
        torch._foreach_addcdiv_(list(parameters), gradients, denominator, -rate)


@dataclass(frozen=True)
class RmsProp(Nonlinear):
    """RMSprop: v <- momentum v + g / (sqrt(s) + eps); w <- w - lr v, s the moving average of g^2.

    s <- alpha s + (1 - alpha) g^2. The centered form divides by the root of s - m^2, where m is
    the moving average of g.

    Source: Tieleman & Hinton 2012, lecture 6.5; Graves 2013, equations 38 to 41 (centered, with
    eps in the root); torch.optim.RMSprop.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    @property
    def slots(self) -> tuple[str, ...]:
        """The average s, and m and v where they are used."""
        names = ["square_average"]
        if self.centered:
            names.append("gradient_average")
        if self.momentum:
            names.append("velocity")
        return tuple(names)

    @property
    def momentum_like(self) -> float | None:
        """The momentum."""
        return self.momentum

    def init(self, parameters: Tensors) -> RuleState:
        """Return zero averages."""
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
        state.step += 1
        gradients = decayed(gradients, parameters, self.weight_decay)
        squares = state.slots["square_average"]
        torch._foreach_mul_(squares, self.alpha)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - self.alpha)
        if self.centered:
            means = state.slots["gradient_average"]
            torch._foreach_lerp_(means, gradients, 1 - self.alpha)
            denominator = torch._foreach_addcmul(squares, means, means, -1.0)
            torch._foreach_sqrt_(denominator)
        else:
            denominator = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominator, self.eps)
        if self.momentum:
            velocity = state.slots["velocity"]
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_addcdiv_(velocity, gradients, denominator)
            torch._foreach_add_(list(parameters), velocity, alpha=-lr)
        else:
            torch._foreach_addcdiv_(list(parameters), gradients, denominator, -lr)


@dataclass(frozen=True)
class Lion(Nonlinear):
    """Lion: w <- w - lr (sign(beta1 m + (1 - beta1) g) + weight_decay w).

    Afterwards m <- beta2 m + (1 - beta2) g. All elements move by lr, whatever the gradient's size.
    Rates are usually 3 to 10 times below AdamW's, and weight decay as much above.

    Source: Chen et al. 2023, algorithm 2.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    @property
    def slots(self) -> tuple[str, ...]:
        """The moving average m of the gradients."""
        return ("first_moment",)

    @property
    def momentum_like(self) -> float | None:
        """The weight of m in the sign."""
        return self.beta1

    def init(self, parameters: Tensors) -> RuleState:
        """Return a zero average."""
        return RuleState(slots={"first_moment": zeros(parameters)})

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Apply one step in place."""
        beta1 = chosen_momentum(self.beta1, momentum, self)
        state.step += 1
        average = state.slots["first_moment"]
        directions = torch._foreach_mul(average, beta1)
        torch._foreach_add_(directions, gradients, alpha=1 - beta1)
        torch._foreach_sign_(directions)
        if self.weight_decay:
            torch._foreach_mul_(list(parameters), 1 - lr * self.weight_decay)
        torch._foreach_add_(list(parameters), directions, alpha=-lr)
        torch._foreach_mul_(average, self.beta2)
        torch._foreach_add_(average, gradients, alpha=1 - self.beta2)
