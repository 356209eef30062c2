"""FedAvg: each client trains from the server's parameters; the server takes the weighted mean.

    x <- x + server_lr * sum_i n_i (w_i - x) / sum_i n_i

Source: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", algorithm 1 (server_lr = 1; n_i examples of client i).
"""

from __future__ import annotations

from fedopt.server.catalogue import FedAvgOptions
from fedopt.server.strategy import FederatedStrategy


class FedAvg(FederatedStrategy):
    """Federated averaging.

    Source: McMahan et al. 2017, algorithm 1.
    """

    options_type = FedAvgOptions
