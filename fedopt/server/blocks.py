"""How a cohort is cut into blocks and the blocks are dealt to nodes.

Blocks are a pure function of the cohort: a block gives the same bits wherever it runs, and block
sums are added in the order of the blocks. Dealing is free to follow the load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedopt.client.trainer import Block

MAX_BLOCKS = 32
"""The most blocks of a round, where the block size is not given: bounds what is sent up."""


FEW_BLOCKS = 8
"""Blocks that a small cohort is cut into, so that several workers have something to do."""

BLOCK_FLOPS = 4e8
"""Work below which a block is not worth sending elsewhere: some milliseconds of one core."""

STEP_FLOPS = 2e6
"""What a local step costs whatever the model's size, in floating-point operations."""


def client_cost(parameters: int, examples: float, steps: float) -> float:
    """Return the predicted work of a client's round, in floating-point operations.

    Args:
        parameters: P; forward and backward pass take about 6 P an example.
        examples: examples seen in the round, repetitions counted.
        steps: local steps.
    """
    return 6.0 * parameters * examples + STEP_FLOPS * steps


def default_block_size(cohort: int, group_size: int, cost: float) -> int:
    """Return the clients a block: enough to be trained as groups, in at most `MAX_BLOCKS` blocks.

    Args:
        cohort: K, the clients of the round.
        group_size: clients that the engine trains at once.
        cost: predicted work of a client's round (`client_cost`).
    """
    worthwhile = int(cohort * cost / BLOCK_FLOPS)
    blocks = min(FEW_BLOCKS, max(1, worthwhile))
    return max(-(-cohort // MAX_BLOCKS), min(group_size, -(-cohort // blocks)))


def cut(cohort: Sequence[int], steps: Sequence[int], size: int) -> list[Block]:
    """Cut a cohort, in ascending order of client id, into blocks of `size` clients."""
    return [
        Block(number, cohort[first : first + size], steps[first : first + size])
        for number, first in enumerate(range(0, len(cohort), size))
    ]


def deal(
    blocks: Sequence[Block], nodes: Sequence[int], speed: Mapping[int, float] | None = None
) -> dict[int, list[Block]]:
    """Deal blocks to nodes, the longest first to the node that would finish it first.

    Args:
        blocks: the round's blocks.
        nodes: node ids.
        speed: seconds a local step on each node, where they were measured.

    Returns:
        Node id -> its blocks in ascending order; nodes without work are left out.

    Source: Graham 1969 (longest processing time first).
    """
    known = speed or {}
    typical = sum(known.values()) / len(known) if known else 1.0
    pace = {node: known.get(node, typical) for node in nodes}
    load = dict.fromkeys(nodes, 0.0)
    dealt: dict[int, list[Block]] = {}
    for block in sorted(blocks, key=lambda b: (-sum(b.steps), b.id)):
        steps = sum(block.steps)
        node = min(nodes, key=lambda n: (load[n] + steps * pace[n], n))
        load[node] += steps * pace[node]
        dealt.setdefault(node, []).append(block)
    return {node: sorted(mine, key=lambda b: b.id) for node, mine in dealt.items()}


class Pace:
    """Seconds a local step on each node, measured and smoothed over rounds.

    It decides where blocks run, never what they give.
    """

    SMOOTHING = 0.3

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def observe(self, node: int, seconds: float, steps: int) -> None:
        """Take in what a node needed for some steps."""
        if steps and seconds > 0:
            new, old = seconds / steps, self.seconds.get(node)
            self.seconds[node] = new if old is None else old + self.SMOOTHING * (new - old)
