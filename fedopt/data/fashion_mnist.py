"""Fashion-MNIST from IDX files on this machine; nothing is downloaded."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedopt.data.catalogue import FashionMnistOptions
from fedopt.data.dataset import Dataset, check_arrays, check_labels
from fedopt.errors import DataError

ENVIRONMENT = "FEDOPT_FASHION_MNIST"
DEBIAN = "/usr/share/datasets/fashion-mnist"
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Mean and standard deviation of the training pixels scaled to 0..1, as commonly used.
MEAN, STD = 0.2860, 0.3530


def load_fashion_mnist(options: FashionMnistOptions, seed: int) -> Dataset:
    """Return 60,000 training and 10,000 test images, [1, 28, 28], with mean 0 and deviation 1.

    The folder is the option `path`, else the environment variable FEDOPT_FASHION_MNIST, else
    the Debian package's. A folder that is named must hold the files: the search does not go on
    past it, so that other data is never taken in silence.

    Args:
        options: the folder.
        seed: unused: the dataset has its own test set.

    Raises:
        DataError: a file is missing (with every place that was tried) or not valid.

    Source: Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
    """
    train_x, train_y, test_x, test_y = _read_all(find_folder(options.path))
    train_where, test_where = "Fashion-MNIST training files", "Fashion-MNIST test files"
    check_arrays(train_x, train_y, where=train_where, x_name="images", y_name="labels")
    check_arrays(test_x, test_y, where=test_where, x_name="images", y_name="labels")
    for x, y, where in ((train_x, train_y, train_where), (test_x, test_y, test_where)):
        check_labels(y, where=where, name="labels", classes=10)
        if x.shape[1:] != (28, 28):
            raise DataError(f"{where}: images must be 28 x 28, got shape {x.shape}")
    return Dataset(
        name="fashion_mnist",
        x=train_x[:, None],
        y=train_y,
        test_x=test_x[:, None],
        test_y=test_y,
        classes=10,
        scale=1 / (255 * STD),
        shift=-MEAN / STD,
        source="Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747 (MIT licence)",
    )


def find_folder(path: str | None) -> Path:
    """Return the folder of the four files: the first place that is named.

    Args:
        path: the option `data.path`; None: not set.

    Raises:
        DataError: a file is missing; the message lists each place and how to get the data.
    """
    places = (
        ("data.path", path),
        (f"environment variable {ENVIRONMENT}", os.environ.get(ENVIRONMENT)),
        ("Debian package", DEBIAN),
    )
    tried = []
    for label, named in places:
        if not named:
            tried.append(f"  {label}: not set")
            continue
        folder = Path(named).expanduser()
        missing = [name for name in FILES if _present(folder, name) is None]
        if not missing:
            return folder
        if folder.is_dir():
            tried.append(f"  {label}: {folder} has no {', '.join(missing)} (.gz or unpacked)")
        else:
            tried.append(f"  {label}: {folder} is not a folder")
        break
    raise DataError(
        "Fashion-MNIST was not found. Places tried:\n"
        + "\n".join(tried)
        + "\nGet it with `apt-get install dataset-fashion-mnist`, or give the folder of its four "
        f"IDX files as data.path or in {ENVIRONMENT}.",
        key="data.path",
    )


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, packed with gzip or not.

    Raises:
        DataError: the file is cut off, damaged or not of this format.

    Source: the IDX format: two zero bytes, type 0x08, number of axes, big-endian sizes, data.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, it is cut off or damaged: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or not raw[3]:
        raise DataError(f"{path}: not an IDX file of bytes (it starts with {raw[:4].hex(' ')})")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path}: cut off inside the header")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=raw[3], offset=4))
    if len(raw) != header + math.prod(shape):
        raise DataError(
            f"{path}: holds {len(raw) - header} bytes of data but its header announces shape "
            f"{shape}, {math.prod(shape)} bytes; the file is cut off or damaged"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _read_all(folder: Path) -> list[npt.NDArray[np.uint8]]:
    files = [_present(folder, name) for name in FILES]
    return [read_idx(file) for file in files if file is not None]


def _present(folder: Path, name: str) -> Path | None:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    return None
