from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.analysis.distribution import client_distribution
from fedopt.errors import DataError

accuracies = st.lists(st.floats(0, 1), min_size=1, max_size=60)


@given(accuracies)
def test_the_distribution_is_its_definition(values: list[float]) -> None:
    found = client_distribution(values)
    tail = np.sort(values)[: math.ceil(len(values) / 10)]
    # 1e-12: sums of at most 60 float64 numbers in another order.
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.variance == pytest.approx(np.var(values), abs=1e-12)
    assert found.worst10 == pytest.approx(tail.mean(), abs=1e-12)
    assert 0 <= found.worst10 <= found.mean + 1e-12 <= 1 + 2e-12
    assert 0 <= found.variance <= 0.25 + 1e-12


@given(accuracies, st.randoms(use_true_random=False))
def test_the_order_of_the_clients_leaves_no_trace(values: list[float], random) -> None:
    shuffled = random.sample(values, len(values))
    assert client_distribution(shuffled) == client_distribution(values)


@pytest.mark.parametrize(
    ("clients", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (95, 10)]
)
def test_the_worst_tenth_has_whole_clients_and_at_least_one(clients: int, worst: int) -> None:
    values = [0.0] * worst + [1.0] * (clients - worst)
    assert client_distribution(values).worst10 == 0.0
    if clients > 1:
        assert client_distribution([*values[1:], 1.0]).worst10 == pytest.approx(1 / worst)


def test_one_client_has_no_spread_and_regression_no_accuracy() -> None:
    assert client_distribution([0.25]) == type(client_distribution([0.25]))(0.25, 0.25, 0.0)
    found = client_distribution([math.nan, 0.5])
    assert all(map(math.isnan, (found.mean, found.worst10, found.variance)))
    with pytest.raises(DataError, match="no client"):
        client_distribution([])
