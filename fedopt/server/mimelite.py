"""MimeLite: clients step with the server's optimizer state, which stays fixed while they do.

    client: y <- y - lr U(g_i(y), s), from y = x;  sends y - x and the gradient of f_i at x
    server: x <- x + server_lr * mean(y - x);  s <- V(mean gradient at x, s)

    sgdm: U = (1 - beta1) g + beta1 m                      m <- (1 - beta1) g + beta1 m
    adam: U = ((1 - beta1) g + beta1 m) / (sqrt(v) + eps)  v <- (1 - beta2) g^2 + beta2 v

The state moves once a round, along the gradient at x over all of a client's examples, so that it
does not drift with the clients. There is no correction of a bias; v starts at `initial_square`, as
with v = 0 the first steps would be of length 1 / eps. (Mime, without Lite, adds an SVRG-like
correction to g.)

Source: Karimireddy et al. 2021, "Breaking the centralized barrier for cross-device federated
learning" (Mime), algorithm 1 and table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    GRADIENT,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.optim.rules import Sgd
from fedopt.registry import Options
from fedopt.server.catalogue import MimeLiteOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy

MOMENTUM, SQUARE = "momentum", "second_moment"


@dataclass(frozen=True)
class MimeLiteLocal:
    """MimeLite's client.

    Args:
        base: `sgdm` or `adam`.
        beta1: share of the server's momentum in a step, in [0, 1).
        eps: added to the root of the second moment, > 0.

    Source: Karimireddy et al. 2021, algorithm 1.
    """

    base: str
    beta1: float
    eps: float
    terms: ClassVar[tuple[str, ...]] = ("delta", GRADIENT)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return U as a scale, a shift and, for adam, a factor of each element."""
        factor = None
        if self.base == "adam":
            factor = (broadcast[SQUARE].sqrt() + self.eps).reciprocal().unsqueeze(0)
        return LocalTerms(
            gradient_scale=1 - self.beta1,
            correction=self.beta1 * broadcast[MOMENTUM].unsqueeze(0),
            preconditioner=factor,
            full_gradient=True,
        )

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change, and the gradient at x."""
        assert result.full_gradient is not None
        return ClientUpdate({"delta": result.delta, GRADIENT: result.full_gradient})


class MimeLite(FederatedStrategy):
    """Local steps with a server's optimizer state that is fixed within the round.

    Source: Karimireddy et al. 2021, algorithm 1 (MimeLite).
    """

    options_type = MimeLiteOptions
    takes_server_optimizer: ClassVar[bool] = False

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The momentum, and adam's second moment."""
        return (MOMENTUM, SQUARE) if self.options.base == "adam" else (MOMENTUM,)

    @classmethod
    def local(cls, options: MimeLiteOptions) -> LocalAlgorithm:
        """Return MimeLite's client."""
        return MimeLiteLocal(options.base, options.beta1, options.eps)

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse a local optimizer of the clients' own: U is the whole step."""
        if not isinstance(recipe.rule, Sgd) or recipe.rule.momentum:
            name = recipe.rule_name + (" with momentum" if isinstance(recipe.rule, Sgd) else "")
            raise ConfigError(
                f"mimelite's clients step with the server's optimizer state, got {name}; use sgd "
                "without momentum, and strategy.base for the server's optimizer",
                key="local.optimizer.name",
            )

    def begin(self, layout: ParameterLayout) -> None:
        """Start with m = 0 and the first v."""
        super().begin(layout)
        self._moments = {MOMENTUM: torch.zeros(layout.size, dtype=torch.float64)}
        if self.options.base == "adam":
            first = torch.full((layout.size,), self.options.initial_square, dtype=torch.float64)
            self._moments[SQUARE] = first

    def broadcast(self) -> Mapping[str, Tensor]:
        """Send the state."""
        return self._moments

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Renew the state and return the new parameters."""
        gradient, options = sums.mean(GRADIENT), self.options
        new = {MOMENTUM: torch.lerp(gradient, self._moments[MOMENTUM], options.beta1)}
        if SQUARE in self._moments:
            new[SQUARE] = torch.lerp(gradient.square(), self._moments[SQUARE], options.beta2)
        self._moments = new
        return super().server_step(parameters, sums)

    def vectors(self) -> dict[str, Tensor]:
        """Return the state."""
        return dict(self._moments)

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back the state."""
        self._moments = {name: vectors[name].clone() for name in self._moments}
