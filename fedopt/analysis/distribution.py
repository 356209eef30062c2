"""How evenly a model serves the clients: the distribution of an accuracy over them.

Pure functions of one number a client. Which clients are evaluated, and on what, is not decided
here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedopt.errors import DataError


@dataclass(frozen=True)
class ClientDistribution:
    """Moments and tail of an accuracy over clients, each client counting the same.

    Args:
        mean: mean over the clients, in [0, 1].
        worst10: mean over the worst tenth of the clients, in [0, mean].
        variance: population variance over the clients, in [0, 0.25].
    """

    mean: float
    worst10: float
    variance: float


def client_distribution(accuracies: Sequence[float]) -> ClientDistribution:
    """Return how an accuracy is distributed over clients.

        mean     = 1/K sum_k a_k
        worst10  = mean of the ceil(K / 10) smallest a_k
        variance = 1/K sum_k (a_k - mean)^2

    A client with many examples counts as much as one with few. The result does not depend on the
    order of the clients, to the bit.

    Args:
        accuracies: a_k of each of K >= 1 clients.

    Returns:
        The distribution; NaN throughout where an accuracy is NaN, as in regression.

    Raises:
        DataError: there is no client.

    Source: Li et al., "Fair resource allocation in federated learning", ICLR 2020, section 4
        (variance and worst 10 % over clients). Squared shares here, squared percent there.
    """
    if not accuracies:
        raise DataError("there is no client whose accuracy is known.")
    if any(math.isnan(value) for value in accuracies):
        return ClientDistribution(math.nan, math.nan, math.nan)
    count = len(accuracies)
    tail = sorted(accuracies)[: -(-count // 10)]
    mean = math.fsum(accuracies) / count
    variance = math.fsum((value - mean) ** 2 for value in accuracies) / count
    return ClientDistribution(mean, math.fsum(tail) / len(tail), variance)
