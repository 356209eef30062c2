"""FedProx: FedAvg with a proximal term in the local objective, keeping partial work.

    client: min_w f_i(w) + mu/2 |w - x|^2, so that mu (w - x) is added to each gradient
    server: as FedAvg

With mu = 0 and the same treatment of partial work it is FedAvg to the bit.

With `adaptive`, mu grows by 0.1 whenever the training loss has risen, and falls by 0.1 whenever it
has fallen five times in a row. The paper watches the global training loss; here it is the cohort's
mean loss over its local steps, which costs nothing more, and mu is sent as one number.

Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2; section
5.3.2 and appendix C.3 (adaptive mu). The mean is weighted by examples as in FedAvg (the paper's
algorithm samples clients in proportion to their examples and averages uniformly; its code, like
ours, samples uniformly and weighs).
"""

from __future__ import annotations

import math
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
    PlainLocal,
    Vectors,
)
from fedopt.server.catalogue import FedProxOptions
from fedopt.server.strategy import FederatedStrategy

MU = "mu"
"""Name of the broadcast of an adaptive mu, of length 1."""


@dataclass(frozen=True)
class AdaptiveProxLocal:
    """Local training with a proximal term whose weight the server sends."""

    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the proximal term."""
        return LocalTerms(proximal=float(broadcast[MU]))

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change of the parameters."""
        return ClientUpdate({"delta": result.delta})


@dataclass
class AdaptiveMu:
    """The paper's rule for mu.

    Args:
        mu: the weight now, >= 0.
        step: by how much it changes, > 0.
        patience: falls of the loss in a row before it gets smaller, >= 1.
        last: the loss last seen, NaN before the first.
        falls: falls in a row.

    Source: Li et al. 2020, section 5.3.2.
    """

    mu: float
    step: float = 0.1
    patience: int = 5
    last: float = math.nan
    falls: int = 0

    def observe(self, loss: float) -> None:
        """Take in the loss of a round; one that is not known changes nothing."""
        if math.isnan(loss):
            return
        if loss > self.last:
            self.mu, self.falls = self.mu + self.step, 0
        elif loss < self.last:
            self.falls += 1
            if self.falls == self.patience:
                self.mu, self.falls = max(0.0, self.mu - self.step), 0
        self.last = loss


class FedProx(FederatedStrategy):
    """Federated averaging with a proximal term.

    Source: Li et al. 2020, algorithm 2.
    """

    options_type = FedProxOptions
    uses_only_sums: ClassVar[bool] = True  # but for an adaptive mu, which noise refuses
    vector_sizes: ClassVar[Mapping[str, int]] = {MU: 1}

    @classmethod
    def local(cls, options: FedProxOptions) -> LocalAlgorithm:
        """Return local training with the proximal term."""
        return AdaptiveProxLocal() if options.adaptive else PlainLocal(mu=options.mu)

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """Mu, where it is adaptive."""
        return (MU,) if self.options.adaptive else ()

    @property
    def adaptive_mu(self) -> AdaptiveMu | None:
        """The rule for mu and its state, where it is adaptive."""
        if not self.options.adaptive:
            return None
        if self._adaptive is None:
            options = self.options
            self._adaptive = AdaptiveMu(options.mu, options.mu_step, options.patience)
        return self._adaptive

    _adaptive: AdaptiveMu | None = None

    def broadcast(self) -> Mapping[str, Tensor]:
        """Send mu, where it is adaptive."""
        adaptive = self.adaptive_mu
        return {} if adaptive is None else {MU: torch.tensor([adaptive.mu], dtype=torch.float64)}

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Adapt mu to the training loss."""
        if self.adaptive_mu is not None and "train_loss" in metrics:
            self.adaptive_mu.observe(metrics["train_loss"])

    def vectors(self) -> dict[str, Tensor]:
        """Return mu, the last loss and the falls in a row, where mu is adaptive."""
        adaptive = self.adaptive_mu
        if adaptive is None:
            return {}
        values = [adaptive.mu, adaptive.last, float(adaptive.falls)]
        return {"adaptive_mu": torch.tensor(values, dtype=torch.float64)}

    def load_vectors(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        adaptive = self.adaptive_mu
        if adaptive is not None:
            mu, last, falls = vectors["adaptive_mu"].tolist()
            adaptive.mu, adaptive.last, adaptive.falls = mu, last, int(falls)
