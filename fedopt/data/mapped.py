"""Pickling of memory-mapped arrays as a place in a file instead of a copy of the data.

numpy pickles a `np.memmap` by reading all of it. A population that is sent to worker processes
on the same machine, or on machines that share the folder, sends this instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedopt.data.partitioners import AnyArray
from fedopt.errors import DataError


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
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.filename is None:
        return array
    path = Path(root.filename).resolve()
    inside = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
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
