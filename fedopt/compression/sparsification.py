"""Sparsifiers: a share of the elements is sent as it is, and the others are decoded as 0."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedopt.compression.codecs import Compressed, Shapes, check_group, equal_bytes
from fedopt.compression.packing import (
    check_length,
    from_bytes,
    pack,
    packed_bytes,
    to_bytes,
    unpack,
)

INDICES, BITMAP = b"\x00", b"\x01"
"""First byte of an encoding of `TopK`: how positions are sent."""


@dataclass(frozen=True)
class TopK:
    """Keeps the k = max(1, round(share P)) elements of largest magnitude, of equal ones the first.

    A contraction with delta = k / P. Elements that are not finite count as the largest.

    Encoding: a byte that says how positions are sent, the positions, either as ceil(log2 P) bits
    for each kept element or as a bit for each of the P, whichever is shorter, and the kept elements
    in the row's dtype, in order of position.

    Args:
        share: of elements that are kept, in (0, 1].

    Raises:
        ValueError: share is out of range.

    Source: Stich et al. 2018, definition 2.2; Aji and Heafield 2017.
    """

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    @property
    def is_unbiased(self) -> bool:
        """Whether everything is kept."""
        return self.share == 1

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Set all but the largest elements to 0; see `Codec`."""
        check_group(rows, generators)
        size = rows.shape[1]
        kept = largest(rows, kept_elements(self.share, size))
        return Compressed(
            torch.where(kept, rows, rows.new_zeros(())), equal_bytes(rows, self, shapes)
        )

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return positions and elements; see `Codec`."""
        size = row.shape[0]
        kept = largest(row.unsqueeze(0), kept_elements(self.share, size))[0]
        if self._uses_bitmap(size):
            positions = BITMAP + pack(kept, 1)
        else:
            positions = INDICES + pack(kept.nonzero()[:, 0], _index_bits(size))
        return positions + to_bytes(row[kept])

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the elements at their positions; see `Codec`."""
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        count = kept_elements(self.share, size)
        end = len(data) - count * dtype.itemsize
        if data[:1] == BITMAP:
            positions = unpack(data[1:end], size, 1).nonzero()[:, 0]
        else:
            positions = unpack(data[1:end], count, _index_bits(size))
        row = torch.zeros(size, dtype=dtype)
        row[positions] = from_bytes(data[end:], dtype)
        return row

    def _uses_bitmap(self, size: int) -> bool:
        indices = packed_bytes(kept_elements(self.share, size), _index_bits(size))
        return packed_bytes(size, 1) < indices

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding; see `Codec`."""
        count = kept_elements(self.share, size)
        positions = min(packed_bytes(count, _index_bits(size)), packed_bytes(size, 1))
        return 1 + positions + count * itemsize


@dataclass(frozen=True)
class RandomK:
    """Keeps k = max(1, round(share P)) elements drawn at random without replacement.

    Multiplied by P / k the expectation is the input; as they are, it is a contraction with
    delta = k / P in expectation, which is what error feedback needs.

    Encoding: the seed that the positions are a function of, 8 bytes, and the kept elements in the
    row's dtype. The receiver draws the positions again, so none is sent.

    Args:
        share: of elements that are kept, in (0, 1].
        scaled: whether kept elements are multiplied by P / k.

    Raises:
        ValueError: share is out of range.

    Source: Stich et al. 2018, definition 2.2; Wangni et al. 2018 (unbiased).
    """

    share: float
    scaled: bool = True

    def __post_init__(self) -> None:
        _check_share(self.share)

    @property
    def is_unbiased(self) -> bool:
        """Whether elements are scaled, or everything is kept."""
        return self.scaled or self.share == 1

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Set all but the drawn elements to 0; see `Codec`."""
        check_group(rows, generators)
        size = rows.shape[1]
        positions = torch.empty((rows.shape[0], kept_elements(self.share, size)), dtype=torch.int64)
        for drawn, generator in zip(positions, generators, strict=True):
            drawn.copy_(drawn_positions(_drawn_seed(generator), size, len(drawn)))
        positions = positions.to(rows.device)
        kept = rows.gather(1, positions)
        decoded = torch.zeros_like(rows).scatter_(1, positions, self._scaled(kept, size))
        return Compressed(decoded, equal_bytes(rows, self, shapes))

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return seed and elements; see `Codec`."""
        size = row.shape[0]
        seed = _drawn_seed(generator)
        positions = drawn_positions(seed, size, kept_elements(self.share, size))
        return struct.pack("<q", seed) + to_bytes(row[positions.to(row.device)])

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the elements at the positions drawn again; see `Codec`."""
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        (seed,) = struct.unpack("<q", data[:8])
        kept = from_bytes(data[8:], dtype)
        row = torch.zeros(size, dtype=dtype)
        row[drawn_positions(seed, size, len(kept))] = self._scaled(kept, size)
        return row

    def _scaled(self, kept: Tensor, size: int) -> Tensor:
        return kept * (size / kept.shape[-1]) if self.scaled else kept

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding; see `Codec`."""
        return 8 + kept_elements(self.share, size) * itemsize


def kept_elements(share: float, size: int) -> int:
    """Return k = max(1, round(share P)), halves to the even neighbour."""
    return max(1, round(share * size))


def largest(rows: Tensor, count: int) -> Tensor:
    """Return where the elements of largest magnitude are, of equal ones the first.

    Args:
        rows: `[G, P]`.
        count: elements of each row, 1..P.

    Returns:
        Booleans `[G, P]`, `count` of them true in each row.
    """
    magnitudes = rows.abs().nan_to_num_(nan=math.inf, posinf=math.inf)
    smallest_kept = magnitudes.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    kept = magnitudes > smallest_kept
    ties = magnitudes == smallest_kept
    open_places = count - kept.sum(dim=1, keepdim=True)
    crowded = (ties.sum(dim=1, keepdim=True) > open_places)[:, 0].nonzero()[:, 0]
    if len(crowded):
        crowd = ties[crowded]
        ties[crowded] = crowd & (crowd.cumsum(dim=1) <= open_places[crowded])
    return kept.logical_or_(ties)


def drawn_positions(seed: int, size: int, count: int) -> Tensor:
    """Return `count` different positions of 0..size - 1, int64, a function of the seed."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return torch.from_numpy(generator.choice(size, count, replace=False, shuffle=False))


def _drawn_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator))


def _index_bits(size: int) -> int:
    """Return ceil(log2 P)."""
    return (size - 1).bit_length()


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")
