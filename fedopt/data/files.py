"""A user's own arrays: one `.npz` file, or a folder of `.npy` files that stay on disk.

Pickled objects inside numpy files are refused: loading them would run code from the file.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from fedopt.data.catalogue import FilesOptions
from fedopt.data.dataset import (
    Dataset,
    check_arrays,
    check_labels,
    split_test,
)
from fedopt.data.partitioners import AnyArray
from fedopt.errors import ConfigError, DataError, did_you_mean

PLAIN = ("x", "y", "test_x", "test_y", "client")
MEDMNIST = ("train_images", "train_labels", "test_images", "test_labels")
DEFAULT_TEST_FRACTION = 0.2


def load_files(options: FilesOptions, seed: int) -> Dataset:
    """Load `x`, `y` and, where present, `test_x`, `test_y` and `client`.

    With MedMNIST's key names, images become [channels, height, width] and labels flat, pixels
    are scaled to -1..1 (as that library's own examples do) and its validation arrays are left
    out: `validation_fraction` holds out examples on each client instead.

    Args:
        options: path, task, scaling and test share.
        seed: seed of the test split, where the files bring no test set.

    Raises:
        DataError: a file or key is missing, or an array is unusable.
        ConfigError: `test_fraction` was given though the files bring a test set.
    """
    where = str(options.path)
    raw = _read(Path(options.path).expanduser())
    medmnist = "x" not in raw and "train_images" in raw
    arrays = _medmnist(raw, where) if medmnist else _plain(raw, where)
    classify = _is_classification(options, arrays.y)
    y = _targets(arrays.y, classify, where, arrays.names[1])
    check_arrays(arrays.x, y, where=where, x_name=arrays.names[0], y_name=arrays.names[1])
    test_y = None
    if arrays.test_x is not None and arrays.test_y is not None:
        test_y = _targets(arrays.test_y, classify, where, arrays.names[3])
        check_arrays(
            arrays.test_x, test_y, where=where, x_name=arrays.names[2], y_name=arrays.names[3]
        )
        if arrays.test_x.shape[1:] != arrays.x.shape[1:]:
            raise DataError(
                f"{where}: {arrays.names[2]} has inputs of shape {arrays.test_x.shape[1:]}, "
                f"{arrays.names[0]} of {arrays.x.shape[1:]}"
            )
    if arrays.client is not None and len(arrays.client) != len(arrays.x):
        raise DataError(
            f"{where}: client has {len(arrays.client)} rows but {arrays.names[0]} has "
            f"{len(arrays.x)}"
        )
    classes = None
    if classify:
        classes = 1 + max(int(part.max()) for part in (y, test_y) if part is not None)
    scale, shift = (2 / 255, -1.0) if medmnist else (1.0, 0.0)
    dataset = Dataset(
        name="files",
        x=arrays.x,
        y=y,
        test_x=arrays.test_x,
        test_y=test_y,
        classes=classes,
        scale=scale if options.scale is None else options.scale,
        shift=shift if options.shift is None else options.shift,
        client=arrays.client,
        source=where,
    )
    if test_y is None:
        fraction = options.test_fraction
        return split_test(dataset, DEFAULT_TEST_FRACTION if fraction is None else fraction, seed)
    if options.test_fraction is not None:
        raise ConfigError(
            f"{where} brings its own test set; leave test_fraction out.", key="data.test_fraction"
        )
    return dataset


class _Arrays(NamedTuple):
    """The arrays under fedopt's names, and `names`, what the file calls the first four."""

    x: AnyArray
    y: AnyArray
    test_x: AnyArray | None
    test_y: AnyArray | None
    client: AnyArray | None
    names: tuple[str, ...]


def _plain(raw: dict[str, AnyArray], where: str) -> _Arrays:
    for key in ("x", "y"):
        _require(raw, key, where)
    for key, other in (("test_x", "test_y"), ("test_y", "test_x")):
        if key in raw:
            _require(raw, other, where)
    unknown = sorted(set(raw) - set(PLAIN))
    if unknown:
        raise DataError(
            f'{where}: "{unknown[0]}" is not a name that is read.'
            f"{did_you_mean(unknown[0], PLAIN)} One of: {', '.join(PLAIN)}."
        )
    return _Arrays(
        raw["x"], raw["y"], raw.get("test_x"), raw.get("test_y"), raw.get("client"), PLAIN[:4]
    )


def _medmnist(raw: dict[str, AnyArray], where: str) -> _Arrays:
    for key in MEDMNIST:
        _require(raw, key, where)
    images, test_images = (_channels_first(raw[key], where, key) for key in MEDMNIST[::2])
    return _Arrays(
        images,
        raw["train_labels"],
        test_images,
        raw["test_labels"],
        raw.get("client"),
        MEDMNIST,
    )


def _channels_first(images: AnyArray, where: str, name: str) -> AnyArray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[-1] == 3:
        return np.moveaxis(images, -1, 1)
    raise DataError(
        f"{where}: {name} must be [M, height, width] or [M, height, width, 3], got shape "
        f"{images.shape}"
    )


def _is_classification(options: FilesOptions, y: AnyArray) -> bool:
    if options.task == "auto":
        return y.dtype.kind in "biu"
    return options.task == "classification"


def _targets(y: AnyArray, classify: bool, where: str, name: str) -> AnyArray:
    """Return labels flat and as integers, or regression targets as floats."""
    if y.dtype.kind not in "biuf":
        raise DataError(f"{where}: {name} must be numeric, got {y.dtype}")
    if not classify:
        return y if y.dtype.kind == "f" else y.astype(np.float64)
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    check_labels(flat, where=where, name=name)
    return flat if np.can_cast(flat.dtype, np.int64) else flat.astype(np.int64)


def _require(raw: dict[str, AnyArray], key: str, where: str) -> None:
    if key not in raw:
        found = sorted(raw)
        raise DataError(
            f'{where}: there is no "{key}".{did_you_mean(key, found)} '
            f"Found: {', '.join(found) or 'nothing'}. Needed are x and y (and optionally test_x, "
            f"test_y, client), or MedMNIST's {', '.join(MEDMNIST)}."
        )


def _read(path: Path) -> dict[str, AnyArray]:
    """Return the arrays by name; those of a folder are memory-mapped."""
    if path.is_dir():
        found = {file.stem: file for file in sorted(path.glob("*.npy")) if _is_read(file.stem)}
        return {name: _mapped(file) for name, file in found.items()}
    if not path.is_file():
        folder = path.parent
        names = [other.name for other in folder.iterdir()] if folder.is_dir() else []
        hint = did_you_mean(path.name, names)
        raise DataError(f'"{path}" does not exist.{hint}', key="data.path")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded as archive:
                return {name: archive[name] for name in archive.files if _is_read(name)}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz file. {_reason(error)}") from error
    raise DataError(
        f"{path}: a single array; give an .npz file with x and y, or the folder of x.npy and y.npy",
        key="data.path",
    )


def _is_read(name: str) -> bool:
    """Return whether an array is looked at: all are but MedMNIST's validation part."""
    return name not in ("val_images", "val_labels")


def _mapped(file: Path) -> AnyArray:
    try:
        return cast(AnyArray, np.load(file, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not a readable .npy file. {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error).rstrip(".")
    if "pickle" in text or "Python objects" in text or "Object arrays" in text:
        return (
            "It holds pickled Python objects, which are never loaded because that can run code; "
            "save plain numeric arrays."
        )
    return f"{text}."
