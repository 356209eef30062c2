"""Arrays of examples: what every loader returns, and the checks that all arrays go through.

A `Dataset` knows nothing of clients but, where the data has one, the column that names them.
Splitting off a test set moves no data: `rows` and `test_rows` say which examples belong where,
so memory-mapped files stay on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from fedopt.data.catalogue import DatasetOptions
from fedopt.data.options import read_options
from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.errors import ConfigError, DataError
from fedopt.seeds import generator

_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Dataset:
    """Examples with their targets, and how to turn them into floating-point inputs.

    Args:
        name: name of the dataset.
        x: examples, [M, ...] of any numeric type; may be a `np.memmap`.
        y: targets: labels in 0..classes-1 of any integer type, [M]; or floats, [M, ...].
        classes: number of classes; None: regression.
        test_x: examples of the test set, as `x`; None: no test set.
        test_y: targets of the test set, as `y`.
        rows: numbers of the examples in `x` that are for training; None: all.
        test_rows: numbers of the examples in `test_x` that are for testing; None: all.
        scale: inputs are `x * scale + shift`.
        shift: see `scale`.
        client: natural client of each example of `x`, [M] integers or text; None: not known.
        source: where the data is from, for people.
    """

    name: str
    x: AnyArray
    y: AnyArray
    classes: int | None
    test_x: AnyArray | None = None
    test_y: AnyArray | None = None
    rows: IntArray | None = None
    test_rows: IntArray | None = None
    scale: float = 1.0
    shift: float = 0.0
    client: AnyArray | None = None
    source: str = ""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.x.shape[1:])

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self.x) if self.rows is None else int(self.rows.size)

    @property
    def targets(self) -> AnyArray:
        """Targets of the training examples, in the order in which partitions number them."""
        return self.y if self.rows is None else self.y[self.rows]

    @property
    def clients(self) -> AnyArray | None:
        """Natural clients of the training examples, in the same order as `targets`."""
        if self.client is None or self.rows is None:
            return self.client
        return self.client[self.rows]


def load_dataset(name: str, seed: int = 0, **options: object) -> Dataset:
    """Load a dataset by its registered name.

    Args:
        name: digits, breast_cancer, fashion_mnist or files.
        seed: seed of the split into training and test examples.
        options: options of the dataset, such as `path` or `test_fraction`.

    Raises:
        ConfigError: the name, an option or a value is not allowed.
        DataError: the data is missing or unusable.
    """
    if name == "synthetic":
        raise ConfigError(
            '"synthetic" is generated device by device and has no arrays to load; use '
            "fedopt.data.build_population or fedopt.data.SyntheticPopulation.",
            key="data.name",
        )
    if name == "sites":
        raise ConfigError(
            '"sites" has its arrays client by client; use fedopt.data.build_population.',
            key="data.name",
        )
    entry, checked = read_options("datasets", name, options)
    loader = cast(Callable[[DatasetOptions, int], Dataset], entry.load())
    return loader(cast(DatasetOptions, checked), seed)


def split_test(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Hold out a random share of all examples as the test set.

    Args:
        dataset: a dataset without a test set.
        fraction: share of the examples, in [0, 1), rounded down but at least one; 0: no split.
        seed: seed of the shuffle.

    Raises:
        DataError: no example would be left for training.
    """
    if fraction == 0:
        return dataset
    examples = len(dataset.x)
    held = max(1, rounded_down(examples, fraction))
    if held >= examples:
        raise DataError(
            f"{dataset.name}: {examples} examples cannot be split into training and test "
            f"examples (data.test_fraction = {fraction})"
        )
    order = generator(seed, "test split").permutation(examples)
    return replace(
        dataset,
        rows=np.sort(order[held:]),
        test_x=dataset.x,
        test_y=dataset.y,
        test_rows=np.sort(order[:held]),
    )


def rounded_down(count: int, fraction: float) -> int:
    """Return `floor(count * fraction)`, not fooled by products such as 100 * 0.29 = 28.99..."""
    return int(count * fraction + 1e-9)


def check_arrays(
    x: AnyArray, y: AnyArray, *, where: str, x_name: str = "x", y_name: str = "y"
) -> None:
    """Refuse arrays that cannot be trained on.

    Args:
        x: examples, [M, ...], numeric and finite.
        y: targets: [M] integers >= 0 (labels), or [M, ...] finite floats.
        where: the file, folder or client that the arrays are from, for the message.
        x_name: what `x` is called there.
        y_name: what `y` is called there.

    Raises:
        DataError: naming the place, the array, how many values are bad and the first bad row.
    """
    for name, array in ((x_name, x), (y_name, y)):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: {name} must be numeric, got {array.dtype}")
        if array.ndim == 0:
            raise DataError(f"{where}: {name} must have one row per example, got a single number")
    if len(x) != len(y):
        raise DataError(f"{where}: {x_name} has {len(x)} rows but {y_name} has {len(y)}")
    if len(x) == 0:
        raise DataError(f"{where}: {x_name} and {y_name} are empty")
    check_values(x, where=where, name=x_name)
    check_values(y, where=where, name=y_name)
    if y.dtype.kind != "f":
        check_labels(y, where=where, name=y_name)


def check_values(array: AnyArray, *, where: str, name: str) -> None:
    """Refuse NaN and infinite values; large arrays are read in pieces.

    Raises:
        DataError: naming the place, the array, how many values are bad and the first bad row.
    """
    if array.dtype.kind != "f" or array.size == 0:
        return
    rows = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    bad, first = 0, -1
    for start in range(0, len(array), rows):
        wrong = ~np.isfinite(array[start : start + rows])
        count = int(np.count_nonzero(wrong))
        if count and not bad:
            first = start + int(np.argmax(wrong.reshape(len(wrong), -1).any(axis=1)))
        bad += count
    if bad:
        raise DataError(
            f"{where}: {name} has {bad} values that are NaN or infinite, the first in row {first}"
        )


def check_labels(y: AnyArray, *, where: str, name: str = "y", classes: int | None = None) -> None:
    """Refuse labels that are not whole numbers in 0..classes-1.

    Args:
        y: labels, [M].
        where: the place, for the message.
        name: what `y` is called there.
        classes: number of classes; None: no upper bound.

    Raises:
        DataError: naming the place, the array, how many labels are bad and the first bad row.
    """
    if y.ndim != 1:
        raise DataError(
            f"{where}: {name} must hold one label per example, got shape {y.shape}; several "
            "labels per example are not supported"
        )
    wrong = y < 0
    allowed = ">= 0"
    if y.dtype.kind == "f":
        wrong = wrong | (y != np.floor(y))
    if classes is not None:
        wrong = wrong | (y >= classes)
        allowed = f"in 0..{classes - 1}"
    bad = int(np.count_nonzero(wrong))
    if bad:
        first = int(np.argmax(wrong))
        raise DataError(
            f"{where}: {name} has {bad} labels that are not whole numbers {allowed}, the first "
            f"is {y[first]} in row {first}"
        )
