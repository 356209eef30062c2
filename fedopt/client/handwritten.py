"""Steps of plain SGD written by hand for dense models under the cross-entropy, in few calls.

What does not change from step to step is made once for many: rows are gathered, labels turned into
one-hot rows and into places, rates divided by lengths. A step is then the products, one call for
each thing between them, and a softmax in numpy, whose calls cost a third of torch's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedopt.client.losses import Loss
from fedopt.client.stacked_batches import Stretch

_GATHERED_NBYTES = 1 << 19
"""Inputs that are gathered at once."""

_STAGE_OUTPUTS = 1 << 20
"""Outputs of the steps that are prepared at once, of all clients together."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DenseModel:
    """A perceptron: linear layers, some of them with a ReLU behind.

    Args:
        layers: the linear layers, in order.
        rectified: whether a ReLU follows each of them; the last one has none.
        flattens: whether inputs are flattened first.
    """

    layers: tuple[nn.Linear, ...]
    rectified: tuple[bool, ...]
    flattens: bool

    def takes(self, inputs: Tensor, targets: Tensor) -> bool:
        """Return whether steps on such examples are written by hand: vectors with classes.

        Args:
            inputs: all examples, `[N, ...]`.
            targets: of the same.
        """
        first = self.layers[0]
        is_vector = self.flattens or inputs.dim() == 2
        return (
            inputs.device.type == "cpu"
            and is_vector
            and inputs.dtype == first.weight.dtype
            and inputs.dtype in (torch.float32, torch.float64)
            and inputs[0].numel() == first.in_features
            and targets.dim() == 1
            and not targets.is_floating_point()
        )


def dense_model(modules: Sequence[nn.Module], loss: Loss) -> DenseModel | None:
    """Return the layers of a perceptron; None of any other model, or under another loss.

    Args:
        modules: the model's layers, in order.
        loss: the loss.
    """
    if loss is not nn.functional.cross_entropy:
        return None
    rest = list(modules)
    flattens = False
    while rest and type(rest[0]) is nn.Flatten:
        flattens = True
        del rest[0]
    layers: list[nn.Linear] = []
    rectified: list[bool] = []
    for module in rest:
        if type(module) is nn.Linear:
            layers.append(module)
            rectified.append(False)
        elif type(module) is nn.ReLU and rectified and not rectified[-1]:
            rectified[-1] = True
        else:
            return None
    if not layers or rectified[-1]:
        return None
    return DenseModel(tuple(layers), tuple(rectified), flattens)


@dataclass(frozen=True)
class Stage:
    """S steps with the same A clients and batches of the same length B, of K classes.

    Args:
        rows: positions among the inputs, `[S, A, B]`.
        hot: the labels as one-hot rows, `[S, A, B, K]`.
        places: where the labels' outputs are in a step's flattened outputs, `[S, A, B]`.
        tops: room for the labels' outputs less the largest ones, `[S, A, B]`.
        totals: room for the sums of exponentials, `[S, A, B, 1]`.
        scales: learning rate over a batch's length, 0 for what only fills it up, `[S, A, B, 1]`.
        rates: learning rates, `[S, A]`.
        is_uniform: whether all clients have the same rates.
    """

    rows: Array
    hot: Array
    places: Array
    tops: Array
    totals: Array
    scales: Array
    rates: Array
    is_uniform: bool

    @property
    def arrays(self) -> tuple[Array, ...]:
        """What has one row a step and a column a client, but for the rates."""
        return self.rows, self.hot, self.places, self.tops, self.totals, self.scales


class HandwrittenSteps(ABC):
    """Takes steps of plain SGD on stacked parameters.

    Args:
        inputs: examples of all clients, `[N, ...]`, flattened to D features.
        targets: their classes, `[N]`.
        clients: G.
        classes: K, the outputs.
        width: D, or D + 1 for a 1 behind the inputs.
    """

    def __init__(
        self, inputs: Tensor, targets: Tensor, clients: int, classes: int, width: int
    ) -> None:
        self._x = np.ascontiguousarray(inputs.flatten(1).numpy())
        self._y = targets.numpy()
        self._classes, self._width = classes, width
        self._loss_sums = np.zeros(clients)

    def take(self, stretch: Stretch) -> None:
        """Take the steps of a stretch."""
        active, widths = stretch.active, stretch.widths
        changes = np.flatnonzero((np.diff(active) != 0) | (np.diff(widths) != 0)) + 1
        for start, stop in pairwise([0, *changes.tolist(), len(active)]):
            clients, width = int(active[start]), int(widths[start])
            steps = max(1, _STAGE_OUTPUTS // (clients * width * self._classes))
            for first in range(start, stop, steps):
                part = slice(first, min(stop, first + steps))
                self._take_alike(
                    stretch.rows[part, :clients, :width],
                    stretch.lengths[part, :clients],
                    stretch.rates[part, :clients],
                )

    def finish(self) -> Tensor:
        """Return each client's sum of losses, `[G]`; its parameters are where they came from."""
        return torch.from_numpy(self._loss_sums)

    def _take_alike(self, rows: Array, lengths: Array, rates: Array) -> None:
        """Take steps of the same shape: rows `[S, A, B]`, lengths and rates `[S, A]`."""
        (clients, width), classes, dtype = rows.shape[1:], self._classes, self._x.dtype
        labels = self._y.take(rows)
        hot = np.zeros((*rows.shape, classes), dtype)
        np.put_along_axis(hot, labels[..., None], 1, axis=-1)
        places = np.arange(0, clients * width * classes, classes).reshape(clients, width) + labels
        mask = np.arange(width) < lengths[:, :, None]
        with np.errstate(all="ignore"):  # the trainer reports what is not finite
            stage = Stage(
                rows,
                hot,
                places,
                np.empty(rows.shape, dtype),
                np.empty((*rows.shape, 1), dtype),
                (mask * (rates / lengths)[:, :, None]).astype(dtype)[..., None],
                rates,
                is_uniform=not (rates != rates[:, :1]).any(),
            )
            self._take_steps(stage)
            losses = np.where(mask, np.log(stage.totals[..., 0]) - stage.tops, 0)
        sums = losses.sum(axis=-1, dtype=np.float64)
        # One step after another, so that the sum does not depend on where a stretch ends.
        sums[0] += self._loss_sums[:clients]
        self._loss_sums[:clients] = np.cumsum(sums, axis=0)[-1]

    @abstractmethod
    def _take_steps(self, stage: Stage) -> None:
        """Take the steps of a stage."""

    def gathered(self, rows: Array) -> Iterator[Array]:
        """Return the inputs of each step, `[..., B, D]` or with a 1 behind them for the bias.

        They are gathered for as many steps as stay in the cache until they are used.

        Args:
            rows: `[S, ..., B]`.
        """
        width = self._width
        dtype, features = self._x.dtype, self._x.shape[1]
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


def to_gradient(
    z: Array, flat: Array, hot: Array, places: Array, top: Array, total: Array, scale: Array
) -> None:
    """Turn outputs into the scaled gradient of the cross-entropy, in place.

    Args:
        z: outputs, `[..., B, K]`.
        flat: the same memory, flat.
        hot: one-hot labels, `[..., B, K]`.
        places: of the labels' outputs in `flat`, `[..., B]`.
        top: takes the labels' outputs less the largest ones, `[..., B]`.
        total: takes the sums of exponentials, `[..., B, 1]`; the loss is log(total) - top.
        scale: of each example, `[..., B, 1]`.
    """
    np.subtract(z, np.maximum.reduce(z, axis=-1, keepdims=True), out=z)
    flat.take(places, out=top, mode="clip")
    np.exp(z, out=z)
    np.add.reduce(z, axis=-1, keepdims=True, out=total)
    np.divide(z, total, out=z)
    np.subtract(z, hot, out=z)
    np.multiply(z, scale, out=z)
