"""Plain SGD on softmax regression, for stacked clients, in numpy.

Where a model is one linear layer under the cross-entropy, a step is two small products and a
softmax: what it costs is the calls, and those of numpy cost a third of torch's. The arithmetic is
that of the stacked layers, in another order of rounding. Larger products run in torch, which
spreads them better; the limit is a fixed rule, never a timing, so that bits do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedopt.client.losses import Loss
from fedopt.client.stacked_batches import Stretch

MOST_PRODUCTS = 1 << 17
"""Multiplications of one client's forward pass up to which numpy is used. OpenBLAS keeps products
of this size on one thread, however many it has, so that its bits are those of one."""

_GATHERED_NBYTES = 1 << 19
"""Inputs that are gathered at once."""

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
    """Takes steps of W <- W - lr (gradient + shrink W - drift) on stacked parameters.

    The bias is the weight of one more input, which is 1: it needs no calls of its own.

    Args:
        weight: W of each client, `[G, K, D]`; what the steps come to is written back by `finish`.
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
        self._stacked = weight.numpy(), None if bias is None else bias.numpy()
        self._x = np.ascontiguousarray(inputs.flatten(1).numpy())
        self._y = targets.numpy()
        self._weight = _joined(*self._stacked)
        self._gradient = np.empty_like(self._weight)
        self._shrink = shrink
        self._drift = None
        if drift is not None:
            weight_drift, *bias_drift = (d.numpy() for d in drift)
            self._drift = _joined(weight_drift, bias_drift[0] if bias_drift else None)
        self.loss_sums = np.zeros(len(self._weight))
        """Each client's sum of the losses of its steps so far, `[G]`."""

    def finish(self) -> None:
        """Write the parameters back to where they came from."""
        weight, bias = self._stacked
        weight[...] = self._weight[..., : weight.shape[-1]]
        if bias is not None:
            bias[...] = self._weight[..., -1]

    def take(self, stretch: Stretch) -> None:
        """Take the steps of a stretch."""
        active, widths = stretch.active, stretch.widths
        changes = np.flatnonzero((np.diff(active) != 0) | (np.diff(widths) != 0)) + 1
        for start, stop in pairwise([0, *changes.tolist(), len(active)]):
            clients, width = int(active[start]), int(widths[start])
            self._take_alike(
                stretch.rows[start:stop, :clients, :width],
                stretch.lengths[start:stop, :clients],
                stretch.rates[start:stop, :clients],
            )

    def _take_alike(self, rows: Array, lengths: Array, rates: Array) -> None:
        """Take steps of the same shape: rows `[S, A, B]`, lengths and rates `[S, A]`."""
        (clients, width), (classes, _) = rows.shape[1:], self._weight.shape[1:]
        dtype = self._weight.dtype
        labels = self._y.take(rows)
        hot = np.zeros((*rows.shape, classes), dtype)
        np.put_along_axis(hot, labels[..., None], 1, axis=-1)
        places = np.arange(0, clients * width * classes, classes).reshape(clients, width) + labels
        tops, totals = np.empty(rows.shape, dtype), np.empty((*rows.shape, 1), dtype)
        mask = np.arange(width) < lengths[:, :, None]
        scales = (mask * (rates / lengths)[:, :, None]).astype(dtype)[..., None]
        # Without the client axis the calls of a single client's steps cost less.
        part = 0 if clients == 1 else slice(clients)
        each: Any = rates[:, 0].tolist()
        if (rates != rates[:, :1]).any():
            each = rates[:, :, None, None]
        pulls = _Pulls(self._shrink, None if self._drift is None else self._drift[part], each)
        arrays = (a[:, part] for a in (rows, hot, places, tops, totals, scales))
        self._steps(self._weight[part], self._gradient[part], pulls, *arrays)
        losses = np.where(mask, np.log(totals[..., 0]) - tops, 0).sum(axis=-1, dtype=np.float64)
        # One step after another, so that the sum does not depend on where a stretch ends.
        losses[0] += self.loss_sums[:clients]
        self.loss_sums[:clients] = np.cumsum(losses, axis=0)[-1]

    def _steps(
        self,
        weight: Array,
        gradient: Array,
        pulls: _Pulls,
        rows: Array,
        hot: Array,
        places: Array,
        tops: Array,
        totals: Array,
        scales: Array,
    ) -> None:
        """Take steps: the arrays have one row a step, and `weight` is changed in place."""
        z = np.empty(hot.shape[1:], weight.dtype)
        flat, turned, transposed = z.reshape(-1), z.swapaxes(-1, -2), weight.swapaxes(-1, -2)
        is_pulled = pulls.are_some
        for step, (x, one, place, top, total, scale) in enumerate(
            zip(self._inputs(rows), hot, places, tops, totals, scales, strict=True)
        ):
            np.matmul(x, transposed, out=z)
            np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=z)
            flat.take(place, out=top, mode="clip")
            np.exp(z, out=z)
            np.add.reduce(z, axis=-1, keepdims=True, out=total)
            np.divide(z, total, out=z)
            np.subtract(z, one, out=z)
            np.multiply(z, scale, out=z)  # the learning rate over the batch's length
            np.matmul(turned, x, out=gradient)
            if is_pulled:
                pulls.apply(step, weight)
            np.subtract(weight, gradient, out=weight)

    def _inputs(self, rows: Array) -> Iterator[Array]:
        """Return the inputs of each step, `[..., B, D]` or with a 1 behind them for the bias.

        They are gathered for as many steps as stay in the cache until they are used.
        """
        width = self._weight.shape[-1]
        dtype, features = self._weight.dtype, self._x.shape[1]
        most = max(1, _GATHERED_NBYTES // (rows[0].size * width * dtype.itemsize))
        found = np.empty((min(most, len(rows)), *rows.shape[1:], features), dtype)
        whole = found
        if width > features:
            whole = np.ones((*found.shape[:-1], width), dtype)
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            # Rows are in range by construction: "clip" spares a check and a buffer.
            self._x.take(part, axis=0, out=found[: len(part)], mode="clip")
            if whole is not found:
                whole[: len(part), ..., :features] = found[: len(part)]
            yield from whole[: len(part)]


class _Pulls:
    """What a step does besides the gradient: W <- W (1 - lr shrink) + lr drift.

    Args:
        shrink: of W.
        drift: of W's shape, or None.
        rates: of each step, a number, or one a client `[A, 1, 1]`.
    """

    def __init__(self, shrink: float, drift: Array | None, rates: Sequence[Any]) -> None:
        self._shrink, self._drift, self._rates = shrink, drift, rates
        self._rate: Any = None
        self._scaled: Array | None = None
        self.are_some = bool(shrink) or drift is not None

    def apply(self, step: int, weight: Array) -> None:
        """Change W in place, before it is moved along the gradient."""
        rate = self._rates[step]
        is_one = isinstance(rate, float)
        if self._shrink:
            # Rounded once, for one rate as for many: whose rates are beside changes no bit.
            keep = 1 - rate * self._shrink
            np.multiply(weight, keep if is_one else keep.astype(weight.dtype), out=weight)
        if self._drift is not None:
            if not is_one:
                self._scaled = rate.astype(weight.dtype) * self._drift
            elif self._scaled is None or rate != self._rate:
                self._scaled, self._rate = rate * self._drift, rate
            np.add(weight, self._scaled, out=weight)


def _joined(weight: Array, bias: Array | None) -> Array:
    """Return weights with the bias as one more column, `[..., K, D + 1]`; without one, a copy."""
    return weight.copy() if bias is None else np.concatenate([weight, bias[..., None]], axis=-1)
