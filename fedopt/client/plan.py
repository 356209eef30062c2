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

from fedopt.client.rates import RatePlan
from fedopt.seeds import derive, generator

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LocalWork:
    """The amount of local work of a round.

    Args:
        epochs: passes over the client's examples, > 0, or None where `steps` is given.
        steps: optimizer steps, >= 1, or None where `epochs` is given.
        batch_size: examples a step, >= 1, or None for all of them.
        merges_single: whether a last batch of one example is added to the one before it: BatchNorm
            knows no variance of one.
    """

    epochs: float | None
    steps: int | None
    batch_size: int | None
    merges_single: bool = False

    def batch(self, examples: int) -> int:
        """Return the batch size of a client with `examples` examples."""
        return examples if self.batch_size is None else min(self.batch_size, examples)

    def steps_per_epoch(self, examples: int) -> int:
        """Return the steps that one pass takes; the last batch may be smaller."""
        batch = self.batch(examples)
        whole, rest = divmod(examples, batch)
        if self.merges_single and rest == 1 and whole:
            return whole
        return whole + (rest > 0)

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
        steps_per_epoch: steps of one pass over the examples.
        momenta: momentum of each step, `[S]`, or None where it is the rule's own.
        first_step: nominal number of the first step in the whole run, from 0.
        merges_single: whether no step may take a single example.
    """

    client: int
    examples: int
    order: Indices | None
    offsets: Indices
    learning_rates: npt.NDArray[np.float64]
    planned_steps: int
    steps_per_epoch: int
    momenta: npt.NDArray[np.float64] | None = None
    first_step: int = 0
    merges_single: bool = False

    @property
    def steps(self) -> int:
        """S, the steps that happen."""
        return len(self.learning_rates)

    @property
    def is_partial(self) -> bool:
        """Whether fewer steps happen than were planned."""
        return self.steps < self.planned_steps


def plan_clients(
    work: LocalWork,
    seed: int,
    round: int,
    clients: Sequence[int],
    examples: Sequence[int],
    rates: RatePlan,
    steps: Sequence[int],
    lr_scale: float = 1.0,
) -> list[ClientPlan]:
    """Return the plans of some clients; each depends on its own client alone.

    Args:
        work: the amount of local work.
        seed: the run's seed.
        round: communication round, from 1.
        clients: client ids, G of them.
        examples: their numbers of training examples, each >= 1.
        rates: learning rates, and momenta where they are cycled.
        steps: the steps that each of them does, 1..planned.
        lr_scale: factor of all learning rates, > 0.
    """
    # Clients alike in size and steps, often all of them, share what does not depend on who.
    per_epoch = {n: work.steps_per_epoch(n) for n in set(examples)}
    planned = {n: work.planned_steps(n) for n in per_epoch}
    kinds = set(zip(examples, steps, strict=True))
    offsets = {kind: _offsets(work, *kind) for kind in kinds}
    at = {kind: rates.at(round, *kind) for kind in {(count, planned[n]) for n, count in kinds}}
    if lr_scale != 1:
        at = {kind: (lr_scale * lrs, momenta) for kind, (lrs, momenta) in at.items()}
    first_step = rates.first_step(round)
    shuffled = [i for i, n in enumerate(examples) if per_epoch[n] > 1]
    orders: list[Indices | None] = [None] * len(clients)
    made = permutations(
        seed,
        round,
        [clients[i] for i in shuffled],
        [examples[i] for i in shuffled],
        [-(-steps[i] // per_epoch[examples[i]]) for i in shuffled],
    )
    for i, order in zip(shuffled, made, strict=True):
        orders[i] = order
    return [
        ClientPlan(
            client=client,
            examples=n,
            order=own,
            offsets=offsets[n, count],
            learning_rates=at[count, planned[n]][0],
            planned_steps=planned[n],
            steps_per_epoch=per_epoch[n],
            momenta=at[count, planned[n]][1],
            first_step=first_step,
            merges_single=work.merges_single,
        )
        for client, n, count, own in zip(clients, examples, steps, orders, strict=True)
    ]


def permutations(
    seed: int, round: int, clients: Sequence[int], sizes: Sequence[int], epochs: Sequence[int]
) -> list[Indices]:
    """Return, for each client, one permutation of its examples an epoch, one after another.

    Every (client, epoch, position) has a 64-bit key, a mixed counter; a permutation lists the
    positions in the order of their keys. All clients of one size are sorted in one pass, and a
    client's permutations do not depend on who else is asked for.

    Args:
        seed: the run's seed.
        round: communication round, from 1.
        clients: client ids.
        sizes: their numbers of examples.
        epochs: permutations wanted of each.

    Returns:
        One array `[epochs * size]` a client.

    Source: Steele, Lea and Flood 2014 (the mixing function of SplitMix64).
    """
    base = np.uint64(derive(seed, "batches", round) & (2**64 - 1))
    out: list[Indices] = [np.empty(0, dtype=np.int64)] * len(clients)
    alike: dict[tuple[int, int], list[int]] = {}
    for i, shape in enumerate(zip(epochs, sizes, strict=True)):
        alike.setdefault(shape, []).append(i)
    for (count, size), members in alike.items():
        ids = np.array([clients[i] for i in members], dtype=np.uint64)
        client_keys = _mix(base + (ids + np.uint64(1)) * _GOLDEN)[:, None]
        epoch_keys = _mix(client_keys + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
        counters = np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN
        keys = _mix(epoch_keys[:, :, None] + counters)
        order = keys.argsort(axis=2, kind="stable").reshape(len(members), count * size)
        for row, i in enumerate(members):
            out[i] = order[row]
    return out


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Mix 64-bit integers, elementwise (a bijection; arithmetic is modulo 2**64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _offsets(work: LocalWork, examples: int, steps: int) -> Indices:
    """Return where in the order each step begins and the last ends, `[S + 1]`."""
    batch, per_epoch = work.batch(examples), work.steps_per_epoch(examples)
    step = np.arange(steps + 1)
    found: Indices = step // per_epoch * examples + step % per_epoch * batch
    return found


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
    known = {n: work.planned_steps(n) for n in set(sizes.tolist())}
    planned = np.array([known[n] for n in sizes.tolist()], dtype=np.int64)
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
