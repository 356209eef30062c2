"""A real client's state between rounds: a file a row, in a folder of the client's own.

The server says which row is read and which is written, as in a simulation, and its index moves
only when it accepts a round; a lost round therefore costs nothing. A row is written whole, and a
row that is not there is an error, never zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fedopt.atomic import write_atomically
from fedopt.client.state import RowFile
from fedopt.errors import RunError, unwritable

_ROW = re.compile(r"row-(\d+)\.bin")


@dataclass(frozen=True)
class RowFolder:
    """Rows of client state, each in a file of its own.

    Args:
        folder: where they are, made at the first write.
        row: what a row holds; its own path is not used.
    """

    folder: Path
    row: RowFile

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the fields of some rows: vectors `[len(rows), size]` and numbers `[len(rows)]`.

        Row -1 is all zeros.

        Raises:
            RunError: a row is not there, or not whole: the volume is not the one it was.
        """
        parts = [self._read(row) for row in rows]
        names = (*self.row.fields, *self.row.scalars)
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def write(self, rows: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Write the fields of some rows: vectors `[len(rows), size]`, numbers `[len(rows)]`.

        Raises:
            RunError: they cannot be; a `DiskFullError` where there is no room.
        """
        for row, payload in zip(rows, self.row.packed(state), strict=True):
            path = self._path(row)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, payload, private=True)
            except OSError as error:
                raise unwritable(path, error) from error

    def keep(self, rows: Iterable[int]) -> None:
        """Remove all rows but some: those that the server may still ask for."""
        wanted = set(rows)
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                match = _ROW.fullmatch(path.name)
                if match is not None and int(match.group(1)) not in wanted:
                    path.unlink(missing_ok=True)

    def _read(self, row: int) -> dict[str, Tensor]:
        if row < 0:
            return replace(self.row, path="/dev/null").read([-1])
        path = self._path(row)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise RunError(
                f"the client's state is not in {self.folder} (no {path.name}): its volume is "
                "another than in earlier rounds; restore it, or begin a new run"
            ) from None
        if size != self.row.row_nbytes:
            raise RunError(f"{path} has {size} bytes, not {self.row.row_nbytes}: it is damaged")
        return replace(self.row, path=str(path)).read([0])

    def _path(self, row: int) -> Path:
        return self.folder / f"row-{row}.bin"
