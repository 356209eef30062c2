"""Gradients of a client's objective: loss, and the penalty on the gradient's norm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fedopt.client.losses import Loss
from fedopt.models.layout import BoundModel


def passes(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which passes through a model are made.

    Args:
        device: where the model is.
        precision: "full", or "bf16" for bfloat16 wherever torch's autocasting holds it safe.
    """
    if precision == "full":
        return _FULL
    return torch.autocast(device.type, torch.bfloat16)


_FULL = nullcontext()  # autocasting takes microseconds to switch off


def differentiate(
    target: Tensor,
    inputs: Sequence[Tensor],
    gradient: Tensor | None = None,
    *,
    keep_graph: bool = False,
    again: bool = False,
) -> list[Tensor]:
    """Return the gradient of a tensor by some others, zero where it does not depend on them.

    Args:
        target: what to differentiate.
        inputs: by what.
        gradient: at the target, in its shape; None for a scalar.
        keep_graph: whether the graph is needed once more.
        again: whether the gradient is to be differentiated too.
    """
    found = torch.autograd.grad(
        target,
        inputs,
        gradient,
        retain_graph=keep_graph or again,
        create_graph=again,
        allow_unused=True,
    )
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], *, penalty: float = 0.0
) -> list[Tensor]:
    """Return the gradient of loss + penalty * |grad loss|^2, zero where it does not depend.

    Args:
        loss: a scalar, or a sum of the losses of clients with parameters of their own.
        parameters: what to differentiate by.
        penalty: mu >= 0; where it is not 0 the gradient is differentiated once more.

    Source: Barrett & Dherin 2021 (explicit regularisation): the gradient is g + 2 mu H g.
    """
    found = differentiate(loss, parameters, again=bool(penalty))
    if not penalty:
        return found
    norm = torch.stack([g.square().sum() for g in found]).sum()
    if norm.requires_grad:  # not where the loss is linear in the parameters
        second = torch.autograd.grad(norm, parameters, allow_unused=True)
        found = [g if h is None else g + penalty * h for g, h in zip(found, second, strict=True)]
    return [g.detach() for g in found]


def mean_gradient(
    bound: BoundModel, loss: Loss, inputs: Tensor, targets: Tensor, precision: str = "full"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a model's outputs, their mean loss, and its gradient `[P]`, over some examples.

    The model is in the mode in which it is given: in training mode dropout draws, and BatchNorm
    uses the examples' own statistics and changes the running ones.

    Args:
        bound: the model, with its values.
        loss: the mean over a batch.
        inputs: of all examples, in one pass.
        targets: of the same.
        precision: arithmetic of the pass, "full" or "bf16".
    """
    with passes(bound.flat.device, precision):
        outputs = bound.module(inputs)
        mean = loss(outputs, targets)
    gradient = bound.layout.vector(gradients_of(mean, bound.parameters))
    return outputs.detach(), mean.detach(), gradient


def owned(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients that may be changed in place: each with memory of its own."""
    seen: set[int] = set()
    own = []
    for gradient in gradients:
        # Autograd may hand out one tensor twice, or an expanded scalar.
        if gradient.data_ptr() in seen or 0 in gradient.stride():
            gradient = gradient.clone(memory_format=torch.contiguous_format)
        seen.add(gradient.data_ptr())
        own.append(gradient)
    return own
