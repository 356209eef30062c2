"""Populations whose clients each have a folder of their own: all of them, one, or none.

A simulation reads all folders; a real client reads its own and knows the others by a number; the
server of a deployment reads none and knows the clients' sizes.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedopt.data.arrays import whole
from fedopt.data.catalogue import SitesOptions
from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.data.protocol import Dtype, Examples, check_dtype, facts, held_out, need_classes
from fedopt.data.sites import SiteData, load_site
from fedopt.errors import ConfigError, DataError
from fedopt.seeds import generator

TEST = "test"
"""Name of the folder of the server's test set, beside those of the clients."""


class SitePopulation:
    """Clients with a folder each, of which some are here.

    Args:
        sites: data of the clients that are here, by id.
        clients: N; None: as many as are here.
        sizes: training examples of each client, `[N]`; None: those of the folders, 0 elsewhere.
        test: the test set's folder, or None.
        classes: number of classes in the federation; None: as the folders say.
        validation_fraction: share held out where a folder has no validation part of its own.
        seed: draws which.
        dtype: type of inputs (and of regression targets).
        typical_size: mean number of examples of all clients, where the sizes here do not say.

    Raises:
        DataError: the folders do not agree in shape, kind or columns.
    """

    name = "sites"

    def __init__(
        self,
        sites: Mapping[int, SiteData],
        clients: int | None = None,
        sizes: IntArray | None = None,
        test: SiteData | None = None,
        classes: int | None = None,
        validation_fraction: float = 0.0,
        seed: int = 0,
        dtype: Dtype = "float32",
        typical_size: int | None = None,
    ) -> None:
        check_dtype(dtype)
        if not sites:
            raise DataError("no client has a folder here")
        self._sites = dict(sites)
        self._test = test
        self._fraction = validation_fraction
        self._seed = seed
        self._dtype = np.dtype(dtype)
        self._takes_integers = False
        self.clients = clients if clients is not None else max(sites) + 1
        self.typical_size = typical_size
        first = self._first
        for client, data in sites.items():
            _check_alike(first, data, f"client {client}")
        if test is not None:
            _check_alike(first, test, TEST)
        known = [d.classes for d in (*sites.values(), *([test] if test else [])) if d.classes]
        self.classes = None if first.classes is None else max([*known, classes or 0])
        self._rows = {client: self._split(client) for client in sites}
        if sizes is None:
            sizes = np.zeros(self.clients, dtype=np.int64)
        self.sizes: IntArray = np.array(sizes, dtype=np.int64)
        for client, (train, _) in self._rows.items():
            self.sizes[client] = len(train)

    @property
    def _first(self) -> SiteData:
        return self._sites[min(self._sites)]

    @property
    def here(self) -> list[int]:
        """Ids of the clients whose folders are here, ascending."""
        return sorted(self._sites)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self._first.x.shape[1:])

    @property
    def has_validation(self) -> bool:
        """Whether any client here has examples held out for validation."""
        return any(self.validation_size(client) for client in self._sites)

    def validation_size(self, client: int) -> int:
        """Return how many examples a client holds out."""
        held = self._site(client).validation
        return len(held[0]) if held is not None else len(self._rows[client][1])

    def stand_in(self, count: int) -> Examples:
        """Return the first examples of a client that is here, at most so many."""
        client = next((c for c in self.here if self.sizes[c]), self.here[0])
        rows = self._rows[client][0][:count]
        data = self._site(client)
        return self._materialise(data, data.x[rows], data.y[rows])

    def train(self, client: int) -> Examples:
        """Return the training examples of a client, in the folder's order."""
        data, (rows, _) = self._site(client), self._rows[client]
        return self._materialise(data, data.x[rows], data.y[rows])

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Return the training examples of some clients, one client's after another's."""
        parts = [self.train(client) for client in clients]
        if len(parts) == 1:
            return parts[0]
        return Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))

    def validation(self, client: int) -> Examples:
        """Return the held-out examples of a client; there may be none."""
        data, (_, rows) = self._site(client), self._rows[client]
        if data.validation is not None:
            return self._materialise(data, *data.validation)
        return self._materialise(data, data.x[rows], data.y[rows])

    def test(self) -> Examples | None:
        """Return the test set; None: there is none here."""
        if self._test is None:
            return None
        return self._materialise(self._test, self._test.x, self._test.y)

    def label_counts(self, clients: IntArray) -> IntArray:
        """Return the training examples of each class; [len(clients), classes].

        Raises:
            DataError: the targets are not classes, or a client is not here.
        """
        classes = need_classes(self)
        counts = np.zeros((len(clients), classes), dtype=np.int64)
        for row, client in enumerate(clients.tolist()):
            counts[row] = np.bincount(self.train(client).y, minlength=classes)
        return counts

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files."""
        held = sum(self.validation_size(client) for client in self._sites)
        tests = 0 if self._test is None else len(self._test.x)
        return facts(self, validation_examples=held, test_examples=tests, source="folders")

    def use_integer_inputs(self) -> None:
        """Give inputs as int64 from now on, neither scaled nor shifted: a model looks them up."""
        self._takes_integers = True

    def _site(self, client: int) -> SiteData:
        if client not in self._sites:
            raise DataError(f"client {client} is not here; here are {self.here}")
        return self._sites[client]

    def _split(self, client: int) -> tuple[IntArray, IntArray]:
        """Return the rows of a folder for training and for validation."""
        data = self._sites[client]
        rows = np.arange(len(data.x))
        if data.validation is not None or not self._fraction:
            return rows, rows[:0]
        held = int(held_out(np.array([len(rows)]), self._fraction)[0])
        order = generator(self._seed, "validation split", client).permutation(len(rows))
        return np.sort(order[held:]), np.sort(order[:held])

    def _materialise(self, data: SiteData, x: AnyArray, y: AnyArray) -> Examples:
        """Return examples over copies of `x` and `y`."""
        kind = self._dtype if self.classes is None else np.dtype(np.int64)
        if self._takes_integers:
            return Examples(whole(x), y.astype(kind))
        inputs = x.astype(self._dtype)
        if data.scale != 1.0:
            inputs *= self._dtype.type(data.scale)
        if data.shift != 0.0:
            inputs += self._dtype.type(data.shift)
        return Examples(inputs, y.astype(kind))


class RemotePopulation:
    """Clients whose data the server never sees: their sizes, and shapes that they agree on.

    Args:
        sizes: training examples of each client, `[N]`; 0: not there.
        input_shape: shape of one input.
        classes: number of classes; None: regression.
        target_shape: shape of one regression target.
        has_validation: whether any client holds examples out.
        test: the server's own test set, or None.
        dtype: type of inputs (and of regression targets).
    """

    name = "sites"
    tells_labels = False

    def __init__(
        self,
        sizes: IntArray,
        input_shape: tuple[int, ...],
        classes: int | None,
        target_shape: tuple[int, ...] = (),
        has_validation: bool = False,
        test: SiteData | None = None,
        dtype: Dtype = "float32",
    ) -> None:
        check_dtype(dtype)
        self.sizes: IntArray = np.array(sizes, dtype=np.int64)
        self.clients = len(self.sizes)
        self.input_shape = tuple(input_shape)
        self.classes = classes
        self.has_validation = has_validation
        self._target_shape = target_shape
        self._dtype = np.dtype(dtype)
        self._takes_integers = False
        self._test: SitePopulation | None = None
        if test is not None:
            if tuple(test.x.shape[1:]) != self.input_shape:
                raise DataError(
                    f"test set: inputs of shape {tuple(test.x.shape[1:])}, the clients' have "
                    f"{self.input_shape}"
                )
            self._test = SitePopulation({0: test}, test=test, classes=classes, dtype=dtype)

    def stand_in(self, count: int) -> Examples:
        """Return zeros in the shape of examples: what a check of shapes needs."""
        x = np.zeros((count, *self.input_shape), np.int64 if self._takes_integers else self._dtype)
        if self.classes is None:
            return Examples(x, np.zeros((count, *self._target_shape), self._dtype))
        return Examples(x, np.zeros(count, np.int64))

    def train(self, client: int) -> Examples:
        """Refuse: the server has no client's data.

        Raises:
            DataError: always.
        """
        raise DataError(f"the examples of client {client} stay with the client")

    def train_many(self, clients: Sequence[int]) -> Examples:
        """Refuse, as `train` does."""
        return self.train(clients[0])

    def validation(self, client: int) -> Examples:
        """Refuse, as `train` does."""
        return self.train(client)

    def test(self) -> Examples | None:
        """Return the server's test set; None: it has none."""
        if self._test is None:
            return None
        if self._takes_integers:
            self._test.use_integer_inputs()
        return self._test.test()

    def label_counts(self, clients: IntArray) -> IntArray:
        """Refuse: clients do not tell the server which labels they have.

        Raises:
            DataError: always.
        """
        raise DataError("label counts stay with the clients")

    def describe(self) -> dict[str, object]:
        """Return the facts for people and files."""
        test = self.test()
        tests = 0 if test is None else test.size
        return facts(self, validation_examples=0, test_examples=tests, source="real clients")

    def use_integer_inputs(self) -> None:
        """Give inputs as int64 from now on: a model looks them up."""
        self._takes_integers = True


def load_sites(options: SitesOptions, seed: int, dtype: Dtype) -> SitePopulation:
    """Read a folder of clients' folders, for a simulation of what a deployment would do.

    Clients have the id of their `site.toml`, where a deployment has given them one; else they are
    numbered in the order of the folders' names, numbers in these counted as numbers.

    Args:
        options: where, and how the files are read.
        seed: draws what is held out for validation.
        dtype: type of inputs.

    Raises:
        DataError: there is no such folder, or a client's cannot be used.
        ConfigError: no path is given, or label noise is.
    """
    if options.path is None:
        raise ConfigError(
            "missing: a simulation reads the clients' folders there. Real clients have their own: "
            "fedopt deploy submit",
            key="data.path",
        )
    if options.label_noise:
        raise ConfigError(
            f"got {options.label_noise:g}; clients' own files are taken as they are, use 0",
            key="data.label_noise",
        )
    root = Path(options.path).expanduser()
    if not root.is_dir():
        raise DataError(f'"{root}" is not a folder', key="data.path")
    folders = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: natural(p.name))
    mine = [p for p in folders if p.name != TEST and not p.name.startswith(".")]
    if not mine:
        raise DataError(f"{root}: no client's folder in it", key="data.path")
    # What a deployment's folder has per client beside its data: its id, key and state.
    found = {
        _number(p, place): p / "data" if (p / "data").is_dir() else p
        for place, p in enumerate(mine)
    }
    if len(found) < len(mine):
        raise DataError(f"{root}: two folders are of the same client (client_id in site.toml)")
    test = root / TEST
    return SitePopulation(
        {client: load_site(folder, options) for client, folder in sorted(found.items())},
        test=load_site(test, options) if test.is_dir() else None,
        classes=options.classes,
        validation_fraction=options.validation_fraction,
        seed=seed,
        dtype=dtype,
    )


def _number(folder: Path, place: int) -> int:
    """Return a client's id: as its `site.toml` says, or its folder's place."""
    path = folder / "site.toml"
    if not path.exists():
        return place
    try:
        return int(tomllib.loads(path.read_text(encoding="utf-8"))["client_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not say which client it is: {error}") from None


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key under which `client-10` comes after `client-2`."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(p)) if p.isdigit() else (1, p) for p in parts if p)


def _check_alike(first: SiteData, data: SiteData, who: str) -> None:
    """Check that a folder's examples are of the first one's shape and kind."""
    if data.x.shape[1:] != first.x.shape[1:]:
        raise DataError(
            f"{who}: inputs of shape {tuple(data.x.shape[1:])}, others have "
            f"{tuple(first.x.shape[1:])}"
        )
    if (data.classes is None) != (first.classes is None):
        raise DataError(f"{who}: labels and regression targets do not mix")
    if data.columns != first.columns:
        raise DataError(
            f"{who}: columns {list(data.columns or ())}, others {list(first.columns or ())}"
        )
