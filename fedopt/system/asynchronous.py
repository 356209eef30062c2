"""The asynchronous server: an event queue of clients that come and go while the model moves on.

As many clients as the concurrency says train at a time, each from the model that was there when it
began. An update that arrives goes into a buffer; when the buffer is full the server takes a step,
and that is a round. A client that arrives, or fails, is replaced at once, by one that begins with
the model of that moment; the one that fills the buffer, with the new model. A client begins at most
once with each model, as it would only do the same again; where all have begun with a model, the
server takes its step with what has arrived.

Who arrives when depends on durations alone, so the queue runs ahead of the training: for every
start it is known which step its update will enter. Nothing of it needs to be stored, as all of it
follows from the seed. An update is scaled by s = (1 + staleness)^-exponent, staleness being the
number of steps that the server took since the client began.

Source: Xie, Koyejo and Gupta 2019, "Asynchronous Federated Optimization" (FedAsync), algorithm 1;
Nguyen et al. 2022, "Federated Learning with Buffered Asynchronous Aggregation" (FedBuff), algorithm
1.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from fedopt.errors import RunError
from fedopt.system.costs import Integers, Work
from fedopt.system.rounds import (
    LONGEST_WAIT,
    WAIT,
    Outcome,
    Parts,
    Schedule,
    System,
    end_at,
    parts_of,
    settle,
)

Draw = Callable[[int, int, int, Callable[[int], bool]], Integers]
"""(round, draw of the round, count, may_begin) -> ids of at most so many clients, ascending."""


@dataclass(frozen=True)
class Buffered:
    """How the server takes asynchronous updates.

    Args:
        buffer: K, updates of a step, >= 1.
        concurrency: clients that train at a time, >= buffer is not needed.
        exponent: of the staleness, >= 0; 0 takes all alike.
        mixing: alpha of FedAsync, in (0, 1]: the server mixes a client's model into its own; None
            adds updates, as FedBuff does.
    """

    buffer: int
    concurrency: int
    exponent: float = 0.5
    mixing: float | None = None

    def scale(self, staleness: int) -> float:
        """Return s, the factor of an update that is so many steps old."""
        return float((1 + staleness) ** -self.exponent)


class EventQueue:
    """The course of all rounds, made as far as it is asked for.

    Args:
        system: the population's devices.
        policy: how the server takes updates.
        draw: draws clients that may begin.
        planned: (round, clients) -> steps that each does.
        work: clients -> what they do.
        rounds: the last round: what would arrive later is not trained.
    """

    def __init__(
        self,
        system: System,
        policy: Buffered,
        draw: Draw,
        planned: Callable[[int, Integers], Integers],
        work: Callable[[Integers], Work],
        rounds: int,
    ) -> None:
        self._system = system
        self._policy = policy
        self._draw = draw
        self._planned = planned
        self._work = work
        self._rounds = rounds
        self._begun: dict[int, list[Parts]] = {}
        self._used_in: dict[tuple[int, int], int] = {}  # (round of the start, client) -> step
        self._oldest: dict[int, int] = {}  # step -> earliest round in which its updates began
        self._ends: list[float] = [0.0]  # of the rounds, from 0
        self._arrived: dict[int, int] = {}
        self._heap: list[tuple[float, int, int, bool, int]] = []
        self._training: set[int] = set()
        self._with_this_model: set[int] = set()
        self._time = 0.0

    def round(self, number: int) -> Schedule:
        """Return the course of a round, from 1.

        Raises:
            RunError: no client is there for a long time.
        """
        while len(self._ends) <= number:
            self._advance()
        parts = _joined(self._begun.get(number, []))
        open_ = [
            client
            for place, client in enumerate(parts.clients.tolist())
            if parts.outcome[place] is Outcome.USED
        ]
        # Run on until it is known which step each of them enters, or that it is after the last.
        while len(self._ends) <= self._rounds and any(
            (number, client) not in self._used_in for client in open_
        ):
            self._advance()
        used = np.array(
            [self._used_in.get((number, client), -1) for client in parts.clients.tolist()],
            dtype=np.int64,
        ).reshape(len(parts.clients))
        used[~parts.is_used] = -1
        over = np.flatnonzero(parts.is_used & ((used < 0) | (used > self._rounds)))
        if len(over):
            while len(self._ends) <= self._rounds:
                self._advance()
            end_at(parts, over.tolist(), self._ends[self._rounds], Outcome.UNFINISHED)
            used[over] = -1
        parts.used_in = used
        settle(self._system, self._work(parts.clients), parts)
        targets = sorted({int(target) for target in used if target > 0})
        groups = [np.flatnonzero(used == target).tolist() for target in targets]
        start, end = self._ends[number - 1], self._ends[number]
        return Schedule(number, start, end, parts, groups, self._arrived.get(number, 0))

    def oldest(self, number: int) -> int:
        """Return the largest staleness of the updates of a step."""
        return number - self._oldest.get(number, number)

    def _advance(self) -> None:
        """Let the server take its next step."""
        number, draws, buffered = len(self._ends), 0, 0
        self._with_this_model = set()
        draws += self._fill(number, draws)
        while buffered < self._policy.buffer and self._heap:
            time, client, begun, arrives, nbytes = heapq.heappop(self._heap)
            self._time = max(self._time, time)
            self._training.discard(client)
            if arrives:
                self._used_in[begun, client] = number
                self._oldest[number] = min(begun, self._oldest.get(number, begun))
                self._arrived[number] = self._arrived.get(number, 0) + nbytes
                buffered += 1
            # All that happens at this moment happens before somebody begins.
            is_over = buffered == self._policy.buffer
            if not is_over and (not self._heap or self._heap[0][0] > self._time):
                draws += self._fill(number, draws)
        self._ends.append(self._time)

    def _fill(self, number: int, draws: int) -> int:
        """Let clients begin until the concurrency is reached, as far as any may.

        Returns:
            How often clients were drawn.
        """
        wanted = self._policy.concurrency - len(self._training)
        begun, made = self._time, 0
        while wanted > 0:
            now = self._time
            there = partial(self._may_begin, time=now)
            clients = self._draw(number, draws + made, wanted, there)
            made += 1
            if len(clients):
                self._begin(number, draws + made, clients, now)
                break
            if self._heap or self._with_this_model:
                break
            self._time += WAIT
            if self._time - begun > LONGEST_WAIT:
                raise RunError(
                    f"no client is there from {begun:g} s of virtual time on for thirty days; see "
                    "system.availability"
                )
        return made

    def _may_begin(self, client: int, time: float) -> bool:
        if client in self._training or client in self._with_this_model:
            return False
        return self._system.availability.is_there(client, time)

    def _begin(self, number: int, key: int, clients: Integers, now: float) -> None:
        """Let clients begin to train."""
        steps = self._planned(number, clients)
        failures = number * 1_000_003 + key
        parts, _ = parts_of(self._system, self._work(clients), clients, steps, now, failures)
        self._begun.setdefault(number, []).append(parts)
        for place, client in enumerate(clients.tolist()):
            arrives = parts.outcome[place] is Outcome.USED
            event = (float(parts.end[place]), client, number, arrives, int(parts.up[place]))
            heapq.heappush(self._heap, event)
            self._training.add(client)
            self._with_this_model.add(client)


def _joined(pieces: list[Parts]) -> Parts:
    """Return parts one after another, as new columns, in ascending order of the clients."""
    if not pieces:
        real, whole = np.zeros(0), np.zeros(0, dtype=np.int64)
        return Parts(whole, whole, [], real, real, real, real, real, whole, whole, whole)
    names = ("clients", "steps", "start", "download", "compute", "upload", "joules", "down", "up")
    columns = {name: np.concatenate([getattr(piece, name) for piece in pieces]) for name in names}
    outcome = [found for piece in pieces for found in piece.outcome]
    order = np.argsort(columns["clients"], kind="stable")
    columns = {name: column[order].copy() for name, column in columns.items()}
    return Parts(
        columns["clients"],
        columns["steps"],
        [outcome[place] for place in order.tolist()],
        columns["start"],
        columns["download"],
        columns["compute"],
        columns["upload"],
        columns["joules"],
        columns["down"],
        columns["up"],
        np.full(len(order), -1, dtype=np.int64),
    )
