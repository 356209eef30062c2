"""A real client's state between rounds: a file a row, in a folder of the client's own.

The server says which row is read and which is written, as in a simulation, and its index moves
only when it accepts a round; a lost round therefore costs nothing. A row is written whole (a
temporary file, synced, renamed), and a row that is not there is an error, never zeros.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedopt.client.state import RowFile
from fedopt.errors import RunError, unwritable

_ROW = re.compile(r"row-(\d+)\.bin")


@dataclass(frozen=True)
class RowFolder:
    """Rows of client state, each in a file of its own.

    Args:
        folder: where they are, made at the first write.
        fields: names of the vectors in a row, in order.
        sizes: length of each of these vectors.
        dtype: of vectors and numbers.
        scalars: names of the single numbers that follow the vectors.
    """

    folder: Path
    fields: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype
    scalars: tuple[str, ...] = ()

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the fields of some rows: vectors `[len(rows), size]` and numbers `[len(rows)]`.

        Row -1 is all zeros.

        Raises:
            RunError: a row is not there, or not whole: the volume is not the one it was.
        """
        parts = [self._file("/dev/null").read([-1]) if row < 0 else self._read(row) for row in rows]
        names = (*self.fields, *self.scalars)
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def write(self, rows: Sequence[int], state: Mapping[str, Tensor]) -> None:
        """Write the fields of some rows: vectors `[len(rows), size]`, numbers `[len(rows)]`.

        Raises:
            RunError: they cannot be; a `DiskFullError` where there is no room.
        """
        for position, row in enumerate(rows):
            path = self._path(row)
            part = path.with_suffix(".tmp")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                part.touch()
                one = {name: value[position : position + 1] for name, value in state.items()}
                self._file(str(part)).write([0], one)
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(part, path)
                folder = os.open(self.folder, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
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
        path = self._path(row)
        file = self._file(str(path))
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise RunError(
                f"the client's state is not in {self.folder} (no {path.name}): its volume is "
                "another than in earlier rounds; restore it, or begin a new run"
            ) from None
        if size != file.row_nbytes:
            raise RunError(f"{path} has {size} bytes, not {file.row_nbytes}: it is damaged")
        return file.read([0])

    def _path(self, row: int) -> Path:
        return self.folder / f"row-{row}.bin"

    def _file(self, path: str) -> RowFile:
        return RowFile(path, self.fields, self.sizes, self.dtype, self.scalars)
