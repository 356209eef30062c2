"""One threshold of self-paced learning for all clients: the mean of the last cohort's quantiles."""

from __future__ import annotations

from dataclasses import dataclass

from fedopt.client.algorithm import (
    THRESHOLD,
    ClientUpdate,
    LocalAlgorithm,
    LocalResult,
    LocalTerms,
    Vectors,
    state_scalars,
)


def with_shared_threshold(algorithm: LocalAlgorithm, shared: bool) -> LocalAlgorithm:
    """Return a strategy's client side, with the threshold as a further term where it is shared."""
    return SharedThreshold(algorithm) if shared else algorithm


@dataclass(frozen=True)
class SharedThreshold:
    """A strategy's client side that also sends the threshold at the quantile of its own losses.

    The trainer fills the term in; it is of length 1 and weighted as the update is.

    Args:
        inner: the strategy's client side.
    """

    inner: LocalAlgorithm

    @property
    def terms(self) -> tuple[str, ...]:
        """The strategy's terms and the threshold."""
        return (*self.inner.terms, THRESHOLD)

    @property
    def state_fields(self) -> tuple[str, ...]:
        """The strategy's fields."""
        return self.inner.state_fields

    @property
    def state_scalars(self) -> tuple[str, ...]:
        """The strategy's numbers."""
        return state_scalars(self.inner)

    def begin(self, broadcast: Vectors, state: Vectors) -> LocalTerms:
        """Return the strategy's terms."""
        return self.inner.begin(broadcast, state)

    def finish(self, result: LocalResult, broadcast: Vectors, state: Vectors) -> ClientUpdate:
        """Return the strategy's update."""
        return self.inner.finish(result, broadcast, state)
