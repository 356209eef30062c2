"""Sums over clients, and the fixed binary tree in which the sums of a round's blocks are added.

The tree depends on the number of blocks alone: a node halves its run of blocks, the left half
being the longer one. Whoever holds the sums of two siblings may add them, and the bits of the
total are the same whoever did. A node that trained a run of blocks so sends a few sums, of the
largest subtrees in the run, instead of one a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fedopt.scratch import Scratch

LONG_ROW = 16_384
"""Parameters from which on rows are added in pieces: converted copies would leave the cache."""

PIECE = 65_536
"""Scalars that are converted at once, of all rows together."""


@dataclass
class BlockSums:
    """Sums over the clients of the blocks `first` to `stop - 1`, in float64.

    Args:
        first: the first block.
        stop: the block after the last.
        terms: sum of each term `[P]`, weighted where `is_weighted`.
        buffers: weighted sum of the changes of the buffers, `[Q]`.
        weight: sum of the weights.
        count: clients that are in the sums.
        seconds: what the blocks took, for dealing the next round's blocks; never in a result.
    """

    first: int
    stop: int
    terms: Mapping[str, Tensor]
    buffers: Tensor
    weight: float = 0.0
    count: int = 0
    seconds: float = 0.0


class SumTree:
    """Adds sums along the tree of a round, as far as those that it is given reach.

    Args:
        blocks: the blocks of the round; or those of each of several trees that follow each other.
        scratch: memory for the sums of siblings; None adds to the left one in place.

    Attributes:
        roots: what is left, in the order of the blocks: one a tree where all blocks were given.
    """

    def __init__(self, blocks: int | Sequence[int], scratch: Scratch | None = None) -> None:
        sizes = [blocks] if isinstance(blocks, int) else list(blocks)
        stops = list(accumulate(sizes))
        self._runs = [(stop - size, stop) for size, stop in zip(sizes, stops, strict=True)]
        self._scratch = scratch
        self.roots: list[BlockSums] = []

    def add(self, sums: BlockSums) -> None:
        """Take in sums that come after all those taken in before."""
        roots = self.roots
        roots.append(sums)
        while len(roots) > 1 and self._are_siblings(roots[-2], roots[-1]):
            right = roots.pop()
            roots[-1] = self._sum(roots[-1], right)

    def _are_siblings(self, left: BlockSums, right: BlockSums) -> bool:
        return any(
            first <= left.first and right.stop <= stop and are_siblings(left, right, first, stop)
            for first, stop in self._runs
        )

    def _sum(self, left: BlockSums, right: BlockSums) -> BlockSums:
        terms = {
            name: torch.add(term, right.terms[name], out=self._out(term))
            for name, term in left.terms.items()
        }
        return BlockSums(
            left.first,
            right.stop,
            terms,
            left.buffers + right.buffers,
            left.weight + right.weight,
            left.count + right.count,
            left.seconds + right.seconds,
        )

    def _out(self, left: Tensor) -> Tensor:
        if self._scratch is None:
            return left
        return self._scratch.take(len(left), left.dtype, left.device)


def middle(first: int, stop: int) -> int:
    """Return where the tree cuts a run of at least two blocks."""
    return (first + stop + 1) // 2


def are_siblings(left: BlockSums, right: BlockSums, first: int, stop: int) -> bool:
    """Return whether two sums are those of a node's halves, in the tree over a run of blocks."""
    while stop - first > 1:
        cut = middle(first, stop)
        if left.first == first and left.stop == cut:
            return right.first == cut and right.stop == stop
        if right.stop <= cut:
            stop = cut
        elif left.first >= cut:
            first = cut
        else:
            return False
    return False


def add_weighted(
    total: Tensor, weights: Tensor, rows: Tensor, scratch: Scratch, *, is_first: bool = False
) -> None:
    """Add the weighted sum of some rows to a total in double precision.

    Long rows in single precision are summed in it first, where their weights are exact in it and
    nothing overflows.

    Args:
        total: `[P]` in float64, changed in place.
        weights: `[G]` in float64, on the CPU.
        rows: `[G, P]` in any floating dtype, on the total's device.
        scratch: memory for a row, or a part of the rows, in double precision.
        is_first: whether the total holds nothing yet: its values are overwritten.
    """
    if rows.shape[1] <= LONG_ROW:
        if is_first:
            total.zero_()
        total += weights.to(total.device) @ rows.double()
        return
    if len(rows) == 1:
        weight = float(weights)
        if is_first:
            total.copy_(rows[0])
            if weight != 1.0:
                total.mul_(weight)
            return
        row = rows[0]
        if row.dtype != total.dtype:  # torch would make a new converted copy each time
            row = scratch.take(len(total), total.dtype, total.device).copy_(row)
        total.add_(row, alpha=weight)
        return
    single = weights.float()
    if rows.dtype == torch.float32 and torch.equal(single.double(), weights):
        # What a few clients add up to loses nothing that the model in this precision could hold.
        found = rows.t() @ single.to(rows.device)
        if math.isfinite(found.sum()):
            add_weighted(total, weights.new_ones(1), found[None], scratch, is_first=is_first)
            return
    factors = weights.to(total.device)
    # In pieces that are in the cache when they are added: the total is read and written once for
    # all rows, and no whole row is stored in double precision.
    length = max(1, PIECE // len(rows))
    wide = scratch.take(len(rows) * length, total.dtype, total.device)
    for start in range(0, len(total), length):
        part, piece = total[start : start + length], rows[:, start : start + length]
        own = wide[: piece.numel()].view(piece.shape).copy_(piece)
        torch.addmv(part, own.t(), factors, beta=0.0 if is_first else 1.0, out=part)
