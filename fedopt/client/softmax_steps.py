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
from torch import Tensor

from fedopt.client.handwritten import Array, DenseModel, HandwrittenSteps, Stage, to_gradient

MOST_PRODUCTS = 1 << 17
"""Multiplications of one client's forward pass up to which numpy is used. OpenBLAS keeps products
of this size on one thread, however many it has, so that its bits are those of one."""


def fits(model: DenseModel, batch_size: int) -> bool:
    """Return whether steps of a batch size are taken here.

    Args:
        model: the layers.
        batch_size: the largest batch.
    """
    first, *others = model.layers
    return not others and batch_size * first.in_features * first.out_features <= MOST_PRODUCTS


class SoftmaxSteps(HandwrittenSteps):
    """Takes steps of W <- W - lr (gradient + shrink W - drift) on stacked parameters.

    The bias is the weight of one more input, which is 1: it needs no calls of its own.

    Args:
        parameters: W `[G, K, D]` of each client, and b `[G, K]` where there is one; what the
            steps come to is written back by `finish`.
        inputs: examples of all clients, `[N, ...]`, flattened to D features.
        targets: their classes, `[N]`.
        shrink: mu + weight_decay.
        drift: mu x - correction for W and b, `[G, ...]` each, or None.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        inputs: Tensor,
        targets: Tensor,
        shrink: float,
        drift: Sequence[Tensor] | None,
    ) -> None:
        weight, *bias = (stacked.numpy() for stacked in parameters)
        self._stacked = weight, bias[0] if bias else None
        self._weight = _joined(*self._stacked)
        self._gradient = np.empty_like(self._weight)
        self._shrink = shrink
        self._drift = None
        if drift is not None:
            weight_drift, *bias_drift = (d.numpy() for d in drift)
            self._drift = _joined(weight_drift, bias_drift[0] if bias_drift else None)
        super().__init__(inputs, targets, *self._weight.shape)

    def finish(self) -> Tensor:
        """Write the parameters back to where they came from; return the sums of losses, `[G]`."""
        weight, bias = self._stacked
        weight[...] = self._weight[..., : weight.shape[-1]]
        if bias is not None:
            bias[...] = self._weight[..., -1]
        return super().finish()

    def _take_steps(self, stage: Stage) -> None:
        clients = stage.rows.shape[1]
        # Without the client axis the calls of a single client's steps cost less.
        part = 0 if clients == 1 else slice(clients)
        each: Any = stage.rates[:, 0].tolist()
        if not stage.is_uniform:
            each = stage.rates[:, :, None, None]
        pulls = _Pulls(self._shrink, None if self._drift is None else self._drift[part], each)
        weight, gradient = self._weight[part], self._gradient[part]
        rows, hot, places, tops, totals, scales = (array[:, part] for array in stage.arrays)
        z = np.empty(hot.shape[1:], weight.dtype)
        flat, turned, transposed = z.reshape(-1), z.swapaxes(-1, -2), weight.swapaxes(-1, -2)
        is_pulled = pulls.are_some
        for step, (x, one, place, top, total, scale) in enumerate(
            zip(self.gathered(rows), hot, places, tops, totals, scales, strict=True)
        ):
            np.matmul(x, transposed, out=z)
            to_gradient(z, flat, one, place, top, total, scale)
            np.matmul(turned, x, out=gradient)
            if is_pulled:
                pulls.apply(step, weight)
            np.subtract(weight, gradient, out=weight)


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
