"""What supernets share: architecture parameters apart from weights, and what they come to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from fedopt.search.genotype import Genotype

ALPHAS = "alphas."
"""What the names of architecture parameters begin with."""


class Supernet(nn.Module, ABC):
    """A network with all operations of a search space, mixed by its `alphas`.

    Subclasses make `alphas` first, so that they come first among the parameters, and say which
    architecture they stand for.

    Args:
        alphas: name -> shape of architecture parameters; the last axis is that of the choices.
        scale: standard deviation that they begin with, as in the paper's code.
    """

    def __init__(self, alphas: Mapping[str, tuple[int, ...]], scale: float = 1e-3) -> None:
        super().__init__()
        self.alphas = nn.ParameterDict(
            {name: nn.Parameter(scale * torch.randn(shape)) for name, shape in alphas.items()}
        )

    @abstractmethod
    def genotype(self) -> Genotype:
        """Return the architecture that the alphas stand for now."""

    def weights_of(self, name: str) -> Tensor:
        """Return the softmax of architecture parameters over their choices."""
        found: Tensor = self.alphas[name].softmax(-1)
        return found

    def entropies(self) -> dict[str, float]:
        """Return the mean entropy of the choices in nats, by name: log(choices) at first."""
        found = {}
        for name in self.alphas:
            p = self.weights_of(name).detach().double()
            found[name] = float(torch.special.entr(p).sum(-1).mean())
        return found

    def largest_entropies(self) -> dict[str, float]:
        """Return what `entropies` would be if all choices were alike."""
        return {name: math.log(alpha.shape[-1]) for name, alpha in self.alphas.items()}


def split_names(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the weights and of the architecture parameters of a supernet."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    alphas = [name for name in names if name.startswith(ALPHAS)]
    return [name for name in names if name not in set(alphas)], alphas
