"""What a client will do in a round, resolved to arrays before it trains.

A plan is a pure function of (configuration, seed, round, client, number of examples): which
examples each step takes, at what learning rate, and how many of the planned steps happen. Local
training is then a pure function of (parameters, broadcast, client state, plan).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.seeds import generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LocalWork:
    """The amount of local work of a round.

    Args:
        epochs: passes over the client's examples, > 0, or None where `steps` is given.
        steps: optimizer steps, >= 1, or None where `epochs` is given.
        batch_size: examples a step, >= 1, or None for all of them.
    """

    epochs: float | None
    steps: int | None
    batch_size: int | None

    def batch(self, examples: int) -> int:
        """Return the batch size of a client with `examples` examples."""
        return examples if self.batch_size is None else min(self.batch_size, examples)

    def steps_per_epoch(self, examples: int) -> int:
        """Return the steps that one pass takes; the last batch may be smaller."""
        return -(-examples // self.batch(examples))

    def planned_steps(self, examples: int) -> int:
        """Return the steps of a full round: at least one, fractions rounded half to even."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * self.steps_per_epoch(examples)))


@dataclass(frozen=True)
class ClientPlan:
    """What one client does in one round.

    Args:
        client: client id.
        examples: number of the client's training examples, n.
        order: positions in 0..n-1, `[T]`, or None where every step takes all examples in order.
        offsets: step s takes `order[offsets[s]:offsets[s + 1]]`, `[S + 1]`.
        learning_rates: learning rate of each step, `[S]`.
        planned_steps: steps of a full round; S of them happen (fewer on a straggler).
    """

    client: int
    examples: int
    order: Indices | None
    offsets: Indices
    learning_rates: npt.NDArray[np.float64]
    planned_steps: int

    @property
    def steps(self) -> int:
        """S, the steps that happen."""
        return len(self.learning_rates)

    @property
    def is_partial(self) -> bool:
        """Whether fewer steps happen than were planned."""
        return self.steps < self.planned_steps


def plan_client(
    work: LocalWork, seed: int, round: int, client: int, examples: int, lr: float, steps: int
) -> ClientPlan:
    """Return the plan of one client.

    Args:
        work: the amount of local work.
        seed: the run's seed.
        round: communication round, from 1.
        client: client id.
        examples: its number of training examples, >= 1.
        lr: learning rate.
        steps: the steps that happen, 1..planned.
    """
    planned = work.planned_steps(examples)
    batch = work.batch(examples)
    per_epoch = work.steps_per_epoch(examples)
    step = np.arange(steps + 1)
    offsets = step // per_epoch * examples + np.minimum(step % per_epoch * batch, examples)
    order: Indices | None = None
    if per_epoch > 1:
        rng = generator(seed, "batches", round, client)
        epochs = -(-steps // per_epoch)
        order = np.concatenate([rng.permutation(examples) for _ in range(epochs)])
    return ClientPlan(
        client, examples, order, offsets, np.full(steps, lr, dtype=np.float64), planned
    )


def happening_steps(
    work: LocalWork, seed: int, round: int, cohort: Sequence[int], sizes: Indices, share: float
) -> Indices:
    """Return the steps that each sampled client really does, `[K]`.

    Of the cohort, `round(share * K)` clients are stragglers. With whole epochs E >= 2 a straggler
    does 1..E-1 epochs, uniformly drawn, as in the published experiments; otherwise 1..S-1 steps.
    A client with one step always does it.

    Args:
        work: the amount of local work.
        seed: the run's seed.
        round: communication round, from 1.
        cohort: ids of the sampled clients, K of them.
        sizes: their numbers of training examples, `[K]`.
        share: share of stragglers, in [0, 1].

    Source: Li et al. 2020 (FedProx), section 5.2.
    """
    planned = np.array([work.planned_steps(int(n)) for n in sizes], dtype=np.int64)
    stragglers = int(np.rint(share * len(cohort)))
    if not stragglers:
        return planned
    rng = generator(seed, "stragglers", round)
    slow = rng.choice(len(cohort), stragglers, replace=False)
    happening = planned.copy()
    for position in np.sort(slow):
        full = int(planned[position])
        whole_epochs = work.epochs is not None and work.epochs >= 2
        unit = work.steps_per_epoch(int(sizes[position])) if whole_epochs else 1
        if full > unit:
            happening[position] = unit * int(rng.integers(1, -(-full // unit)))
    return happening
