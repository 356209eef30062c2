"""The seven messages of a secure sum, as dataclasses and as bytes.

Each carries the tag of its agreement, so that one of another round is refused by name rather than
by a failed decryption. `to_bytes` is canonical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedopt.errors import SecureAggregationError
from fedopt.secure import wire
from fedopt.secure.agreement import TAG_NBYTES as ROUND_TAG_NBYTES
from fedopt.secure.fixed_point import Words
from fedopt.secure.keys import KEY_NBYTES, NONCE_NBYTES, TAG_NBYTES
from fedopt.secure.shamir import SHARE_NBYTES

SEALED_NBYTES = NONCE_NBYTES + 2 * SHARE_NBYTES + TAG_NBYTES
"""A client's sealed shares for one neighbour."""
_ALIGNMENT = bytes(3)
"""Brings the words of a masked vector to a multiple of 8 bytes from its beginning."""


@dataclass(frozen=True)
class PublicKeys:
    """Stage 0, client to server: its two public keys.

    Args:
        tag: of the agreement, 16 bytes, as in all messages.
        client: the sender.
        encryption: 32 bytes, for sealed shares; c in the paper.
        masking: 32 bytes, for masks; s in the paper.
    """

    tag: bytes
    client: int
    encryption: bytes
    masking: bytes

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        body = wire.number(self.client) + self.encryption + self.masking
        return wire.header(1) + self.tag + body

    @classmethod
    def from_bytes(cls, data: bytes) -> PublicKeys:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 1, "public keys")
        message = cls(
            reader.take(ROUND_TAG_NBYTES),
            reader.number(),
            reader.take(KEY_NBYTES),
            reader.take(KEY_NBYTES),
        )
        reader.end()
        return message


@dataclass(frozen=True)
class KeyRing:
    """Stage 1, server to client: the public keys of its neighbours that answered.

    Args:
        tag: of the agreement.
        keys: neighbour -> (encryption key, masking key).
    """

    tag: bytes
    keys: Mapping[int, tuple[bytes, bytes]]

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        return (
            wire.header(2) + self.tag + wire.table({k: b"".join(v) for k, v in self.keys.items()})
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> KeyRing:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 2, "a key ring")
        tag, rows = reader.take(ROUND_TAG_NBYTES), reader.table(2 * KEY_NBYTES)
        reader.end()
        return cls(tag, {k: (row[:KEY_NBYTES], row[KEY_NBYTES:]) for k, row in rows.items()})


@dataclass(frozen=True)
class SealedShares:
    """Stage 1, client to server: shares of its seed and its masking key, one text a neighbour.

    Args:
        tag: of the agreement.
        client: the sender.
        commitment: 32 bytes by which the server knows the sender's seed again.
        sealed: neighbour -> `SEALED_NBYTES` bytes that only it can open.
    """

    tag: bytes
    client: int
    commitment: bytes
    sealed: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        body = wire.number(self.client) + self.commitment + wire.table(self.sealed)
        return wire.header(3) + self.tag + body

    @classmethod
    def from_bytes(cls, data: bytes) -> SealedShares:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 3, "sealed shares")
        message = cls(
            reader.take(ROUND_TAG_NBYTES),
            reader.number(),
            reader.take(KEY_NBYTES),
            reader.table(SEALED_NBYTES),
        )
        reader.end()
        return message


@dataclass(frozen=True)
class Inbox:
    """Stage 2, server to client: what its neighbours sealed for it.

    Args:
        tag: of the agreement.
        sealed: sender -> `SEALED_NBYTES` bytes.
    """

    tag: bytes
    sealed: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        return wire.header(4) + self.tag + wire.table(self.sealed)

    @classmethod
    def from_bytes(cls, data: bytes) -> Inbox:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 4, "an inbox")
        message = cls(reader.take(ROUND_TAG_NBYTES), reader.table(SEALED_NBYTES))
        reader.end()
        return message


@dataclass(frozen=True, eq=False)
class MaskedVector:
    """Stage 2, client to server: its vector under masks.

    The words may also travel as an array of their own, beside `tag` and `client`.

    Args:
        tag: of the agreement.
        client: the sender.
        words: `[L]` in uint64.
    """

    tag: bytes
    client: int
    words: Words

    def to_bytes(self) -> bytes:
        """Return the message as bytes, a copy of the words among them."""
        words = self.words.astype("<u8", copy=False).tobytes()
        return b"".join((wire.header(5), self.tag, wire.number(self.client), _ALIGNMENT, words))

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskedVector:
        """Return the message of `to_bytes`; its words look into the bytes."""
        reader = wire.Reader(data, 5, "a masked vector")
        tag, client = reader.take(ROUND_TAG_NBYTES), reader.number()
        padding, body = reader.take(len(_ALIGNMENT)), reader.rest()
        if len(body) % 8 or padding != _ALIGNMENT:
            raise SecureAggregationError("the bytes of a masked vector are damaged.")
        return cls(tag, client, np.frombuffer(body, dtype="<u8").astype(np.uint64, copy=False))


@dataclass(frozen=True)
class Survivors:
    """Stage 3, server to client: who of the holders of its shares has sent a masked vector.

    Args:
        tag: of the agreement.
        clients: the receiver and those of its neighbours that did, in ascending order.
    """

    tag: bytes
    clients: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        return wire.header(6) + self.tag + wire.numbers(self.clients)

    @classmethod
    def from_bytes(cls, data: bytes) -> Survivors:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 6, "a list of survivors")
        message = cls(reader.take(ROUND_TAG_NBYTES), reader.numbers())
        reader.end()
        return message


@dataclass(frozen=True)
class UnmaskShares:
    """Stage 3, client to server: its shares of what has to be taken from the sum.

    Args:
        tag: of the agreement.
        client: the sender.
        seeds: survivor -> share of its seed.
        keys: client that dropped out -> share of its private masking key.
    """

    tag: bytes
    client: int
    seeds: Mapping[int, bytes]
    keys: Mapping[int, bytes]

    def to_bytes(self) -> bytes:
        """Return the message as bytes."""
        body = wire.number(self.client) + wire.table(self.seeds) + wire.table(self.keys)
        return wire.header(7) + self.tag + body

    @classmethod
    def from_bytes(cls, data: bytes) -> UnmaskShares:
        """Return the message of `to_bytes`."""
        reader = wire.Reader(data, 7, "shares to unmask with")
        message = cls(
            reader.take(ROUND_TAG_NBYTES),
            reader.number(),
            reader.table(SHARE_NBYTES),
            reader.table(SHARE_NBYTES),
        )
        reader.end()
        return message
