"""Skew in closed form, and a picture that is written whole."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedopt.data import (
    ArrayPopulation,
    Dataset,
    ListPopulation,
    SyntheticPopulation,
    draw_population,
    label_matrix,
    partition,
    population_statistics,
)
from fedopt.data.catalogue import SyntheticOptions
from fedopt.data.statistics import hellinger, spaced_clients, total_variation
from fedopt.errors import ConfigError, DataError

LABELS = np.repeat(np.arange(10), 600)


def population(name: str, clients: int, **options) -> ArrayPopulation:
    data = Dataset("labels", np.zeros((LABELS.size, 1), np.uint8), LABELS, 10)
    return ArrayPopulation(data, partition(name, LABELS, clients, 0, **options))


def regression() -> ListPopulation:
    return ListPopulation([(np.ones((n, 1)), np.ones(n)) for n in (1, 2, 50)])


def test_one_label_a_client():
    skew = population_statistics(population("similarity", 10))["label_skew"]
    # Against ten equal classes: TV = 1 - 1/10, Hellinger = sqrt(1 - sqrt(1/10)).
    assert skew["total_variation"] == pytest.approx(0.9)
    assert skew["hellinger"] == pytest.approx((1 - 0.1**0.5) ** 0.5)
    assert skew["clients_used"] == 10


def test_iid_is_at_the_level_of_chance():
    skew = population_statistics(population("iid", 20))["label_skew"]
    assert skew["total_variation"] < 0.1
    # Two random dealings of 6,000 labels to 20 clients agree to a few percent.
    assert skew["total_variation"] == pytest.approx(skew["iid_total_variation"], rel=0.3)
    assert skew["hellinger"] == pytest.approx(skew["iid_hellinger"], rel=0.3)


def test_distances_by_hand():
    same = np.array([[2, 2], [10, 10], [0, 0]])
    assert total_variation(same) == hellinger(same) == 0
    # Pooled (3/4, 1/4); the clients weigh 1/2 each and are off by 1/4.
    assert total_variation(np.array([[2, 2], [4, 0]])) == pytest.approx(0.25)


def test_sizes_and_json():
    facts = population_statistics(population("dirichlet", 400, alpha=0.01, min_examples=0))
    assert json.loads(json.dumps(facts)) == facts
    sizes = facts["sizes"]
    assert sizes["empty"] > 0
    assert sizes["min"] == 0 <= sizes["quarter"] <= sizes["median"] <= sizes["max"]
    assert facts["examples"] == LABELS.size
    assert population_statistics(regression())["label_skew"] is None


def test_at_most_so_many_clients_are_read():
    devices = SyntheticPopulation(SyntheticOptions(), 100_000, 0)
    skew = population_statistics(devices, limit=20)["label_skew"]
    assert skew["clients_used"] == 20
    assert skew["total_variation"] > 3 * skew["iid_total_variation"]
    clients, counts = label_matrix(devices, limit=3)
    assert clients.tolist() == [0, 50_000, 99_999]
    assert counts.shape == (3, 10)
    assert spaced_clients(3, 10).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="limit"):
        label_matrix(devices, limit=0)
    with pytest.raises(DataError, match="no label counts"):
        label_matrix(regression())


def many_classes() -> ListPopulation:
    rng = np.random.default_rng(0)
    return ListPopulation([(np.ones((n, 1)), rng.integers(0, 30, n)) for n in (0, 9, 300)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: population("dirichlet", 150),
        lambda: population("quantity", 12, exponent=0.4),
        regression,
        many_classes,
        lambda: ListPopulation([(np.ones((2, 1)), [0, 1])]),
    ],
)
def test_picture(make, tmp_path):
    path = tmp_path / "population.png"
    path.write_bytes(b"old")
    draw_population(make(), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [file.name for file in tmp_path.iterdir()] == ["population.png"]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "population.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_population(regression(), path)
    assert [file.name for file in tmp_path.iterdir()] == ["population.png"]
    assert path.read_bytes() == b"old"
