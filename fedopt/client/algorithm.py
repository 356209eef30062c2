"""What a strategy adds to local training: objective terms before, update arithmetic after.

Engines train *groups* of clients (one at a time, or many stacked) and know no strategy by name.
All tensors here carry the group as their first axis: `[G, P]` with G clients and P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.seeds import torch_generator

Vectors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LocalTerms:
    """What is added to the gradient of the client's loss at every step.

    Args:
        proximal: mu of the term mu/2 |w - x|^2, x being the server's parameters; 0 for none.
        correction: vector added to each gradient, `[G, P]` or `[1, P]`, or None.
        full_gradient: whether the gradient at x over all the client's examples is wanted.
        gradient_scale: factor of the client's own gradient, before anything is added to it.
        optimizer_state: the rule's slots to go on from, `[G, P]` or `[1, P]` by name; None
            begins afresh.
        optimizer_steps: the rule's step counters that belong to them, `[G]` or a scalar.
        mixing: whether what models are mixed with is wanted: changes in the metric of the
            clients' input factors, and these.
        thresholds: each client's threshold of self-paced learning, `[G]`, > 0; None: infinite.
        preconditioner: factor of each element of the corrected gradient, `[1, P]`, or None.
        start: parameters that each client begins with instead of x, `[G, P]`, or None.
        start_buffers: likewise of the buffers, `[G, Q]` in float64, or None.
        phases: in which steps which parameters are trained, or None for all in all.
        padding: how batches are padded, where the group is a part of a larger one; None: as the
            group needs.
    """

    proximal: float = 0.0
    correction: Tensor | None = None
    full_gradient: bool = False
    gradient_scale: float = 1.0
    optimizer_state: Vectors | None = None
    optimizer_steps: Tensor | None = None
    mixing: bool = False
    thresholds: Tensor | None = None
    preconditioner: Tensor | None = None
    start: Tensor | None = None
    start_buffers: Tensor | None = None
    phases: Phases | None = None
    padding: Padding | None = None

    @property
    def is_additive(self) -> bool:
        """Whether vectors are added to the gradient at most: nothing scales or freezes it."""
        return self.gradient_scale == 1 and self.preconditioner is None and self.phases is None


@dataclass(frozen=True)
class Padding:
    """How the batches of a group are padded: their length, and whether some client has less.

    Args:
        steps: of the batch of each step, `[S]` each; None where all clients have the same batches.
        examples: of the batch of all examples.
    """

    steps: tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None
    examples: tuple[int, bool]


@dataclass(frozen=True)
class Phases:
    """A client trains one part of the model in its first steps, the rest in the others.

    Args:
        first: whether each array of the model is trained in the first steps.
        share: share of a client's steps in which that is, rounded, in (0, 1).
    """

    first: tuple[bool, ...]
    share: float

    def steps(self, steps: int) -> int:
        """Return how many of some steps are first ones: of two or more at least one, not all."""
        return min(max(round(self.share * steps), 1), max(steps - 1, 1))


@dataclass(frozen=True)
class LocalResult:
    """What the local training of a group of clients gave.

    Args:
        delta: w - x, the change of the parameters, `[G, P]`; w is the client's last iterate, or
            the mean of its last ones where the recipe averages. An engine may overwrite it in its
            next training.
        buffers: change of the buffers since the client began, `[G, Q]` in float64.
        train_loss: example-weighted mean of the minibatch losses, `[G]`.
        lr_sum: sum of the coefficients with which gradients entered the update, `[G]`: the sum
            of the learning rates of the applied steps for SGD; None where the update is not
            linear in them.
        full_gradient: gradient at x over all examples, `[G, P]`, where it was asked for.
        last: w - x for the last iterate, where `delta` is that of an average.
        skipped: steps that did not happen because of their gradient, `[G]`, where that can be.
        optimizer_state: the rule's slots after the last step, `[G, P]`, where they are kept.
        optimizer_steps: its step counters, `[G]`, where they are kept.
        mixed: the change in the metric of the client's input factors, `[G, P]`, where asked for.
        selected: share of the examples of the steps that had a weight > 0, `[G]`, where the
            recipe is self-paced.
        start_loss: loss at x over all the client's examples, `[G]` in float64, where the
            algorithm wants it.
        personal: what a second training gave, where the algorithm asked for one.
    """

    delta: Tensor
    buffers: Tensor
    train_loss: Tensor
    lr_sum: Tensor | None
    full_gradient: Tensor | None = None
    last: Tensor | None = None
    skipped: Tensor | None = None
    optimizer_state: Vectors = field(default_factory=dict)
    optimizer_steps: Tensor | None = None
    mixed: Tensor | None = None
    selected: Tensor | None = None
    start_loss: Tensor | None = None
    personal: LocalResult | None = None

    @property
    def displacement(self) -> Tensor:
        """W - x for the last iterate, `[G, P]`: what the applied gradients add up to."""
        return self.delta if self.last is None else self.last


@dataclass(frozen=True)
class ClientUpdate:
    """What a group of clients sends and keeps.

    Args:
        terms: vectors to be summed over clients, `[G, P]` each.
        state: the clients' new state, `[G, P]` each, by field.
        buffers: change of the buffers that is averaged, `[G, Q]`; None: all of it.
    """

    terms: Vectors
    state: Vectors = field(default_factory=dict)
    buffers: Tensor | None = None


OPTIMIZER = "optimizer."
"""Prefix of the terms, broadcasts and state fields that are an optimizer's, not a strategy's."""


THRESHOLD = "self_paced.threshold"
"""Name of the term and broadcast of a shared threshold of self-paced learning, of length 1."""


GRADIENT = "gradient"
"""Name of the term of a client's gradient at x over all its examples."""


FAIRNESS = "fairness"
"""Name of the term by which q-FedAvg divides, of length 1."""


PARAMETERS, BUFFERS = "parameters", "buffers"
"""Names of the server's parameters x and buffers among what an algorithm's functions are given."""


WEIGHTED = frozenset({"delta", THRESHOLD, GRADIENT, FAIRNESS})
"""The terms that are summed with the clients' weights, besides those of optimizers."""


def is_weighted(term: str) -> bool:
    """Return whether a term is summed with the clients' weights rather than with 1."""
    return term in WEIGHTED or term.startswith(OPTIMIZER)


class LocalAlgorithm(Protocol):
    """The client's side of a strategy, as two pure functions and two declarations.

    The vectors of `broadcast` include x and the server's buffers, as `PARAMETERS` and `BUFFERS`.
    What only some algorithms declare is read by the functions below: `state_scalars`, `collected`,
    `needs_start_loss`, `second`, `send`, `settle`.
    """

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the vectors that a client sends (see `is_weighted`)."""
        ...

    @property
    def state_fields(self) -> tuple[str, ...]:
        """Names of the vectors `[P]` that a client keeps between rounds; zero at first."""
        ...

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the objective terms, from what the server sent and the clients kept."""
        ...

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return what the clients send and keep."""
        ...


def state_scalars(algorithm: LocalAlgorithm) -> tuple[str, ...]:
    """Return the names of the single numbers that a client keeps besides `state_fields`."""
    names: tuple[str, ...] = getattr(algorithm, "state_scalars", ())
    return names


def collected(algorithm: LocalAlgorithm) -> bool:
    """Return whether the server needs each client's change, not their sum."""
    return bool(getattr(algorithm, "collected", False))


def needs_start_loss(algorithm: LocalAlgorithm) -> bool:
    """Return whether a client is to measure the loss at x over all its examples."""
    return bool(getattr(algorithm, "needs_start_loss", False))


def second_training(
    algorithm: LocalAlgorithm, broadcast: Vectors, state: Vectors
) -> LocalTerms | None:
    """Return the objective terms of a second training in the same round, where there is one."""
    second = getattr(algorithm, "second", None)
    terms: LocalTerms | None = None if second is None else second(broadcast, state)
    return terms


def settled(algorithm: LocalAlgorithm, update: ClientUpdate, state: Vectors) -> Vectors:
    """Return what clients keep once it is known what has arrived of their update.

    Where the server's state is the mean of the clients', as SCAFFOLD's is, they go on from what it
    has added up, not from what they would have sent without clipping, noise and compression.

    Args:
        algorithm: the strategy's client side.
        update: what has arrived, and what they would keep.
        state: what they kept before.
    """
    settle = getattr(algorithm, "settle", None)
    found: Vectors = update.state if settle is None else settle(update, state)
    return found


NOISE = "channel.noise"
"""Purpose of the draws that protect clients."""


@dataclass(frozen=True)
class Senders:
    """A group of clients that is about to send its updates.

    Args:
        seed: the run's seed.
        round: communication round, from 1.
        clients: ids, one a row of the update.
        cohort: clients sampled in the round, >= 1.
        secret: seed of the noise that protects the clients; None for the run's, which in a
            simulation is as good, but which a real server knows.
    """

    seed: int
    round: int
    clients: Sequence[int]
    cohort: int
    secret: int | None = None

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return each client's own generator for a purpose, on the CPU."""
        seed = self.secret if purpose == NOISE and self.secret is not None else self.seed
        return [torch_generator(seed, purpose, self.round, c) for c in self.clients]


def sent(
    algorithm: LocalAlgorithm,
    update: ClientUpdate,
    broadcast: Vectors,
    state: Vectors,
    senders: Senders,
) -> ClientUpdate:
    """Return what arrives of a group's update: as it is, unless the algorithm says otherwise."""
    send = getattr(algorithm, "send", None)
    if send is None:
        return update
    arrived: ClientUpdate = send(update, broadcast, state, senders)
    return arrived


@dataclass(frozen=True)
class WrappedAlgorithm:
    """Another algorithm's client side, of which subclasses change some part.

    Args:
        inner: that algorithm.
    """

    inner: LocalAlgorithm

    @property
    def terms(self) -> tuple[str, ...]:
        """The algorithm's terms."""
        return self.inner.terms

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The algorithm's fields."""
        return self.inner.state_fields

    @property
    def state_scalars(self) -> tuple[str, ...]:
        """The algorithm's numbers."""
        return state_scalars(self.inner)

    @property
    def collected(self) -> bool:
        """Whether the server needs each client's change."""
        return collected(self.inner)

    @property
    def needs_start_loss(self) -> bool:
        """Whether a client is to measure the loss at x."""
        return needs_start_loss(self.inner)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the algorithm's objective terms."""
        return self.inner.begin(broadcast, state)

    def second(self, broadcast: Vectors, state: Vectors) -> LocalTerms | None:
        """Return the objective terms of the algorithm's second training, where there is one."""
        return second_training(self.inner, broadcast, state)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the algorithm's update."""
        return self.inner.finish(result, broadcast, state)

    def settle(self, update: ClientUpdate, state: Vectors) -> Vectors:
        """Return what the algorithm's clients keep of an update that has arrived."""
        return settled(self.inner, update, state)


@dataclass(frozen=True)
class PlainLocal:
    """Plain local training, with a proximal term where mu > 0: FedAvg's and FedProx's client.

    Source: McMahan et al. 2017, algorithm 1; Li et al. 2020, algorithm 2.
    """

    mu: float = 0.0
    terms: ClassVar[tuple[str, ...]] = ("delta",)
    state_fields: ClassVar[tuple[str, ...]] = ()

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the proximal term."""
        return LocalTerms(proximal=self.mu)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the change of the parameters."""
        return ClientUpdate({"delta": result.delta})
