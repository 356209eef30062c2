"""FedPM: the server mixes the clients' models in the metric of their curvature.

    client: local steps with K-FAC or EKFAC from x, which keep for every layer the input factor A_i;
            sends D_i (A_i + pi sqrt(damping)) for the change D_i of the layer, and the factor
    server: x <- x + server_lr (mean_i D_i A_i) (mean_i A_i)^-1

The plain mean of locally preconditioned steps is not the step of the mean objective: a client
moves far along directions that its own data do not curve, and nobody holds it back. The mixture
gives a client's word along a direction the weight of its curvature there. With layers whose
factors G agree, the mixture of clients that have each reached the minimum of a quadratic loss is
the minimum of their sum. Parameters without factors are averaged plainly.

The curvature is that of FOOF: of the two factors A and G only A enters, so that the server solves
one system a layer and clients send one factor a layer, as its upper triangle.

Source: Ishii et al. 2025, "FedPM: Federated Learning Using Second-order Optimization with
Preconditioned Mixing of Local Parameters"; Benzing 2022 (FOOF).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedopt.client.algorithm import (
    OPTIMIZER,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.client.curvature import MIXING_FACTORS, mixed_models
from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError
from fedopt.registry import Options
from fedopt.server.catalogue import FedPmOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy

FACTORS = OPTIMIZER + MIXING_FACTORS
"""Name of the term of the damped input factors."""


@dataclass(frozen=True)
class FedPmLocal:
    """FedPM's client: plain local training, whose change is sent in the metric of its factors.

    Args:
        mu: weight of the proximal term mu/2 |w - x|^2, >= 0.

    Source: Ishii et al. 2025.
    """

    mu: float = 0.0
    terms: ClassVar[tuple[str, ...]] = ("delta", FACTORS)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the proximal term, and ask for the metric."""
        return LocalTerms(proximal=self.mu, mixing=True)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return D_i A_i and A_i."""
        assert result.mixed is not None
        return ClientUpdate(
            {"delta": result.mixed, FACTORS: result.optimizer_state[MIXING_FACTORS]}
        )


class FedPm(FederatedStrategy):
    """Federated mixing of models in the metric of the clients' curvature.

    Source: Ishii et al. 2025 (FedPM).
    """

    options_type = FedPmOptions
    takes_server_optimizer: ClassVar[bool] = False

    @classmethod
    def local(cls, options: FedPmOptions) -> LocalAlgorithm:
        """Return FedPM's client."""
        return FedPmLocal(options.mu)

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse local training without Kronecker factors."""
        if recipe.kronecker is None:
            raise ConfigError(
                'got "fedpm", which mixes in the metric of Kronecker factors; '
                f'{recipe.rule_name} keeps none: use local.optimizer.name = "kfac" or "ekfac"',
                key="strategy.name",
            )

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Return the parameters moved by the mixed change."""
        layers = self.federation.kronecker
        assert layers is not None
        change = mixed_models(layers, self.layout, sums.mean(), sums.mean(FACTORS))
        server_lr: float = self.options.server_lr
        return parameters + server_lr * change
