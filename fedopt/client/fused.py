"""Layers of one client's model that are computed otherwise than torch does, to the same effect.

Large linear layers take their step of plain SGD by the product that makes the gradient:
W <- (1 - lr shrink) W - lr g^T x + lr drift, in one pass over W, which also makes the gradient at
the layer's input from rows before they change. The gradient of W is never stored and no optimizer
reads it. Max pooling right behind a ReLU comes before it, which leaves the ReLU a fraction of the
elements. Only layers of a (nested) `nn.Sequential` are touched, each of which a forward pass calls
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedopt.client.stacked import NotStackableError, leaves, sequence

LARGE = 2**19
"""Weights from which on a layer is fused: smaller ones and their gradients stay in the cache."""

SLICE = 2**17
"""Weights whose step is taken at once, so that they are read from memory once."""

FEW = 64
"""Examples up to which W x^T is quicker than x W^T, for which the library first copies W."""


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
    owners = [
        id(p) for _, layer in found for _, p in layer.named_parameters(remove_duplicate=False)
    ]
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
        if len(x) > FEW or x.device.type != "cpu":
            return nn.functional.linear(x, weight, bias)
        # In the order of memory that torch's own has: dropout draws in that order.
        y = x.new_empty(len(x), len(weight))
        y.copy_((weight @ x.t()).t())
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Return the gradient at x; change W and b."""
        step: SgdStep = ctx.step
        below = torch.empty_like(ctx.x) if ctx.needs_input_grad[0] else None
        keep = 1 - step.lr * step.shrink
        drift, bias_drift = (step.drift.get(ctx.names.get(n, "")) for n in ("weight", "bias"))
        rows = len(ctx.weight)
        if ctx.weight.device.type == "cpu":
            rows = max(1, SLICE // ctx.weight.shape[1])
        for start in range(0, len(ctx.weight), rows):
            part = slice(start, start + rows)
            weight, mine = ctx.weight[part], gradient[:, part]
            if below is not None:
                torch.addmm(below, mine, weight, beta=1 if start else 0, out=below)
            weight.addmm_(mine.t(), ctx.x, beta=keep, alpha=-step.lr)
            if drift is not None:
                weight.add_(drift[part], alpha=step.lr)
        if ctx.bias is not None:
            ctx.bias.mul_(keep).sub_(gradient.sum(0), alpha=step.lr)
            if bias_drift is not None:
                ctx.bias.add_(bias_drift, alpha=step.lr)
        return below, torch.zeros_like(gradient[0, 0]), None, None, None, None


def pool_first(model: nn.Module) -> None:
    """Let max pooling that follows a ReLU come before it: max(relu(x)) is relu(max(x)).

    Values and gradients are the same, to the bit. Layers keep their places; only what their
    `forward` does is exchanged.
    """
    if any(_has_hooks(m) for m in model.modules() if type(m) is nn.Sequential):
        return  # they would see what is between the two
    layers = [layer for _, layer in sequence(model)]
    everyone = [id(m) for _, m in model.named_modules(remove_duplicate=False)]
    for one, other in pairwise(layers):
        if (
            type(one) is nn.ReLU
            and type(other) is nn.MaxPool2d
            and not other.return_indices
            and all(everyone.count(id(layer)) == 1 for layer in (one, other))
            and not _has_hooks(one)
            and not _has_hooks(other)
        ):
            setattr(one, "forward", _unchanged)  # noqa: B010
            setattr(other, "forward", _PooledRelu(other))  # noqa: B010


def _has_hooks(layer: nn.Module) -> bool:
    """Return whether something looks at what goes into a layer or comes out of it."""
    hooks: Sequence[Any] = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return any(hooks)


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class _PooledRelu:
    """What takes the place of the `forward` of max pooling."""

    pool: nn.MaxPool2d

    def __call__(self, x: Tensor) -> Tensor:
        pool = self.pool
        largest = nn.functional.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        )
        return torch.relu(largest)
