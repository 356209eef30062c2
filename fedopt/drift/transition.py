"""When a drift happens: how far a group of clients is in a round, in closed form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Transition:
    """The way from the old concept to the new one.

    With r a round and s the group's first, a group is so far:

        sudden       1 from s on
        gradual      (r - s + 1) / length, at most 1: the share of examples of the new concept
        incremental  the same: how far the concept itself has moved
        recurring    1 in the first `period` rounds from s, 0 in the next, and so on

    and 0 before s.

    Args:
        kind: one of these.
        start: first round of the first group, >= 1.
        stagger: rounds by which each group starts after the one before it, >= 0.
        length: see above, >= 1.
        period: see above, >= 1.

    Source: Gama et al. 2014, "A Survey on Concept Drift Adaptation", figure 2; groups that drift
        at different times: Jothimurugesan et al. 2023, "Federated Learning under Distributed
        Concept Drift".
    """

    kind: str
    start: int
    stagger: int = 0
    length: int = 10
    period: int = 10

    def first_round(self, group: int) -> int:
        """Return the first round of a group, groups from 1."""
        return self.start + (group - 1) * self.stagger

    def amount(self, round: int, group: int) -> float:
        """Return how far a group is in a round, in [0, 1]; 0 for group 0, which does not drift."""
        since = round - self.first_round(group)
        if since < 0 or group == 0:
            return 0.0
        if self.kind == "sudden":
            return 1.0
        if self.kind == "recurring":
            return float(since // self.period % 2 == 0)
        return min(1.0, (since + 1) / self.length)
