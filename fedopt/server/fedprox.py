"""FedProx: FedAvg with a proximal term in the local objective, keeping partial work.

    client: min_w f_i(w) + mu/2 |w - x|^2, so that mu (w - x) is added to each gradient
    server: as FedAvg

With mu = 0 and the same treatment of partial work it is FedAvg to the bit.

Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks", algorithm 2. The mean
is weighted by examples as in FedAvg (the paper's algorithm samples clients in proportion to their
examples and averages uniformly; its code, like ours, samples uniformly and weighs).
"""

from __future__ import annotations

from fedopt.client.algorithm import LocalAlgorithm, PlainLocal
from fedopt.server.catalogue import FedProxOptions
from fedopt.server.strategy import FederatedStrategy


class FedProx(FederatedStrategy):
    """Federated averaging with a proximal term.

    Source: Li et al. 2020, algorithm 2.
    """

    options_type = FedProxOptions

    @classmethod
    def local(cls, options: FedProxOptions) -> LocalAlgorithm:
        """Return local training with the proximal term."""
        return PlainLocal(mu=options.mu)
