"""What server and clients of one secure sum agree on, and what follows from it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from fedopt.errors import ConfigError, SecureAggregationError
from fedopt.secure import wire
from fedopt.secure.fixed_point import FixedPoint, Layout, Part
from fedopt.secure.graph import Graph, graph_of

_KIND = 0
TAG_NBYTES = 16


@dataclass(frozen=True)
class Agreement:
    """One secure sum: who takes part, over which graph, with which threshold, of what.

    The holders of a client's shares are its neighbours and itself, h of them.

    Args:
        session: name of the run, 1..255 bytes of UTF-8; keys of other runs open nothing here.
        seed: of the public order, any integer in -2**63..2**63-1.
        round: in 0..2**64-1.
        clients: at least 2 distinct ids in 0..2**64-1; kept in ascending order.
        layout: what is summed.
        neighbours: an even number of at least 2, for the ring of neighbours (SecAgg+); None, or
            `len(clients) - 1` or more, lets all mask with all.
        threshold: t, holders that must be left to unmask a client's vector; in 2..h. Default: more
            than two thirds of the holders.

    Raises:
        ConfigError: an argument is out of its range, or sums could wrap.
    """

    session: str
    seed: int
    round: int
    clients: tuple[int, ...]
    layout: Layout
    neighbours: int | None = None
    threshold: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.session.encode()) <= 255:
            raise ConfigError(f"got {self.session!r}; 1 to 255 bytes.", key="secure.session")
        if not -(2**63) <= self.seed < 2**63 or not 0 <= self.round < 2**64:
            raise ConfigError(
                f"seed {self.seed} or round {self.round} is out of range.", key="secure.seed"
            )
        clients = tuple(sorted(self.clients))
        if len(set(clients)) != len(clients) or len(clients) < 2:
            raise ConfigError(
                f"got {len(clients)} clients; at least 2 distinct ones are needed.",
                key="secure.clients",
            )
        if not 0 <= clients[0] <= clients[-1] < 2**64:
            raise ConfigError("ids of clients are in 0..2**64-1.", key="secure.clients")
        object.__setattr__(self, "clients", clients)
        if self.neighbours is not None and (self.neighbours < 2 or self.neighbours % 2):
            raise ConfigError(
                f"got {self.neighbours}; an even number of at least 2, or none for all.",
                key="secure.neighbours",
            )
        holders = self.holders
        if self.threshold is None:
            object.__setattr__(self, "threshold", max(2, 2 * holders // 3 + 1))
        if not 2 <= self.shares_needed <= holders:
            raise ConfigError(
                f"got {self.threshold}; allowed is 2 to {holders}, the neighbours of a client and "
                "itself.",
                key="secure.threshold",
            )
        self.layout.check_sums(len(clients))

    @property
    def holders(self) -> int:
        """h: who holds shares of a client's secrets, itself among them."""
        others = len(self.clients) - 1
        return 1 + (others if self.neighbours is None else min(self.neighbours, others))

    @property
    def shares_needed(self) -> int:
        """The threshold t."""
        assert self.threshold is not None  # set when the agreement was made
        return self.threshold

    @cached_property
    def graph(self) -> Graph:
        """Each client's neighbours."""
        return graph_of(self.clients, self.seed, self.round, self.neighbours)

    @cached_property
    def points(self) -> dict[int, int]:
        """Where the polynomials are evaluated for each client, from 1."""
        return {client: place + 1 for place, client in enumerate(self.clients)}

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that depend on all of it; all keys are bound to them."""
        return sha256(self.to_bytes()).digest()

    @property
    def tag(self) -> bytes:
        """The beginning of the digest, which each message carries."""
        return self.digest[:TAG_NBYTES]

    def check_member(self, client: int) -> None:
        """Refuse a client that is does not take part."""
        if client not in self.points:
            raise SecureAggregationError(f"client {client} does not take part in this round.")

    def to_bytes(self) -> bytes:
        """Return the agreement as bytes."""
        parts = b"".join(
            wire.text(part.name.encode())
            + struct.pack("<Qdh", part.size or 0, part.fixed_point.limit, part.fixed_point.bits)
            for part in self.layout.parts
        )
        return (
            wire.header(_KIND)
            + wire.text(self.session.encode())
            + struct.pack("<qQII", self.seed, self.round, self.neighbours or 0, self.shares_needed)
            + wire.numbers(self.clients)
            + struct.pack("<I", len(self.layout.parts))
            + parts
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Agreement:
        """Return the agreement of `to_bytes`.

        Raises:
            SecureAggregationError: the bytes are none.
            ConfigError: they are of an agreement that is not allowed.
        """
        reader = wire.Reader(data, _KIND, "an agreement")
        session = _word(reader)
        seed, round, neighbours, threshold = (int(v) for v in reader.unpack("qQII"))
        clients = reader.numbers()
        parts: list[Part] = []
        for _ in range(reader.small()):
            name = _word(reader)
            size, limit, bits = reader.unpack("Qdh")
            parts.append(Part(name, int(size) or None, FixedPoint(limit, int(bits))))
        reader.end()
        layout = Layout(tuple(parts))
        agreement = cls(session, seed, round, clients, layout, neighbours or None, threshold)
        if agreement.to_bytes() != data:  # so that all who agree have the same digest
            raise SecureAggregationError("the bytes of an agreement are not in their one form.")
        return agreement

    def sort(self, clients: Sequence[int]) -> tuple[int, ...]:
        """Return ids in ascending order, each of which has to take part."""
        for client in clients:
            self.check_member(client)
        return tuple(sorted(clients))


def _word(reader: wire.Reader) -> str:
    try:
        return reader.text().decode()
    except UnicodeDecodeError:
        raise SecureAggregationError("a name in an agreement is not UTF-8.") from None
