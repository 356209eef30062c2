"""A curriculum over clients: which may be sampled by when, by their loss.

A client's difficulty is the mean minibatch loss of its last participation, which it reports anyway:
nothing more is computed or sent. Clients that have not trained yet have none and come first, in an
order drawn once. Or all clients measure the server's model on their training data, every so many
rounds, for which each downloads the model and sends a number. With the order `random` difficulty is
the order drawn once alone, which is the control.

Source: Vahidian et al. 2023, "When Do Curricula Work in Federated Learning?" (client curriculum by
the loss of the global model).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedopt.curriculum.pacing import available, pacing_share
from fedopt.seeds import generator


@dataclass(frozen=True)
class ClientCurriculum:
    """Which clients may be sampled by when.

    Args:
        order: `curriculum` (low loss first), `anti`, or `random`.
        pacing: see `fedopt.curriculum.pacing_share`.
        start: share of the clients in the first round, in (0, 1].
        full_at: share of the rounds after which all may be sampled, in (0, 1].
        rounds: of the run.
        measure_every: rounds between measurements of all clients, >= 1, the first in round 1; None
            for the loss of a client's last participation.
    """

    order: str
    pacing: str = "linear"
    start: float = 0.2
    full_at: float = 0.8
    rounds: int = 1
    measure_every: int | None = None

    def measures(self, round: int) -> bool:
        """Return whether all clients are measured before a round, from 1."""
        return self.measure_every is not None and (round - 1) % self.measure_every == 0

    def pool(
        self, round: int, difficulties: npt.NDArray[np.float64], count: int, seed: int
    ) -> npt.NDArray[np.int64]:
        """Return the positions of the clients that may be sampled, ascending, at least `count`.

        Args:
            round: communication round, from 1.
            difficulties: of each client, `[N]`; NaN where it has not trained.
            count: clients wanted.
            seed: the run's seed.
        """
        clients = len(difficulties)
        progress = (round - 1) / self.rounds
        share = pacing_share(self.pacing, progress, self.start, self.full_at)
        size = max(count, available(share, clients))
        if size >= clients:
            return np.arange(clients)
        drawn = generator(seed, "client order").permutation(clients)
        if self.order == "random":
            return np.sort(drawn[:size])
        keys = difficulties if self.order == "curriculum" else -difficulties
        keys = np.where(np.isnan(keys), -np.inf, keys)
        found: npt.NDArray[np.int64] = np.sort(drawn[np.argsort(keys[drawn], kind="stable")[:size]])
        return found
