"""MoFedSAM: sharpness-aware local steps along the server's momentum.

    client: w <- w - lr (beta g(w + e) + (1 - beta) m),   e = rho g / |g|
    server: x <- x + server_lr * mean(w - x)
            m <- -mean(w - x) / (K lr)

m is the mean direction of the last round's local steps, 0 at first. K lr is the mean, with the
clients' weights, of the true sums of their learning rates, so that steps may be unequal, skipped
or scheduled. Without the perturbation it is FedCM.

Source: Qu et al. 2022, "Generalized Federated Learning via Sharpness Aware Minimization"
(MoFedSAM); Xu et al. 2021, "FedCM: Federated Learning with Client-level Momentum".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.registry import Options
from fedopt.server.catalogue import MoFedSamOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class MoFedSamLocal:
    """MoFedSAM's client: its gradient is mixed with the server's momentum.

    Args:
        beta: share of the client's own gradient, in (0, 1].
    """

    beta: float
    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return beta g + (1 - beta) m."""
        momentum = (1 - self.beta) * broadcast["momentum"].unsqueeze(0)
        return LocalTerms(gradient_scale=self.beta, correction=momentum)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change of the parameters."""
        return ClientUpdate({"delta": result.delta})


class MoFedSam(FederatedStrategy):
    """Federated averaging of sharpness-aware steps with the server's momentum.

    Source: Qu et al. 2022 (MoFedSAM).
    """

    options_type = MoFedSamOptions
    takes_server_optimizer: ClassVar[bool] = True
    uses_only_sums: ClassVar[bool] = False

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """The vector that the clients' gradients are corrected with."""
        return ("momentum",)

    @classmethod
    def local(cls, options: MoFedSamOptions) -> LocalAlgorithm:
        """Return MoFedSAM's client."""
        return MoFedSamLocal(options.beta)

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse a run without perturbation, or without a sum of learning rates."""
        if recipe.sam is None:
            raise ConfigError(
                "got 0, but mofedsam takes sharpness-aware steps; use a number > 0 (0.05 is usual)",
                key="local.sam.rho",
            )
        if recipe.rule.effective_lr_sum([1.0]) is None:
            raise ConfigError(
                f"{recipe.rule_name} takes steps that are no sum of learning rates times "
                "gradients, of which mofedsam's momentum is the mean; use sgd",
                key="local.optimizer.name",
            )
        if recipe.optimizer_state != "reset":
            raise ConfigError(
                f'got "{recipe.optimizer_state}", but mofedsam\'s momentum is the mean update over '
                'the sum of this round\'s learning rates alone; use "reset"',
                key="local.optimizer_state",
            )

    def begin(self, layout: ParameterLayout) -> None:
        """Start with m = 0."""
        self.momentum = torch.zeros(layout.size, dtype=torch.float64)

    def broadcast(self) -> Mapping[str, Tensor]:
        """Send m."""
        return {"momentum": self.momentum}

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Renew m and return the new parameters."""
        if sums.lr_sum > 0:
            self.momentum = -sums.mean() / sums.lr_sum
        return super().server_step(parameters, sums)

    def vectors(self) -> dict[str, Tensor]:
        """Return m."""
        return {"momentum": self.momentum}

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back m."""
        self.momentum = vectors["momentum"].clone()
