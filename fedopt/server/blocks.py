"""How a cohort is cut into blocks and the blocks are dealt to nodes.

Blocks are a pure function of the cohort: a block gives the same bits wherever it runs, and block
sums are added along a tree that depends on their number alone (`fedopt.client.sums`). Dealing is
free to follow the load.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from fedopt.client.trainer import Block

MAX_BLOCKS = 32
"""The most blocks of a round, where the block size is not given: bounds what is sent up."""


FEW_BLOCKS = 8
"""Blocks that a small cohort is cut into, so that several workers have something to do."""

BLOCK_FLOPS = 4e8
"""Work below which a block is not worth sending elsewhere: some milliseconds of one core."""

STEP_FLOPS = 2e6
"""What a local step costs whatever the model's size, in floating-point operations."""


RUN_WORTH = 1.03
"""How much longer a round may take, by prediction, for blocks to be dealt in runs."""


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
    """Deal blocks to nodes: in runs, unless single blocks balance the load better.

    A node adds up a run of blocks before it answers, so runs are less to send and to add.

    Args:
        blocks: the round's blocks.
        nodes: node ids.
        speed: seconds a local step on each node, where they were measured.

    Returns:
        Node id -> its blocks in ascending order; nodes without work are left out.
    """
    if not blocks:
        return {}
    known = speed or {}
    typical = sum(known.values()) / len(known) if known else 1.0
    pace = {node: known.get(node, typical) for node in nodes}
    ordered = sorted(blocks, key=lambda b: b.id)
    steps = [sum(block.steps) for block in ordered]
    runs = _deal_runs(steps, pace)
    singles = _deal_singles(steps, pace)
    chosen = (
        runs if _finish(runs, steps, pace) <= RUN_WORTH * _finish(singles, steps, pace) else singles
    )
    return {node: [ordered[i] for i in sorted(mine)] for node, mine in chosen.items() if mine}


def _deal_runs(steps: Sequence[int], pace: Mapping[int, float]) -> dict[int, Sequence[int]]:
    """Cut the blocks where the shares of nodes that finish together would end."""
    nodes = sorted(pace)
    ends = list(accumulate(steps))
    rate = sum(1 / pace[node] for node in nodes)
    dealt: dict[int, Sequence[int]] = {}
    first, due = 0, 0.0
    for position, node in enumerate(nodes):
        due += ends[-1] / (pace[node] * rate)
        if position == len(nodes) - 1:
            stop = len(steps)
        else:
            stop = bisect_left(ends, due)  # the block in which the share ends
            before = ends[stop - 1] if stop else 0
            if stop < len(ends) and ends[stop] - due <= due - before:
                stop += 1
            # No node idles while there is work.
            stop = min(max(stop, first + 1), len(steps) - (len(nodes) - 1 - position))
            stop = max(stop, first)
        dealt[node] = range(first, stop)
        first = stop
    return dealt


def _deal_singles(steps: Sequence[int], pace: Mapping[int, float]) -> dict[int, Sequence[int]]:
    """Deal the longest block first to the node that would finish it first.

    Source: Graham 1969 (longest processing time first).
    """
    load = dict.fromkeys(sorted(pace), 0.0)
    dealt: dict[int, list[int]] = {node: [] for node in load}
    for i in sorted(range(len(steps)), key=lambda i: (-steps[i], i)):
        node = min(load, key=lambda n: (load[n] + steps[i] * pace[n], n))
        load[node] += steps[i] * pace[node]
        dealt[node].append(i)
    return dict(dealt)


def _finish(
    dealt: Mapping[int, Sequence[int]], steps: Sequence[int], pace: Mapping[int, float]
) -> float:
    """Return when the last node would finish, in seconds."""
    return max(pace[node] * sum(steps[i] for i in mine) for node, mine in dealt.items())


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
