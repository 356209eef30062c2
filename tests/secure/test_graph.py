"""The graph of masks: regular, symmetric, public; and how many neighbours are enough."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.errors import ConfigError
from fedopt.secure import suggest
from fedopt.secure.graph import graph_of, is_connected, pruned, public_order

IDS = st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=30, unique=True)


@given(IDS, st.integers(-(2**63), 2**63 - 1), st.integers(0, 1000), st.integers(1, 14))
@settings(max_examples=80)
def test_the_ring_is_regular_symmetric_and_connected(
    clients: list[int], seed: int, round: int, half: int
) -> None:
    graph = graph_of(clients, seed, round, 2 * half)
    degree = min(2 * half, len(clients) - 1)
    assert set(graph) == set(clients)
    for client, near in graph.items():
        assert len(near) == len(set(near)) == degree
        assert client not in near
        assert list(near) == sorted(near)
        assert all(client in graph[other] for other in near)
    assert is_connected(graph, clients)
    assert graph == graph_of(clients[::-1], seed, round, 2 * half)


@given(IDS, st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_a_ring_falls_apart_only_where_k_half_in_a_row_are_gone(
    clients: list[int], half: int, rng: random.Random
) -> None:
    graph = graph_of(clients, 0, 0, 2 * half)
    gone = set(rng.sample(clients, rng.randrange(len(clients))))
    ring = public_order(clients, 0, 0)
    in_a_row = any(
        all(ring[(at + step) % len(ring)] in gone for step in range(half))
        for at in range(len(ring))
    )
    assert is_connected(graph, set(clients) - gone) or in_a_row


def test_the_order_changes_with_seed_and_round_and_spreads_places() -> None:
    clients = range(50)
    orders = {tuple(public_order(clients, seed, round)) for seed in (0, 1) for round in (1, 2)}
    assert len(orders) == 4
    # Client 0's place over 2000 rounds, in 10 classes; above 34 with a probability of 1e-4.
    counts = [0] * 10
    for round in range(2000):
        counts[public_order(clients, 3, round).index(0) // 5] += 1
    assert sum((count - 200) ** 2 / 200 for count in counts) < 34


@given(IDS, st.integers(1, 6), st.integers(2, 8), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_pruning_leaves_the_largest_set_in_which_all_have_enough(
    clients: list[int], half: int, holders: int, rng: random.Random
) -> None:
    graph = graph_of(clients, 0, 0, 2 * half)
    alive = set(rng.sample(clients, rng.randrange(len(clients) + 1)))
    left = pruned(graph, alive, holders)
    assert left <= alive
    assert all(1 + sum(n in left for n in graph[c]) >= holders for c in left)
    rest = set(alive)
    while weak := {c for c in rest if 1 + sum(n in rest for n in graph[c]) < holders}:
        rest -= weak
    assert left == rest


@pytest.mark.parametrize(
    ("clients", "dropped", "corrupt"),
    [(10, 0.3, 0.0), (100, 0.1, 0.05), (100, 0.3, 0.3), (1000, 0.05, 0.1), (3000, 0.1, 0.2)],
)
def test_suggested_thresholds_lie_between_the_corrupt_and_those_left(
    clients: int, dropped: float, corrupt: float
) -> None:
    neighbours, threshold = suggest(clients, dropped=dropped, corrupt=corrupt)
    k = neighbours or clients - 1
    assert k * corrupt < threshold <= k * (1 - dropped) + 1
    assert neighbours is None or (neighbours % 2 == 0 and neighbours < clients - 1)


def test_suggestions_hold_in_trials() -> None:
    """2000 random rounds at 2^-7 a kind: each kind of failure in fewer than 3 of 2^7 rounds.

    Sixteen are expected at most; 47 or more have a probability below 1e-9.
    """
    clients, dropped, corrupt = 60, 0.2, 0.1
    neighbours, threshold = suggest(
        clients, dropped=dropped, corrupt=corrupt, security_bits=7, correctness_bits=7
    )
    assert neighbours is not None
    rng = random.Random(0)
    unsafe = failed = 0
    for round in range(2000):
        graph = graph_of(range(clients), 0, round, neighbours)
        gone = set(rng.sample(range(clients), 12))
        bad = set(rng.sample(range(clients), 6))
        honest = set(range(clients)) - bad
        unsafe += not is_connected(graph, honest - gone) or any(
            len(bad & set(graph[c])) >= threshold for c in honest
        )
        failed += any(len(set(graph[c]) - gone) < threshold for c in range(clients))
    assert unsafe < 47
    assert failed < 47


def test_more_clients_need_a_smaller_share_of_neighbours() -> None:
    found = [suggest(n, dropped=0.1, corrupt=0.1)[0] for n in (100, 1000, 10_000)]
    assert all(k is not None for k in found)
    assert found[2] < 2 * found[0] < 100  # type: ignore[operator]


@pytest.mark.parametrize(
    ("clients", "options"),
    [
        (1, {"dropped": 0.1}),
        (10, {"dropped": 1.0}),
        (10, {"dropped": -0.1}),
        (10, {"dropped": 0.1, "corrupt": float("nan")}),
        (10, {"dropped": 0.5, "corrupt": 0.5}),
        (3, {"dropped": 0.6}),
    ],
)
def test_what_no_graph_can_do_is_refused(clients: int, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        suggest(clients, **options)
