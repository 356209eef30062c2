"""The optimizer's state between rounds: kept by each client, or averaged by the server.

Each wraps the client's side of any strategy and adds what it moves: state fields of the client,
or terms that the server averages and sends back. Strategies know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from fedopt.client.algorithm import (
    OPTIMIZER,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
    WrappedAlgorithm,
    state_scalars,
)

STEPS = f"{OPTIMIZER}steps"
"""Name of the step counter, a scalar."""


def with_optimizer_state(
    algorithm: LocalAlgorithm, mode: str, slots: tuple[str, ...]
) -> LocalAlgorithm:
    """Return an algorithm whose clients' optimizers go on from a former state.

    Args:
        algorithm: the strategy's client side.
        mode: `reset` begins afresh each round; `keep` gives each client its own last state;
            `average` gives all clients the weighted mean of the last cohort's states.
        slots: names of the optimizer's vectors.
    """
    if mode == "keep":
        return KeptState(algorithm, slots)
    if mode == "average":
        return AveragedState(algorithm, slots)
    return algorithm


@dataclass(frozen=True)
class _WithSlots(WrappedAlgorithm):
    """A strategy's client side, of which subclasses change what the optimizer's state needs.

    Args:
        inner: the strategy's client side.
        slots: names of the optimizer's vectors.
    """

    slots: tuple[str, ...]

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the optimizer's vectors among terms, broadcasts and fields."""
        return tuple(OPTIMIZER + slot for slot in self.slots)


class KeptState(_WithSlots):
    """Each client goes on with the optimizer's state of its own last round."""

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The strategy's fields and the slots."""
        return (*self.inner.state_fields, *self.vectors)

    @property
    def state_scalars(self) -> tuple[str, ...]:
        """The strategy's numbers and the step counter."""
        return (*state_scalars(self.inner), STEPS)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the strategy's terms with the clients' own optimizer state."""
        slots = {slot: state[OPTIMIZER + slot] for slot in self.slots}
        terms = self.inner.begin(broadcast, state)
        return replace(terms, optimizer_state=slots, optimizer_steps=state[STEPS].long())

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the strategy's update, and the optimizer's state as the clients' own."""
        update = self.inner.finish(result, broadcast, state)
        kept = dict(update.state) | _slots(result)
        assert result.optimizer_steps is not None
        return replace(update, state=kept | {STEPS: result.optimizer_steps})


class AveragedState(_WithSlots):
    """All clients go on with the weighted mean of the last cohort's optimizer states."""

    @property
    def terms(self) -> tuple[str, ...]:
        """The strategy's terms and the slots."""
        return tuple(dict.fromkeys((*self.inner.terms, *self.vectors)))

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the strategy's terms with the server's optimizer state."""
        slots = {slot: broadcast[OPTIMIZER + slot].unsqueeze(0) for slot in self.slots}
        steps = broadcast[STEPS].round().long().cpu()
        terms = self.inner.begin(broadcast, state)
        return replace(terms, optimizer_state=slots, optimizer_steps=steps)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the strategy's update with the optimizer's state as further terms."""
        update = self.inner.finish(result, broadcast, state)
        return replace(update, terms=dict(update.terms) | _slots(result))


def _slots(result: LocalResult) -> dict[str, Tensor]:
    return {OPTIMIZER + name: vector for name, vector in result.optimizer_state.items()}
