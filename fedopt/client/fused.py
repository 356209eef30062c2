"""Large linear layers whose step of plain SGD is taken by the product that makes the gradient.

W <- (1 - lr shrink) W - lr g^T x + lr drift, in one pass over W: the gradient is never stored and
no optimizer reads it. Only layers of a (nested) `nn.Sequential` are fused, each of which a forward
pass calls once; the gradient at a layer's input is made before its weights change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedopt.client.stacked import NotStackableError, leaves

LARGE = 2**19
"""Weights from which on a layer is fused: smaller ones and their gradients stay in the cache."""


@dataclass
class SgdStep:
    """The step that is being taken.

    Args:
        lr: learning rate.
        shrink: mu + weight decay.
        drift: mu x - correction by name of the parameter, or empty where there is none.
    """

    lr: float
    shrink: float
    drift: dict[str, Tensor]


class FusedLinears:
    """The large linear layers of a model, fused while a step is set.

    Args:
        model: its layers' `forward` is replaced; without a step they do what they did.

    Attributes:
        names: of the parameters that are fused.
        token: what autograd must be asked the gradient of, so that it reaches all fused layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.step: SgdStep | None = None
        self.names: set[str] = set()
        first = next(model.parameters())
        self.token = torch.zeros((), dtype=first.dtype, device=first.device, requires_grad=True)
        for prefix, layer in _large(model):
            names = {n: f"{prefix}{n}" for n, _ in layer.named_parameters(recurse=False)}
            self.names |= set(names.values())
            setattr(layer, "forward", _Forward(self, layer, names))  # noqa: B010


def _large(model: nn.Module) -> Sequence[tuple[str, nn.Linear]]:
    """Return the layers that are fused, with the prefix of their parameters' names."""
    try:
        found = leaves(model)
    except NotStackableError:
        return []
    linear = [
        (prefix, layer)
        for prefix, layer in found
        if type(layer) is nn.Linear
        and layer.weight.numel() >= LARGE
        and all(p.requires_grad for p in layer.parameters())
    ]
    owners = [id(p) for _, layer in found for p in layer.parameters(recurse=False)]
    return [
        (prefix, layer)
        for prefix, layer in linear
        if all(owners.count(id(p)) == 1 for p in layer.parameters())  # not tied
    ]


@dataclass(frozen=True)
class _Forward:
    """What takes the place of a layer's `forward`."""

    fused: FusedLinears
    layer: nn.Linear
    names: dict[str, str]

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if self.fused.step is None:
            return nn.functional.linear(x, weight, bias)
        own = None if bias is None else bias.detach()
        rows = x.reshape(-1, x.shape[-1])
        found: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
            rows, self.fused.token, weight.detach(), own, self.fused.step, self.names
        )
        return found.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """y = x W^T + b; its backward pass takes the step of W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        token: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        step: SgdStep,
        names: dict[str, str],
    ) -> Tensor:
        """Return y."""
        ctx.x, ctx.weight, ctx.bias, ctx.step, ctx.names = x.detach(), weight, bias, step, names
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient at x; change W and b."""
        step: SgdStep = ctx.step
        below = gradient @ ctx.weight if ctx.needs_input_grad[0] else None
        keep = 1 - step.lr * step.shrink
        ctx.weight.addmm_(gradient.t(), ctx.x, beta=keep, alpha=-step.lr)
        _pull(ctx.weight, step, ctx.names["weight"])
        if ctx.bias is not None:
            ctx.bias.mul_(keep).sub_(gradient.sum(0), alpha=step.lr)
            _pull(ctx.bias, step, ctx.names["bias"])
        return below, torch.zeros_like(gradient[0, 0]), None, None, None, None


def _pull(parameter: Tensor, step: SgdStep, name: str) -> None:
    if step.drift:
        parameter.add_(step.drift[name], alpha=step.lr)
