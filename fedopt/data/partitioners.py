"""Who owns which example: the laws that cut a dataset into clients.

Each law is one function that answers with `owner`, the client of every example, so no example
can be lost or given twice. `partition` validates the options, deals, tops up clients that are
too small and packs the answer as a `Partition`. Only numpy; every draw derives from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from fedopt import registry
from fedopt.data.catalogue import (
    ArrayPartitionOptions,
    DirichletOptions,
    NaturalOptions,
    PartitionOptions,
    QuantityOptions,
    ShardsOptions,
    SimilarityOptions,
    SyntheticPartitionOptions,
)
from fedopt.data.options import read_options
from fedopt.errors import ConfigError, DataError
from fedopt.seeds import generator

IntArray: TypeAlias = npt.NDArray[np.int64]
AnyArray: TypeAlias = npt.NDArray[Any]
Deal: TypeAlias = Callable[[AnyArray, Any, np.random.Generator], IntArray]

_LABEL_FREE = "iid, quantity, natural"


@dataclass(frozen=True)
class Partition:
    """The examples of every client, packed in two arrays.

    Args:
        offsets: client i has `indices[offsets[i]:offsets[i + 1]]`; [clients + 1] int64, from 0
            to M, never falling.
        indices: example numbers, each at most once; [M] int64, >= 0.

    Raises:
        DataError: the arrays do not describe a partition.
    """

    offsets: IntArray
    indices: IntArray

    def __post_init__(self) -> None:
        for name in ("offsets", "indices"):
            array = np.asarray(getattr(self, name))
            if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
                raise DataError(
                    f"a partition's {name} must be a flat array of integers, got shape "
                    f"{array.shape} of {array.dtype}"
                )
            object.__setattr__(self, name, np.ascontiguousarray(array, dtype=np.int64))
        offsets, indices = self.offsets, self.indices
        if offsets.size < 2:
            raise DataError("a partition needs at least one client")
        if offsets[0] != 0 or offsets[-1] != indices.size or (np.diff(offsets) < 0).any():
            raise DataError(
                f"a partition's offsets must rise from 0 to its {indices.size} indices, got "
                f"{offsets[0]} to {offsets[-1]}"
            )
        if indices.size == 0:
            return
        if indices.min() < 0:
            raise DataError(f"a partition's indices must be >= 0, got {indices.min()}")
        seen = np.zeros(int(indices.max()) + 1, dtype=bool)
        seen[indices] = True
        twice = indices.size - int(np.count_nonzero(seen))
        if twice:
            raise DataError(f"{twice} examples belong to more than one client")

    @classmethod
    def from_owner(cls, owner: IntArray, clients: int) -> Partition:
        """Pack the client of every example; a client's indices are in rising order.

        Args:
            owner: client of each example, in 0..clients-1; [M].
            clients: number of clients, >= 1.

        Raises:
            DataError: an owner is not in 0..clients-1.
        """
        if owner.size and (owner.min() < 0 or owner.max() >= clients):
            raise DataError(
                f"owners must be in 0..{clients - 1}, got {owner.min()} to {owner.max()}"
            )
        offsets = np.zeros(clients + 1, dtype=np.int64)
        np.cumsum(np.bincount(owner, minlength=clients), out=offsets[1:])
        return cls(offsets, np.argsort(owner, kind="stable"))

    @property
    def clients(self) -> int:
        """Number of clients."""
        return int(self.offsets.size) - 1

    @property
    def sizes(self) -> IntArray:
        """Examples per client; [clients]."""
        return np.diff(self.offsets)

    @property
    def empty(self) -> int:
        """Number of clients without any example."""
        return int(np.count_nonzero(self.sizes == 0))

    def client(self, client: int) -> IntArray:
        """Return a view of the example numbers of one client.

        Raises:
            IndexError: the client is not in 0..clients-1.
        """
        if not 0 <= client < self.clients:
            raise IndexError(f"client {client} is not in 0..{self.clients - 1}")
        return self.indices[self.offsets[client] : self.offsets[client + 1]]


def partition(
    name: str,
    targets: npt.ArrayLike,
    clients: int | None = None,
    seed: int = 0,
    **options: object,
) -> Partition:
    """Cut examples into clients.

    Args:
        name: a registered partition: iid, dirichlet, shards, similarity, quantity or natural.
        targets: labels in 0..classes-1, [M] integers (any targets for iid and quantity); for
            `natural`, the client id of each example.
        clients: number of clients, >= 1; not for `natural`. Unset: the partition's default.
        seed: seed of the draws.
        options: further options of the partition, such as `alpha`.

    Returns:
        A partition in which every example belongs to exactly one client.

    Raises:
        ConfigError: the name, an option or a value is not allowed, or there are not enough
            examples.
        DataError: the targets cannot be partitioned this way.
    """
    given = options if clients is None else {"clients": clients, **options}
    _, checked = read_options("partitions", name, given)
    return deal(name, np.asarray(targets), cast(PartitionOptions, checked), seed)


def deal(name: str, targets: AnyArray, options: PartitionOptions, seed: int) -> Partition:
    """Do what `partition` does, from checked options.

    Args:
        name: name of the partition, the one whose schema `options` is of.
        targets: as in `partition`.
        options: options of the partition.
        seed: seed of the draws.
    """
    if isinstance(options, SyntheticPartitionOptions):
        raise ConfigError(
            '"synthetic" makes its own devices and does not cut an array of examples; it goes '
            "with data.name = synthetic.",
            key="partition.name",
        )
    if targets.ndim == 0 or targets.shape[0] == 0:
        raise DataError(f'partition "{name}": there are no examples to deal')
    law = cast(Deal, registry.get("partitions", name).load())
    owner = law(targets, options, generator(seed, f"partition {name}"))
    if not isinstance(options, ArrayPartitionOptions):
        return Partition.from_owner(owner, int(owner.max()) + 1)
    need = options.clients * options.min_examples
    if need > owner.size:
        raise ConfigError(
            f"{options.clients} clients with at least {options.min_examples} examples need "
            f"{need} examples, but there are {owner.size}. Lower partition.clients, or set "
            "partition.min_examples = 0 to allow empty clients.",
            key="partition.clients",
        )
    owner = top_up(owner, options.clients, options.min_examples, generator(seed, "top up"))
    return Partition.from_owner(owner, options.clients)


def deal_iid(
    targets: AnyArray, options: ArrayPartitionOptions, rng: np.random.Generator
) -> IntArray:
    """Shuffle and deal one by one: sizes differ by at most one.

    Source: McMahan et al. (2017), section 3 (IID).
    """
    owner = np.empty(len(targets), dtype=np.int64)
    owner[rng.permutation(owner.size)] = np.arange(owner.size) % options.clients
    return owner


def deal_dirichlet(
    targets: AnyArray, options: DirichletOptions, rng: np.random.Generator
) -> IntArray:
    """Spread each class over the clients by its own draw p_k ~ Dirichlet(alpha, ..., alpha).

    Client j gets the share p_kj of the examples of class k, rounded by cutting the shuffled
    class at the cumulated shares; sizes are therefore uneven. (Hsu et al., 2019, draw a
    distribution over classes per client of fixed size instead: another law, same limits.)

    Source: Yurochkin et al. (2019), Bayesian Nonparametric Federated Learning, section 4.
    """
    labels = _labels("dirichlet", targets)
    owner = np.empty(labels.size, dtype=np.int64)
    for rows in _rows_by_class(labels):
        shares = rng.dirichlet(np.full(options.clients, options.alpha))
        owner[rng.permutation(rows)] = _cut(shares, rows.size)
    return owner


def deal_shards(targets: AnyArray, options: ShardsOptions, rng: np.random.Generator) -> IntArray:
    """Sort by label, cut into clients * shards_per_client shards, deal these at random.

    Shards differ by at most one example, so none is lost when they do not divide evenly.

    Raises:
        ConfigError: there are more shards than examples.

    Source: McMahan et al. (2017), section 3 (pathological non-IID).
    """
    labels = _labels("shards", targets)
    shards = options.clients * options.shards_per_client
    if shards > labels.size:
        raise ConfigError(
            f"{options.clients} clients with {options.shards_per_client} shards each need at "
            f"least {shards} examples, but there are {labels.size}.",
            key="partition.shards_per_client",
        )
    shard_owner = rng.permutation(np.repeat(np.arange(options.clients), options.shards_per_client))
    owner = np.empty(labels.size, dtype=np.int64)
    owner[_sorted_by_label(labels, rng)] = shard_owner[_even_pieces(labels.size, shards)]
    return owner


def deal_similarity(
    targets: AnyArray, options: SimilarityOptions, rng: np.random.Generator
) -> IntArray:
    """Deal a share of the examples iid and the rest sorted by label, in contiguous pieces.

    Source: Karimireddy et al. (2020), SCAFFOLD, section 7.1 (s% similar data).
    """
    labels = _labels("similarity", targets)
    order = rng.permutation(labels.size)
    cut = round(options.similarity * labels.size)
    alike, rest = order[:cut], order[cut:]
    owner = np.empty(labels.size, dtype=np.int64)
    owner[alike] = np.arange(cut) % options.clients
    by_label = rest[np.argsort(labels[rest], kind="stable")]
    owner[by_label] = _even_pieces(rest.size, options.clients)
    return owner


def deal_quantity(
    targets: AnyArray, options: QuantityOptions, rng: np.random.Generator
) -> IntArray:
    """Give clients sizes in proportion to Pareto draws, and labels at random.

    Source: Pareto law, P(size > s) proportional to s**-exponent.
    """
    shares = 1.0 - rng.random(options.clients)
    # In logarithms: for small exponents the powers themselves overflow.
    log_sizes = -np.log(shares) / options.exponent
    owner = np.empty(len(targets), dtype=np.int64)
    owner[rng.permutation(owner.size)] = _cut(np.exp(log_sizes - log_sizes.max()), owner.size)
    return owner


def deal_natural(targets: AnyArray, options: NaturalOptions, rng: np.random.Generator) -> IntArray:
    """Take the clients from a column of ids (integers or text), in sorted order; no draw.

    Raises:
        DataError: the column is not a flat array of integers or text.
    """
    if targets.ndim != 1 or targets.dtype.kind not in "iubUS":
        raise DataError(
            f"natural: the client column must be [M] integers or text, got shape "
            f"{targets.shape} of {targets.dtype}"
        )
    _, owner = np.unique(targets, return_inverse=True)
    return owner.astype(np.int64)


def top_up(owner: IntArray, clients: int, min_examples: int, rng: np.random.Generator) -> IntArray:
    """Bring every client to at least `min_examples`, taking from the largest ones.

    The sizes are those that result when one example at a time moves from the client that is
    then the largest (of equals the lowest id) to a client that is below the minimum; which of
    a client's examples move is drawn at random. The end of that process is computed directly:
    the largest clients are cut to a common level.

    Args:
        owner: client of each example, in 0..clients-1; [M].
        clients: number of clients, >= 1; clients * min_examples <= M.
        min_examples: minimum of examples per client, >= 0.
        rng: generator for the choice of examples.

    Returns:
        The new owners; `owner` itself when nothing has to move.
    """
    sizes = np.bincount(owner, minlength=clients)
    missing = np.maximum(min_examples - sizes, 0)
    total = int(missing.sum())
    if total == 0:
        return owner
    # level: the highest one such that cutting all larger clients to it frees enough examples.
    level, above = 0, int(sizes.max())
    while above - level > 1:
        middle = (level + above) // 2
        enough = int(np.maximum(sizes - middle, 0).sum()) >= total
        level, above = (middle, above) if enough else (level, middle)
    given = np.maximum(sizes - (level + 1), 0)
    last = np.flatnonzero(sizes > level)[: total - int(given.sum())]
    given[last] += 1

    order = np.lexsort((rng.random(owner.size), owner))
    start = np.cumsum(sizes) - sizes
    rank = np.arange(owner.size) - np.repeat(start, sizes)
    moved = order[rank < np.repeat(given, sizes)]
    result = owner.copy()
    result[rng.permutation(moved)] = np.repeat(np.arange(clients), missing)
    return result


def _labels(name: str, targets: AnyArray) -> AnyArray:
    if targets.ndim == 1 and targets.dtype.kind in "iub":
        return targets
    raise DataError(
        f'partition "{name}" goes by class labels and needs [M] integer targets, got shape '
        f"{targets.shape} of {targets.dtype}. For other targets take one of: {_LABEL_FREE}."
    )


def _sorted_by_label(labels: AnyArray, rng: np.random.Generator) -> IntArray:
    """Return the examples sorted by label, in random order within a label."""
    order = rng.permutation(labels.size)
    return order[np.argsort(labels[order], kind="stable")]


def _rows_by_class(labels: AnyArray) -> list[IntArray]:
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(order, cuts)


def _even_pieces(examples: int, pieces: int) -> IntArray:
    """Return the piece of each of `examples` positions; piece sizes differ by at most one."""
    return np.arange(examples) * pieces // max(examples, 1)


def _cut(shares: npt.NDArray[np.float64], examples: int) -> IntArray:
    """Return the client of each of `examples` positions, cut at the cumulated shares.

    Position j stands for (j + 1/2) / examples, which rounds each cut to the nearest example
    and can never fall outside the last client, whatever the rounding of the sum.
    """
    cumulated = np.cumsum(shares)
    middles = (np.arange(examples) + 0.5) / examples
    return np.searchsorted(cumulated / cumulated[-1], middles, side="right").astype(np.int64)
