"""A population from a dataset in arrays and a partition of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedopt.data.dataset import Dataset
from fedopt.data.label_noise import flip_labels
from fedopt.data.mapped import ReadAhead, pack, unpack
from fedopt.data.partitioners import AnyArray, IntArray, Partition
from fedopt.data.protocol import Dtype, Examples, check_dtype, facts, held_out, need_classes
from fedopt.errors import ConfigError, DataError
from fedopt.seeds import generator


class ArrayPopulation:
    """A dataset in arrays, cut into clients by a partition.

    Args:
        dataset: the examples; a memory-mapped array is pickled as its place in the file.
        partition: the training examples of every client.
        validation_fraction: share of each client's examples held out, in [0, 1), rounded down;
            at least one training example is kept. Which ones is drawn per client.
        seed: seed of that draw.
        dtype: type of inputs (and of regression targets).
        label_noise: probability that a training label is wrong, in [0, 1); see
            `fedopt.data.label_noise`. Drawn per example of the dataset, whatever the partition.

    Raises:
        DataError: the partition names examples that the dataset does not have.
        ConfigError: a share or the type is not allowed.
    """

    def __init__(
        self,
        dataset: Dataset,
        partition: Partition,
        validation_fraction: float = 0.0,
        seed: int = 0,
        dtype: Dtype = "float32",
        label_noise: float = 0.0,
    ) -> None:
        check_dtype(dtype)
        if not 0 <= validation_fraction < 1:
            raise ConfigError(
                f"must be in [0, 1), got {validation_fraction}", key="data.validation_fraction"
            )
        if partition.indices.size and int(partition.indices.max()) >= dataset.examples:
            raise DataError(
                f"the partition names example {int(partition.indices.max())}, but "
                f"{dataset.name} has {dataset.examples} training examples"
            )
        rows = partition.indices
        # The rows and the column of clients have done their part: they need not travel.
        self._dataset = replace(dataset, rows=None, client=None)
        self._partition = partition
        self._rows: IntArray = rows if dataset.rows is None else dataset.rows[rows]
        self._fraction = validation_fraction
        self._seed = seed
        self._dtype = np.dtype(dtype)
        self._takes_integers = False
        self._ahead = ReadAhead(dataset.x)
        self._noisy: IntArray | None = (
            flip_labels(dataset.y, dataset.classes, label_noise, seed) if label_noise else None
        )
        self._sizes = partition.sizes - held_out(partition.sizes, validation_fraction)

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self._dataset.name

    @property
    def clients(self) -> int:
        """Number of clients."""
        return self._partition.clients

    @property
    def sizes(self) -> IntArray:
        """Training examples per client, without those held out; [clients]."""
        return self._sizes

    @property
    def classes(self) -> int | None:
        """Number of classes; None: regression."""
        return self._dataset.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self._dataset.input_shape

    @property
    def has_validation(self) -> bool:
        """Whether any client has examples held out for validation."""
        return bool(self._sizes.sum() < self._partition.indices.size)

    @property
    def partition(self) -> Partition:
        """The partition of the training examples, those held out included."""
        return self._partition

    def train(self, client: int) -> Examples:
        """Return the training examples of a client, in the dataset's order."""
        return self._gather(self._client_rows(client)[0], self._training_labels)

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of some clients, gathered in one pass."""
        rows = np.concatenate([self._client_rows(c)[0] for c in clients])
        return self._gather(rows, self._training_labels)

    def read_ahead(self, clients: Sequence[int]) -> None:
        """Have the system read the training inputs of some clients, where they lie in a file."""
        if self._ahead.is_asking:
            self._ahead.ask(np.concatenate([self._client_rows(c)[0] for c in clients]))

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a client; there may be none."""
        return self._gather(self._client_rows(client)[1], self._dataset.y)

    def test(self) -> Examples | None:
        """Return the test set; None: there is none."""
        data = self._dataset
        if data.test_x is None or data.test_y is None:
            return None
        if data.test_rows is None:
            return self._materialise(np.array(data.test_x), np.array(data.test_y))
        return self._materialise(
            np.take(data.test_x, data.test_rows, axis=0),
            np.take(data.test_y, data.test_rows, axis=0),
        )

    def label_counts(self, clients: IntArray) -> IntArray:
        """Return the training examples of each class, noise included; [len(clients), classes].

        Raises:
            DataError: the targets are not classes.
        """
        classes = need_classes(self)
        counts = np.zeros((len(clients), classes), dtype=np.int64)
        for row, client in enumerate(clients):
            labels = self._training_labels[self._client_rows(int(client))[0]]
            counts[row] = np.bincount(labels, minlength=classes)
        return counts

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files: name, counts, shapes, source."""
        data = self._dataset
        tests = data.test_x if data.test_rows is None else data.test_rows
        return facts(
            self,
            validation_examples=int(self._partition.indices.size - self._sizes.sum()),
            test_examples=0 if tests is None else len(tests),
            source=data.source,
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_ahead"]
        data = dict(self._dataset.__dict__)
        for key in ("x", "y", "test_x", "test_y"):
            data[key] = None if data[key] is None else pack(data[key])
        state["_dataset"] = data
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        data = state["_dataset"]
        for key in ("x", "y", "test_x", "test_y"):
            data[key] = None if data[key] is None else unpack(data[key])
        self.__dict__.update(state, _dataset=Dataset(**data), _ahead=ReadAhead(data["x"]))

    def _client_rows(self, client: int) -> tuple[IntArray, IntArray]:
        """Return the rows for training and for validation of a client."""
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} is not in 0..{self.clients - 1}")
        start, stop = self._partition.offsets[client : client + 2]
        rows = self._rows[start:stop]
        held = rows.size - int(self._sizes[client])
        if held == 0:
            return rows, rows[:0]
        order = generator(self._seed, "validation split", client).permutation(rows.size)
        return rows[np.sort(order[held:])], rows[np.sort(order[:held])]

    def use_integer_inputs(self) -> None:
        """Give inputs as int64 from now on, neither scaled nor shifted: a model looks them up."""
        self._takes_integers = True

    @property
    def _training_labels(self) -> AnyArray:
        """The targets of all examples as clients train on them, [M, ...]."""
        return self._dataset.y if self._noisy is None else self._noisy

    def _gather(self, rows: IntArray, targets: AnyArray) -> Examples:
        with self._ahead.watched():
            x = np.take(self._dataset.x, rows, axis=0)
        return self._materialise(x, np.take(targets, rows, axis=0))

    def _materialise(self, x: AnyArray, y: AnyArray) -> Examples:
        """Return examples over `x` and `y`, fresh arrays that may be changed in place."""
        kind = self._dtype if self.classes is None else np.dtype(np.int64)
        if self._takes_integers:
            return Examples(whole(x), y.astype(kind, copy=False))
        inputs = x.astype(self._dtype, copy=False)
        if self._dataset.scale != 1.0:
            inputs *= self._dtype.type(self._dataset.scale)
        if self._dataset.shift != 0.0:
            inputs += self._dtype.type(self._dataset.shift)
        return Examples(inputs, y.astype(kind, copy=False))


def whole(x: AnyArray) -> IntArray:
    """Return inputs as int64, which an embedding looks up.

    Raises:
        DataError: an input is not a whole number.
    """
    whole: IntArray = x.astype(np.int64)
    if x.dtype.kind == "f" and not np.array_equal(whole, x):
        raise DataError("the model looks inputs up in an embedding, but they are not whole numbers")
    return whole
