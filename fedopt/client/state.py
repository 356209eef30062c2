"""Rows of client state in one sparse file, read and written by whoever trains the client.

Which row a client's state is read from and written to is decided by the server's
`ClientStateStore`, which makes writes take effect only when it accepts the round; this module
just moves rows. Rows that were never written read as zeros.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedopt.errors import unwritable


class ClientRows(Protocol):
    """Where the state of clients is read from and written to."""

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the fields of some rows; row -1 is all zeros."""

    def write(self, rows: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Write the fields of some rows."""


@dataclass(frozen=True)
class RowFile:
    """A file of fixed-size rows, each holding the state of one client.

    Args:
        path: the file; made by the server.
        fields: names of the vectors in a row, in order.
        sizes: length of each of these vectors.
        dtype: of vectors and numbers.
        scalars: names of the single numbers that follow the vectors.
    """

    path: str
    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    scalars: tuple[str, ...] = ()

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self._length * self.dtype.itemsize

    @property
    def _length(self) -> int:
        return sum(self.sizes) + len(self.scalars)

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the fields of some rows: vectors `[len(rows), size]` and numbers `[len(rows)]`.

        Row -1 is all zeros.
        """
        values = torch.zeros(len(rows), self._length, dtype=self.dtype)
        raw = values.view(torch.uint8).numpy()
        fd = os.open(self.path, os.O_RDONLY)
        try:
            for position, row in enumerate(rows):
                if row >= 0:
                    _read_fully(fd, memoryview(raw[position]), row * self.row_nbytes)
        finally:
            os.close(fd)
        vectors = torch.split(values[:, : sum(self.sizes)], list(self.sizes), dim=1)
        numbers = values[:, sum(self.sizes) :]
        return dict(zip(self.fields, vectors, strict=True)) | {
            name: numbers[:, i] for i, name in enumerate(self.scalars)
        }

    def write(self, rows: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Write the fields of some rows: vectors `[len(rows), size]`, numbers `[len(rows)]`.

        Raises:
            RunError: they cannot be; a `DiskFullError` where there is no room.
        """
        packed = self.packed(state)
        fd = os.open(self.path, os.O_WRONLY)
        try:
            for row, payload in zip(rows, packed, strict=True):
                _write_fully(fd, payload, row * self.row_nbytes)
        except OSError as error:
            raise unwritable(self.path, error) from error
        finally:
            os.close(fd)

    def packed(self, state: Mapping[str, Tensor]) -> list[bytes]:
        """Return rows as they lie in the file, from vectors `[n, size]` and numbers `[n]`."""
        parts = [state[name].cpu().to(self.dtype) for name in self.fields]
        parts += [state[name].cpu().to(self.dtype).unsqueeze(1) for name in self.scalars]
        return [row.tobytes() for row in torch.cat(parts, dim=1).numpy()]


def _read_fully(fd: int, buffer: memoryview, offset: int) -> None:
    """Read until the buffer is full; beyond the end of the file there are zeros."""
    while len(buffer):
        count = os.preadv(fd, [buffer], offset)
        if count == 0:
            return
        buffer, offset = buffer[count:], offset + count


def _write_fully(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
