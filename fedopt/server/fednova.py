"""FedNova: updates are normalised by how much local work is in them, before they are averaged.

    client: local steps from x; sends (w_i - x) / |a_i|
    server: x <- x + server_lr * tau_eff * sum_i p_i (w_i - x) / |a_i|,  tau_eff = sum_i p_i |a_i|

|a_i| is the sum of the coefficients with which the gradients of client i entered w_i - x. The paper
writes it for a constant rate and leaves the rate out, which cancels here: tau_i for plain SGD,
[tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho) for momentum rho, [1 - (1 - lr mu)^tau] / (lr mu)
for a proximal term. Here it is counted over the applied steps, so that schedules, skipped steps
and both variants at once are covered. With equal work it is FedAvg.

Source: Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
Optimization", section 4 and algorithm 1.
"""

from __future__ import annotations

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
from fedopt.registry import Options
from fedopt.server.catalogue import FedNovaOptions
from fedopt.server.linear import refuse_nonlinear
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class FedNovaLocal:
    """FedNova's client.

    Args:
        mu: weight of the proximal term, >= 0.
    """

    mu: float = 0.0
    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the proximal term."""
        return LocalTerms(proximal=self.mu)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the normalised change; a client without an applied step has none."""
        assert result.lr_sum is not None
        work = result.lr_sum.to(result.delta).unsqueeze(-1)
        normalised = torch.where(work > 0, result.delta / work, torch.zeros_like(result.delta))
        return ClientUpdate({"delta": normalised})


class FedNova(FederatedStrategy):
    """Normalised averaging.

    Source: Wang et al. 2020, algorithm 1.
    """

    options_type = FedNovaOptions
    uses_only_sums: ClassVar[bool] = False

    @classmethod
    def local(cls, options: FedNovaOptions) -> LocalAlgorithm:
        """Return FedNova's client."""
        return FedNovaLocal(options.mu)

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse local steps whose coefficients are not known."""
        refuse_nonlinear("fednova", "normalises by the sum of", recipe)
        if recipe.average is not None:
            raise ConfigError(
                "fednova normalises the change of a client's last iterate, not of an average; "
                "leave local.swa out, or average on the server (server.swa)",
                key="local.swa",
            )

    def mean_update(self, sums: RoundSums) -> Tensor:
        """Return tau_eff times the mean of the normalised changes."""
        return sums.mean() * sums.lr_sum
