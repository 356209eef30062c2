"""Blocks: cutting and dealing are partitions; dealing is balanced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.client.trainer import Block
from fedopt.server.blocks import MAX_BLOCKS, RUN_WORTH, Pace, cut, deal, default_block_size

work = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(work, st.integers(1, 70))
def test_cutting_is_a_partition_in_order(steps: list[int], size: int) -> None:
    cohort = [3 * i for i in range(len(steps))]
    blocks = cut(cohort, steps, size)
    assert [block.id for block in blocks] == list(range(len(blocks)))
    assert [c for block in blocks for c in block.clients] == cohort
    assert [s for block in blocks for s in block.steps] == steps
    assert all(len(block.clients) == size for block in blocks[:-1])
    assert 1 <= len(blocks[-1].clients) <= size


def one_each(steps: list[int]) -> list[Block]:
    return [Block(i, [i], [s]) for i, s in enumerate(steps)]


def loads(dealt: dict[int, list[Block]]) -> dict[int, int]:
    return {node: sum(sum(b.steps) for b in mine) for node, mine in dealt.items()}


@given(work, st.sets(st.integers(1, 100), min_size=1, max_size=8))
def test_dealing_is_a_balanced_partition(steps: list[int], nodes: set[int]) -> None:
    blocks = one_each(steps)
    dealt = deal(blocks, sorted(nodes))
    assert set(dealt) <= nodes
    assert sorted(b.id for mine in dealt.values() for b in mine) == list(range(len(blocks)))
    for mine in dealt.values():
        assert mine
        assert [b.id for b in mine] == sorted(b.id for b in mine)
    assert len(dealt) == min(len(nodes), len(blocks)), "no node idles while there is work"
    # Graham 1966: list scheduling ends within the mean load and the last block's rest.
    m = len(nodes)
    assert max(loads(dealt).values()) <= sum(steps) / m + max(steps) * (1 - 1 / m) + 1e-9


def test_the_longest_go_first() -> None:
    """Graham's example: in order, (3, 3, 2, 2, 2) on two nodes takes 7; an optimum takes 6."""
    dealt = deal(one_each([2, 2, 2, 3, 3]), [1, 2])
    assert sorted(loads(dealt).values()) in ([5, 7], [6, 6])
    assert max(loads(deal(one_each([1, 1, 1, 1, 4]), [1, 2])).values()) == 4


@given(work, st.lists(st.floats(0.5, 2), min_size=1, max_size=8))
def test_dealing_follows_the_pace(steps: list[int], paces: list[float]) -> None:
    pace = dict(enumerate(paces))
    dealt = deal(one_each(steps), list(pace), pace)
    finish = max(pace[n] * sum(sum(b.steps) for b in mine) for n, mine in dealt.items())
    # The last block goes where it ends first: every other node is busy until then, but for it.
    bound = sum(steps) / sum(1 / p for p in paces) + max(steps) * max(paces)
    assert finish <= RUN_WORTH * bound


@pytest.mark.parametrize(("blocks", "nodes"), [(10, 2), (4, 2), (32, 4)])
def test_equal_blocks_are_dealt_in_runs(blocks: int, nodes: int) -> None:
    dealt = deal(one_each([6] * blocks), list(range(nodes)))
    assert [b.id for node in range(nodes) for b in dealt[node]] == list(range(blocks))
    # Paces that differ by less than a block change nothing.
    assert deal(one_each([6] * blocks), list(range(nodes)), {0: 1.02, 1: 0.99}) == dealt


def test_single_blocks_are_dealt_where_runs_would_be_uneven() -> None:
    dealt = deal(one_each([9, 1, 9, 1]), [1, 2])
    assert sorted(loads(dealt).values()) == [10, 10]
    uneven = deal(one_each([9, 9, 1, 1]), [1, 2])
    assert sorted(loads(uneven).values()) == [10, 10]
    assert [b.id for b in uneven[1]] != [0, 1]


def test_slow_nodes_get_less() -> None:
    dealt = loads(deal(one_each([1] * 40), [1, 2], {1: 3.0, 2: 1.0}))
    assert dealt == {1: 10, 2: 30}
    unknown = loads(deal(one_each([1] * 40), [1, 2, 3], {1: 1.0, 2: 1.0}))
    assert max(unknown.values()) - min(unknown.values()) <= 1, "a new node counts as typical"


def test_dealing_is_deterministic() -> None:
    blocks = one_each([5, 3, 3, 9, 1, 1, 7])
    assert deal(blocks, [4, 2, 9]) == deal(list(reversed(blocks)), [9, 4, 2])


def test_the_pace_is_a_smoothed_measurement() -> None:
    pace = Pace()
    pace.observe(1, 2.0, 4)
    assert pace.seconds == {1: 0.5}
    pace.observe(1, 4.0, 4)
    assert 0.5 < pace.seconds[1] < 1.0
    for seconds, steps in ((0.0, 4), (1.0, 0)):
        before = dict(pace.seconds)
        pace.observe(1, seconds, steps)
        assert pace.seconds == before


@given(st.integers(1, 10_000), st.integers(1, 64), st.floats(0, 1e12))
def test_block_sizes_bound_the_number_of_blocks(cohort: int, group: int, flops: float) -> None:
    size = default_block_size(cohort, group, flops)
    assert 1 <= size <= cohort
    assert -(-cohort // size) <= MAX_BLOCKS


@pytest.mark.parametrize(("flops", "blocks"), [(1.0, 1), (1e12, 8)])
def test_little_work_is_one_block(flops: float, blocks: int) -> None:
    assert -(-16 // default_block_size(16, 64, flops)) == blocks
