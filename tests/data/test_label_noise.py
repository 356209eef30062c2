"""Symmetric label noise: its share, its law, and whose labels it leaves alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from fedopt import registry
from fedopt.config import load
from fedopt.data import ArrayPopulation, Dataset, Population, build_population, partition
from fedopt.data.label_noise import flip_labels
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment

NOISE = 0.4


def build(data: str, cut: str, seed: int = 0, clients: int = 12, **options) -> Population:
    return build_population(
        data,
        registry.get("datasets", data).options(**options),
        cut,
        registry.get("partitions", cut).options(clients=clients),
        seed,
    )


def numbered(examples: int = 2000) -> Dataset:
    """A dataset whose inputs are the example numbers."""
    x = np.arange(examples)[:, None]
    return Dataset("numbered", x, x[:, 0] % 10, 10)


def test_the_share_and_the_law_of_wrong_labels():
    count, classes = 200_000, 5
    clean = np.arange(count) % classes
    noisy = flip_labels(clean, classes, NOISE, 0)
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (clean, noisy), 1)
    confusion /= count / classes
    expected = np.full((classes, classes), NOISE / (classes - 1))
    np.fill_diagonal(expected, 1 - NOISE)
    # 40,000 draws a row: a standard deviation of at most 0.0025; five of them.
    np.testing.assert_allclose(confusion, expected, atol=0.0125)


def test_a_wrong_label_is_never_its_own_class():
    clean = np.arange(5000) % 2
    # Of two classes there is one other: a share near 1 inverts nearly all labels.
    assert (flip_labels(clean, 2, 0.999, 0) != clean).mean() == pytest.approx(0.999, abs=0.003)
    assert set(flip_labels(clean, 2, 0.5, 0)) == {0, 1}


def test_narrow_label_types_do_not_wrap_around():
    clean = np.full(1000, 250, np.uint8)
    noisy = flip_labels(clean, 251, 0.5, 0)
    assert noisy.dtype == np.int64
    assert noisy.min() >= 0
    assert noisy.max() == 250
    assert clean.max() == clean.min() == 250


def test_the_draw_is_the_seeds_alone():
    labels = np.arange(1000) % 10
    one = flip_labels(labels, 10, NOISE, 3)
    np.testing.assert_array_equal(one, flip_labels(labels, 10, NOISE, 3))
    assert not np.array_equal(one, flip_labels(labels, 10, NOISE, 4))
    # Which examples are wrong does not depend on what the labels are.
    other = flip_labels((labels + 1) % 10, 10, NOISE, 3)
    np.testing.assert_array_equal(one != labels, other != (labels + 1) % 10)


@pytest.mark.parametrize(
    ("data", "cut"),
    [("digits", "iid"), ("digits", "dirichlet"), ("breast_cancer", "iid"), ("synthetic",) * 2],
)
def test_training_labels_alone_are_noisy(data, cut):
    clean, noisy = (
        build(data, cut, validation_fraction=0.25, label_noise=share) for share in (0.0, NOISE)
    )
    np.testing.assert_array_equal(clean.sizes, noisy.sizes)
    wrong, total = 0, 0
    for client in range(clean.clients):
        one, two = clean.train(client), noisy.train(client)
        np.testing.assert_array_equal(one.x, two.x)
        wrong, total = wrong + int((one.y != two.y).sum()), total + one.size
        held, same = clean.validation(client), noisy.validation(client)
        np.testing.assert_array_equal(held.x, same.x)
        np.testing.assert_array_equal(held.y, same.y)
    # Four standard deviations of a binomial share.
    assert wrong / total == pytest.approx(NOISE, abs=4 * (0.24 / total) ** 0.5)
    test, same_test = clean.test(), noisy.test()
    np.testing.assert_array_equal(test.x, same_test.x)
    np.testing.assert_array_equal(test.y, same_test.y)


@pytest.mark.parametrize(("data", "cut"), [("digits", "dirichlet"), ("synthetic",) * 2])
def test_the_order_of_access_does_not_matter(data, cut):
    one, two = (build(data, cut, label_noise=NOISE) for _ in range(2))
    order = range(one.clients)
    forward = {client: one.train(client).y for client in order}
    backward = {client: two.train(client).y for client in reversed(order)}
    copy = pickle.loads(pickle.dumps(two))
    for client in order:
        np.testing.assert_array_equal(forward[client], backward[client])
        np.testing.assert_array_equal(forward[client], one.train(client).y)
        np.testing.assert_array_equal(forward[client], copy.train(client).y)
    np.testing.assert_array_equal(
        one.train_many(order).y, np.concatenate([forward[client] for client in order])
    )


def test_the_partition_does_not_matter():
    data = numbered()

    def labels(cut: str, clients: int) -> dict[int, int]:
        """The label on which each example is trained."""
        dealt = partition(cut, data.targets, clients, 0)
        population = ArrayPopulation(data, dealt, seed=0, label_noise=NOISE)
        parts = [population.train(client) for client in range(clients)]
        return {int(x): int(y) for part in parts for x, y in zip(part.x[:, 0], part.y, strict=True)}

    assert labels("iid", 7) == labels("shards", 20) == labels("dirichlet", 50)


def test_the_counts_are_those_of_the_labels_trained_on():
    population = build("digits", "shards", label_noise=NOISE)
    counts = population.label_counts(np.arange(population.clients))
    for client in range(population.clients):
        labels = population.train(client).y
        np.testing.assert_array_equal(counts[client], np.bincount(labels, minlength=10))


def test_what_cannot_have_noise_is_refused():
    with pytest.raises(ConfigError, match=r"data\.label_noise: must be in \[0, 1\), got 1\.0"):
        flip_labels(np.arange(3), 3, 1.0, 0)
    with pytest.raises(ConfigError, match="there is one class"):
        flip_labels(np.zeros(3, int), 1, 0.1, 0)
    targets = Dataset("real", np.zeros((4, 1)), np.zeros(4), None)
    cut = partition("iid", np.zeros(4), 2, 0)
    with pytest.raises(ConfigError, match="regression targets have no classes"):
        ArrayPopulation(targets, cut, label_noise=0.1)
    with pytest.raises(ConfigError, match=r"data\.label_noise"):
        load(None, data={"name": "digits", "label_noise": 1.0})


def test_a_configuration_asks_for_it():
    config = load(None, ["data.label_noise=0.4", "data.test_fraction=0.5", "seed=5"])
    population = Experiment.from_config(config).population
    clean = Experiment.from_config(load(None, ["data.test_fraction=0.5", "seed=5"])).population
    wrong = sum(
        int((population.train(client).y != clean.train(client).y).sum()) for client in range(100)
    )
    # 899 training examples: a standard deviation of 0.016.
    assert wrong / 899 == pytest.approx(0.4, abs=0.065)
