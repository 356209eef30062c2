"""Numbers as bytes and back: tensors as they lie in memory, and integers of a few bits each.

Bytes are in the machine's own order, which is little-endian wherever torch runs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers = npt.NDArray[np.uint32]


def packed_bytes(count: int, width: int) -> int:
    """Return the bytes that `count` integers of `width` bits each take."""
    return (count * width + 7) // 8


def pack(codes: Tensor, width: int) -> bytes:
    """Pack integers of a few bits each, the highest bit first, zeros up to the last byte's end.

    Args:
        codes: `[N]`, whole numbers in 0..2^width - 1 of any dtype.
        width: bits of each, 0..32.
    """
    whole = codes.cpu().numpy().astype(np.uint32)
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint32)
    bits = ((whole[:, None] >> shifts) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1)).tobytes()


def unpack(data: bytes, count: int, width: int) -> Tensor:
    """Return what `pack` packed, int64 `[count]`."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width)
    codes = np.zeros(count, np.int64)
    for column in bits.reshape(count, width).T:
        codes = (codes << 1) | column
    return torch.from_numpy(codes)


def to_bytes(tensor: Tensor) -> bytes:
    """Return a tensor's elements in order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    """Return what `to_bytes` wrote, `[N]`."""
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


def check_length(data: bytes, expected: int) -> None:
    """Refuse an encoding that is not as long as this codec would have made it.

    Raises:
        ValueError: it is not.
    """
    if len(data) != expected:
        raise ValueError(f"data must have {expected} bytes for this codec, got {len(data)}")
