"""The process's allocator: memory that is freed is kept for the next step, not given back.

Training makes and drops tensors of the same sizes thousands of times a second. By default glibc
returns large blocks to the system as they are freed, and the system zeroes every page that it
hands out again, which takes longer than many an operation on them.
"""

from __future__ import annotations

import ctypes

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
