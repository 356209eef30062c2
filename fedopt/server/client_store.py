"""Client state on disk, transactional: a row counts only once the server accepts the round.

Rows live in one sparse file and are never overwritten while somebody may need them: a client's
new state goes to a free row, and accepting the round moves the client's entry in the index from
the old row to the new one (shadow paging, as LMDB does for pages). A lost reply or a discarded
round leaves the index as it was. A checkpoint is a copy of the index; the rows it names are not
reused while it is kept. Cost and size grow with the clients that ever trained, not with the
population.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedopt.client.state import RowFile


class ClientStateStore:
    """The server's index of client rows.

    Args:
        path: the file of rows, made if it does not exist.
        fields: names of the vectors in a row.
        sizes: length of each of these vectors.
        dtype: of vectors and numbers.
        checkpoints: round -> (client -> row) of the checkpoints kept; the store goes on from
            the latest. None starts empty.
        scalars: names of the single numbers in a row.
    """

    def __init__(
        self,
        path: Path,
        fields: tuple[str, ...],
        sizes: tuple[int, ...],
        dtype: torch.dtype,
        checkpoints: Mapping[int, Mapping[int, int]] | None = None,
        scalars: tuple[str, ...] = (),
    ) -> None:
        path.touch()
        self.file = RowFile(str(path), fields, sizes, dtype, scalars)
        kept = dict(checkpoints or {})
        self._index: dict[int, int] = dict(kept[max(kept)]) if kept else {}
        self._pending: dict[int, int] = {}
        self._kept = {round: dict(index) for round, index in kept.items()}
        self._held = self._rows_kept()
        self._next = max(self._held, default=-1) + 1
        self._free = [row for row in range(self._next) if row not in self._held]

    def begin(self, clients: Sequence[int]) -> tuple[list[int], list[int]]:
        """Start a round: return the row to read (-1: zeros) and the row to write, per client.

        Rows that an earlier, unfinished round wrote are free again.
        """
        self._free.extend(self._pending.values())
        self._pending = {client: self._take() for client in clients}
        return self.rows(clients), list(self._pending.values())

    def commit(self, accepted: Iterable[int]) -> None:
        """Accept the new rows of some clients of the round; the others keep their old ones."""
        for client in accepted:
            old = self._index.get(client)
            self._index[client] = self._pending.pop(client)
            if old is not None and old not in self._held:
                self._free.append(old)
        self._free.extend(self._pending.values())
        self._pending = {}

    def checkpoint(self, round: int) -> dict[int, int]:
        """Flush the rows to the disk, keep those of now, and return the index."""
        fd = os.open(self.file.path, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        self._kept[round] = dict(self._index)
        self._held = self._rows_kept()
        return dict(self._index)

    def release(self, round: int) -> None:
        """Give up the rows that a checkpoint alone held."""
        gone = set(self._kept.pop(round, {}).values())
        self._held = self._rows_kept()
        self._free.extend(sorted(gone - self._held - set(self._index.values())))

    def copy_rows(self, source: Path) -> None:
        """Copy the committed rows from another file of rows, that of a run that is left alone.

        Raises:
            OSError: the file cannot be read.
        """
        nbytes = self.file.row_nbytes
        with open(source, "rb") as theirs, open(self.file.path, "r+b") as ours:
            for row in sorted(self._index.values()):
                theirs.seek(row * nbytes)
                ours.seek(row * nbytes)
                ours.write(theirs.read(nbytes))

    def read(self, client: int) -> dict[str, Tensor]:
        """Return a client's committed state, `[P]` or scalars; zeros where it never trained."""
        rows = self.file.read([self._index.get(client, -1)])
        return {name: value[0] for name, value in rows.items()}

    def rows(self, clients: Sequence[int]) -> list[int]:
        """Return the rows of some clients' committed state, -1 where there is none."""
        return [self._index.get(client, -1) for client in clients]

    def held(self, clients: Sequence[int]) -> list[int]:
        """Return the rows of some clients that may still be read: of now and of checkpoints."""
        indices = (self._index, *self._kept.values())
        return sorted({index[c] for index in indices for c in clients if c in index})

    def clients(self) -> list[int]:
        """Return the clients that have a committed state, ascending."""
        return sorted(self._index)

    def _rows_kept(self) -> frozenset[int]:
        """Return the rows that checkpoints name."""
        return frozenset(row for index in self._kept.values() for row in index.values())

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1
