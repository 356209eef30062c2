"""Gradients of a client's objective: loss, and the penalty on the gradient's norm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=bool(penalty))
    found = [
        torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)
    ]
    if not penalty:
        return found
    norm = torch.stack([g.square().sum() for g in found]).sum()
    if norm.requires_grad:  # not where the loss is linear in the parameters
        second = torch.autograd.grad(norm, parameters, allow_unused=True)
        found = [g if h is None else g + penalty * h for g, h in zip(found, second, strict=True)]
    return [g.detach() for g in found]


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
