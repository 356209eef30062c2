"""Difficulty of a client's examples under a reference model, the same whichever engine trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedopt.client.losses import Loss
from fedopt.client.self_paced import example_losses
from fedopt.data.population import Examples
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout

CHUNK = 1024
"""Examples of a pass."""


class ExampleScorer:
    """Scores examples by one pass without gradients, in evaluation mode.

    BatchNorm uses its running statistics and leaves them alone; dropout is off; nothing is drawn.

    Args:
        model: a module of its own, whose values are replaced.
        loss: the mean over a batch.
        device: where to run.
    """

    def __init__(self, model: nn.Module, loss: Loss, device: torch.device) -> None:
        self._bound = BoundModel(model, device)
        self._bound.module.eval()
        self._loss = loss
        self._device = device

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model."""
        return self._bound.layout

    def losses(self, state: ModelState, examples: Examples) -> Tensor:
        """Return the loss of each example, `[n]` in float64 on the CPU."""
        return self._scores(state, examples, "loss")

    def negative_margins(self, state: ModelState, examples: Examples) -> Tensor:
        """Return the largest other logit minus that of the label, `[n]`, in float64 on the CPU."""
        return self._scores(state, examples, "margin")

    def _scores(self, state: ModelState, examples: Examples, kind: str) -> Tensor:
        self._bound.load(state)
        found = []
        with torch.no_grad():
            for first in range(0, len(examples.y), CHUNK):
                part = slice(first, first + CHUNK)
                x = torch.tensor(examples.x[part]).to(self._device)
                y = torch.tensor(examples.y[part]).to(self._device)
                output = self._bound.module(x)
                if kind == "loss":
                    scores = example_losses(self._loss, output, y)
                else:
                    own = output.gather(1, y.unsqueeze(1))
                    others = output.scatter(1, y.unsqueeze(1), -torch.inf)
                    scores = others.amax(1) - own.squeeze(1)
                found.append(scores.double().cpu())
        return torch.cat(found)
