"""A population from arrays in memory, one pair per client: the form for notebooks and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedopt.data.arrays import ArrayPopulation
from fedopt.data.dataset import Dataset, check_labels, check_values
from fedopt.data.partitioners import AnyArray, Partition
from fedopt.data.protocol import Dtype, check_dtype
from fedopt.errors import DataError


class ListPopulation(ArrayPopulation):
    """Clients given as a list of (x, y), numpy arrays or torch tensors; copied.

    Integer (or boolean) targets mean classification, floating-point targets regression.

    Args:
        clients: (x, y) of each client, x [n, ...], y [n] or [n, ...]; n may be 0 for some.
        test: (x, y) of the test set; None: none.
        dtype: type of inputs (and of regression targets).
        classes: number of classes; None: one more than the largest label in clients and test.
        name: name of the data.
        validation_fraction: share of each client's examples held out, in [0, 1), rounded down.
        seed: draws which.

    Raises:
        DataError: naming the client whose arrays are unusable.
    """

    def __init__(
        self,
        clients: Sequence[tuple[object, object]],
        test: tuple[object, object] | None = None,
        dtype: Dtype = "float32",
        classes: int | None = None,
        name: str = "memory",
        validation_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        check_dtype(dtype)
        if not clients:
            raise DataError("clients: at least one client is needed")
        pairs = [_pair(pair, f"client {number}") for number, pair in enumerate(clients)]
        held = None if test is None else _pair(test, "test")
        if not any(len(x) for x, _ in pairs):
            raise DataError("clients: no client has any example")
        checked = [(f"client {number}", pair) for number, pair in enumerate(pairs)]
        if held is not None:
            checked.append(("test", held))
        first_x, first_y = next((x, y) for x, y in pairs if len(x))
        classify = first_y.dtype.kind != "f"
        for where, (x, y) in checked:
            _check(x, y, first_x, first_y, where)
            if classify:
                check_labels(y, where=where, classes=classes)
        if classify and classes is None:
            classes = 1 + max(int(y.max()) for _, (_, y) in checked if len(y))
        elif not classify and classes is not None:
            raise DataError(f"classes = {classes} was given, but the targets are floats")
        target = np.dtype(np.int64) if classify else np.dtype(dtype)
        dataset = Dataset(
            name=name,
            x=np.concatenate([x for x, _ in pairs]).astype(dtype, copy=False),
            y=np.concatenate([y for _, y in pairs]).astype(target, copy=False),
            test_x=None if held is None else held[0].astype(dtype),
            test_y=None if held is None else held[1].astype(target),
            classes=classes,
            source="in memory",
        )
        offsets = np.cumsum([0, *(len(x) for x, _ in pairs)], dtype=np.int64)
        partition = Partition(offsets, np.arange(offsets[-1], dtype=np.int64))
        super().__init__(
            dataset, partition, seed=seed, dtype=dtype, validation_fraction=validation_fraction
        )


def _check(x: AnyArray, y: AnyArray, first_x: AnyArray, first_y: AnyArray, where: str) -> None:
    """Check one client's arrays, alone and against the first client that has examples."""
    if len(x) != len(y):
        raise DataError(f"{where}: x has {len(x)} rows but y has {len(y)}")
    for name, array, first in (("x", x, first_x), ("y", y, first_y)):
        if array.shape[1:] != first.shape[1:]:
            raise DataError(
                f"{where}: one row of {name} has shape {array.shape[1:]}, but that of other "
                f"clients {first.shape[1:]}"
            )
        check_values(array, where=where, name=name)
    if (y.dtype.kind == "f") != (first_y.dtype.kind == "f"):
        raise DataError(
            f"{where}: y is {y.dtype}, but that of other clients {first_y.dtype}; integers mean "
            "classes, floats regression"
        )


def _pair(pair: object, where: str) -> tuple[AnyArray, AnyArray]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise DataError(f"{where}: expected a pair (x, y), got {type(pair).__name__}")
    return _array(pair[0], "x", where), _array(pair[1], "y", where)


def _array(values: object, name: str, where: str) -> AnyArray:
    """Return a numpy array; torch tensors are recognised by what they can do, not imported."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        raise DataError(
            f"{where}: {name} must be a numeric array with one row per example, got "
            f"{array.dtype} of shape {array.shape}"
        )
    return array
