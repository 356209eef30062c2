"""Memory for long vectors that is used again: fresh pages cost more than arithmetic on them."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ALIGNMENT = 64
"""Vectors begin at multiples of this many bytes, as torch's own do."""

CPU = torch.device("cpu")


class Scratch:
    """Lends vectors; one is lent again once no tensor and no array looks into it any more."""

    def __init__(self) -> None:
        self._memory: dict[int, list[npt.NDArray[np.uint8]]] = {}

    def take(
        self, size: int, dtype: torch.dtype = torch.float64, device: torch.device = CPU
    ) -> Tensor:
        """Return a vector `[size]` with arbitrary values."""
        if device.type != "cpu" or not size:  # accelerators have an allocator that does this
            return torch.empty(size, dtype=dtype, device=device)
        nbytes = size * dtype.itemsize
        known = self._memory.setdefault(nbytes, [])
        for memory in known:
            # References: the list's, this loop's, and getrefcount's own.
            if sys.getrefcount(memory) == 3:
                break
        else:
            memory = np.empty(nbytes + ALIGNMENT, dtype=np.uint8)
            known.append(memory)
        first = -memory.ctypes.data % ALIGNMENT
        return torch.from_numpy(memory[first : first + nbytes]).view(dtype)
