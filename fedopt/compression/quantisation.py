"""Quantisers: few bits for each element, rounded at random so that the expectation is the input.

Both put a row on a lattice, `origin + level * step`, of which a float32 header tells the receiver
origin and step. A row whose header is not finite (it has infinite or NaN elements, or is too large
for float32) is decoded as NaN throughout, so that the receiver sees that the client diverged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedopt.compression.codecs import (
    Compressed,
    Shapes,
    arithmetic_dtype,
    check_group,
    equal_bytes,
)
from fedopt.compression.packing import (
    check_length,
    from_bytes,
    pack,
    packed_bytes,
    to_bytes,
    unpack,
)


@dataclass(frozen=True)
class StochasticUniform:
    """Rounds each element at random to one of 2^bits levels between its row's min and max.

    Encoding: min and max as float32, rounded outward so that every element lies between them, then
    `bits` bits for each element: 8 + ceil(P bits / 8) bytes.

    Args:
        bits: of each element, 1..16.

    Raises:
        ValueError: bits is out of range.

    Source: Suresh et al. 2017, section 2.2 (stochastic k-level quantisation).
    """

    bits: int

    def __post_init__(self) -> None:
        if not _is_integer_in(self.bits, 1, 16):
            raise ValueError(f"bits must be an integer in 1..16, got {self.bits!r}")

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Round the rows; see `Codec`."""
        check_group(rows, generators)
        header = self._header(rows)
        levels = self._levels(rows, header, generators)
        return Compressed(
            self._decoded(levels, header, rows.dtype),
            equal_bytes(rows, self, shapes),
        )

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return header and levels; see `Codec`."""
        rows = row.unsqueeze(0)
        header = self._header(rows)
        levels = self._levels(rows, header, (generator,))
        return to_bytes(header) + pack(levels[0].nan_to_num(nan=0.0), self.bits)

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the levels' values; see `Codec`."""
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        header = from_bytes(data[:8], torch.float32).unsqueeze(0)
        levels = unpack(data[8:], size, self.bits).to(arithmetic_dtype(dtype))
        return self._decoded(levels.unsqueeze(0), header, dtype)[0]

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding; see `Codec`."""
        return 8 + packed_bytes(size, self.bits)

    def _header(self, rows: Tensor) -> Tensor:
        """Return min and max of each row, float32 `[G, 2]` on the CPU."""
        low, high = (extreme.cpu() for extreme in torch.aminmax(rows, dim=1))
        header = torch.stack([_rounded_down(low), _rounded_up(high)], dim=1)
        is_finite = (header[:, 1:] - header[:, :1]).isfinite()
        # Adding 0 turns -0 into 0: which of them is an extreme depends on the order of comparison.
        return torch.where(is_finite, header, math.nan) + 0.0

    def _lattice(self, header: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return min, max and the distance of levels in a dtype, `[G, 1]` each."""
        low, high = header.double().unsqueeze(2).unbind(dim=1)
        step = (high - low) / (2**self.bits - 1)
        return low.to(dtype), high.to(dtype), step.to(dtype)

    def _levels(
        self, rows: Tensor, header: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        dtype = arithmetic_dtype(rows.dtype)
        low, _, step = self._lattice(header, dtype)
        distances = rows.to(dtype) - low.to(rows.device)
        return _random_levels(distances, step, 2**self.bits - 1, generators)

    def _decoded(self, levels: Tensor, header: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the values of levels, which are overwritten."""
        low, high, step = (t.to(levels.device) for t in self._lattice(header, levels.dtype))
        return levels.mul_(step).add_(low).clamp_(max=high).to(dtype)


@dataclass(frozen=True)
class QSGD:
    """Sends each row's norm, and of each element the sign and a random level: |x| sign(x_i) l / s.

    Encoding: the norm as float32, rounded up so that no element is longer, then for each element a
    sign bit and ceil(log2(levels + 1)) bits: 4 + ceil(P (1 + ceil(log2(levels + 1))) / 8) bytes.
    The paper's Elias code takes fewer bytes where most levels are 0; it is not used here, so that
    sizes are known before training.

    Args:
        levels: s, the levels above 0, 1..65535.

    Raises:
        ValueError: levels is out of range.

    Source: Alistarh et al. 2017, section 3.1.
    """

    levels: int

    def __post_init__(self) -> None:
        if not _is_integer_in(self.levels, 1, 65535):
            raise ValueError(f"levels must be an integer in 1..65535, got {self.levels!r}")

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Round the rows; see `Codec`."""
        check_group(rows, generators)
        header = self._header(rows)
        levels = self._levels(rows, header, generators)
        decoded = self._magnitudes(levels, header).to(rows.dtype).copysign_(rows)
        return Compressed(decoded, equal_bytes(rows, self, shapes))

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return norm, signs and levels; see `Codec`."""
        rows = row.unsqueeze(0)
        header = self._header(rows)
        levels = self._levels(rows, header, (generator,))[0].nan_to_num(nan=0.0).to(torch.int64)
        signs = row.signbit().to(torch.int64) << self._level_bits
        return to_bytes(header) + pack(signs + levels, 1 + self._level_bits)

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the levels' values; see `Codec`."""
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        codes = unpack(data[4:], size, 1 + self._level_bits)
        signs = 1 - 2 * (codes >> self._level_bits)
        levels = (codes & (2**self._level_bits - 1)).to(arithmetic_dtype(dtype))
        header = from_bytes(data[:4], torch.float32)
        magnitudes = self._magnitudes(levels.unsqueeze(0), header)[0]
        return magnitudes.to(dtype).copysign_(signs)

    @property
    def _level_bits(self) -> int:
        return self.levels.bit_length()

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding; see `Codec`."""
        return 4 + packed_bytes(size, 1 + self._level_bits)

    def _header(self, rows: Tensor) -> Tensor:
        """Return the norm of each row, float32 `[G]` on the CPU."""
        # One row at a time, at the start of its own memory: sums over a block are made in another
        # order, and those on a GPU in one that depends on where the row starts.
        norms = [torch.linalg.vector_norm(row.clone(), dtype=torch.float64) for row in rows]
        header = _rounded_up(torch.stack(norms).cpu())
        return torch.where(header.isfinite(), header, math.nan)

    def _step(self, header: Tensor, dtype: torch.dtype) -> Tensor:
        return (header.double() / self.levels).to(dtype).unsqueeze(1)

    def _levels(
        self, rows: Tensor, header: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        dtype = arithmetic_dtype(rows.dtype)
        magnitudes = rows.to(dtype).abs()
        return _random_levels(magnitudes, self._step(header, dtype), self.levels, generators)

    def _magnitudes(self, levels: Tensor, header: Tensor) -> Tensor:
        """Return the values of levels, which are overwritten."""
        limit = header.to(levels).unsqueeze(1)
        return levels.mul_(self._step(header, levels.dtype).to(levels.device)).clamp_(max=limit)


def _is_integer_in(value: int, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _rounded_down(values: Tensor) -> Tensor:
    """Return the largest float32 numbers that are not larger."""
    near = values.float()
    below = torch.nextafter(near, torch.full_like(near, -math.inf))
    return torch.where(near.double() > values.double(), below, near)


def _rounded_up(values: Tensor) -> Tensor:
    """Return the smallest float32 numbers that are not smaller."""
    return -_rounded_down(-values)


def _random_levels(
    distances: Tensor, step: Tensor, top: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Round distance / step to the level below or above, with the mean in between.

    Args:
        distances: from level 0, `[G, P]`, >= 0; overwritten.
        step: distance of levels, `[G, 1]` on the CPU; where it is 0, so are the levels' values.
        top: the highest level.
        generators: one for each client.

    Returns:
        Levels, whole numbers in 0..top, `[G, P]`; NaN where the distance is.
    """
    uniforms = torch.empty(distances.shape, dtype=distances.dtype)
    for row, generator in zip(uniforms, generators, strict=True):
        row.uniform_(generator=generator)
    # A step of 0 is that of constant rows and of those whose step is too small for the dtype.
    divisor = torch.where(step > 0, step, 1.0).to(distances.device)
    exact = distances.div_(divisor)
    levels = exact.floor()
    # The fraction is exact, which `floor(exact + uniform)` would not be at high levels.
    levels += uniforms.to(exact.device) < exact.sub_(levels)
    return levels.clamp_(max=top)
