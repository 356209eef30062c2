"""Plain SGD on softmax regression, for stacked clients, in numpy.

Where a model is one linear layer under the cross-entropy, a step is two small products and a
softmax: what it costs is the calls, and those of numpy cost a third of torch's. The arithmetic is
that of the stacked layers, in another order of rounding. Larger products run in torch, which
spreads them better; the limit is a fixed rule, never a timing, so that bits do not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedopt.client.losses import Loss
from fedopt.client.stacked_batches import Batch

MOST_PRODUCTS = 1 << 17
"""Multiplications of one client's forward pass up to which numpy is used. OpenBLAS keeps products
of this size on one thread, however many it has, so that its bits are those of one."""

Array = npt.NDArray[Any]


def softmax_layer(modules: Sequence[nn.Module], loss: Loss) -> nn.Linear | None:
    """Return the one linear layer of a softmax regression; None of any other model.

    Args:
        modules: the model's layers, in order.
        loss: the loss.
    """
    if loss is not nn.functional.cross_entropy:
        return None
    *before, last = modules
    if type(last) is not nn.Linear or any(type(layer) is not nn.Flatten for layer in before):
        return None
    return last


def fits(layer: nn.Linear, inputs: Tensor, batch_size: int) -> bool:
    """Return whether steps of a batch size are taken here.

    Args:
        layer: the linear layer.
        inputs: all examples, `[N, ...]`.
        batch_size: the largest batch.
    """
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == layer.weight.dtype
        and layer.weight.dtype in (torch.float32, torch.float64)
        and batch_size * layer.in_features * layer.out_features <= MOST_PRODUCTS
    )


class SoftmaxSteps:
    """Takes steps of W <- W - lr (gradient + shrink W - drift) on stacked parameters, in place.

    Args:
        weight: W of each client, `[G, K, D]`.
        bias: b of each client, `[G, K]`, or None.
        inputs: examples of all clients, `[N, ...]`, flattened to D features.
        targets: their classes, `[N]`.
        shrink: mu + weight_decay.
        drift: mu x - correction for W and b, `[G, ...]` each, or None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        inputs: Tensor,
        targets: Tensor,
        shrink: float,
        drift: Sequence[Tensor] | None,
    ) -> None:
        self._x = inputs.flatten(1).contiguous().numpy()
        self._y = targets.numpy()
        self._weight = weight.numpy()
        self._bias = None if bias is None else bias.numpy()
        self._gradient = np.empty_like(self._weight)
        self._shrink = shrink
        self._drift = None if drift is None else [d.numpy() for d in drift]
        self._drift_rate: float | None = None
        self._scaled: list[Array] = []
        self._rows: Array = np.empty((0, 0, 0), self._x.dtype)
        self._places: Array = np.empty(0, np.intp)

    def take(self, batch: Batch) -> Array:
        """Take a step of each active client; return their sums of losses, `[A]`, float64."""
        rows, rates = batch.rows.numpy(), batch.rates
        active, width = rows.shape
        x = self._room(active, width)
        # Rows are in range by construction: "clip" spares a check and a buffer.
        self._x.take(rows, axis=0, out=x, mode="clip")
        weight = self._weight[:active]
        z = np.matmul(x, weight.transpose(0, 2, 1))
        if self._bias is not None:
            z += self._bias[:active, None, :]
        z -= z.max(axis=-1, keepdims=True)
        flat = z.reshape(-1)
        places = self._firsts(active * width, z.shape[-1]) + self._y.take(rows.reshape(-1))
        own = flat.take(places)
        np.exp(z, out=z)
        total = z.sum(axis=-1, keepdims=True)
        z /= total
        losses = np.log(total).reshape(active, width)
        losses -= own.reshape(active, width)
        flat[places] -= 1
        if batch.is_padded:
            lengths = batch.lengths.numpy()
            mask = np.arange(width) < lengths[:, None]
            losses *= mask
            z *= (mask / lengths[:, None]).astype(z.dtype)[:, :, None]
        else:
            z /= width
        gradient = np.matmul(z.transpose(0, 2, 1), x, out=self._gradient[:active])
        lr = float(rates[0])
        is_uniform = active == 1 or bool((rates == lr).all())
        self._step(0, weight, gradient, rates, lr, is_uniform)
        if self._bias is not None:
            self._step(1, self._bias[:active], z.sum(axis=1), rates, lr, is_uniform)
        sums: Array = losses.sum(axis=1, dtype=np.float64)
        return sums

    def _step(
        self, index: int, weight: Array, gradient: Array, rates: Array, lr: float, is_uniform: bool
    ) -> None:
        """Step along a gradient, which is overwritten."""
        if is_uniform:
            gradient *= lr
            if self._shrink:
                weight *= 1 - lr * self._shrink
            weight -= gradient
            if self._drift is not None:
                if lr != self._drift_rate:
                    self._scaled = [lr * d for d in self._drift]
                    self._drift_rate = lr
                weight += self._scaled[index][: len(weight)]
            return
        if self._shrink:
            gradient += self._shrink * weight
        if self._drift is not None:
            gradient -= self._drift[index][: len(weight)]
        gradient *= rates.astype(weight.dtype).reshape(-1, *(1,) * (weight.ndim - 1))
        weight -= gradient

    def _room(self, active: int, width: int) -> Array:
        """Return memory for the inputs of a step, `[A, B, D]`."""
        if self._rows.shape[:2] != (active, width):
            self._rows = np.empty((active, width, self._x.shape[1]), self._x.dtype)
        return self._rows

    def _firsts(self, count: int, classes: int) -> Array:
        """Return where each example's outputs begin, `[count]`."""
        if len(self._places) != count:
            self._places = np.arange(count, dtype=np.intp) * classes
        return self._places
