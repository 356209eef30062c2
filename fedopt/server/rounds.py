"""What a round is made of: who takes part, the sums that come back, the record that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fedopt.client.algorithm import is_weighted
from fedopt.client.attacks import Hostility
from fedopt.client.channel import Channel
from fedopt.client.personal import PersonalPart
from fedopt.client.plan import LocalWork
from fedopt.client.trainer import Reports, Status
from fedopt.optim.kronecker import KroneckerModel
from fedopt.schedules.plateau import Plateau
from fedopt.server.arrival import Arrival
from fedopt.server.client_curriculum import ClientCurriculum
from fedopt.server.client_selection import SelectionRule
from fedopt.server.optimizer import ServerRule
from fedopt.server.privacy import Privacy
from fedopt.server.updates import Updates
from fedopt.system.rounds import Schedule
from fedopt.systems import SystemPlan


def is_due(round: int, every: int, last: int | None) -> bool:
    """Return whether something done every so many rounds is due; in the last round always.

    Args:
        round: communication round, from 1.
        every: rounds between, >= 1.
        last: the last round, where it is known.
    """
    return round % every == 0 or round == last


@dataclass(frozen=True)
class Federation:
    """Who takes part, and how: what a strategy needs to know of the run.

    Args:
        sizes: training examples of each client, `[N]`; clients with none are never sampled.
        clients_per_round: K, the clients sampled a round.
        work: the amount of local work, from which steps are planned.
        seed: the run's seed.
        stragglers: share of the cohort that does a part of its work only, in [0, 1].
        block_size: clients a block; None cuts the cohort into at most 32 blocks.
        skip_failed: whether a failing client is skipped and counted rather than ending the run.
        max_client_failures: how often a client may fail where it is skipped; None: any number.
        validation_clients: clients evaluated on their validation split; 0 for none.
        training_clients: clients on whose training data the model is measured; 0 for none.
        gradients: whether the gradients of their losses are measured as well.
        evaluate_every: rounds between such evaluations; the last round always has one.
        rounds: the last round, where it is known.
        buffers: names of floating arrays of the model that are not trained.
        folder: where client state is kept; None uses a temporary folder.
        optimizer_state: what becomes of the clients' optimizer state between rounds: `reset`,
            `keep` or `average`.
        optimizer_slots: names of the vectors of that state.
        vector_sizes: length of the terms, broadcasts and state fields that are not P long.
        kronecker: the layers with Kronecker factors, where the clients' optimizer has them.
        shared_threshold: whether the clients share a threshold of self-paced learning.
        client_curriculum: which clients may be sampled by when, or None for all.
        personal: what stays with the clients of a personalised strategy, or None.
        channel: what happens to what server and clients send each other, or None.
        privacy: what is known of the rounds' privacy, where the channel adds noise.
        hostility: which clients are hostile, or None.
        selection: which of the clients that are there train, or None for uniform draws.
        system: devices and policy of rounds on the virtual clock, or None without one.
        arrival: who is there by which round, or None for all.
        unseen: ids of the clients that never train and are evaluated, ascending.
        is_real: whether clients are real: each a node of its own, which may go away, so that an
            error of a node counts as its client's.
        min_survivors: updates without which a round has to be done again, >= 1.
        server_rule: the server's optimizer, or None for the strategy's own step.
        plateau: lowers the learning rates when its metric no longer improves, or None.
        lr: learning rate that `plateau` begins with.
    """

    sizes: npt.NDArray[np.int64]
    clients_per_round: int
    work: LocalWork
    seed: int = 0
    stragglers: float = 0.0
    block_size: int | None = None
    skip_failed: bool = False
    max_client_failures: int | None = None
    validation_clients: int = 0
    training_clients: int = 0
    gradients: bool = False
    evaluate_every: int = 1
    rounds: int | None = None
    buffers: tuple[str, ...] = ()
    folder: Path | None = None
    optimizer_state: str = "reset"
    optimizer_slots: tuple[str, ...] = ()
    vector_sizes: Mapping[str, int] = field(default_factory=dict)
    kronecker: KroneckerModel | None = None
    shared_threshold: bool = False
    client_curriculum: ClientCurriculum | None = None
    personal: PersonalPart | None = None
    channel: Channel | None = None
    privacy: Privacy | None = None
    hostility: Hostility | None = None
    selection: SelectionRule | None = None
    system: SystemPlan | None = None
    arrival: Arrival | None = None
    unseen: tuple[int, ...] = ()
    is_real: bool = False
    min_survivors: int = 1
    server_rule: ServerRule | None = None
    plateau: Plateau | None = None
    lr: float = 1.0


@dataclass
class RoundSums:
    """Sums over the clients of a round, in float64.

    Args:
        terms: sum of each term, `[P]` (or its own size), weighted where `is_weighted`.
        buffers: weighted sum of the changes of the buffers, `[Q]`.
        weight: sum of the weights, > 0.
        count: |S|, the clients that are in the sums, >= 1.
        lr_sum: weighted mean over the clients of the sums of their learning rates; NaN where
            the optimizer has none.
        updates: each client's change, where the algorithm wants them.
    """

    terms: dict[str, Tensor]
    buffers: Tensor
    weight: float
    count: int
    lr_sum: float = math.nan
    updates: Updates | None = None

    def mean(self, name: str = "delta") -> Tensor:
        """Return the mean of a term, `[P]`: weighted where `is_weighted`, else uniform."""
        return self.terms[name] / (self.weight if is_weighted(name) else self.count)


@dataclass
class RoundRecord:
    """What happened in a round.

    Args:
        round: communication round, from 1.
        reports: one entry a sampled client.
        train_loss: example-weighted mean loss over the local steps of the clients in the sums.
        bytes_down: bytes sent to the cohort.
        bytes_up: bytes that clients sent back.
        lr_scale: factor of the clients' learning rates in this round.
        client_nbytes: bytes that a client was sent, and that it sent back where it trained.
        epsilon: what the rounds so far cost in privacy; NaN where they are not private.
        schedule: the course of the round on the virtual clock, where there is one.
        clip_norm: norm to which updates were clipped; NaN without.
        metrics: what was measured on clients' data, if anything.
        answers: split, client, examples, loss and accuracy of every client that was evaluated.
    """

    round: int
    reports: Reports
    train_loss: float
    bytes_down: int
    bytes_up: int
    lr_scale: float = 1.0
    client_nbytes: tuple[int, int] = (0, 0)
    epsilon: float = math.nan
    clip_norm: float = math.nan
    schedule: Schedule | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    answers: list[tuple[str, int, int, float, float]] = field(default_factory=list)

    def count(self, *statuses: Status) -> int:
        """Return the number of sampled clients with one of the statuses."""
        return sum(status in statuses for status in self.reports.status)
