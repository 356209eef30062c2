"""q-FedAvg: clients with a high loss weigh more, so that accuracies come closer together (q-FFL).

    client: local steps from x; F_k: its loss at x over all its examples;  d_k = L (x - w_k)
            sends F_k^q d_k  and  h_k = q F_k^(q-1) |d_k|^2 + L F_k^q
    server: x <- x - server_lr * sum_k F_k^q d_k / sum_k h_k

L is a Lipschitz constant of the gradient, 1 / lr as in the paper where it is not given. With q = 0
it is FedAvg. The paper samples clients in proportion to their examples and adds plainly; here, as
elsewhere, clients are sampled uniformly and both sums are weighted.

Source: Li et al. 2020, "Fair Resource Allocation in Federated Learning", algorithm 2 (q-FedAvg).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    FAIRNESS,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.client.recipe import Recipe
from fedopt.errors import ConfigError
from fedopt.registry import Options
from fedopt.server.catalogue import QFedAvgOptions
from fedopt.server.rounds import RoundSums
from fedopt.server.strategy import FederatedStrategy


@dataclass(frozen=True)
class QFedAvgLocal:
    """q-FedAvg's client.

    Args:
        q: fairness, >= 0.
        lipschitz: L, > 0.

    Source: Li et al. 2020, algorithm 2, lines 4 to 7.
    """

    q: float
    lipschitz: float
    terms: ClassVar[tuple[str, ...]] = ("delta", FAIRNESS)
    state_fields: ClassVar[tuple[str, ...]] = ()
    needs_start_loss: ClassVar[bool] = True

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return nothing to add."""
        return LocalTerms()

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return F^q (w - x) and h / L, both over L: L only enters h's first part then."""
        assert result.start_loss is not None
        q, delta = self.q, result.delta.double()
        loss = result.start_loss.to(delta.device).clamp_min(torch.finfo(torch.float64).tiny)
        weight = loss.pow(q)
        square = delta.square().sum(1)
        h = q * loss.pow(q - 1) * self.lipschitz * square + weight
        return ClientUpdate({"delta": weight.unsqueeze(1) * delta, FAIRNESS: h.unsqueeze(1)})


class QFedAvg(FederatedStrategy):
    """Federated averaging of a fairer objective.

    Source: Li et al. 2020, algorithm 2.
    """

    options_type = QFedAvgOptions
    takes_server_optimizer: ClassVar[bool] = False
    vector_sizes: ClassVar[Mapping[str, int]] = {FAIRNESS: 1}

    @classmethod
    def resolved(cls, options: QFedAvgOptions, lr: float) -> QFedAvgOptions:
        """Return the options with L = 1 / lr where it is not given."""
        given = options.lipschitz
        return options.model_copy(update={"lipschitz": 1 / lr}) if given is None else options

    @classmethod
    def check(cls, options: Options, recipe: Recipe) -> None:
        """Refuse a rate that tells nothing of L."""
        assert isinstance(options, QFedAvgOptions)
        if options.lipschitz is None and recipe.rule.effective_lr_sum([1.0]) is None:
            raise ConfigError(
                "missing; L is 1 / lr for SGD, but the rate of another optimizer tells nothing of "
                "the gradient's Lipschitz constant",
                key="strategy.lipschitz",
            )

    @classmethod
    def local(cls, options: QFedAvgOptions) -> LocalAlgorithm:
        """Return q-FedAvg's client."""
        assert options.lipschitz is not None
        return QFedAvgLocal(options.q, options.lipschitz)

    def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
        """Return the new parameters."""
        share: float = self.options.server_lr / float(sums.terms[FAIRNESS])
        return torch.add(parameters, sums.terms["delta"], alpha=share)
