"""A strategy's rounds on the virtual clock: who begins, in which blocks, and what arrives when.

The course of a round comes from `fedopt.system`; here it meets what a strategy knows: the sampler,
the steps, the bytes. Under an asynchronous policy the sums of clients that enter a later model wait
here, scaled by their staleness, until that model's turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedopt.client.plan import LocalWork
from fedopt.client.trainer import Block
from fedopt.server.blocks import MAX_BLOCKS, cut
from fedopt.server.rounds import RoundSums
from fedopt.system.asynchronous import Buffered, Draw, EventQueue
from fedopt.system.costs import Floats, Integers, Work, stages
from fedopt.system.rounds import Schedule, System, synchronous_round

CLOCK = "clock"
"""Name of the virtual time among a checkpoint's vectors."""

PENDING = "pending."
"""What the names of waiting sums begin with."""

ANCHOR = "anchor"
"""Name of the model that waiting updates began with, where models are mixed."""

META = "meta"
"""Name of weight and count of waiting sums."""


@dataclass(frozen=True)
class ScheduledWork:
    """What a strategy knows of a client's part.

    Args:
        sizes: training examples of each client, `[N]`.
        local: the amount of local work.
        down: bytes that a client is sent.
        up: bytes that it sends.
        passes: gradients a step.
        operations: operations of a gradient of one example, or 1.
        steps: (round, clients) -> steps that each does.
        count: clients of a round, or that train at a time.
        rounds: the last round.
    """

    sizes: Integers
    local: LocalWork
    down: int
    up: int
    passes: int
    operations: float
    steps: Callable[[int, Integers], Integers]
    count: int
    rounds: int

    def of(self, clients: Integers) -> Work:
        """Return what some clients do."""
        return Work(
            self.sizes[clients],
            self.local.batch_size,
            self.down,
            self.up,
            self.passes,
            self.operations,
            self.local.merges_single,
        )


class Scheduler:
    """The rounds of a run on the virtual clock.

    Args:
        system: the population's devices.
        policy: when the server goes on.
        draw: (round, attempt, count, is_there) -> ids of at most so many clients that are there.
        population: clients that may be sampled.
        work: what they do.
        block_size: clients a block; None cuts a round into at most 32.
    """

    def __init__(
        self,
        system: System,
        policy: object,
        draw: Draw,
        population: int,
        work: ScheduledWork,
        block_size: int | None,
    ) -> None:
        self._system = system
        self._policy = policy
        self._draw = draw
        self._population = population
        self._work = work
        self._block_size = block_size
        self._time = 0.0
        self._current: Schedule | None = None
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._queue: EventQueue | None = None
        if isinstance(policy, Buffered):
            self._queue = EventQueue(system, policy, draw, work.steps, work.of, work.rounds)

    @property
    def is_asynchronous(self) -> bool:
        """Whether clients come and go."""
        return self._queue is not None

    @property
    def current(self) -> Schedule:
        """The course of the round in progress, or of the last one."""
        assert self._current is not None
        return self._current

    def begin(self, round: int) -> Schedule:
        """Settle the course of a round, from 1.

        Raises:
            RunError: no client is there for a long time.
        """
        if self._queue is not None:
            self._current = self._queue.round(round)
        else:

            def sample(attempt: int, count: int, is_there: Callable[[int], bool]) -> Integers:
                return self._draw(round, attempt, count, is_there)

            self._current = synchronous_round(
                self._system,
                self._policy,  # type: ignore[arg-type]
                sample,
                lambda clients: self._work.steps(round, clients),
                self._work.of,
                round,
                self._work.count,
                self._population,
                self._time,
            )
        return self._current

    def seconds(self, round: int, clients: Integers) -> Floats:
        """Return the virtual seconds of some clients' parts, if nothing fails."""
        steps = self._work.steps(round, clients)
        found = stages(self._system.devices.of(clients), self._work.of(clients), steps)
        return found.total

    def blocks(self) -> tuple[list[Block], list[int]]:
        """Return the blocks of the clients that are trained, and how many each sum has."""
        parts = self.current.parts
        trained = sum(len(group) for group in self.current.groups)
        size = self._block_size or max(1, -(-trained // MAX_BLOCKS))
        blocks: list[Block] = []
        trees = []
        for group in self.current.groups:
            made = cut(parts.clients[group].tolist(), parts.steps[group].tolist(), size)
            blocks += [replace(block, id=len(blocks) + block.id) for block in made]
            if made:
                trees.append(len(made))
        return blocks, trees

    def received(
        self,
        round: int,
        totals: Sequence[RoundSums],
        parameters: Tensor,
        nothing: Callable[[], RoundSums],
    ) -> RoundSums:
        """Return what enters the round's model, and keep what enters later ones.

        Args:
            round: its number.
            totals: sums of the groups, in their order, of those that have blocks.
            parameters: x that the round's clients began with, `[P]` in float64.
            nothing: returns sums over no client.
        """
        schedule = self.current
        self._time = schedule.end
        if self._queue is None:
            return totals[0] if totals else nothing()
        policy = self._policy
        assert isinstance(policy, Buffered)
        targets = [int(schedule.parts.used_in[group[0]]) for group in schedule.groups if group]
        for target, sums in zip(targets, totals, strict=True):
            scale = policy.scale(target - round)
            entry = self._pending.setdefault(target, {})
            fresh = {name: term * scale for name, term in sums.terms.items()}
            fresh["buffers"] = sums.buffers * scale
            fresh[META] = torch.tensor([sums.weight, sums.count], dtype=torch.float64)
            for name, value in fresh.items():
                entry[name] = entry[name] + value if name in entry else value
            if policy.mixing is not None:
                entry[ANCHOR] = parameters.clone()
        entry = self._pending.pop(round, {})
        if not entry:
            return nothing()
        weight, count = entry.pop(META).tolist()
        buffers = entry.pop("buffers")
        anchor = entry.pop(ANCHOR, None)
        if policy.mixing is not None and anchor is not None:
            # x <- (1 - a) x + a w = x + a (x_begun + delta - x), a = mixing * scale; one client.
            scale = policy.mixing * policy.scale(self._queue.oldest(round))
            away = (anchor - parameters) * weight
            entry["delta"] = policy.mixing * entry["delta"] + scale * away
            buffers = policy.mixing * buffers
        return RoundSums(entry, buffers, weight, int(count))

    def vectors(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint: the time, and the sums that wait."""
        found = {CLOCK: torch.tensor([self._time], dtype=torch.float64)}
        for target, entry in self._pending.items():
            found |= {f"{PENDING}{target}.{name}": value for name, value in entry.items()}
        return found

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        self._time = float(vectors[CLOCK])
        self._pending = {}
        for name, value in vectors.items():
            if name.startswith(PENDING):
                target, _, field = name.removeprefix(PENDING).partition(".")
                self._pending.setdefault(int(target), {})[field] = value.clone()
