"""Memory-mapped arrays: pickled as a place in a file, and read ahead of their use.

numpy pickles a `np.memmap` by reading all of it. A population that is sent to worker processes
on the same machine, or on machines that share the folder, sends this instead. Rows that are in no
memory yet are read page by page as they are touched, each time waiting for the disk, unless the
system is told beforehand which ones will be needed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedopt.data.partitioners import AnyArray, IntArray
from fedopt.errors import DataError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class MappedArray:
    """Where an array lies inside a file.

    Args:
        path: the file.
        dtype: type of the elements.
        shape: shape of the array.
        strides: steps along each axis, bytes.
        offset: position of the first element in the file, bytes.
        file_bytes: size of the file; a file of another size is not the same data.
    """

    path: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    file_bytes: int

    def open(self) -> AnyArray:
        """Map the file again, read-only.

        Raises:
            DataError: the file is gone here or has changed.
        """
        file = Path(self.path)
        if not file.is_file() or file.stat().st_size != self.file_bytes:
            state = "has changed" if file.is_file() else "does not exist on this machine"
            raise DataError(f'"{self.path}" {state}; memory-mapped data is shared by its path')
        content = np.memmap(file, dtype=np.uint8, mode="r")
        return np.ndarray(self.shape, self.dtype, content, self.offset, self.strides)


def pack(array: AnyArray) -> AnyArray | MappedArray:
    """Return the place in its file of a mapped array or of a view of one; others as they are."""
    root = _root(array)
    if root is None or root.filename is None:
        return array
    path = Path(root.filename).resolve()
    inside = _address(array) - _address(root)
    return MappedArray(
        str(path),
        array.dtype,
        array.shape,
        array.strides,
        int(root.offset) + inside,
        path.stat().st_size,
    )


def unpack(packed: AnyArray | MappedArray) -> AnyArray:
    """Undo `pack`."""
    return packed.open() if isinstance(packed, MappedArray) else packed


class ReadAhead:
    """Has the system read rows of a mapped array, while something else is done.

    It asks as long as something has to be read: where asking, or using rows, came to no input from
    the disk for a while, it stops, as asking costs a call a row. Use that waits for the disk has it
    begin again.

    Args:
        array: examples, `[M, ...]`, contiguous rows of a mapped file; of any other array nothing
            is ever asked, nor where the system cannot be asked or does not count its reads.
    """

    PATIENCE = 8
    """Requests without a read until asking ends."""

    def __init__(self, array: AnyArray) -> None:
        self._mapping: mmap.mmap | None = None
        self._left = self.PATIENCE
        self._first, self._row_nbytes = 0, 0
        root = _root(array)
        mapping = None if root is None else getattr(root, "_mmap", None)
        if root is None or mapping is None or not array.ndim or not array.flags.c_contiguous:
            return
        if not hasattr(mapping, "madvise") or _reads() is None:
            return
        self._mapping = mapping
        before = root.offset % mmap.ALLOCATIONGRANULARITY  # the mapping begins at a page
        self._first = _address(array) - _address(root) + before
        self._row_nbytes = array.strides[0]

    @property
    def is_asking(self) -> bool:
        """Whether rows are asked for: they lie in a file, and had to be read not long ago."""
        return self._mapping is not None and self._left > 0

    def ask(self, rows: IntArray) -> int:
        """Ask for some rows, unless asking has ended; return the number of calls.

        Args:
            rows: positions along the first axis, in any order.
        """
        if self._mapping is None or not self._left or not rows.size or not self._row_nbytes:
            return 0
        begins = self._first + np.sort(rows) * self._row_nbytes
        first_pages = begins // mmap.PAGESIZE
        stop_pages = -(-(begins + self._row_nbytes) // mmap.PAGESIZE)
        # Rows whose pages touch those of the row before are one stretch with it.
        starts = np.flatnonzero(np.r_[True, first_pages[1:] > stop_pages[:-1]])
        stops = np.r_[starts[1:], len(rows)] - 1
        firsts = first_pages[starts] * mmap.PAGESIZE
        lengths = np.minimum(stop_pages[stops] * mmap.PAGESIZE, len(self._mapping)) - firsts
        before = _reads()
        try:
            for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
                self._mapping.madvise(mmap.MADV_WILLNEED, first, length)
        except OSError:  # it is only advice: who does not take it is not asked again
            self._mapping = None
            return 0
        self._left = self.PATIENCE if _reads() != before else self._left - 1
        return len(starts)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """See whether what is done inside waits for the disk."""
        if self._mapping is None:
            yield
            return
        before = _reads()
        yield
        if _reads() != before:
            self._left = self.PATIENCE


def _reads() -> int | None:
    """Return how often this thread had the disk read; None where the system does not count it."""
    if resource is None or not hasattr(resource, "RUSAGE_THREAD"):
        return None
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_inblock + usage.ru_majflt


def _root(array: AnyArray) -> np.memmap[Any, Any] | None:
    """Return the mapped array that an array is, or is a view of; None where there is none."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    return root if isinstance(root, np.memmap) else None


def _address(array: AnyArray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
