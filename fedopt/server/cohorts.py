"""Who trains in a round: all alike, or those that have joined, are allowed, or are preferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from fedopt.client.trainer import Reports
from fedopt.server.client_selection import ClientSelection, Question
from fedopt.server.questions import answers, questions
from fedopt.server.rounds import Federation
from fedopt.server.sampling import UniformSampler

DIFFICULTIES = "client_difficulties"
"""Name of the clients' difficulties among a checkpoint's vectors."""


class Cohorts:
    """Chooses the clients of rounds, and learns of them what it needs.

    Args:
        federation: who takes part.
        sampler: draws uniformly.

    Attributes:
        measured: clients that measured the model before this round.
        seconds: (round, clients) -> virtual seconds of their parts, where there is a clock.
    """

    def __init__(self, federation: Federation, sampler: UniformSampler) -> None:
        self._federation = federation
        self._sampler = sampler
        self.measured = 0
        self.seconds: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float64]] | None = None
        self._asking: tuple[ArrayRecord, ConfigRecord, Grid] | None = None
        rule = federation.selection
        self._selection = (
            None if rule is None else ClientSelection(rule, federation.seed, len(federation.sizes))
        )
        self._difficulties = (
            torch.full((sampler.clients,), math.nan, dtype=torch.float64)
            if federation.client_curriculum is not None
            else None
        )

    def cohort(self, round: int) -> npt.NDArray[np.int64]:
        """Return the clients of a round: of all, or of those that the curriculum allows."""
        federation, count = self._federation, self._federation.clients_per_round
        privacy = federation.privacy
        if privacy is not None and privacy.is_poisson:
            return self._sampler.poisson(round, privacy.rate)
        if self._selection is not None:
            return self.choose(round, 0, count, lambda client: True)
        if federation.client_curriculum is None or self._difficulties is None:
            return self.drawn(round, count)
        known = self._difficulties.numpy()
        pool = federation.client_curriculum.pool(round, known, count, federation.seed)
        return self._sampler.sample_from(round, count, pool)

    def choose(
        self, round: int, attempt: int, count: int, is_there: Callable[[int], bool]
    ) -> npt.NDArray[np.int64]:
        """Return ids of at most `count` clients that are there, ascending.

        Args:
            round: communication round, from 1.
            attempt: number of the draw in the round.
            count: clients wanted.
            is_there: whether a client can be reached.
        """
        federation = self._federation
        allowed: set[int] | None = None
        if federation.client_curriculum is not None and self._difficulties is not None:
            known = self._difficulties.numpy()
            pool = federation.client_curriculum.pool(round, known, count, federation.seed)
            allowed = set(self._sampler.ids(pool).tolist())

        def may(client: int) -> bool:
            if allowed is not None and client not in allowed:
                return False
            return self._is_there(round, client) and is_there(client)

        if self._selection is None:
            return self._sampler.sample_there(round, count, may, attempt)
        everyone = self._sampler.everyone()
        there = everyone[[may(client) for client in everyone.tolist()]]
        seconds = None if self.seconds is None else partial(self.seconds, round)
        question = Question(
            round,
            attempt,
            count,
            there,
            federation.sizes[there],
            seconds,
            partial(self._losses_of, round),
        )
        return self._selection.choose(question)

    def _losses_of(self, round: int, clients: npt.NDArray[np.int64]) -> dict[int, float]:
        """Return the loss of the server's model on some clients' training data."""
        assert self._asking is not None
        arrays, config, grid = self._asking
        asked = questions(round, np.sort(clients), arrays, config, grid, "train")
        rows = answers(grid.send_and_receive(asked))
        self.measured += len(rows)
        return {row[0]: row[2] for row in rows}

    def drawn(self, round: int, count: int, purpose: str = "cohort") -> npt.NDArray[np.int64]:
        """Return at most `count` ids, ascending, drawn uniformly among those that are there."""
        arrival = self._federation.arrival
        if arrival is None:
            return self._sampler.sample(round, min(count, self._sampler.clients), purpose)
        pool = arrival.pool(round)
        return np.sort(self._sampler.sample_from(round, min(count, len(pool)), pool, purpose))

    def _is_there(self, round: int, client: int) -> bool:
        """Return whether a client has joined by a round."""
        arrival, ids = self._federation.arrival, np.array([client], dtype=np.int64)
        return arrival is None or arrival.is_there(round, int(self._sampler.positions(ids)[0]))

    def begin(self, round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> None:
        """Take in what questions of a round need, and let all clients measure where that is due."""
        self._asking = arrays, config, grid
        curriculum = self._federation.client_curriculum
        self.measured = 0
        if curriculum is None or self._difficulties is None or not curriculum.measures(round):
            return
        losses = self._losses_of(round, self._sampler.everyone())
        self._keep_difficulties(list(losses), list(losses.values()))

    def learn(self, round: int, reports: Reports) -> None:
        """Take in the training losses of the clients of a round."""
        curriculum = self._federation.client_curriculum
        if curriculum is not None and curriculum.measure_every is None:
            self._keep_difficulties(reports.client, reports.train_loss)
        if self._selection is not None:
            self._selection.learn(round, reports.client, reports.train_loss)

    def _keep_difficulties(self, clients: Sequence[int], losses: Sequence[float]) -> None:
        assert self._difficulties is not None
        known = np.isfinite(losses)
        places = self._sampler.positions(np.array(clients, dtype=np.int64)[known])
        values = torch.tensor(losses, dtype=torch.float64)[torch.from_numpy(known)]
        self._difficulties[torch.from_numpy(places)] = values

    def vectors(self) -> dict[str, Tensor]:
        """Return what was learnt, for a checkpoint."""
        found = {} if self._selection is None else self._selection.vectors()
        if self._difficulties is not None:
            found[DIFFICULTIES] = self._difficulties
        return found

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        if self._selection is not None:
            self._selection.load(vectors)
        if self._difficulties is not None:
            self._difficulties = vectors[DIFFICULTIES].clone()
