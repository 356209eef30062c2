"""What engines see of the data: the `Population` protocol, and what its forms share.

A population gives one client's examples at a time, as floating-point inputs, and keeps nothing
per client but a size or an index range. The forms are in `arrays`, `memory` and `synthetic`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.errors import ConfigError, DataError

Dtype: TypeAlias = Literal["float32", "float64"]


class Examples(NamedTuple):
    """Some examples of one client, or the test set.

    Args:
        x: inputs, [n, *input_shape] float32 or float64.
        y: labels [n] int64, or regression targets [n, ...] of the type of `x`.
    """

    x: AnyArray
    y: AnyArray

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.x)


class Population(Protocol):
    """All clients and their data. Clients are numbered 0..clients-1.

    A population whose examples lie on a disk may have a method `read_ahead(clients)`, which is
    called before the clients' training examples are needed and returns at once.
    """

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def clients(self) -> int:
        """Number of clients."""

    @property
    def sizes(self) -> IntArray:
        """Training examples per client, without those held out; [clients]. May be 0."""

    @property
    def classes(self) -> int | None:
        """Number of classes; None: regression."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    def has_validation(self) -> bool:
        """Whether examples of the clients are held out for validation."""

    def train(self, client: int) -> Examples:
        """Return the training examples of a client, in a fixed order."""

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of some clients, one client's after another's."""

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a client; there may be none."""

    def test(self) -> Examples | None:
        """Return the test set; None: there is none."""

    def label_counts(self, clients: IntArray) -> IntArray:
        """Return the training examples of each class; [len(clients), classes].

        Raises:
            DataError: the targets are not classes.
        """

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files: name, counts, shapes, source."""


def held_out(sizes: IntArray, fraction: float) -> IntArray:
    """Return how many of each client's examples are held out: rounded down, never the last."""
    if fraction == 0:
        return np.zeros_like(sizes)
    share = np.floor(sizes * fraction + 1e-9).astype(np.int64)
    kept: IntArray = np.minimum(share, np.maximum(sizes - 1, 0))
    return kept


def need_classes(population: Population) -> int:
    """Return the number of classes.

    Raises:
        DataError: the targets are not classes.
    """
    if population.classes is None:
        raise DataError(f"{population.name}: regression targets have no label counts")
    return population.classes


def facts(
    population: Population, *, validation_examples: int, test_examples: int, source: str
) -> dict[str, object]:
    """Return the description that all populations share, of plain values."""
    sizes = population.sizes
    return {
        "name": population.name,
        "clients": population.clients,
        "empty_clients": int(np.count_nonzero(sizes == 0)),
        "classes": population.classes,
        "input_shape": list(population.input_shape),
        "train_examples": int(sizes.sum()),
        "validation_examples": validation_examples,
        "test_examples": test_examples,
        "source": source,
    }


def check_dtype(dtype: str) -> None:
    """Refuse other types than float32 and float64.

    Raises:
        ConfigError: naming the type.
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(f'"{dtype}" is not known. One of: float32, float64.', key="dtype")
