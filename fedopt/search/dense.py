"""The space for tables: widths, activations and skips of dense layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.search.genotype import DenseLayer, Genotype
from fedopt.search.operations import check_operations
from fedopt.search.supernet import Supernet

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "sin": torch.sin,
}
"""Name -> activation."""


class DenseSupernet(Supernet):
    """Dense layers whose width, activation and skip are mixed.

    A layer is as wide as the widest choice; narrower ones are its first units. A skip adds the
    layer's input, cut or filled up with zeros, from the second layer on.

    Args:
        input_shape: of one example; flattened.
        classes: width of the output.
        widths: choices of a layer's width, each >= 1.
        activations: choices of its activation.
        depth: layers, >= 1.
        skips: whether skips are searched too.

    Raises:
        ConfigError: the search space is empty or unknown.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        activations: Sequence[str] = ("relu", "tanh", "gelu", "identity"),
        depth: int = 2,
        skips: bool = True,
    ) -> None:
        check_operations(activations, list(ACTIVATIONS), "model.activations")
        if not widths or min(widths) < 1 or len(set(widths)) < len(widths):
            raise ConfigError(
                f"the choices must be different widths >= 1, got {list(widths)}", key="model.widths"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(depth):
            shapes[f"width_{layer}"] = (len(widths),)
            shapes[f"activation_{layer}"] = (len(activations),)
            if skips and layer:
                shapes[f"skip_{layer}"] = (2,)
        super().__init__(shapes)
        self._widths, self._activations = tuple(widths), tuple(activations)
        self._options: dict[str, Any] = {"depth": depth}
        widest, inputs = max(widths), math.prod(input_shape)
        self.layers = nn.ModuleList(
            nn.Linear(inputs if layer == 0 else widest, widest) for layer in range(depth)
        )
        self.classifier = nn.Linear(widest, classes)
        units = torch.arange(widest)
        self.register_buffer(
            "masks", torch.stack([(units < w).float() for w in widths]), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, classes]` for `[B, *input_shape]`."""
        x = x.flatten(1)
        masks: Tensor = self.get_buffer("masks").to(x.dtype)
        for place, layer in enumerate(self.layers):
            linear = layer(x)
            mixed = torch.stack(
                [
                    w * ACTIVATIONS[name](linear)
                    for w, name in zip(
                        self.weights_of(f"activation_{place}"), self._activations, strict=True
                    )
                ]
            ).sum(0)
            found = mixed * (self.weights_of(f"width_{place}") @ masks)
            if f"skip_{place}" in self.alphas:
                found = found + self.weights_of(f"skip_{place}")[1] * x
            x = found
        logits: Tensor = self.classifier(x)
        return logits

    def genotype(self) -> Genotype:
        """Return the heaviest choice of each."""
        layers = []
        for place in range(self._options["depth"]):
            width = self._widths[int(self.alphas[f"width_{place}"].argmax())]
            activation = self._activations[int(self.alphas[f"activation_{place}"].argmax())]
            name = f"skip_{place}"
            has_skip = name in self.alphas and bool(self.alphas[name].argmax())
            layers.append(DenseLayer(width, activation, has_skip))
        return Genotype("dense", self._options, layers=tuple(layers))


class FoundDense(nn.Module):
    """A dense network of found widths, activations and skips.

    Args:
        genotype: of the space `dense`.
        input_shape: of one example; flattened.
        classes: width of the output.
    """

    def __init__(self, genotype: Genotype, input_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self._choices = genotype.layers
        widths = [math.prod(input_shape), *(layer.width for layer in genotype.layers)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, classes]`."""
        x = x.flatten(1)
        for layer, choice in zip(self.layers, self._choices, strict=True):
            found = ACTIVATIONS[choice.activation](layer(x))
            if choice.skip:
                missing = found.shape[1] - x.shape[1]
                found = found + (
                    nn.functional.pad(x, (0, missing)) if missing > 0 else x[:, : found.shape[1]]
                )
            x = found
        logits: Tensor = self.classifier(x)
        return logits
