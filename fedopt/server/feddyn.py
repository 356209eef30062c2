"""FedDyn: a dynamic regulariser makes the clients' optima agree with the server's.

    client: theta_k = argmin L_k(theta) - <g_k, theta> + alpha/2 |theta - x|^2, by local steps
            g_k <- g_k - alpha (theta_k - x)
    server: h <- h - alpha / m * sum_{k in S} (theta_k - x)     m: all clients
            x <- mean_{k in S} theta_k - h / alpha

All g_k and h start at zero, so that h is the mean of all g_k in every round. At a fixed point
theta_k = x for every client: g_k is its gradient at x, and h = 0 their mean, so that x is
stationary for the mean of the clients' losses whatever the number of local steps. `server_lr`
damps the step from x to the new x; 1 is the paper's.

Source: Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", algorithm 1.
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
from fedopt.models.layout import ParameterLayout
from fedopt.server.catalogue import FedDynOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class FedDynLocal:
    """FedDyn's client.

    Args:
        alpha: weight of the regulariser, > 0.

    Source: Acar et al. 2021, algorithm 1, lines 4 to 6.
    """

    alpha: float
    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = ("linear",)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the gradient of the regulariser, -g_k + alpha (theta - x)."""
        return LocalTerms(proximal=self.alpha, correction=-state["linear"])

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return theta_k - x, and keep the new g_k."""
        linear = state["linear"].to(result.delta.device)
        return ClientUpdate({"delta": result.delta}, {"linear": linear - self.alpha * result.delta})

    def settle(self, update: ClientUpdate, state: Vectors) -> Vectors:
        """Renew g_k by what has arrived, so that h stays the mean of all g_k."""
        arrived = update.terms["delta"]
        linear = state["linear"].to(arrived.device) - self.alpha * arrived
        return {**update.state, "linear": linear}


class FedDyn(FederatedStrategy):
    """Dynamic regularisation.

    Source: Acar et al. 2021, algorithm 1.
    """

    options_type = FedDynOptions
    takes_server_optimizer: ClassVar[bool] = False
    uses_only_sums: ClassVar[bool] = True

    @classmethod
    def local(cls, options: FedDynOptions) -> LocalAlgorithm:
        """Return FedDyn's client."""
        return FedDynLocal(options.alpha)

    def begin(self, layout: ParameterLayout) -> None:
        """Start with h = 0."""
        super().begin(layout)
        self.h = torch.zeros(layout.size, dtype=torch.float64)

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Renew h and return the new parameters."""
        alpha: float = self.options.alpha
        self.h = self.h - sums.terms["delta"] * (alpha / self.sampler.clients)
        step = sums.mean() - self.h / alpha
        server_lr: float = self.options.server_lr
        return parameters + server_lr * step

    def vectors(self) -> dict[str, Tensor]:
        """Return h."""
        return {"h": self.h}

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back h."""
        self.h = vectors["h"].clone()
