"""What a codec is, the one that changes nothing, and error feedback for the biased ones.

A codec says what the receiver of compressed updates decodes, and how many bytes each client sends.
It works on rows `[G, P]`, one for each client of a group, and draws from each client's own
generator, so that the group a client is in changes none of its bits. `compress` computes what is
decoded without building bytes; `encode` and `decode` build and read them for one client, and agree
with it bit for bit on one device. Quantisers are in `quantisation`, sparsifiers in
`sparsification`, and low rank in `low_rank`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedopt.compression.packing import check_length, from_bytes, to_bytes

Shapes = Sequence[tuple[int, ...]]
"""Shapes of the model's arrays in order; their sizes add up to P."""


@dataclass(frozen=True)
class Compressed:
    """What arrives of a group's rows, and what it costs.

    Args:
        rows: what the receiver decodes, `[G, P]`, with the input's dtype and device.
        nbytes: bytes of each client's encoding, int64 `[G]` on the CPU.
    """

    rows: Tensor
    nbytes: Tensor


class Codec(Protocol):
    """A way of sending rows in fewer bytes."""

    @property
    def is_unbiased(self) -> bool:
        """Whether what is decoded equals the input in expectation."""
        ...

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of an encoding, whatever the row's values.

        Args:
            size: P.
            itemsize: bytes of an element of the row.
            shapes: as for `compress`.
        """
        ...

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Return what the receiver decodes, and the bytes that each client sends.

        Args:
            rows: `[G, P]`, G and P >= 1; left as they are.
            generators: one on the CPU for each client, advanced by its draws.
            shapes: shapes of the model's arrays; most codecs need none, and take ().

        Raises:
            ValueError: rows, generators and shapes do not fit each other.
        """
        ...

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return one client's bytes.

        Args:
            row: `[P]`.
            generator: the client's, on the CPU; advanced as `compress` advances it.
            shapes: as for `compress`.
        """
        ...

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the row that an encoding stands for, `[P]` on the CPU.

        Args:
            data: from `encode`.
            size: P.
            dtype: of the row that was encoded.
            shapes: as for `compress`.

        Raises:
            ValueError: the data's length is not that of such an encoding.
        """
        ...


@dataclass(frozen=True)
class Identity:
    """Sends rows as they are, in their own dtype."""

    @property
    def is_unbiased(self) -> bool:
        """True."""
        return True

    def nbytes(self, size: int, itemsize: int, shapes: Shapes) -> int:
        """Return the bytes of a row; see `Codec`."""
        return size * itemsize

    def compress(
        self, rows: Tensor, generators: Sequence[torch.Generator], shapes: Shapes
    ) -> Compressed:
        """Return a copy of the rows; see `Codec`."""
        check_group(rows, generators)
        return Compressed(rows.clone(), equal_bytes(rows, self, shapes))

    def encode(self, row: Tensor, generator: torch.Generator, shapes: Shapes) -> bytes:
        """Return the row's elements; see `Codec`."""
        return to_bytes(row)

    def decode(self, data: bytes, size: int, dtype: torch.dtype, shapes: Shapes) -> Tensor:
        """Return the row; see `Codec`."""
        check_length(data, self.nbytes(size, dtype.itemsize, shapes))
        return from_bytes(data, dtype)


def error_feedback(
    codec: Codec,
    rows: Tensor,
    residual: Tensor,
    generators: Sequence[torch.Generator],
    shapes: Shapes,
) -> tuple[Compressed, Tensor]:
    """Compress rows with what was not sent before: e <- (x + e) - C(x + e).

    What is decoded over all rounds plus the last residual is the sum of all rows, whatever the
    codec loses in a round. Meant for contractions, |x - C(x)|^2 <= (1 - delta) |x|^2: `TopK`,
    `RandomK(scaled=False)` and `PowerSGD`. With a codec that enlarges what it sends, such as
    `RandomK(scaled=True)`, the residual can grow without bound.

    Args:
        codec: C.
        rows: x, `[G, P]`.
        residual: e, `[G, P]`, zeros in a client's first round; left as it is.
        generators: one for each client.
        shapes: shapes of the model's arrays.

    Returns:
        What arrives, and the new residual, `[G, P]`.

    Raises:
        ValueError: the residual's shape is not that of the rows.

    Source: Karimireddy et al. 2019, algorithm 2; Stich et al. 2018, algorithm 1.
    """
    if residual.shape != rows.shape:
        raise ValueError(f"residual must be {list(rows.shape)}, got {list(residual.shape)}")
    wanted = rows + residual
    compressed = codec.compress(wanted, generators, shapes)
    return compressed, wanted - compressed.rows


def check_group(rows: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Refuse what is not a group's rows with a generator for each.

    Raises:
        ValueError: it is not.
    """
    if rows.dim() != 2 or rows.numel() == 0 or not rows.is_floating_point():
        raise ValueError(
            f"rows must be floats [G, P], G and P >= 1, got {rows.dtype} {list(rows.shape)}"
        )
    if len(generators) != rows.shape[0]:
        raise ValueError(f"generators must be {rows.shape[0]}, one a row, got {len(generators)}")


def equal_bytes(rows: Tensor, codec: Codec, shapes: Shapes) -> Tensor:
    """Return the bytes that each of a group's clients sends, int64 `[G]`."""
    nbytes = codec.nbytes(rows.shape[1], rows.itemsize, shapes)
    return torch.full((rows.shape[0],), nbytes, dtype=torch.int64)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)
