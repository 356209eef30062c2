"""The process's memory: what is freed is kept for the next step, what lasts lies on large pages.

Training makes and drops tensors of the same sizes thousands of times a second. By default glibc
returns large blocks to the system as they are freed, and the system zeroes every page that it
hands out again, which takes longer than many an operation on them. Parameters are read and written
from end to end in every step: on pages of 4 kB the processor looks up a page for every few lines.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np
import torch
from torch import Tensor

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_FROM_THE_HEAP = 32 * 2**20  # the greatest block size that glibc lets be served from the heap
_KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have freed blocks of up to 32 MiB reused in this process, for good.

    The process holds on to its peak. Nothing happens where the allocator is not glibc's.

    Returns:
        Whether the allocator took the setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    took = [mallopt(_M_MMAP_THRESHOLD, _FROM_THE_HEAP), mallopt(_M_TRIM_THRESHOLD, _KEPT)]
    return all(took)


_LARGE_PAGE = 2 * 2**20
_LEAST_LARGE = 2 * _LARGE_PAGE
_ROW_ALIGNMENT = 64


def empty_rows(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory with arbitrary values for what is used again and again, `[rows, columns]`.

    On a CPU each row begins at a multiple of 64 bytes, so that the rows are contiguous but their
    stride may be longer; from 4 MiB on the memory is on pages of 2 MiB where the system has them.

    Raises:
        MemoryError: there is not so much.
    """
    if device.type != "cpu":
        return torch.empty(rows, columns, dtype=dtype, device=device)
    each = _ROW_ALIGNMENT // dtype.itemsize
    stride = columns if rows == 1 else -(-columns // each) * each
    nbytes = rows * stride * dtype.itemsize
    if nbytes < _LEAST_LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(rows, stride, dtype=dtype)[:, :columns]
    try:
        pages = mmap.mmap(-1, nbytes + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {rows} x {columns} parameters: {error}") from error
    with contextlib.suppress(OSError):  # a system without large pages has others
        pages.madvise(mmap.MADV_HUGEPAGE)
    memory = np.frombuffer(pages, np.uint8)  # which keeps the pages mapped
    first = -memory.ctypes.data % _LARGE_PAGE
    flat = torch.from_numpy(memory[first : first + nbytes]).view(dtype)
    return flat.view(rows, stride)[:, :columns]
