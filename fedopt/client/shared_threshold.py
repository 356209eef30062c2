"""One threshold of self-paced learning for all clients: the mean of the last cohort's quantiles."""

from __future__ import annotations

from fedopt.client.algorithm import THRESHOLD, LocalAlgorithm, WrappedAlgorithm


def with_shared_threshold(algorithm: LocalAlgorithm, shared: bool) -> LocalAlgorithm:
    """Return a strategy's client side, with the threshold as a further term where it is shared."""
    return SharedThreshold(algorithm) if shared else algorithm


class SharedThreshold(WrappedAlgorithm):
    """A strategy's client side that also sends the threshold at the quantile of its own losses.

    The trainer fills the term in; it is of length 1 and weighted as the update is.
    """

    @property
    def terms(self) -> tuple[str, ...]:
        """The strategy's terms and the threshold."""
        return (*self.inner.terms, THRESHOLD)
