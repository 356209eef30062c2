"""Low rank: each matrix of the model is sent as two thin factors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from fedopt.compression.packing import check_length, from_bytes, to_bytes


@dataclass(frozen=True)
class PowerSGD:
    """Sends M as P Q^T of a rank: P = orthonormal basis of M Q_0, Q = M^T P, Q_0 Gaussian.

    An array of two or more dimensions is a matrix M `[n, m]` of its first and all its other
    dimensions. Where rank (n + m) < n m its factors are sent, otherwise the array as it is. There
    is one power iteration from a Q_0 that each client draws anew (the paper keeps the last round's
    Q, a state that clients which are not in every cohort would not have), so M is decoded exactly
    where its rank is at most this, and otherwise worse than the best approximation of the rank.
    What is decoded is a projection of the input, so never longer than it.

    Encoding: for each array in order P and Q, or the array, in the row's dtype.

    Args:
        rank: columns of P and Q, >= 1.

    Raises:
        ValueError: rank is out of range.

    Source: Vogels et al. 2019, algorithm 1, without its warm start.
    """

    rank: int

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ValueError(f"rank must be an integer >= 1, got {self.rank!r}")

    @property
    def is_unbiased(self) -> bool:
        """False."""
        return False

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Replace matrices by their approximations; see `Codec`.

        Raises:
            ValueError: the sizes of shapes do not add up to P.
        """
        check_group(rows, generators)
        # One client at a time: how a batched product is summed depends on the batch.
        decoded = [
            self._assembled(self._parts(row, generator, shapes), shapes)
            for row, generator in zip(rows, generators, strict=True)
        ]
        return Compressed(torch.stack(decoded), equal_bytes(rows, self, shapes))

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return factors and arrays; see `Codec`."""
        return b"".join(to_bytes(part) for part in self._parts(row, generator, shapes))

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the factors' products and the arrays; see `Codec`."""
        _check_shapes(shapes, size)
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        return self._assembled(self._received(data, dtype, shapes), shapes)

    def _is_factored(self, shape: tuple[int, ...]) -> bool:
        if len(shape) < 2:
            return False
        n, m = _matrix_shape(shape)
        return self.rank * (n + m) < n * m

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding; see `Codec`."""
        sent = (math.prod(part) for shape in shapes for part in self._part_shapes(shape))
        return sum(sent) * itemsize

    def _part_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of what is sent for an array: of P and Q, or the array's size."""
        if not self._is_factored(shape):
            return [(math.prod(shape),)]
        n, m = _matrix_shape(shape)
        return [(n, self.rank), (m, self.rank)]

    def _parts(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> Iterator[Tensor]:
        """Yield what is sent: P and Q, or the flat array, for each array in order."""
        _check_shapes(shapes, row.shape[0])
        dtype = arithmetic_dtype(row.dtype)
        arrays = row.split_with_sizes([math.prod(shape) for shape in shapes])
        for array, shape in zip(arrays, shapes, strict=True):
            if not self._is_factored(shape):
                yield array
                continue
            n, m = _matrix_shape(shape)
            # A copy starts at the start of its own memory, which a product's bits can depend on.
            matrix = array.reshape(n, m).to(dtype, copy=True)
            start = torch.randn(m, self.rank, generator=generator, dtype=dtype).to(row.device)
            basis = torch.linalg.qr(matrix @ start).Q.contiguous()
            yield basis.to(row.dtype)
            yield (matrix.mT @ basis).to(row.dtype)

    def _received(self, data: bytes, dtype: torch.dtype, shapes: Shapes) -> Iterator[Tensor]:
        """Yield from an encoding what `_parts` yielded."""
        start = 0
        for part in (part for shape in shapes for part in self._part_shapes(shape)):
            end = start + math.prod(part) * dtype.itemsize
            yield from_bytes(data[start:end], dtype).reshape(part)
            start = end

    def _assembled(self, parts: Iterator[Tensor], shapes: Shapes) -> Tensor:
        """Return the row that parts stand for, `[P]`."""
        arrays = []
        for shape in shapes:
            first = next(parts)
            if not self._is_factored(shape):
                arrays.append(first)
                continue
            dtype = arithmetic_dtype(first.dtype)
            # Copies, so that memory is laid out alike whether the factors were sent or not.
            basis, other = (
                factor.to(dtype, copy=True, memory_format=torch.contiguous_format)
                for factor in (first, next(parts))
            )
            arrays.append((basis @ other.mT).to(first.dtype).reshape(-1))
        return torch.cat(arrays)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _check_shapes(shapes: Shapes, size: int) -> None:
    total = sum(math.prod(shape) for shape in shapes)
    if total != size:
        raise ValueError(f"shapes must have {size} elements together, as a row has, got {total}")
