"""Means that hostile clients cannot move far: median, trimmed mean, Krum, geometric median.

    client: as in FedAvg, with a proximal term where mu > 0
    server: x <- x + server_lr * robust mean(w_i - x)

These need each client's change, not their sum: replies bring all of them, and the server holds as
many vectors as clients train in a round. Buffers (BatchNorm's statistics) are averaged in the same
way. Median, trimmed mean and Krum are means over clients, not examples: a weight that a client
names itself could be any. How many hostile clients a mean withstands: fewer than half (median,
geometric median), beta of them (trimmed mean), `hostile` (Krum).

Source: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates"
(median, trimmed mean); Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent" (Krum); Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for
Federated Learning" (RFA).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedopt.client.algorithm import (
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
)
from fedopt.errors import ConfigError, RunError
from fedopt.server.catalogue import (
    KrumOptions,
    MedianOptions,
    RfaOptions,
    TrimmedMeanOptions,
)
from fedopt.server.rounds import Federation, RoundSums
from fedopt.server.strategy import FederatedStrategy
from fedopt.server.updates import (
    Updates,
    geometric_median_weights,
    krum_scores,
    median,
    trimmed_mean,
)

log = logging.getLogger("fedopt")


@dataclass(frozen=True)
class CollectedLocal:
    """Plain local training whose change the server sees for itself.

    Args:
        mu: weight of the proximal term, >= 0.
    """

    mu: float = 0.0
    terms: ClassVar[tuple[str, ...]] = ()
    state_fields: ClassVar[tuple[str, ...]] = ()
    collected: ClassVar[bool] = True

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the proximal term."""
        return LocalTerms(proximal=self.mu)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change of the parameters."""
        return ClientUpdate({"delta": result.delta})


class RobustStrategy(FederatedStrategy):
    """The base of strategies that see each client's change."""

    @classmethod
    def local(cls, options: Any) -> LocalAlgorithm:
        """Return plain local training."""
        return CollectedLocal(options.mu)

    def robust_mean(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Return the mean of the changes `[P]` and of the buffers' changes `[Q]`."""
        raise TypeError(f"{type(self).__name__} defines no robust_mean")

    def mean_update(self, sums: RoundSums) -> Tensor:
        """Return the robust mean; that of the buffers takes the place of their mean."""
        assert sums.updates is not None
        change, buffers = self.robust_mean(sums.updates)
        sums.buffers = buffers * sums.weight
        return change


class Median(RobustStrategy):
    """The coordinate-wise median.

    Source: Yin et al. 2018, algorithm 1, option I.
    """

    options_type = MedianOptions

    def robust_mean(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Return the medians."""
        return updates.coordinates(median)


class TrimmedMean(RobustStrategy):
    """The coordinate-wise trimmed mean.

    Source: Yin et al. 2018, algorithm 1, option II.
    """

    options_type = TrimmedMeanOptions

    def __init__(
        self,
        federation: Federation,
        options: TrimmedMeanOptions | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(federation, options, **keywords)
        count, beta = federation.clients_per_round, self.options.beta
        if beta and math.floor(beta * count) == 0:
            log.warning(
                "strategy.beta: of %d clients a round %g leaves nothing out, as %g x %d is rounded "
                "down: this is the plain mean",
                count,
                beta,
                beta,
                count,
            )

    def robust_mean(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Return the trimmed means."""
        return updates.coordinates(partial(trimmed_mean, beta=self.options.beta))


class Krum(RobustStrategy):
    """Krum, and multi-Krum where more than one update is selected.

    Args:
        federation: who takes part.
        options: the strategy's options, or give them by keyword.

    Raises:
        ConfigError: fewer than 2 hostile + 3 clients train a round, or fewer than are selected.

    Source: Blanchard et al. 2017, section 4.
    """

    options_type = KrumOptions

    def __init__(
        self, federation: Federation, options: KrumOptions | None = None, **keywords: Any
    ) -> None:
        super().__init__(federation, options, **keywords)
        count = federation.clients_per_round
        needed = 2 * self.options.hostile + 3
        if count < needed:
            most = (count - 3) // 2
            allowed = f"use at most {most}, or" if most >= 0 else "use"
            raise ConfigError(
                f"got {self.options.hostile}, for which krum needs {needed} clients a round, but "
                f"{count} train; {allowed} more clients_per_round",
                key="strategy.hostile",
            )
        if self.options.selected > count - self.options.hostile:
            raise ConfigError(
                f"got {self.options.selected}, but only {count - self.options.hostile} of {count} "
                "clients a round are taken to be honest; use at most that",
                key="strategy.selected",
            )

    def robust_mean(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Return the mean of the selected updates."""
        needed = max(2 * self.options.hostile + 3, self.options.selected)
        if len(updates) < needed:
            raise RunError(
                f"krum needs {needed} updates (2 hostile + 3, or as many as are selected), but "
                f"{len(updates)} arrived; use a smaller strategy.hostile or strategy.selected, "
                'more clients_per_round, or strategy.partial_work = "keep"'
            )
        scores = krum_scores(updates.gram(), self.options.hostile)
        chosen = scores.argsort(stable=True)[: self.options.selected]
        weights = torch.zeros(len(updates), dtype=torch.float64)
        weights[chosen] = 1 / self.options.selected
        return updates.combined(weights)


class Rfa(RobustStrategy):
    """The geometric median.

    Source: Pillutla et al. 2022, algorithm 2.
    """

    options_type = RfaOptions

    def robust_mean(self, updates: Updates) -> tuple[Tensor, Tensor]:
        """Return the geometric median; the buffers' with the same weights."""
        options = self.options
        weights = geometric_median_weights(
            updates.gram(),
            updates.weights,
            options.iterations,
            options.tolerance,
            options.smoothing,
        )
        return updates.combined(weights)
