"""Arrays between the processes of one machine, through files in shared memory.

Ray's object store adds milliseconds to an object, whatever its size; a round of small models takes
less than that. Here Ray carries the messages and shared memory the large records: one process
writes them into a file that the other has mapped, and reads are views. The driver owns the files
(*slots*) and gives one out again only when nothing looks into it any more.
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord

from fedopt.errors import RunError
from fedopt.records import TensorArray

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""


@dataclass(frozen=True)
class ArrayPlace:
    """Where an array lies in a slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Packed:
    """Records that lie in a slot.

    Args:
        path: the slot's file.
        size: bytes in use.
        records: record name -> its arrays.
    """

    path: str
    size: int
    records: Mapping[str, tuple[ArrayPlace, ...]]


class MappedSlots:
    """The slots that this process has mapped, by path; a slot that grew is mapped anew."""

    def __init__(self) -> None:
        self._mapped: dict[str, Bytes] = {}

    def view(self, path: str, size: int, *, grow: bool = False) -> Bytes:
        """Return at least `size` bytes of a slot; with `grow` the file is made large enough."""
        found = self._mapped.get(path)
        if found is not None and len(found) >= size:
            return found
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if grow and os.fstat(fd).st_size < size:
                # Reserved now: a write to memory that is not there would kill the process.
                os.posix_fallocate(fd, 0, _rounded(size + size // 2))
            memory = mmap.mmap(fd, 0)
        except OSError as error:
            raise RunError(
                f"no room for {size} bytes of shared memory in {path}: {error}"
            ) from error
        finally:
            os.close(fd)
        self._mapped[path] = np.frombuffer(memory, dtype=np.uint8)
        return self._mapped[path]

    def write(self, path: str, records: Mapping[str, ArrayRecord]) -> Packed:
        """Copy records into a slot."""
        places: dict[str, tuple[ArrayPlace, ...]] = {}
        arrays: list[tuple[int, npt.NDArray[Any]]] = []
        size = 0
        for name, record in records.items():
            mine = []
            for key, array in record.items():
                given = array.numpy()
                values = np.ascontiguousarray(given).reshape(given.shape)  # keeps scalars scalar
                mine.append(ArrayPlace(key, values.dtype.str, values.shape, size))
                arrays.append((size, values))
                size = _aligned(size + values.nbytes)
            places[name] = tuple(mine)
        memory = self.view(path, max(size, 1), grow=True)
        for offset, values in arrays:
            memory[offset : offset + values.nbytes] = values.reshape(-1).view(np.uint8)
        return Packed(path, size, places)

    def read(self, packed: Packed) -> dict[str, ArrayRecord]:
        """Return the records of a slot as views, which must not be written to."""
        memory = self.view(packed.path, max(packed.size, 1))
        found = {}
        for name, places in packed.records.items():
            record = ArrayRecord()
            for place in places:
                dtype = np.dtype(place.dtype)
                stop = place.offset + dtype.itemsize * int(np.prod(place.shape, dtype=np.int64))
                values = memory[place.offset : stop].view(dtype).reshape(place.shape)
                values.flags.writeable = False
                record[place.name] = TensorArray(values)
            found[name] = record
        return found

    def is_in_use(self, path: str) -> bool:
        """Whether views of a slot are alive in this process."""
        array = self._mapped.get(path)
        # References: the dictionary's, this function's, and getrefcount's own.
        return array is not None and sys.getrefcount(array) > 3


class SlotPool:
    """The driver's slots, in a folder that tells whose it is; those of dead drivers are removed.

    Attributes:
        folder: the folder; only this user may enter it.
        memory: the slots that the driver has mapped.
    """

    def __init__(self) -> None:
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        _remove_stale(Path(parent or tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        self._paths: list[str] = []
        self._lent: set[str] = set()
        self.memory = MappedSlots()

    def lend(self) -> str:
        """Return the path of a slot that nobody uses."""
        for path in self._paths:
            if path not in self._lent and not self.memory.is_in_use(path):
                self._lent.add(path)
                return path
        path = str(self.folder / str(len(self._paths)))
        self._paths.append(path)
        self._lent.add(path)
        return path

    def take_back(self, path: str) -> None:
        """End a loan; views that are still alive keep the slot from being lent again."""
        self._lent.discard(path)

    def close(self) -> None:
        """Remove the files; views that are alive stay valid."""
        shutil.rmtree(self.folder, ignore_errors=True)


_PREFIX = "fedopt-slots-"


def _remove_stale(parent: Path) -> None:
    """Remove what drivers that were killed left behind."""
    for folder in parent.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _rounded(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
