"""Loading: the embedded sets, Fashion-MNIST's format, users' files, and what each refuses."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedopt.data import Dataset, check_arrays, fashion_mnist, load_dataset
from fedopt.data.dataset import rounded_down, split_test
from fedopt.errors import ConfigError, DataError


def test_embedded_arrays_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    digits, copy = datasets.load_digits(), load_dataset("digits")
    assert copy.x.dtype == np.uint8
    assert copy.input_shape == (1, 8, 8)
    np.testing.assert_array_equal(copy.x.reshape(-1, 64), digits.data)
    np.testing.assert_array_equal(copy.y, digits.target)
    cancer = datasets.load_breast_cancer()
    path = Path(fashion_mnist.__file__).parent / "assets" / "breast_cancer.npz"
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["x"], cancer.data.astype(np.float32))
        np.testing.assert_array_equal(arrays["y"], cancer.target)


@pytest.mark.parametrize(("name", "total"), [("digits", 1797), ("breast_cancer", 569)])
def test_the_split_is_a_seeded_partition(name, total):
    one, same, other = (load_dataset(name, seed) for seed in (0, 0, 1))
    assert one.rows is not None
    assert one.test_rows is not None
    assert sorted([*one.rows, *one.test_rows]) == list(range(total))
    assert len(one.test_rows) == int(0.2 * total)
    assert one.examples == len(one.targets) == total - int(0.2 * total)
    np.testing.assert_array_equal(one.rows, same.rows)
    assert not np.array_equal(one.rows, other.rows)
    whole = load_dataset(name, test_fraction=0)
    assert whole.test_x is None
    assert whole.examples == total


def test_breast_cancer_is_standardised_by_its_training_part():
    data = load_dataset("breast_cancer", 3)
    train = data.x[data.rows].astype(np.float64)
    # float32 storage: 569 values of rounding error 6e-8 each.
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-6)


def test_split_keeps_a_training_example():
    one = Dataset("one", np.zeros((1, 2)), np.zeros(1, dtype=int), 1)
    with pytest.raises(DataError, match="cannot be split"):
        split_test(one, 0.5, 0)
    two = Dataset("two", np.zeros((2, 2)), np.zeros(2, dtype=int), 1)
    assert split_test(two, 0.01, 0).examples == 1
    assert rounded_down(100, 0.29) == 29


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("digit", {}, 'Did you mean "digits"'),
        ("digits", {"test_fraction": 1.0}, "data.test_fraction: got 1.0"),
        ("digits", {"path": "x"}, "does not take this option"),
        ("fashion_mnist", {"test_fraction": 0.1}, "does not take this option"),
        ("files", {}, "data.path: .* needs this option"),
        ("synthetic", {}, "SyntheticPopulation"),
    ],
)
def test_bad_options_are_named(name, options, says):
    with pytest.raises(ConfigError, match=says):
        load_dataset(name, **options)


# Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_idx_files_packed_or_not(idx_folder, monkeypatch):
    data = load_dataset("fashion_mnist", path=str(idx_folder))
    assert data.x.shape == (30, 1, 28, 28)
    assert data.x.dtype == np.uint8
    assert data.test_x is not None
    assert data.test_x.shape == (10, 1, 28, 28)
    assert data.scale * 255 + data.shift == pytest.approx((1 - 0.2860) / 0.3530)
    monkeypatch.setenv(fashion_mnist.ENVIRONMENT, str(idx_folder))
    np.testing.assert_array_equal(load_dataset("fashion_mnist").x, data.x)


def test_missing_fashion_mnist_lists_every_place(tmp_path, monkeypatch):
    monkeypatch.delenv(fashion_mnist.ENVIRONMENT, raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as error:
        load_dataset("fashion_mnist")
    text = str(error.value)
    assert "data.path: not set" in text
    assert "FEDOPT_FASHION_MNIST: not set" in text
    assert "nowhere is not a folder" in text
    assert "apt-get install dataset-fashion-mnist" in text


def test_a_named_folder_is_not_searched_past(idx_folder, monkeypatch):
    (idx_folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="has no t10k-labels-idx1-ubyte"):
        load_dataset("fashion_mnist", path=str(idx_folder))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda raw: raw[:-20], "cut off or damaged"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:-1]), "header announces shape"),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:9]), "inside the header"),
        (lambda raw: raw[:100] + bytes(50) + raw[150:], "cut off or damaged"),
        (lambda raw: b"<html>not found</html>", "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
        (lambda raw: idx(np.zeros((30, 8, 8), np.uint8)), "28 x 28"),
        (lambda raw: idx(np.zeros((29, 28, 28), np.uint8)), "29 rows but labels has 30"),
    ],
)
def test_damaged_idx_files_are_named(idx_folder, damage, says):
    file = idx_folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=says):
        load_dataset("fashion_mnist", path=str(idx_folder))


def test_fashion_labels_above_nine(idx_folder):
    labels = np.full(30, 10, np.uint8)
    (idx_folder / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match=r"30 labels .* in 0\.\.9"):
        load_dataset("fashion_mnist", path=str(idx_folder))


@pytest.mark.skipif(not Path(fashion_mnist.DEBIAN).is_dir(), reason="Debian package not installed")
def test_the_debian_package(monkeypatch):
    monkeypatch.delenv(fashion_mnist.ENVIRONMENT, raising=False)
    data = load_dataset("fashion_mnist")
    assert data.x.shape == (60_000, 1, 28, 28)
    assert np.bincount(data.y).tolist() == [6000] * 10
    pixels = data.x[:5000].astype(np.float64) * data.scale + data.shift
    # The constants are those of all images; 5,000 images are close to them.
    assert abs(pixels.mean()) < 0.02
    assert pixels.std() == pytest.approx(1, abs=0.02)


# Files


def save(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20) % 4


def test_npz(tmp_path):
    data = load_dataset("files", path=save(tmp_path / "a.npz", x=X, y=Y, client=Y))
    assert (data.classes, data.examples, len(data.test_rows)) == (4, 16, 4)
    assert data.clients is not None
    np.testing.assert_array_equal(data.clients, data.targets)


def test_own_test_set(tmp_path):
    path = save(tmp_path / "a.npz", x=X, y=Y, test_x=X[:3], test_y=np.array([0, 1, 9]))
    data = load_dataset("files", path=path)
    assert (data.classes, data.examples, data.rows) == (10, 20, None)
    with pytest.raises(ConfigError, match="brings its own test set"):
        load_dataset("files", path=path, test_fraction=0.2)


def test_folder_is_memory_mapped(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y.astype(np.uint64))
    data = load_dataset("files", path=str(tmp_path))
    assert isinstance(data.x, np.memmap)
    assert np.can_cast(data.y.dtype, np.int64)


def test_medmnist(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 28, 28, 3), dtype=np.uint8)
    labels = (np.arange(12) % 3).reshape(-1, 1).astype(np.uint8)
    path = save(
        tmp_path / "pathmnist.npz",
        train_images=images,
        train_labels=labels,
        val_images=images[:2],
        val_labels=labels[:2],
        test_images=images[:4],
        test_labels=labels[:4],
    )
    data = load_dataset("files", path=path)
    assert (data.input_shape, data.classes) == ((3, 28, 28), 3)
    np.testing.assert_array_equal(data.x[5, 1], images[5, :, :, 1])
    assert data.shift == -1
    assert data.scale * 255 + data.shift == pytest.approx(1)
    grey = save(
        tmp_path / "grey.npz",
        train_images=images[..., 0],
        train_labels=labels,
        test_images=images[:4, ..., 0],
        test_labels=labels[:4],
    )
    assert load_dataset("files", path=grey, scale=1.0, shift=0.0).input_shape == (1, 28, 28)


def test_regression_and_task(tmp_path):
    floats = save(tmp_path / "f.npz", x=X, y=Y.astype(np.float64))
    assert load_dataset("files", path=floats).classes is None
    assert load_dataset("files", path=floats, task="classification").classes == 4
    counts = load_dataset("files", path=save(tmp_path / "i.npz", x=X, y=Y), task="regression")
    assert counts.classes is None
    assert counts.y.dtype == np.float64


BAD_X = X.copy()
BAD_X[7, 1], BAD_X[9, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"x": BAD_X, "y": Y}, {}, "x has 2 values that are NaN or infinite, the first in row 7"),
        ({"x": X, "y": np.where(Y == 3, np.nan, 1.0)}, {}, "y has 5 values .* row 3"),
        ({"x": X, "y": Y[:-1]}, {}, "x has 20 rows but y has 19"),
        ({"x": X[:0], "y": Y[:0]}, {}, "are empty"),
        ({"x": X, "y": Y - 1}, {}, "5 labels .* the first is -1 in row 0"),
        ({"x": X, "y": Y + 0.5}, {"task": "classification"}, "20 labels .* 0.5 in row 0"),
        ({"x": X, "y": np.zeros((20, 3), int)}, {}, "several labels per example"),
        ({"x": X, "y": np.array(list("ab" * 10))}, {}, "y must be numeric"),
        ({"x": X.astype(str), "y": Y}, {}, "x must be numeric"),
        ({"x": X}, {}, 'no "y"'),
        ({"x": X, "lables": Y}, {}, 'no "y"'),
        ({"X": X, "y": Y}, {}, 'no "x".* Found: X, y'),
        ({"x": X, "y": Y, "clients": Y}, {}, 'Did you mean "client"'),
        ({"x": X, "y": Y, "test_x": X}, {}, 'no "test_y"'),
        ({"x": X, "y": Y, "test_x": X[:, :1], "test_y": Y}, {}, "inputs of shape"),
        ({"x": X, "y": Y, "client": Y[:3]}, {}, "client has 3 rows"),
        ({"train_images": X, "train_labels": Y}, {}, 'no "test_images"'),
    ],
)
def test_unusable_arrays_are_named(tmp_path, arrays, options, says):
    path = save(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=says) as error:
        load_dataset("files", path=path, **options)
    assert "bad.npz" in str(error.value)


def test_missing_and_unreadable_files(tmp_path):
    save(tmp_path / "mine.npz", x=X, y=Y)
    with pytest.raises(DataError, match=r'does not exist\. Did you mean "mine\.npz"'):
        load_dataset("files", path=str(tmp_path / "mime.npz"))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "mine.npz").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        load_dataset("files", path=str(tmp_path / "cut.npz"))
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match="a single array"):
        load_dataset("files", path=str(tmp_path / "x.npy"))
    with pytest.raises(DataError, match='no "y"'):
        load_dataset("files", path=str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Found: nothing"):
        load_dataset("files", path=str(tmp_path / "empty"))
    (tmp_path / "y.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"not a readable \.npy"):
        load_dataset("files", path=str(tmp_path))


def test_pickles_are_refused(tmp_path):
    objects = np.array([{"a": 1}] * 20, dtype=object)
    with pytest.raises(DataError, match="can run code"):
        load_dataset("files", path=save(tmp_path / "p.npz", x=X, y=objects))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", objects, allow_pickle=True)
    with pytest.raises(DataError, match="can run code"):
        load_dataset("files", path=str(tmp_path))
    (tmp_path / "raw.npz").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="can run code"):
        load_dataset("files", path=str(tmp_path / "raw.npz"))


def test_check_reads_large_arrays_in_pieces(monkeypatch):
    monkeypatch.setattr("fedopt.data.dataset._CHUNK_BYTES", 16)
    with pytest.raises(DataError, match=r"2 values .* row 7"):
        check_arrays(BAD_X, Y, where="here")
    check_arrays(X, Y, where="here")
    with pytest.raises(DataError, match="single number"):
        check_arrays(np.array(1.0), Y, where="here")
