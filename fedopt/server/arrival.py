"""Clients that join while the run goes on: who is there by which round.

The clients that have examples are put in an order drawn once; those at its end join late, in this
order. Who is there is then a number, a function of the round, and a cohort is drawn at a cost that
grows with its own size alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedopt.seeds import generator


@dataclass(frozen=True)
class Arrival:
    """Who is there by which round. Of N clients that have examples, L = round(share N) are late.

        uniform  by round r, L (r - first + 1) / (last - first + 1) of them, rounded down, have
                 joined
        step     they join in `waves` parts of the same size, to within one client, at rounds that
                 are evenly spaced from first to last, both included; one wave joins at first

    and none before `first`.

    Args:
        clients: N, clients that have examples.
        share: of them that are late, in (0, 1).
        first: round in which the first of them join, >= 2.
        last: round by which all have joined, >= first.
        pattern: `uniform` or `step`.
        waves: >= 1.
        seed: the run's seed.
    """

    clients: int
    share: float
    first: int
    last: int
    pattern: str = "uniform"
    waves: int = 1
    seed: int = 0

    @property
    def late(self) -> int:
        """L, the clients that join after the first round."""
        return round(self.share * self.clients)

    @property
    def founders(self) -> int:
        """The clients that are there from the first round on."""
        return self.clients - self.late

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """Positions among the clients that have examples, in the order in which they join."""
        return generator(self.seed, "arrival").permutation(self.clients)

    def joined(self, round: int) -> int:
        """Return how many clients are there in a round, from 1: the first so many of `order`."""
        if round < self.first:
            return self.founders
        if self.pattern == "uniform":
            span = self.last - self.first + 1
            here = self.late * min(round - self.first + 1, span) // span
        else:
            here = self.late * sum(r <= round for r in self.wave_rounds()) // self.waves
        return self.founders + here

    def wave_rounds(self) -> list[int]:
        """Return the rounds in which the waves join."""
        gaps = max(1, self.waves - 1)
        return [self.first + (self.last - self.first) * wave // gaps for wave in range(self.waves)]

    def pool(self, round: int) -> npt.NDArray[np.int64]:
        """Return the positions of the clients that are there in a round, in no order of theirs."""
        return self.order[: self.joined(round)]

    @cached_property
    def rank(self) -> npt.NDArray[np.int64]:
        """Place of each position in the order, `[N]`."""
        found = np.empty(self.clients, dtype=np.int64)
        found[self.order] = np.arange(self.clients)
        return found

    def is_there(self, round: int, position: int) -> bool:
        """Return whether the client at a position is there in a round."""
        return bool(self.rank[position] < self.joined(round))
