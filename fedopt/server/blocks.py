"""How a cohort is cut into blocks and the blocks are dealt to nodes.

Blocks are a pure function of the cohort: a block gives the same bits wherever it runs, and block
sums are added in the order of the blocks. Dealing is free to follow the load.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from fedopt.client.trainer import Block

MAX_BLOCKS = 32
"""The most blocks of a round, where the block size is not given: bounds what is sent up."""


FEW_BLOCKS = 8
"""Blocks that a small cohort is cut into, so that several workers have something to do."""

BLOCK_FLOPS = 3e6
"""Work below which a block is not worth its overhead: about as long as sending a message."""


def default_block_size(cohort: int, group_size: int, client_flops: float) -> int:
    """Return the clients a block: enough to be trained as groups, in at most `MAX_BLOCKS` blocks.

    Args:
        cohort: K, the clients of the round.
        group_size: clients that the engine trains at once.
        client_flops: predicted floating-point operations of a client's round.
    """
    worthwhile = int(cohort * client_flops / BLOCK_FLOPS)
    blocks = min(FEW_BLOCKS, max(1, worthwhile))
    return max(-(-cohort // MAX_BLOCKS), min(group_size, -(-cohort // blocks)))


def cut(cohort: Sequence[int], steps: Sequence[int], size: int) -> list[Block]:
    """Cut a cohort, in ascending order of client id, into blocks of `size` clients."""
    return [
        Block(number, cohort[first : first + size], steps[first : first + size])
        for number, first in enumerate(range(0, len(cohort), size))
    ]


def deal(blocks: Sequence[Block], nodes: Sequence[int]) -> dict[int, list[Block]]:
    """Deal blocks to nodes, the longest first to the node with the least steps.

    Args:
        blocks: the round's blocks.
        nodes: node ids.

    Returns:
        Node id -> its blocks in ascending order; nodes without work are left out.

    Source: Graham 1969 (longest processing time first).
    """
    load = [(0, position) for position in range(len(nodes))]
    dealt: dict[int, list[Block]] = {}
    for block in sorted(blocks, key=lambda b: (-sum(b.steps), b.id)):
        steps, position = heapq.heappop(load)
        dealt.setdefault(nodes[position], []).append(block)
        heapq.heappush(load, (steps + sum(block.steps), position))
    return {node: sorted(mine, key=lambda b: b.id) for node, mine in dealt.items()}
