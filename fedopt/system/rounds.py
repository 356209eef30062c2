"""Rounds on the virtual clock: who takes part, from when to when, and what becomes of it.

Nothing here waits or trains. Durations follow from devices, bytes and steps, so that a round's
course is known before it: clients whose work would not be used are not trained, but their time,
bytes and joules count. The clock knows nothing of wall time or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from fedopt.errors import RunError
from fedopt.seeds import generator
from fedopt.system.availability import Availability
from fedopt.system.costs import Floats, Integers, Stages, Work, fitting_steps, joules, stages
from fedopt.system.devices import DeviceSource

WAIT = 60.0
"""Virtual seconds between two looks for clients, where none is there."""

LONGEST_WAIT = 30 * 86_400.0
"""Virtual seconds without any client after which the run gives up."""


class Outcome(Enum):
    """What became of a client's part in a round."""

    USED = ""
    FAILED_BEFORE = "failed before training"
    FAILED_DURING = "failed while training"
    LOST_UPLOAD = "upload lost"
    LEFT = "left"
    LATE = "late"
    CANCELLED = "cancelled"
    UNFINISHED = "unfinished at the end of the run"
    TOO_LARGE = "model too large for its memory"


@dataclass(frozen=True)
class Failures:
    """Probabilities with which a client's part fails, independently in each round.

    Args:
        seed: the run's seed.
        before: before it trains, in [0, 1].
        during: while it trains, at a uniform moment.
        upload: on the way up, when all of it was sent.
    """

    seed: int
    before: float = 0.0
    during: float = 0.0
    upload: float = 0.0

    def of(self, key: int, client: int) -> tuple[Outcome, float]:
        """Return what fails, and after which share of the computing.

        Args:
            key: number of the round, or of the start.
            client: id.
        """
        if not (self.before or self.during or self.upload):
            return Outcome.USED, 1.0
        first, second, third, share = generator(self.seed, "failure", key, client).random(4)
        if first < self.before:
            return Outcome.FAILED_BEFORE, 0.0
        if second < self.during:
            return Outcome.FAILED_DURING, float(share)
        if third < self.upload:
            return Outcome.LOST_UPLOAD, 1.0
        return Outcome.USED, 1.0


@dataclass(frozen=True)
class System:
    """The population's devices and when they are there.

    Args:
        devices: where devices come from.
        availability: when clients are there.
        failures: what fails.
        model_nbytes: bytes of memory that training takes; clients with less cannot.
    """

    devices: DeviceSource
    availability: Availability
    failures: Failures
    model_nbytes: float = 0.0


@dataclass
class Parts:
    """The parts of some clients in a round, in columns.

    Args:
        clients: ids, `[n]`.
        steps: local steps that they do, of which those of a part that is not used are not
            computed.
        outcome: what becomes of each part.
        start: virtual seconds at which it begins.
        download, compute, upload: seconds of its stages; shorter where it ended early.
        joules: its energy.
        down, up: bytes that went either way.
        used_in: round whose model it enters.
    """

    clients: Integers
    steps: Integers
    outcome: list[Outcome]
    start: Floats
    download: Floats
    compute: Floats
    upload: Floats
    joules: Floats
    down: Integers
    up: Integers
    used_in: Integers

    @property
    def end(self) -> Floats:
        """Virtual seconds at which each part ends."""
        return self.start + self.download + self.compute + self.upload

    @property
    def is_used(self) -> npt.NDArray[np.bool_]:
        """Whether each part is used."""
        return np.array([outcome is Outcome.USED for outcome in self.outcome], dtype=bool)


@dataclass
class Schedule:
    """The course of a round.

    Args:
        round: its number, from 1.
        start: virtual seconds at which it begins.
        end: virtual seconds at which the server has its new model.
        parts: of the clients that begin in it.
        groups: places among the parts of those that enter the same model, those of this round's
            first; sums are made for each.
        arrived: bytes that arrive at the server in the round.
    """

    round: int
    start: float
    end: float
    parts: Parts
    groups: list[list[int]] = field(default_factory=list)
    arrived: int = 0

    @property
    def staleness(self) -> Integers:
        """Server steps between each part's beginning and its use, -1 where it is not used."""
        used = self.parts.used_in
        return np.where(used > 0, used - self.round, -1)


Sample = Callable[[int, int, Callable[[int], bool]], Integers]
"""(attempt, count, is_there) -> ids of at most so many clients that are there, ascending."""


def wait_for_clients(
    system: System, sample: Sample, count: int, time: float
) -> tuple[float, Integers]:
    """Return when clients are there, from a time on, and who of them is sampled.

    Raises:
        RunError: none is there for thirty virtual days.
    """
    begun = time
    for attempt in range(int(LONGEST_WAIT / WAIT) + 1):
        now = begun + attempt * WAIT
        found = sample(attempt, count, lambda c, now=now: system.availability.is_there(c, now))  # type: ignore[misc]
        if len(found):
            return now, found
    raise RunError(
        f"no client is there from {begun:g} s of virtual time on for thirty days; see "
        "system.availability"
    )


def parts_of(
    system: System,
    work: Work,
    clients: Integers,
    steps: Integers,
    start: float,
    key: int,
) -> tuple[Parts, Stages]:
    """Return the parts of clients that begin together, before a policy has its say.

    Args:
        system: the population's devices.
        work: what the clients do.
        clients: ids, `[n]`.
        steps: their steps.
        start: virtual seconds.
        key: number that their failures are drawn with.
    """
    devices = system.devices.of(clients)
    whole = stages(devices, work, steps)
    download, compute, upload = (x.copy() for x in (whole.download, whole.compute, whole.upload))
    outcome = []
    up = np.full(len(clients), work.up, dtype=np.int64)
    down = np.full(len(clients), work.down, dtype=np.int64)
    for place, client in enumerate(clients.tolist()):
        found, share = system.failures.of(key, client)
        if devices.memory[place] < system.model_nbytes:
            found, share = Outcome.TOO_LARGE, 0.0
        if found is Outcome.TOO_LARGE:
            download[place] = compute[place] = upload[place] = 0.0
            down[place] = up[place] = 0
        elif found in (Outcome.FAILED_BEFORE, Outcome.FAILED_DURING):
            compute[place] *= share
            upload[place] = 0.0
            up[place] = 0
        left = system.availability.leaves(client, start) - start
        if left < download[place] + compute[place] + upload[place]:
            found = Outcome.LEFT
            spent = _cut(left, download[place], compute[place], upload[place])
            download[place], compute[place], upload[place] = spent
            up[place] = 0
        outcome.append(found)
    parts = Parts(
        clients,
        steps.copy(),
        outcome,
        np.full(len(clients), start),
        download,
        compute,
        upload,
        np.zeros(len(clients)),
        down,
        up,
        np.full(len(clients), -1, dtype=np.int64),
    )
    return parts, whole


def end_at(parts: Parts, places: Iterable[int], time: float, outcome: Outcome) -> None:
    """Let parts end at a time at the latest, their uploads not having arrived."""
    for place in places:
        spent = _cut(
            time - parts.start[place],
            parts.download[place],
            parts.compute[place],
            parts.upload[place],
        )
        parts.download[place], parts.compute[place], parts.upload[place] = spent
        parts.outcome[place] = outcome
        parts.up[place] = 0


def settle(system: System, work: Work, parts: Parts) -> None:
    """Fill in what parts came to: their energy, and the steps of those that are not used.

    Args:
        system: the population's devices.
        work: what their clients do.
        parts: all of them, their stages as long as they were.
    """
    devices = system.devices.of(parts.clients)
    parts.joules = joules(devices, parts.compute, parts.down + parts.up)
    done = fitting_steps(devices, work, parts.compute * (1 + 1e-12), parts.steps)
    parts.steps = np.where(parts.is_used, parts.steps, done)


def _cut(seconds: float, *spans: float) -> list[float]:
    """Return spans that follow each other, cut off after some seconds."""
    found = []
    for span in spans:
        found.append(float(min(span, max(0.0, seconds))))
        seconds -= span
    return found


@dataclass(frozen=True)
class Synchronous:
    """The server waits for all clients of the round that have not failed.

    Source: McMahan et al. 2017, algorithm 1.
    """

    def sampled(self, count: int, clients: int) -> int:
        """Return how many clients are sampled for a cohort of `count`."""
        return count

    def decide(self, system: System, work: Work, parts: Parts, whole: Stages, count: int) -> float:
        """Settle what becomes of the parts; return when the round ends."""
        return float(parts.end.max(initial=parts.start.min(initial=0.0)))


@dataclass(frozen=True)
class Deadline(Synchronous):
    """Clients that are not done after some seconds are late.

    What they do then is the strategy's `partial_work`: drop it, or keep the steps that are done in
    time for the upload.

    Args:
        keeps_partial: whether partial work is kept.
        seconds: > 0.

    Source: Bonawitz et al. 2019; Li et al. 2020, section 5.2 (partial work).
    """

    keeps_partial: bool = False
    seconds: float = np.inf

    def decide(self, system: System, work: Work, parts: Parts, whole: Stages, count: int) -> float:
        """Settle what becomes of the parts; return when the round ends."""
        last = parts.start + self.seconds
        late = np.flatnonzero(parts.is_used & (parts.end > last))
        if self.keeps_partial and len(late):
            chosen = parts.clients[late]
            room = self.seconds - whole.download[late] - whole.upload[late]
            theirs = _work_of(work, late)
            devices = system.devices.of(chosen)
            fitting = fitting_steps(devices, theirs, room, parts.steps[late])
            for place, steps, seconds in zip(
                late.tolist(),
                fitting.tolist(),
                stages(devices, theirs, fitting).compute.tolist(),
                strict=True,
            ):
                if steps:
                    parts.steps[place], parts.compute[place] = steps, seconds
            late = late[fitting == 0]
        end_at(parts, late.tolist(), float(last.max(initial=0.0)), Outcome.LATE)
        return min(float(last.max(initial=0.0)), super().decide(system, work, parts, whole, count))


@dataclass(frozen=True)
class OverSelection(Synchronous):
    """More clients are sampled than are wanted, and the first are taken.

    Args:
        factor: clients sampled for each that is wanted, >= 1.

    Source: Bonawitz et al. 2019, section 2.2 (which samples 1.3 times as many).
    """

    factor: float = 1.3

    def sampled(self, count: int, clients: int) -> int:
        """Return how many clients are sampled for a cohort of `count`."""
        return min(clients, int(np.ceil(self.factor * count - 1e-9)))

    def decide(self, system: System, work: Work, parts: Parts, whole: Stages, count: int) -> float:
        """Settle what becomes of the parts; return when the round ends."""
        used = np.flatnonzero(parts.is_used)
        order = used[np.lexsort((parts.clients[used], parts.end[used]))]
        taken, others = order[:count], order[count:]
        if not len(taken):
            return super().decide(system, work, parts, whole, count)
        # With too few that do not fail, the server waits until it knows of all.
        enough = len(taken) == count
        end = float(parts.end[taken].max()) if enough else float(parts.end.max())
        end_at(parts, others.tolist(), end, Outcome.CANCELLED)
        failed = np.flatnonzero(~parts.is_used & (parts.end > end))
        for place in failed.tolist():
            end_at(parts, [place], end, parts.outcome[place])
        return end


@dataclass(frozen=True)
class SemiSynchronous(Synchronous):
    """Each client does as many local steps as fit into a period, few or many.

    Args:
        seconds: the period, download and upload included, > 0.
        most: the most steps, in planned ones, > 0.

    Source: Stripelis, Thompson and Ambite 2022, "Semi-Synchronous Federated Learning for
    Energy-Efficient Training and Accelerated Convergence in Cross-Silo Settings".
    """

    seconds: float = np.inf
    most: float = 10.0

    def decide(self, system: System, work: Work, parts: Parts, whole: Stages, count: int) -> float:
        """Settle what becomes of the parts; return when the round ends."""
        devices = system.devices.of(parts.clients)
        room = self.seconds - whole.download - whole.upload
        limit = np.ceil(self.most * parts.steps).astype(np.int64)
        fitting = fitting_steps(devices, work, room, limit)
        late = np.flatnonzero(parts.is_used & (fitting == 0)).tolist()
        seconds = stages(devices, work, fitting).compute
        for place in np.flatnonzero(parts.is_used & (fitting > 0)).tolist():
            parts.steps[place], parts.compute[place] = fitting[place], seconds[place]
        last = float(parts.start.max(initial=0.0)) + self.seconds
        end_at(parts, late, last, Outcome.LATE)
        return min(last, super().decide(system, work, parts, whole, count))


def _work_of(work: Work, places: npt.NDArray[np.int64]) -> Work:
    """Return the work of some of the clients."""
    return replace(work, sizes=work.sizes[places])


def synchronous_round(
    system: System,
    policy: Synchronous,
    sample: Sample,
    planned: Callable[[Integers], Integers],
    work: Callable[[Integers], Work],
    round: int,
    count: int,
    population: int,
    start: float,
) -> Schedule:
    """Return the course of a round whose clients begin together.

    Args:
        system: the population's devices.
        policy: when the server goes on.
        sample: draws clients that are there.
        planned: clients -> steps that each would do.
        work: clients -> what they do.
        round: its number, from 1.
        count: the clients wanted.
        population: clients that may be sampled.
        start: virtual seconds at which it begins.

    Raises:
        RunError: no client is there for a long time.
    """
    begun, clients = wait_for_clients(system, sample, policy.sampled(count, population), start)
    does = work(clients)
    parts, whole = parts_of(system, does, clients, planned(clients), begun, round)
    end = policy.decide(system, does, parts, whole, count)
    settle(system, does, parts)
    parts.used_in = np.where(parts.is_used, round, -1)
    used = np.flatnonzero(parts.is_used).tolist()
    return Schedule(round, start, end, parts, [used], int(parts.up.sum()))


def described(outcomes: Sequence[Outcome]) -> list[str]:
    """Return outcomes as they stand in a table, empty where a part was used."""
    return [outcome.value for outcome in outcomes]
