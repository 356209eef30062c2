"""Populations: what each client gets, held-out parts, laziness, pickling and refusals."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt import registry
from fedopt.data import (
    ArrayPopulation,
    Dataset,
    ListPopulation,
    Partition,
    Population,
    SyntheticPopulation,
    build_population,
    partition,
)
from fedopt.data.catalogue import SyntheticOptions
from fedopt.errors import ConfigError, DataError


def build(data: str, cut: str, seed: int = 0, dtype="float32", data_options=None, **options):
    return build_population(
        data,
        registry.get("datasets", data).options(**(data_options or {})),
        cut,
        registry.get("partitions", cut).options(**options),
        seed,
        dtype,
    )


def numbered(examples: int = 60, classes: int = 4) -> Dataset:
    """A dataset whose inputs are the example numbers."""
    x = np.arange(examples, dtype=np.uint8)[:, None]
    return Dataset("numbered", x, (np.arange(examples) % classes).astype(np.uint8), classes)


def populations() -> list[Population]:
    rng = np.random.default_rng(0)
    return [
        build("digits", "dirichlet", clients=20, data_options={"validation_fraction": 0.25}),
        build("breast_cancer", "quantity", clients=10),
        build("synthetic", "synthetic", data_options={"validation_fraction": 0.25}, clients=12),
        build("synthetic", "synthetic", data_options={"iid": True}, clients=5),
        ListPopulation([(rng.random((n, 3)), rng.integers(0, 3, n)) for n in (4, 0, 9)]),
    ]


@pytest.mark.parametrize("population", populations(), ids=lambda p: p.name)
def test_contract(population):
    sizes = population.sizes
    assert sizes.shape == (population.clients,)
    assert sizes.dtype == np.int64
    counts = population.label_counts(np.arange(population.clients))
    for client in range(population.clients):
        train, held = population.train(client), population.validation(client)
        for part in (train, held):
            assert part.x.shape == (part.size, *population.input_shape)
            assert part.x.dtype == np.float32
            assert part.y.dtype == np.int64
            assert part.x.flags.writeable
            assert part.x.flags.c_contiguous
        assert train.size == sizes[client]
        np.testing.assert_array_equal(
            counts[client], np.bincount(train.y, minlength=population.classes)
        )
        assert population.has_validation or held.size == 0
    facts = population.describe()
    test = population.test()
    assert facts["test_examples"] == (0 if test is None else test.size)
    assert facts["train_examples"] == sizes.sum()
    assert facts["validation_examples"] == sum(
        population.validation(i).size for i in range(population.clients)
    )
    for client in (-1, population.clients):
        with pytest.raises(IndexError):
            population.train(client)


@pytest.mark.parametrize("population", populations(), ids=lambda p: p.name)
def test_a_pickled_population_is_the_same(population):
    copy = pickle.loads(pickle.dumps(population))
    for client in range(population.clients):
        for part in ("train", "validation"):
            one, two = getattr(population, part)(client), getattr(copy, part)(client)
            np.testing.assert_array_equal(one.x, two.x)
            np.testing.assert_array_equal(one.y, two.y)
    assert copy.describe() == population.describe()


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.99), st.integers(1, 40), st.integers(0, 2**31))
def test_training_and_validation_share_out_each_client(fraction, clients, seed):
    data = numbered()
    cut = partition("quantity", data.targets, clients, seed, min_examples=0)
    population = ArrayPopulation(data, cut, fraction, seed)
    for client in range(clients):
        train = population.train(client).x[:, 0].astype(int)
        held = population.validation(client).x[:, 0].astype(int)
        assert sorted([*train, *held]) == cut.client(client).tolist()
        total = len(train) + len(held)
        assert len(held) == min(int(total * fraction + 1e-9), max(total - 1, 0))


def test_validation_is_drawn_by_seed():
    data = numbered()
    cut = partition("iid", data.targets, 4, 0)
    one, same, other = (ArrayPopulation(data, cut, 0.5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.validation(0).x, same.validation(0).x)
    assert not np.array_equal(one.validation(0).x, other.validation(0).x)
    assert one.has_validation
    assert not ArrayPopulation(data, cut).has_validation


def test_scaling_and_dtype():
    data = Dataset(
        "scaled", np.array([[0], [255]], np.uint8), np.array([0, 1]), 2, scale=2 / 255, shift=-1
    )
    cut = partition("iid", data.targets, 1, 0)
    for dtype in ("float32", "float64"):
        x = ArrayPopulation(data, cut, dtype=dtype).train(0).x
        assert x.dtype == dtype
        np.testing.assert_allclose(x[:, 0], [-1, 1], atol=1e-7)  # float32 rounding
    assert data.x.dtype == np.uint8
    with pytest.raises(ConfigError, match="One of: float32, float64"):
        ArrayPopulation(data, cut, dtype="float16")
    with pytest.raises(ConfigError, match="validation_fraction"):
        ArrayPopulation(data, cut, 1.0)


def test_test_set_and_training_set_share_no_example():
    population = build("digits", "iid", clients=3)
    assert sum(population.sizes) + population.test().size == 1797
    assert population.test().x.max() <= 1
    without = build("digits", "iid", clients=3, data_options={"test_fraction": 0})
    assert without.test() is None
    assert without.sizes.sum() == 1797


def test_partition_beyond_the_data():
    with pytest.raises(DataError, match="names example 60"):
        ArrayPopulation(numbered(), Partition(np.array([0, 1]), np.array([60])))


def test_natural_clients(tmp_path):
    rng = np.random.default_rng(0)
    who = rng.integers(0, 5, 80)
    np.savez(tmp_path / "n.npz", x=who[:, None].astype(float), y=rng.integers(0, 2, 80), client=who)
    population = build("files", "natural", data_options={"path": str(tmp_path / "n.npz")})
    assert population.clients == 5
    for client in range(5):
        assert set(population.train(client).x[:, 0]) == {client}
    with pytest.raises(ConfigError, match='add an array "client"'):
        build("digits", "natural")


def test_synthetic_goes_with_synthetic():
    with pytest.raises(ConfigError, match='Write "synthetic" for both'):
        build("synthetic", "iid")
    with pytest.raises(ConfigError, match='Write "synthetic" for both'):
        build("digits", "synthetic")


def test_options_of_another_entry():
    options = registry.get("partitions", "iid").options()
    with pytest.raises(ConfigError, match="expected DigitsOptions, got IidOptions"):
        build_population("digits", options, "iid", options, 0)
    with pytest.raises(ConfigError, match="One of: float32, float64"):
        build("digits", "iid", dtype="half")


def test_regression(tmp_path):
    np.savez(tmp_path / "r.npz", x=np.ones((30, 2)), y=np.linspace(0, 1, 30))
    where = {"path": str(tmp_path / "r.npz")}
    population = build("files", "iid", clients=3, data_options=where)
    assert population.classes is None
    assert population.train(0).y.dtype == np.float32
    with pytest.raises(DataError, match="no label counts"):
        population.label_counts(np.array([0]))
    with pytest.raises(DataError, match="iid, quantity, natural"):
        build("files", "dirichlet", clients=3, data_options=where)


# Memory-mapped data


def mapped_folder(tmp_path, rows: int = 2000):
    images = np.random.default_rng(0).integers(0, 256, (rows, 16, 16, 3), dtype=np.uint8)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    labels = np.arange(rows) % 10
    for name, array in zip(names, (images, labels, images[:50], labels[:50]), strict=True):
        np.save(tmp_path / f"{name}.npy", array)
    return {"path": str(tmp_path)}


def test_mapped_arrays_are_pickled_as_their_place(tmp_path):
    where = mapped_folder(tmp_path)
    population = build("files", "iid", clients=5, data_options=where)
    payload = pickle.dumps(population)
    # The images have 1.5 MB; the indices of 2,000 examples are what remains.
    assert len(payload) < 60_000
    copy = pickle.loads(payload)
    np.testing.assert_array_equal(copy.train(3).x, population.train(3).x)
    np.testing.assert_array_equal(copy.test().x, population.test().x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copy)).train(3).x, copy.train(3).x)
    (tmp_path / "train_images.npy").write_bytes(b"other")
    with pytest.raises(DataError, match="has changed"):
        pickle.loads(payload)
    (tmp_path / "train_images.npy").unlink()
    with pytest.raises(DataError, match="does not exist on this machine"):
        pickle.loads(payload)


def test_mapped_split_moves_no_data(tmp_path):
    np.save(tmp_path / "x.npy", np.repeat(np.arange(5000.0), 8).reshape(-1, 8))
    np.save(tmp_path / "y.npy", np.arange(5000) % 2)
    population = build("files", "iid", clients=2, data_options={"path": str(tmp_path)})
    seen = [population.test().x, *(population.train(i).x for i in range(2))]
    assert sorted(np.concatenate(seen)[:, 0]) == list(range(5000))
    # 320 kB of inputs stay behind; three arrays of indices have 72 kB.
    assert len(pickle.dumps(population)) < 100_000


# In memory


def test_list_population_from_tensors():
    torch = pytest.importorskip("torch")
    clients = [(torch.ones(3, 2, requires_grad=True), torch.tensor([0, 1, 4])), ([[2, 3]], [1])]
    population = ListPopulation(clients, test=(torch.zeros(1, 2), torch.tensor([6])))
    assert population.classes == 7
    assert population.train(1).x.tolist() == [[2, 3]]
    assert population.test().y.tolist() == [6]
    assert ListPopulation(clients, classes=9).classes == 9


def test_list_population_is_a_copy():
    x, y = np.ones((3, 1)), np.ones((3, 1))
    population = ListPopulation([(x, y)], dtype="float64")
    population.train(0).x[:] = 5
    x[:] = 7
    assert population.train(0).x.tolist() == [[1]] * 3
    assert population.train(0).y.dtype == np.float64
    assert population.classes is None


ONE = (np.ones((2, 1)), np.array([0, 1]))


@pytest.mark.parametrize(
    ("clients", "options", "says"),
    [
        ([], {}, "at least one client"),
        ([(np.ones((0, 1)), np.array([], int))], {}, "no client has any example"),
        ([ONE, (np.array([[1.0], [np.nan]]), ONE[1])], {}, "client 1: x has 1 values .* row 1"),
        ([ONE, (np.ones((3, 1)), ONE[1])], {}, "client 1: x has 3 rows but y has 2"),
        ([ONE, (np.ones((2, 4)), ONE[1])], {}, "client 1: one row of x has shape"),
        ([ONE, (ONE[0], np.array([0.0, 1.0]))], {}, "client 1: y is float64"),
        ([ONE, (ONE[0], np.array([0, -1]))], {}, "client 1: y has 1 labels"),
        ([ONE], {"classes": 1}, r"client 0: y has 1 labels .* in 0\.\.0"),
        ([ONE], {"test": (ONE[0], ONE[1][:1])}, "test: x has 2 rows"),
        ([ONE, 3], {}, r"client 1: expected a pair \(x, y\), got int"),
        ([(np.array(["a", "b"]), ONE[1])], {}, "client 0: x must be a numeric array"),
        ([(ONE[0], ONE[0])], {"classes": 2}, "targets are floats"),
        ([ONE], {"dtype": "int8"}, "One of: float32"),
    ],
)
def test_list_population_names_the_client(clients, options, says):
    with pytest.raises((DataError, ConfigError), match=says):
        ListPopulation(clients, **options)


# Synthetic


def synthetic(clients: int = 30, seed: int = 0, dtype="float64", **options) -> SyntheticPopulation:
    return SyntheticPopulation(SyntheticOptions(**options), clients, seed, dtype)


def test_synthetic_sizes_follow_the_published_code():
    population = synthetic(20_000)
    total = population._all_sizes
    assert total.min() >= 50
    np.testing.assert_array_equal(population.sizes, (0.9 * total).astype(int))
    logs = np.log(total - 50 + 0.5)
    # The median of lognormal(4, 2) is e^4; 20,000 draws put its log within 0.02.
    assert np.median(logs) == pytest.approx(4, abs=0.06)
    upper = np.quantile(logs, 0.8413)
    assert upper - np.median(logs) == pytest.approx(2, abs=0.08)


def test_synthetic_labels_come_from_a_linear_model():
    """Redraw a device's model from its own stream and compare every label."""
    from fedopt.seeds import generator

    population = synthetic(validation_fraction=0.2, alpha=2.0)
    for client in (0, 7):
        rng = generator(0, "synthetic device", client)
        mean = 2.0 * rng.normal()
        weight = mean + rng.standard_normal((60, 10))
        bias = mean + rng.standard_normal(10)
        for part in (population.train(client), population.validation(client)):
            np.testing.assert_array_equal(part.y, np.argmax(part.x @ weight + bias, axis=1))


def test_synthetic_inputs_have_the_published_covariance():
    population = synthetic(1, size_log_mean=10.0, size_log_sigma=0.0)
    x = population.train(0).x
    variance = x.var(axis=0)
    # 20,000 draws: the standard error of a variance is 1 % of it.
    np.testing.assert_allclose(variance, np.arange(1.0, 61) ** -1.2, rtol=0.05)
    correlation = np.corrcoef(x, rowvar=False) - np.eye(60)
    assert np.abs(correlation).max() < 0.04  # five standard errors of 1/sqrt(20,000)


def test_synthetic_spreads():
    def centres(**options):
        population = synthetic(400, size_log_sigma=0.0, features=20, **options)
        return np.array([population.train(i).x.mean() for i in range(400)])

    # The mean over features is B plus the mean of 20 unit normals: variance beta^2 + 1/20.
    for options, variance in (
        ({"beta": 0.0}, 0.05),
        ({"beta": 2.0}, 4.05),
        ({"beta": 2.0, "variances": True}, 2.05),
    ):
        # The relative standard error of a variance of 400 draws is 7 %; inputs add 1 %.
        assert centres(**options).var() == pytest.approx(variance, rel=0.3)


def test_synthetic_iid_devices_share_one_model():
    population = synthetic(40, iid=True, size_log_mean=6.0, size_log_sigma=0.0)
    counts = population.label_counts(np.arange(40))
    shares = counts / counts.sum(axis=1, keepdims=True)
    # 400 examples a device: the distance to the pooled shares by chance is below 0.1.
    assert np.abs(shares - shares.mean(axis=0)).sum(axis=1).max() / 2 < 0.12
    means = np.array([population.train(i).x.mean(axis=0) for i in range(40)])
    assert np.abs(means.mean(axis=0)).max() < 0.05


def test_synthetic_bits_do_not_depend_on_the_order_of_access():
    one, two = synthetic(20), synthetic(20)
    forward = [one.train(i) for i in range(20)]
    two.test()
    for client in reversed(range(20)):
        assert two.train(client).x.tobytes() == forward[client].x.tobytes()
        assert two.train(client).y.tobytes() == forward[client].y.tobytes()
    more = synthetic(25)
    np.testing.assert_array_equal(more.train(3).x[:10], one.train(3).x[:10])
    assert not np.array_equal(synthetic(20, seed=1).train(3).x[:10], one.train(3).x[:10])
    one.train(3).x[:] = 0  # what a caller does to its copy stays there
    assert one.train(3).x.tobytes() == forward[3].x.tobytes()


def test_synthetic_parts_share_out_a_device():
    whole = synthetic(1, test_fraction=0.0)
    assert whole.test() is None
    parts = synthetic(1, test_fraction=0.3, validation_fraction=0.4)
    joined = [parts.train(0).x, parts.validation(0).x, parts.test().x]
    np.testing.assert_array_equal(np.concatenate(joined), whole.train(0).x)


def test_synthetic_test_set_is_bounded():
    few, all_of_them = synthetic(50, test_clients=5), synthetic(5)
    np.testing.assert_array_equal(few.test().y, all_of_them.test().y)


def test_a_million_devices_are_two_arrays():
    population = synthetic(1_000_000)
    arrays = [v for v in vars(population).values() if isinstance(v, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 16_000_000
    assert population.train(999_999).size == population.sizes[-1]
    assert len(population._cache) == 1
    with pytest.raises(ConfigError, match=r"partition\.clients"):
        synthetic(0)


def test_the_cache_is_bounded_and_not_pickled(monkeypatch):
    monkeypatch.setattr("fedopt.data.synthetic._CACHED_NBYTES", 200_000)
    population = synthetic(30)
    for client in [*range(30), 0, 29]:
        first, again = population.train(client), population.train(client)
        assert first.x.tobytes() == again.x.tobytes()
        held = sum(device.x.nbytes for device in population._cache.values())
        assert held == population._cached_nbytes <= 200_000
    assert 0 < len(population._cache) < 30
    assert len(pickle.dumps(population)) < 5_000


def test_the_catalogue_is_light():
    code = (
        "import sys, fedopt.data, fedopt.data.catalogue;"
        "heavy = {'numpy', 'torch', 'matplotlib', 'pandas', 'flwr', 'ray'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "import fedopt.data.population, fedopt.data.statistics;"
        "heavy = {'torch', 'matplotlib', 'pandas', 'flwr', 'ray'} & set(sys.modules);"
        "assert not heavy, heavy;"
        "missing = [n for n in fedopt.data.__all__ if not hasattr(fedopt.data, n)];"
        "assert not missing, missing;"
        "assert set(fedopt.data.__all__) <= set(dir(fedopt.data))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
