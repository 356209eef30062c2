"""Laws of the partitioners: nothing lost, seeded, and skewed as their sources say."""

from __future__ import annotations

import heapq
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt import registry
from fedopt.data import Partition, partition
from fedopt.data.partitioners import top_up
from fedopt.errors import ConfigError, DataError
from fedopt.seeds import generator

LAWS = ("iid", "dirichlet", "shards", "similarity", "quantity")
LABELS = np.random.default_rng(0).integers(0, 10, 6000)


def classes_per_client(cut: Partition, labels: np.ndarray) -> list[int]:
    return [len(np.unique(labels[cut.client(i)])) for i in range(cut.clients)]


def skew(cut: Partition, labels: np.ndarray) -> float:
    """Mean total variation to the pooled labels, each client alike."""
    pooled = np.bincount(labels) / len(labels)
    filled = [cut.client(i) for i in range(cut.clients) if cut.client(i).size]
    shares = [np.bincount(labels[rows], minlength=len(pooled)) / rows.size for rows in filled]
    return float(np.mean([np.abs(share - pooled).sum() / 2 for share in shares]))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(LAWS),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    clients=st.integers(1, 40),
    min_examples=st.integers(0, 3),
    seed=st.integers(-(2**63), 2**63 - 1),
)
def test_every_example_is_assigned_exactly_once(name, labels, clients, min_examples, seed):
    per_client = 2 if name == "shards" else max(min_examples, 1)
    if clients * per_client > len(labels):
        clients = max(1, len(labels) // max(per_client, min_examples))
    if name == "shards" and clients * 2 > len(labels):
        return
    if clients * min_examples > len(labels):
        min_examples = 0
    cut = partition(name, labels, clients, seed, min_examples=min_examples)
    assert cut.clients == clients
    assert sorted(cut.indices.tolist()) == list(range(len(labels)))
    assert cut.sizes.min() >= min_examples
    assert cut.empty == np.count_nonzero(cut.sizes == 0)


@pytest.mark.parametrize("name", LAWS)
def test_a_seed_decides_the_partition(name):
    one, same, other = (partition(name, LABELS, 50, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.offsets, same.offsets)
    np.testing.assert_array_equal(one.indices, same.indices)
    assert not (
        np.array_equal(one.offsets, other.offsets) and np.array_equal(one.indices, other.indices)
    )


@pytest.mark.parametrize("name", LAWS)
def test_more_clients_than_a_class_has_examples(name):
    cut = partition(name, LABELS, 3000, 0)
    assert cut.sizes.min() >= 1
    assert cut.indices.size == LABELS.size


def test_iid_is_even():
    sizes = partition("iid", LABELS, 70, 0).sizes
    assert sizes.max() - sizes.min() <= 1


def test_dirichlet_limits():
    alone = partition("dirichlet", LABELS, 100, 0, alpha=1e-4, min_examples=0)
    # Each class goes to one client almost surely: at most ten clients have anything.
    assert np.count_nonzero(alone.sizes) <= 10
    even = partition("dirichlet", LABELS, 10, 0, alpha=1e6)
    # Shares differ by about 1/1000 of themselves; rounding moves at most one example a class.
    np.testing.assert_allclose(even.sizes, 600, atol=15)
    assert skew(even, LABELS) < 0.01
    assert skew(partition("dirichlet", LABELS, 10, 0, alpha=0.1), LABELS) > 0.3


def test_dirichlet_shares_have_the_law_of_the_source():
    """Share of a class at one client: Beta(alpha, (N - 1) alpha), mean 1/N and known variance."""
    alpha, clients = 0.5, 5
    labels = np.repeat(np.arange(2), 1000)
    cuts = [
        partition("dirichlet", labels, clients, seed, alpha=alpha, min_examples=0)
        for seed in range(400)
    ]
    share = np.array([np.count_nonzero(labels[cut.client(0)] == 0) for cut in cuts]) / 1000
    mean = 1 / clients
    variance = mean * (1 - mean) / (clients * alpha + 1)
    # Four standard errors of a mean of 400 draws; the variance of a Beta is looser.
    assert abs(share.mean() - mean) < 4 * (variance / 400) ** 0.5
    assert share.var() == pytest.approx(variance, rel=0.3)


def test_shards_give_few_classes():
    labels = np.repeat(np.arange(10), 600)
    cut = partition("shards", labels, 100, 0, shards_per_client=2)
    assert set(cut.sizes) == {60}
    assert max(classes_per_client(cut, labels)) <= 2


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 99))
def test_shards_that_do_not_divide(clients, shards, seed):
    labels = LABELS[:997]
    cut = partition("shards", labels, clients, seed, shards_per_client=shards)
    counts = classes_per_client(cut, labels)
    # A cut between classes inside a shard adds one class to one client; there are nine cuts.
    assert sum(counts) <= clients * shards + 9
    pieces = 997 / (clients * shards)
    assert shards * np.floor(pieces) <= cut.sizes.min()
    assert cut.sizes.max() <= shards * np.ceil(pieces)


def test_similarity_limits():
    labels = np.repeat(np.arange(10), 600)
    sorted_by_label = partition("similarity", labels, 10, 0, similarity=0.0)
    assert classes_per_client(sorted_by_label, labels) == [1] * 10
    iid = partition("similarity", labels, 10, 0, similarity=1.0)
    # 600 iid labels of 10 classes: the expected distance is about 0.05.
    assert skew(iid, labels) < 0.08
    half = skew(partition("similarity", labels, 10, 0, similarity=0.5), labels)
    assert half == pytest.approx(0.45, abs=0.05)  # half of one class's 0.9


def test_quantity_follows_its_exponent():
    sizes = partition("quantity", np.zeros(200_000), 2000, 0, exponent=1.5).sizes
    # Hill's estimator over the largest tenth; its standard error is 1.5 / sqrt(200) = 0.11.
    tail = np.sort(sizes)[-201:].astype(float)
    exponent = 1 / np.mean(np.log(tail[1:] / tail[0]))
    assert exponent == pytest.approx(1.5, abs=0.35)
    wilder = partition("quantity", np.zeros(200_000), 2000, 0, exponent=0.5).sizes
    assert wilder.max() > sizes.max()
    assert skew(partition("quantity", LABELS, 10, 0), LABELS) < 0.2
    extreme = partition("quantity", LABELS, 10, 0, exponent=1e-4, min_examples=0)
    assert extreme.indices.size == LABELS.size


def test_natural_takes_the_column():
    column = np.array(["b", "a", "b", "c", "a"])
    cut = partition("natural", column)
    assert [cut.client(i).tolist() for i in range(3)] == [[1, 4], [0, 2], [3]]
    assert partition("natural", np.array([7, 7, -2])).sizes.tolist() == [1, 2]
    with pytest.raises(DataError, match="integers or text"):
        partition("natural", np.array([0.5, 1.0]))


def one_at_a_time(sizes: list[int], minimum: int) -> list[int]:
    """The rule of `min_examples`, as it is stated."""
    heap = [(-size, client) for client, size in enumerate(sizes)]
    heapq.heapify(heap)
    result = list(sizes)
    for _ in range(sum(max(0, minimum - size) for size in sizes)):
        negative, client = heapq.heappop(heap)
        result[client] -= 1
        heapq.heappush(heap, (negative + 1, client))
    return [max(minimum, size) for size in result]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(0, 5))
def test_top_up_is_one_example_at_a_time_from_the_largest(sizes, minimum):
    if sum(sizes) < len(sizes) * minimum or sum(sizes) == 0:
        return
    owner = np.repeat(np.arange(len(sizes)), sizes)
    topped = top_up(owner, len(sizes), minimum, generator(0, "test"))
    assert np.bincount(topped, minlength=len(sizes)).tolist() == one_at_a_time(sizes, minimum)
    small = np.flatnonzero(np.array(sizes) <= minimum)
    kept = np.isin(owner, small)
    np.testing.assert_array_equal(topped[kept], owner[kept])  # the needy give nothing


def test_empty_clients_stay_empty_when_asked():
    cut = partition("dirichlet", LABELS, 2000, 0, alpha=0.05, min_examples=0)
    assert cut.empty == np.count_nonzero(cut.sizes == 0) > 0


@pytest.mark.parametrize("name", ["dirichlet", "shards", "similarity"])
@pytest.mark.parametrize("targets", [np.linspace(0, 1, 500), np.zeros((500, 2), dtype=int)])
def test_label_laws_refuse_other_targets(name, targets):
    with pytest.raises(DataError, match="iid, quantity, natural"):
        partition(name, targets, 10, 0)


@pytest.mark.parametrize("name", ["iid", "quantity"])
def test_label_free_laws_take_any_targets(name):
    assert partition(name, np.linspace(0, 1, 500), 10, 0).indices.size == 500


@pytest.mark.parametrize(
    ("name", "clients", "options", "says"),
    [
        ("dirichlt", 5, {}, 'Did you mean "dirichlet"'),
        ("dirichlet", 5, {"alpa": 1}, 'Did you mean "alpha"'),
        ("dirichlet", 5, {"alpha": 0}, "partition.alpha: got 0"),
        ("dirichlet", 5, {"alpha": float("nan")}, "partition.alpha"),
        ("similarity", 5, {"similarity": 1.5}, "partition.similarity: got 1.5"),
        ("iid", 0, {}, "partition.clients: got 0"),
        ("iid", 7000, {}, "need 7000 examples, but there are 6000"),
        ("iid", 100, {"min_examples": 61}, "need 6100 examples"),
        ("shards", 4000, {"min_examples": 0}, "at least 8000 examples"),
        ("natural", 5, {}, "does not take this option"),
        ("synthetic", 5, {}, "data.name = synthetic"),
    ],
)
def test_bad_options_are_named(name, clients, options, says):
    with pytest.raises(ConfigError, match=says):
        partition(name, LABELS, clients, 0, **options)


def test_no_examples():
    with pytest.raises(DataError, match="no examples"):
        partition("iid", np.array([], dtype=int), 1, 0)


@pytest.mark.parametrize(
    ("offsets", "indices", "says"),
    [
        ([0, 2, 1], [0, 1], "must rise"),
        ([0, 1], [0, 1], "must rise"),
        ([1, 2], [0, 1], "must rise"),
        ([0, 2], [0, 0], "more than one client"),
        ([0, 2], [0, -1], "must be >= 0"),
        ([0.0, 2.0], [0, 1], "flat array of integers"),
        ([0], [], "at least one client"),
    ],
)
def test_a_partition_checks_itself(offsets, indices, says):
    with pytest.raises(DataError, match=says):
        Partition(np.array(offsets), np.array(indices, dtype=int))


def test_partition_access():
    cut = Partition(np.array([0, 2, 2, 3], dtype=np.int32), np.array([4, 0, 1], dtype=np.int32))
    assert cut.clients == 3
    assert cut.sizes.tolist() == [2, 0, 1]
    assert cut.empty == 1
    assert cut.client(0).base is cut.indices
    assert cut.indices.dtype == np.int64
    with pytest.raises(IndexError):
        cut.client(3)
    with pytest.raises(DataError, match=r"in 0\.\.1"):
        Partition.from_owner(np.array([0, 2]), 2)


@pytest.mark.parametrize("kind", ["datasets", "partitions"])
def test_every_entry_is_described(kind):
    for entry in registry.entries(kind):
        assert entry.description
        assert not entry.description.endswith(".")
        assert entry.source
        implementation = entry.load()
        assert inspect.getdoc(implementation)
        for name, field in entry.options.model_fields.items():
            assert field.description, f"{entry.name}.{name}"
