"""A whole secure sum in one process, every message and every session through its bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedopt.secure import (
    Agreement,
    ClientSession,
    FixedPoint,
    Inbox,
    KeyRing,
    Layout,
    MaskedVector,
    Part,
    PublicKeys,
    SealedShares,
    SecureSum,
    ServerSession,
    Survivors,
    UnmaskShares,
)

NONE: frozenset[int] = frozenset()


def small_layout(length: int = 5, bits: int = 20, limit: float = 100.0) -> Layout:
    fixed_point = FixedPoint(limit, bits)
    return Layout((Part("delta", length, fixed_point), Part("weight", None, FixedPoint(1e6, 0))))


def agreement(clients: int = 5, **options: Any) -> Agreement:
    options = {"session": "run", "seed": 0, "round": 1, "layout": small_layout(), **options}
    return Agreement(clients=tuple(range(clients)), **options)


def values_of(layout: Layout, client: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng([seed, client])
    return {
        part.name: float(rng.integers(0, int(part.fixed_point.limit)))
        if part.size is None
        else rng.uniform(-part.fixed_point.limit, part.fixed_point.limit, part.size)
        for part in layout.parts
    }


@dataclass
class Federation:
    """The server and its clients; each stage is one method, which drops the clients given."""

    agreement: Agreement
    values: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    sessions: dict[int, bytes] = field(default_factory=dict)
    masked: dict[int, MaskedVector] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layout = self.agreement.layout
        self.server = ServerSession(self.agreement)
        self.values = self.values or {c: values_of(layout, c) for c in self.agreement.clients}

    def session(self, client: int) -> ClientSession:
        return ClientSession.from_bytes(self.sessions[client])

    def keys(self, dropped: Collection[int] = NONE) -> dict[int, KeyRing]:
        data = self.agreement.to_bytes()
        for client in self.agreement.clients:
            if client not in dropped:
                session, message = ClientSession.start(Agreement.from_bytes(data), client)
                self.sessions[client] = session.to_bytes()
                self.server.add_keys(PublicKeys.from_bytes(message.to_bytes()))
        return self.server.close_keys()

    def shares(
        self, rings: Mapping[int, KeyRing], dropped: Collection[int] = NONE
    ) -> dict[int, Inbox]:
        for client, ring in rings.items():
            if client not in dropped:
                session = self.session(client)
                message = session.share(KeyRing.from_bytes(ring.to_bytes()))
                self.sessions[client] = session.to_bytes()
                self.server.add_shares(SealedShares.from_bytes(message.to_bytes()))
        return self.server.close_shares()

    def vectors(
        self, inboxes: Mapping[int, Inbox], dropped: Collection[int] = NONE
    ) -> dict[int, Survivors]:
        for client, inbox in inboxes.items():
            if client not in dropped:
                session = self.session(client)
                message = session.mask(Inbox.from_bytes(inbox.to_bytes()), self.values[client])
                self.sessions[client] = session.to_bytes()
                self.masked[client] = MaskedVector.from_bytes(message.to_bytes())
                self.server.add_masked(self.masked[client])
        return self.server.close_masked()

    def unmask(
        self, questions: Mapping[int, Survivors], dropped: Collection[int] = NONE
    ) -> SecureSum:
        for client, survivors in questions.items():
            if client not in dropped:
                session = self.session(client)
                message = session.unmask(Survivors.from_bytes(survivors.to_bytes()))
                self.sessions[client] = session.to_bytes()
                self.server.add_unmask(UnmaskShares.from_bytes(message.to_bytes()))
        return self.server.close_unmask()

    def all(self, *dropped: Collection[int]) -> SecureSum:
        """The whole round; `dropped` has who does not answer, by stage."""
        a, b, c, d = (*dropped, *[NONE] * 4)[:4]
        return self.unmask(self.vectors(self.shares(self.keys(a), b), c), d)

    def plain_sum(self, clients: Collection[int]) -> np.ndarray[Any, Any]:
        total = np.zeros(self.agreement.layout.length, dtype=np.int64)
        for client in clients:
            total += self.agreement.layout.encode(self.values[client]).view(np.int64)
        return total
