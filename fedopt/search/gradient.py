"""The gradient of the validation loss by the architecture, through one unrolled weight step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_flatten, tree_map

Tree = Any
"""A tensor, or lists and dictionaries of tensors."""

LossOf = Callable[[Tree, Tree], Tensor]
"""From (weights, alphas) to a scalar."""


def architecture_gradient(
    train_loss: LossOf, val_loss: LossOf, weights: Tree, alphas: Tree, xi: float, order: int = 2
) -> Tree:
    """Return d L_val(w - xi grad_w L_train(w, a), a) / d a, exactly.

    Args:
        train_loss: L_train(w, a).
        val_loss: L_val(w, a).
        weights: w, a tensor or a tree of tensors.
        alphas: a, likewise.
        xi: learning rate of the unrolled step, >= 0.
        order: 2 differentiates through the step; 1 takes w as it is, as xi = 0 does.

    Returns:
        The gradient, in the structure of `alphas`.

    Raises:
        ValueError: xi is negative, or the order is neither 1 nor 2.

    Source: Liu, Simonyan and Yang 2019 (DARTS), equations 6 and 7.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}")
    if not xi >= 0:
        raise ValueError(f"xi must be >= 0, got {xi}")
    if order == 1 or xi == 0:
        return grad(val_loss, argnums=1)(weights, alphas)

    def unrolled(architecture: Tree) -> Tensor:
        slopes = grad(train_loss)(weights, architecture)
        moved = tree_map(lambda w, g: w - xi * g, weights, slopes)
        return val_loss(moved, architecture)

    return grad(unrolled)(alphas)


def finite_difference_gradient(
    train_loss: LossOf,
    val_loss: LossOf,
    weights: Tree,
    alphas: Tree,
    xi: float,
    scale: float = 0.01,
) -> Tree:
    """Return the paper's approximation of `architecture_gradient`, two passes for the second term.

    The product with the mixed second derivative is the difference of grad_a L_train at
    w +- e v, over 2 e, for v = grad_w' L_val(w', a) and e = scale / |v|.

    Args:
        train_loss: L_train(w, a).
        val_loss: L_val(w, a).
        weights: w.
        alphas: a.
        xi: learning rate of the unrolled step, >= 0.
        scale: of e, > 0.

    Raises:
        ValueError: xi is negative, or scale is not > 0.

    Source: Liu, Simonyan and Yang 2019 (DARTS), equation 8.
    """
    if not xi >= 0:
        raise ValueError(f"xi must be >= 0, got {xi}")
    if not scale > 0:
        raise ValueError(f"scale must be > 0, got {scale}")
    slopes = grad(train_loss)(weights, alphas)
    moved = tree_map(lambda w, g: w - xi * g, weights, slopes)
    direction, direct = grad(val_loss, argnums=(0, 1))(moved, alphas)
    leaves, _ = tree_flatten(direction)
    norm = torch.sqrt(sum((leaf.square().sum() for leaf in leaves), torch.zeros(())))
    if not bool(norm > 0):
        return direct
    step = scale / norm
    either = [
        grad(train_loss, argnums=1)(
            tree_map(lambda w, v, s=sign: w + s * step * v, weights, direction), alphas
        )
        for sign in (1, -1)
    ]
    return tree_map(lambda d, up, down: d - xi * (up - down) / (2 * step), direct, *either)
