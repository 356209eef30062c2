"""Plain SGD on perceptrons, for stacked clients: products in torch, each fused with its step.

The arithmetic is that of the stacked layers, in another order of rounding: learning rates scale
the gradient at the outputs, so that the products that make the gradients of weights are subtracted
from these as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedopt.client.handwritten import DenseModel, HandwrittenSteps, Stage, to_gradient

_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class DenseSteps(HandwrittenSteps):
    """Takes steps of W <- W - lr (gradient + shrink W - drift) on stacked parameters, in place.

    Args:
        model: the layers.
        parameters: W `[G, out, in]` and b `[G, out]`, where there is one, of each layer.
        inputs: examples of all clients, `[N, ...]`, flattened to D features.
        targets: their classes, `[N]`.
        shrink: mu + weight_decay.
        drift: mu x - correction, of the parameters' shapes, or None.
    """

    def __init__(
        self,
        model: DenseModel,
        parameters: Sequence[Tensor],
        inputs: Tensor,
        targets: Tensor,
        shrink: float,
        drift: Sequence[Tensor] | None,
    ) -> None:
        last = model.layers[-1]
        features = model.layers[0].in_features
        super().__init__(inputs, targets, len(parameters[0]), last.out_features, features)
        self._rectified = model.rectified
        self._parameters, self._shrink, self._drift = parameters, shrink, drift
        rest = list(parameters)
        self._weights: list[Tensor] = []
        self._biases: list[Tensor | None] = []
        for layer in model.layers:
            self._weights.append(rest.pop(0))
            self._biases.append(None if layer.bias is None else rest.pop(0).unsqueeze(1))

    def _take_steps(self, stage: Stage) -> None:
        clients, width = stage.rows.shape[1:]
        weights = [w[:clients] for w in self._weights]
        biases = [None if b is None else b[:clients] for b in self._biases]
        turned = [w.mT for w in weights]
        made = [w.new_empty(clients, width, w.shape[1]) for w in weights]
        below = [w.new_empty(clients, width, w.shape[2]) for w in weights[1:]]
        ones = weights[0].new_ones(clients, 1, width)
        # Of each layer: its weights, its bias, what it makes, and whether a ReLU follows.
        up = list(zip(turned, biases, made, self._rectified, strict=True))
        # And what is below: memory for the gradient at its input, which the first layer needs not.
        down = list(zip(weights, biases, [None, *below], strict=True))
        z = made[-1].numpy()
        flat = z.reshape(-1)
        _, *arrays = stage.arrays
        for step, (x, one, place, top, total, scale) in enumerate(
            zip(self.gathered(stage.rows), *arrays, strict=True)
        ):
            first = h = torch.from_numpy(x)
            for w, b, out, is_rectified in up:
                if b is None:
                    torch.bmm(h, w, out=out)
                else:
                    torch.baddbmm(b, h, w, out=out)
                h = out.relu_() if is_rectified else out
            to_gradient(z, flat, one, place, top, total, scale)
            g, keep = made[-1], self._keeps(stage, step)
            for depth in range(len(down) - 1, -1, -1):
                w, b, under = down[depth]
                h = made[depth - 1] if depth else first
                if under is not None:
                    torch.bmm(g, w, out=under)
                _subtract(w, g.mT, h, keep)
                if b is not None:
                    _subtract(b, ones, g, keep)
                if under is not None:
                    g = under
                    if self._rectified[depth - 1]:
                        _threshold_backward(g, h, 0, grad_input=g)
            if self._drift is not None:
                self._pull(self._drift, stage, step)

    def _keeps(self, stage: Stage, step: int) -> float | list[float]:
        """Return the factor of the parameters in a step, or that of each client."""
        if not self._shrink:
            return 1.0
        keeps: list[float] = (1 - stage.rates[step] * self._shrink).tolist()
        return keeps[0] if stage.is_uniform else keeps

    def _pull(self, drift: Sequence[Tensor], stage: Stage, step: int) -> None:
        """Move the parameters along the drift."""
        rates = stage.rates[step].tolist()
        for parameter, pull in zip(self._parameters, drift, strict=True):
            if stage.is_uniform:
                parameter[: len(rates)].add_(pull[: len(rates)], alpha=rates[0])
                continue
            for own, mine, rate in zip(parameter, pull, rates, strict=False):
                own.add_(mine, alpha=rate)


def _subtract(weight: Tensor, left: Tensor, right: Tensor, keep: float | list[float]) -> None:
    """W <- keep W - left @ right, for each client.

    Clients with factors of their own are taken one by one, by the same call: whose rates are
    beside changes no bit.
    """
    if isinstance(keep, float):
        weight.baddbmm_(left, right, beta=keep, alpha=-1)
        return
    for place, own in enumerate(keep):
        part = slice(place, place + 1)
        weight[part].baddbmm_(left[part], right[part], beta=own, alpha=-1)
