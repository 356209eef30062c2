"""Bytes of messages and sessions: a header, then fields in a fixed order, little-endian.

The form is canonical: whatever reads without an error is what the same fields are written as.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from fedopt.errors import SecureAggregationError

_MAGIC = b"fsa\x01"
"""The last byte is the version of the format."""


def header(kind: int) -> bytes:
    """Return what the bytes of a kind begin with."""
    return _MAGIC + bytes([kind])


def number(value: int) -> bytes:
    """Return an integer in 0..2**64-1 as 8 bytes."""
    return struct.pack("<Q", value)


def text(value: bytes) -> bytes:
    """Return up to 2**32-1 bytes with their length before them."""
    return struct.pack("<I", len(value)) + value


def numbers(values: Iterable[int]) -> bytes:
    """Return a list of integers in 0..2**64-1 with its length before it."""
    listed = list(values)
    return struct.pack(f"<I{len(listed)}Q", len(listed), *listed)


def table(rows: Mapping[int, bytes]) -> bytes:
    """Return rows of equal width by ascending key; the reader has to know the width."""
    keys = sorted(rows)
    return numbers(keys) + b"".join(rows[key] for key in keys)


class Reader:
    """Reads fields in the order in which they were written.

    Args:
        data: bytes of one message.
        kind: that it has to be of.
        what: its name, for messages of errors.

    Raises:
        SecureAggregationError: another kind or version, as by all methods: cut short, too long.
    """

    def __init__(self, data: bytes, kind: int, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what
        if self.take(len(_MAGIC) + 1) != header(kind):
            raise SecureAggregationError(f"these bytes are not {what} of this version.")

    def take(self, count: int) -> bytes:
        """Return the next so many bytes."""
        return bytes(self.view(count))

    def view(self, count: int) -> memoryview:
        """Return the next so many bytes without copying them."""
        if count < 0 or self._at + count > len(self._data):
            raise SecureAggregationError(f"the bytes of {self._what} are cut short.")
        self._at += count
        return self._data[self._at - count : self._at]

    def unpack(self, form: str) -> tuple[int | float, ...]:
        """Return fields by a format of `struct`, without its byte order."""
        return struct.unpack(f"<{form}", self.view(struct.calcsize(f"<{form}")))

    def small(self) -> int:
        """Return an integer of 4 bytes."""
        return int(self.unpack("I")[0])

    def number(self) -> int:
        """Return what `number` wrote."""
        return int(self.unpack("Q")[0])

    def text(self) -> bytes:
        """Return what `text` wrote."""
        return self.take(self.small())

    def numbers(self) -> tuple[int, ...]:
        """Return what `numbers` wrote."""
        count = self.small()
        return struct.unpack(f"<{count}Q", self.view(8 * count))

    def table(self, width: int) -> dict[int, bytes]:
        """Return what `table` wrote, with rows of `width` bytes."""
        keys = self.numbers()
        if list(keys) != sorted(set(keys)):
            raise SecureAggregationError(f"the keys of {self._what} are not in order.")
        return {key: self.take(width) for key in keys}

    def rest(self) -> memoryview:
        """Return all bytes that are left, without copying them."""
        return self.view(len(self._data) - self._at)

    def end(self) -> None:
        """Refuse bytes that are left."""
        if self._at != len(self._data):
            raise SecureAggregationError(
                f"{self._what} has {len(self._data) - self._at} bytes more."
            )
