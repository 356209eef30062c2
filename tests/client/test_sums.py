"""The tree of sums: whoever adds, the total has the same bits, and little is sent."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedopt.client.sums import BlockSums, SumTree
from fedopt.scratch import Scratch

SIZE = 9


def leaves(count: int) -> list[BlockSums]:
    """Return sums of single blocks, of values that float64 cannot add exactly."""
    draws = torch.Generator().manual_seed(count)
    values = torch.randn(count, SIZE, generator=draws, dtype=torch.float64)
    values *= 10.0 ** torch.randint(-8, 8, (count, 1), generator=draws)
    weights = torch.randint(1, 1000, (count,), generator=draws).tolist()
    return [
        BlockSums(i, i + 1, {"delta": values[i].clone()}, values[i, :2].clone(), float(w), 1, 0.5)
        for i, w in enumerate(weights)
    ]


def added(parts: list[BlockSums], blocks: int, scratch: Scratch | None = None) -> list[BlockSums]:
    tree = SumTree(blocks, scratch)
    for part in parts:
        tree.add(part)
    return tree.roots


@st.composite
def dealt(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Draw a number of blocks and the worker of each."""
    count = draw(st.integers(1, 40))
    workers = draw(st.integers(1, 5))
    return count, draw(st.lists(st.integers(0, workers - 1), min_size=count, max_size=count))


def total_of(count: int, owners: list[int]) -> BlockSums:
    """Add up what each worker adds of its own blocks."""
    mine = leaves(count)
    parts = [
        part
        for worker in set(owners)
        for part in added([s for s, o in zip(mine, owners, strict=True) if o == worker], count)
    ]
    (total,) = added(sorted(parts, key=lambda s: s.first), count, Scratch())
    return total


@given(dealt(), st.booleans())
def test_any_dealing_gives_the_bits_of_one_worker(case: tuple[int, list[int]], runs: bool) -> None:
    count, owners = case
    total = total_of(count, sorted(owners) if runs else owners)
    alone = total_of(count, [0] * count)
    assert torch.equal(total.terms["delta"], alone.terms["delta"])
    assert torch.equal(total.buffers, alone.buffers)
    assert (total.weight, total.count, total.seconds) == (alone.weight, count, 0.5 * count)


@given(st.integers(1, 40))
def test_the_total_is_the_sum_of_the_blocks(count: int) -> None:
    total = total_of(count, [0] * count)
    mine = leaves(count)
    for name, values in (("delta", total.terms["delta"]), ("buffers", total.buffers)):
        rows = [s.terms["delta"] if name == "delta" else s.buffers for s in mine]
        for place, value in enumerate(values.tolist()):
            column = [float(row[place]) for row in rows]
            # Higham 2002, section 4.2: pairwise summation, log2(count) roundings.
            bound = math.ceil(math.log2(count) + 1) * 2**-53 * math.fsum(map(abs, column))
            assert abs(value - math.fsum(column)) <= bound
    assert total.weight == math.fsum(s.weight for s in mine)


@given(st.integers(1, 300), st.data())
def test_a_run_of_blocks_is_sent_as_few_sums(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(first + 1, count))
    nothing = torch.zeros(0)
    parts = [BlockSums(i, i + 1, {}, nothing) for i in range(first, stop)]
    roots = added(parts, count)
    assert len(roots) <= max(1, 2 * math.ceil(math.log2(count)))
    assert [i for root in roots for i in range(root.first, root.stop)] == list(range(first, stop))


@pytest.mark.parametrize(("blocks", "workers"), [(10, 2), (32, 4), (8, 8), (7, 2)])
def test_equal_shares_are_one_sum_each(blocks: int, workers: int) -> None:
    cuts = [math.ceil(blocks * w / workers) for w in range(workers + 1)]
    for first, stop in pairwise(cuts):
        assert len(added(leaves(blocks)[first:stop], blocks)) == 1


def test_what_came_in_replies_is_not_written_to() -> None:
    mine = leaves(4)
    before = [s.terms["delta"].clone() for s in mine]
    added(mine, 4, Scratch())
    assert all(torch.equal(s.terms["delta"], b) for s, b in zip(mine, before, strict=True))
