"""Training without federation, as a reference: one model on all clients' data together.

One client holds everything (`fedopt.server.pooled`). By default it takes as many steps a round as
the configured cohort takes together, so that a round costs as many gradients as one of the
federation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from flwr.app import Message, MetricRecord

from fedopt.models.layout import ParameterLayout
from fedopt.server.catalogue import CentralisedOptions
from fedopt.server.strategy import FederatedStrategy


class Centralised(FederatedStrategy):
    """One model on all data, as a reference; nothing is sent.

    Source: none; minibatch SGD (Robbins and Monro 1951) on the union of the clients' data.
    """

    options_type = CentralisedOptions
    exchanges: ClassVar[bool] = False

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return loss and accuracy; of clients, which are one here, there is no distribution."""
        metrics = super().aggregate_evaluate(server_round, replies)
        for name in ("mean", "worst10", "variance"):
            if self.record is not None:
                self.record.metrics.pop(f"validation_accuracy_{name}", None)
            if metrics is not None:
                metrics.pop(f"validation_accuracy_{name}", None)
        return metrics

    def client_nbytes(self, layout: ParameterLayout) -> tuple[int, int]:
        """Return nothing: the data are where the model is."""
        return 0, 0
