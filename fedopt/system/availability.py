"""Availability: when clients can be reached, as a function of (seed, client, virtual time).

A client is asked whether it is there when it is sampled, and one that leaves before it is done is
lost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from fedopt.errors import ConfigError
from fedopt.seeds import generator
from fedopt.system.devices import number, read_table

DAY = 86_400.0
"""Seconds of a day."""


class Availability(Protocol):
    """When clients are there."""

    def is_there(self, client: int, time: float) -> bool:
        """Return whether a client can be reached at a time, in seconds."""
        ...

    def leaves(self, client: int, time: float) -> float:
        """Return when a client that is there leaves, in seconds; infinite where it is not said."""
        ...


@dataclass(frozen=True)
class Always:
    """All clients, at all times."""

    def is_there(self, client: int, time: float) -> bool:
        """Return True."""
        return True

    def leaves(self, client: int, time: float) -> float:
        """Return infinity."""
        return math.inf


@dataclass(frozen=True)
class Bernoulli:
    """There in each slot with a probability, independently.

    Args:
        seed: the run's seed.
        probability: in (0, 1].
        slot: length of a slot in seconds, > 0.
    """

    seed: int
    probability: float
    slot: float

    def is_there(self, client: int, time: float) -> bool:
        """Return whether the slot's draw is below the probability."""
        return draw(self.seed, client, math.floor(time / self.slot)) < self.probability

    def leaves(self, client: int, time: float) -> float:
        """Return the end of the first slot after which it is away."""
        return end_of_slots(self, client, time, self.slot)


@dataclass(frozen=True)
class DayNight:
    """There in each slot with a probability that follows the sun of the client's time zone.

    At local hour h it is mean + amplitude cos(2 pi (h - peak) / 24), cut to [0, 1].

    Args:
        seed: the run's seed; draws a time zone, 0..23, for each client.
        mean: the mean probability, in (0, 1].
        amplitude: in [0, 1].
        peak: hour of the highest probability, in [0, 24).
        slot: length of a slot in seconds, > 0.
    """

    seed: int
    mean: float
    amplitude: float
    peak: float
    slot: float

    def zone(self, client: int) -> int:
        """Return a client's time zone, in hours."""
        return int(generator(self.seed, "time zone", client).integers(24))

    def probability(self, client: int, time: float) -> float:
        """Return the probability of the slot that a time is in."""
        start = math.floor(time / self.slot) * self.slot
        hour = start / DAY * 24 + self.zone(client)
        wave = math.cos(2 * math.pi * (hour - self.peak) / 24)
        return min(1.0, max(0.0, self.mean + self.amplitude * wave))

    def is_there(self, client: int, time: float) -> bool:
        """Return whether the slot's draw is below its probability."""
        drawn = draw(self.seed, client, math.floor(time / self.slot))
        return drawn < self.probability(client, time)

    def leaves(self, client: int, time: float) -> float:
        """Return the end of the first slot after which it is away."""
        return end_of_slots(self, client, time, self.slot)


@dataclass(frozen=True)
class Markov:
    """There and away in turns, each for an exponential time.

    Args:
        seed: the run's seed.
        mean_there: mean seconds of being there, > 0.
        mean_away: mean seconds of being away, > 0.
    """

    seed: int
    mean_there: float
    mean_away: float
    _switches: dict[int, list[float]] = field(default_factory=dict, compare=False, repr=False)

    def is_there(self, client: int, time: float) -> bool:
        """Return whether the number of switches up to a time is even, for one that began there."""
        switches = self._until(client, time)
        began = draw(self.seed, client, -1) < self.mean_there / (self.mean_there + self.mean_away)
        return began == (bisect_right(switches, time) % 2 == 0)

    def leaves(self, client: int, time: float) -> float:
        """Return the next switch."""
        switches = self._until(client, time)
        return switches[bisect_right(switches, time)]

    def _until(self, client: int, time: float) -> list[float]:
        """Return the times of a client's switches, up to the first after a time."""
        # A function of (seed, client): what is kept is only what has been drawn already.
        found = self._switches.setdefault(client, [])
        there = self.mean_there / (self.mean_there + self.mean_away)
        began = draw(self.seed, client, -1) < there
        while not found or found[-1] <= time:
            is_there = began == (len(found) % 2 == 0)
            mean = self.mean_there if is_there else self.mean_away
            drawn = draw(self.seed, client, len(found))
            found.append((found[-1] if found else 0.0) - mean * math.log1p(-drawn))
        return found


@dataclass(frozen=True)
class Trace:
    """There in intervals that are given.

    Args:
        intervals: client -> (start, end) in seconds, ascending and disjoint. A client without any
            is never there.
        period: seconds after which all begins again; None: never.
    """

    intervals: Mapping[int, Sequence[tuple[float, float]]]
    period: float | None = None

    def is_there(self, client: int, time: float) -> bool:
        """Return whether a time is in an interval."""
        return self._interval(client, time) is not None

    def leaves(self, client: int, time: float) -> float:
        """Return the end of the interval that a time is in."""
        found = self._interval(client, time)
        if found is None:
            return time
        base = 0.0 if self.period is None else math.floor(time / self.period) * self.period
        return base + found[1]

    def _interval(self, client: int, time: float) -> tuple[float, float] | None:
        inside = time if self.period is None else time % self.period
        spans = self.intervals.get(client, ())
        place = bisect_right([start for start, _ in spans], inside) - 1
        if place < 0 or inside >= spans[place][1]:
            return None
        return spans[place]


def draw(seed: int, client: int, slot: int) -> float:
    """Return a number in [0, 1) for a client's slot."""
    return float(generator(seed, "availability", client, slot).random())


def end_of_slots(process: Availability, client: int, time: float, slot: float) -> float:
    """Return the end of the run of slots, from that of a time on, in which a client is there.

    After a thousand slots it is taken to stay.
    """
    place = math.floor(time / slot)
    for later in range(place + 1, place + 1001):
        if not process.is_there(client, (later + 0.5) * slot):
            return later * slot
    return math.inf


def read_trace(path: str | Path, period: float | None, key: str) -> Trace:
    """Read a trace: a CSV file with the columns client, start and end, in seconds.

    Raises:
        ConfigError: the file cannot be read, or intervals of a client overlap or end before they
            start, or reach beyond the period.
    """
    rows = read_table(path, key)
    for name in ("client", "start", "end"):
        if name not in rows[0]:
            raise ConfigError(f'"{path}" has no column "{name}"', key=key)
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        client = number(row, "client", path, key, 0)
        if client != int(client):
            raise ConfigError(f'"{path}", column client: got "{row["client"]}"', key=key)
        start, end = number(row, "start", path, key, 0), number(row, "end", path, key, 0)
        if end <= start or (period is not None and end > period):
            limit = "" if period is None else f" and at most the period, {period:g}"
            raise ConfigError(
                f'"{path}", client {int(client)}: end {end:g} must be after start {start:g}{limit}',
                key=key,
            )
        found.setdefault(int(client), []).append((start, end))
    for client, spans in found.items():
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            if start < end:
                raise ConfigError(f'"{path}", client {client}: intervals overlap', key=key)
    return Trace(found, period)
