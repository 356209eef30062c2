"""Differential privacy of the released models, at the level of clients.

What is private is the sequence of the server's models: that a client took part, with whatever
data, changes the probability of any set of sequences by a factor of at most e^epsilon, but for a
probability delta. Each round releases a sum of clipped updates with Gaussian noise over a random
cohort; the rounds are composed in Renyi differential privacy by the library `dp-accounting`. What
the accountant cannot see: metrics that are measured on clients' data and printed are not private,
the run's seed must stay secret, and floating-point noise is not exactly Gaussian (Mironov 2012).

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy"; McMahan et al. 2018; Mironov
2017, "Renyi Differential Privacy"; Wang, Balle and Kasiviswanathan 2019 (fixed-size cohorts);
Andrew et al. 2021, theorem 1 (the split between updates and counts).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from fedopt.client.channel import Noise
from fedopt.errors import ConfigError


@dataclass(frozen=True)
class Privacy:
    """What a run's rounds release.

    Args:
        noise_multiplier: z, standard deviation of the noise over the sensitivity of a round's
            release, > 0.
        delta: probability with which the guarantee may fail, in (0, 1).
        is_poisson: whether each client is in a cohort independently, with probability
            cohort / clients; else cohorts are of a fixed size, and epsilon is that for replacing
            a client instead of adding or removing one.
        clients: N, the clients that may be sampled.
        cohort: K, the clients of a round, in expectation.
        count_noise: standard deviation of the noise on the number of clients below an adaptive
            clipping norm, > z / 2; None where the norm is fixed.
    """

    noise_multiplier: float
    delta: float
    is_poisson: bool
    clients: int
    cohort: int
    count_noise: float | None = None

    @property
    def rate(self) -> float:
        """The probability with which a client is in a cohort."""
        return self.cohort / self.clients

    @property
    def noise(self) -> Noise:
        """The noise on updates and counts that together cost what noise z on updates alone would.

        A count of halves, (1 or -1) / 2 a client, has the sensitivity 1/2.
        """
        if self.count_noise is None:
            return Noise(self.noise_multiplier)
        left = self.noise_multiplier**-2 - (2 * self.count_noise) ** -2
        return Noise(left**-0.5, self.count_noise)

    def epsilon(self, rounds: int) -> float:
        """Return epsilon after some rounds, >= 0, by `dp_accounting`'s RDP accountant."""
        if not rounds:
            return 0.0
        from dp_accounting.rdp import compute_epsilon  # type: ignore[import-untyped]

        orders, of_round = self._renyi
        found, _ = compute_epsilon(orders, of_round * rounds, self.delta)
        return float(found)

    def facts(self, rounds: int) -> dict[str, Any]:
        """Return what a summary says of the privacy after some rounds."""
        return {
            "epsilon": self.epsilon(rounds),
            "delta": self.delta,
            "noise_multiplier": self.noise_multiplier,
            "sampling": "poisson" if self.is_poisson else "fixed",
            "neighbours": "one client more or less" if self.is_poisson else "one client replaced",
            "accountant": f"dp-accounting {version('dp-accounting')}, RDP",
        }

    @cached_property
    def _renyi(self) -> tuple[Any, Any]:
        """The orders, and the divergences of a round at them."""
        import dp_accounting as dp  # type: ignore[import-untyped]
        from dp_accounting.rdp import RdpAccountant

        if self.is_poisson:
            relation = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
            release = dp.GaussianDpEvent(self.noise_multiplier)
            event = dp.PoissonSampledDpEvent(self.rate, release)
        else:
            # Replacing an update of norm C by another moves the sum by up to 2 C.
            relation = dp.NeighboringRelation.REPLACE_ONE
            release = dp.GaussianDpEvent(self.noise_multiplier / 2)
            event = dp.SampledWithoutReplacementDpEvent(self.clients, self.cohort, release)
        accountant = RdpAccountant(neighboring_relation=relation)
        absl = logging.getLogger("absl")
        level = absl.level
        absl.setLevel(logging.ERROR)  # it warns of orders that it leaves out, which is safe
        try:
            accountant.compose(event)
        finally:
            absl.setLevel(level)
        return accountant.orders, accountant.rdp


def require_accountant(key: str) -> None:
    """Refuse privacy where its accountant is not installed.

    Raises:
        ConfigError: it is not.
    """
    if find_spec("dp_accounting") is None:
        raise ConfigError(
            "the epsilon of noisy rounds is computed by dp-accounting, which is not installed: "
            'python -m pip install "fedopt[privacy]"',
            key=key,
        )


def least_count_noise(noise_multiplier: float) -> float:
    """Return what the noise on counts must exceed: z / 2, or there is none left for updates."""
    return noise_multiplier / 2


def default_count_noise(cohort: int, noise_multiplier: float) -> float:
    """Return the noise on counts of Andrew et al. 2021, K / 20, or what a small cohort needs."""
    return max(cohort / 20, 2 * least_count_noise(noise_multiplier))
