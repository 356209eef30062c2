"""Numbers that say how heterogeneous a population is: sizes and label skew.

Skew is looked at in at most `limit` clients, evenly spaced by number, because a population may
be generated on demand; how many were used is part of the answer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedopt.data.partitioners import IntArray
from fedopt.data.protocol import Population
from fedopt.errors import ConfigError
from fedopt.seeds import generator

FloatArray = npt.NDArray[np.float64]

LOG_SPREAD = 20
"""Ratio of the largest to the smallest client from which on sizes are shown at equal ratios."""


def tells_labels(population: Population) -> bool:
    """Return whether the clients have labels, and these can be counted here."""
    return population.classes is not None and getattr(population, "tells_labels", True)


def population_statistics(population: Population, limit: int = 1000) -> dict[str, object]:
    """Return sizes and label skew as plain values that JSON takes.

    Args:
        population: the clients.
        limit: most clients whose labels are read, >= 1.

    Returns:
        `clients`; `examples`; `sizes` with min, quarter, median, three_quarters, max, mean,
        empty (training examples per client); and `label_skew`, None for regression and for
        real clients, with clients_used, total_variation and hellinger (weighted mean over
        clients of the distance
        between the client's label distribution and the pooled one; 0: identical, 1: disjoint)
        and iid_total_variation and iid_hellinger, the same for one random dealing of the same
        labels into the same sizes: what chance alone gives.

    Raises:
        ConfigError: the limit is below 1.
    """
    sizes = population.sizes
    low, quarter, median, three_quarters, high = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1))
    return {
        "clients": population.clients,
        "examples": int(sizes.sum()),
        "sizes": {
            "min": int(low),
            "quarter": float(quarter),
            "median": float(median),
            "three_quarters": float(three_quarters),
            "max": int(high),
            "mean": float(sizes.mean()),
            "empty": int(np.count_nonzero(sizes == 0)),
        },
        "label_skew": _label_skew(population, limit) if tells_labels(population) else None,
    }


def population_table(population: Population, limit: int = 100) -> dict[str, object]:
    """Return what a picture of a population shows, as plain values that JSON takes.

    Args:
        population: the clients.
        limit: most clients whose labels are counted, >= 1; of more, evenly spaced ones. With more
            than 200 classes, fewer.

    Returns:
        `labels`, with `clients` (their numbers) and `counts` (a row a client, a column a class),
        None for regression and for real clients; and `size_histogram`, with `edges` (one more than
        bars), `clients` (in each bar) and `is_log` (whether the edges are at equal ratios), of all
        clients that have examples.

    Raises:
        ConfigError: the limit is below 1.
    """
    labels: dict[str, object] | None = None
    if population.classes is not None and tells_labels(population):
        clients, counts = label_matrix(population, min(limit, -(-20_000 // population.classes)))
        labels = {"clients": clients.tolist(), "counts": counts.tolist()}
    filled = population.sizes[population.sizes > 0]
    edges, is_log = size_edges(filled)
    bars, _ = np.histogram(filled, bins=edges)
    histogram = {"edges": edges.tolist(), "clients": bars.tolist(), "is_log": is_log}
    return {"labels": labels, "size_histogram": histogram}


def size_edges(sizes: IntArray) -> tuple[FloatArray, bool]:
    """Return the edges of a histogram of clients' sizes, and whether they are at equal ratios.

    Sizes are whole numbers: edges lie between two of them, at one distance, or at one ratio where
    the sizes differ much.

    Args:
        sizes: examples of each client, all > 0; none gives one empty bar.
    """
    low, high = (int(sizes.min()), int(sizes.max())) if sizes.size else (0, 0)
    if low and high > LOG_SPREAD * low:
        edges = np.unique(np.geomspace(low, high + 1, 26).round().astype(np.int64))
        return edges.astype(np.float64) - 0.5, True
    width = max(1, -(-(high - low + 1) // 25))
    return np.arange(low, high + width + 1, width, dtype=np.float64) - 0.5, False


def label_matrix(population: Population, limit: int = 1000) -> tuple[IntArray, IntArray]:
    """Return client numbers, evenly spaced, and their training examples of each class.

    Args:
        population: clients with class labels.
        limit: most clients looked at, >= 1.

    Returns:
        Client numbers [n] and counts [n, classes], with n = min(limit, clients).

    Raises:
        ConfigError: the limit is below 1.
        DataError: the targets are not classes.
    """
    clients = spaced_clients(population.clients, limit)
    return clients, population.label_counts(clients)


def spaced_clients(clients: int, limit: int) -> IntArray:
    """Return all client numbers, or `limit` of them from first to last at even distances.

    Raises:
        ConfigError: the limit is below 1.
    """
    if limit < 1:
        raise ConfigError(f"must be >= 1, got {limit}", key="limit")
    if clients <= limit:
        return np.arange(clients)
    return np.linspace(0, clients - 1, limit).round().astype(np.int64)


def total_variation(counts: IntArray) -> float:
    """Return the mean distance sum_c |p_c - q_c| / 2 to the pooled label distribution.

    Args:
        counts: examples of each class per client, [n, classes]; clients weigh by their sum.
    """
    share, pooled, weight = _distributions(counts)
    return float(weight @ np.abs(share - pooled).sum(axis=1)) / 2


def hellinger(counts: IntArray) -> float:
    """Return the mean distance sqrt(sum_c (sqrt p_c - sqrt q_c)^2 / 2) to the pooled one.

    Args:
        counts: examples of each class per client, [n, classes]; clients weigh by their sum.
    """
    share, pooled, weight = _distributions(counts)
    squares = ((np.sqrt(share) - np.sqrt(pooled)) ** 2).sum(axis=1)
    return float(weight @ np.sqrt(squares / 2))


def _label_skew(population: Population, limit: int) -> dict[str, object]:
    clients, counts = label_matrix(population, limit)
    if not counts.any():
        return {"clients_used": len(clients), "total_variation": None, "hellinger": None}
    random = _redealt(counts)
    return {
        "clients_used": len(clients),
        "total_variation": total_variation(counts),
        "hellinger": hellinger(counts),
        "iid_total_variation": total_variation(random),
        "iid_hellinger": hellinger(random),
    }


def _redealt(counts: IntArray) -> IntArray:
    """Deal the same labels at random into the same sizes (one fixed draw)."""
    clients, classes = counts.shape
    labels = np.repeat(np.arange(classes), counts.sum(axis=0))
    generator(0, "iid skew").shuffle(labels)
    owner = np.repeat(np.arange(clients), counts.sum(axis=1))
    flat = np.bincount(owner * classes + labels, minlength=clients * classes)
    return flat.reshape(clients, classes)


def _distributions(counts: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return label shares [n, classes], pooled shares [classes] and client weights [n]."""
    kept = counts[counts.sum(axis=1) > 0].astype(np.float64)
    sizes = kept.sum(axis=1)
    return kept / sizes[:, None], kept.sum(axis=0) / sizes.sum(), sizes / sizes.sum()
