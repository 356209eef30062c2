"""Which of the clients that are there train: by size, loss, speed, or a mixture.

    size             drawn in proportion to the examples, without replacement
    power_of_choice  of some candidates, drawn in proportion to their examples, those with the
                     highest loss of the server's model
    oort             by utility: loss times examples, more for clients not seen for long, less for
                     those slower than most; a share of the round goes to clients never tried
    fastest          those whose part takes least time by the system profile

Each favours some clients, and so biases the model to their data, which is said in the documentation
and can be seen in the clients' accuracies and in the fairness of participation.

Source: Cho, Wang and Joshi 2022, "Towards Understanding Biased Client Selection in Federated
Learning" (power of choice), algorithm 1; Lai et al. 2021, "Oort: Efficient Federated Learning via
Guided Participant Selection", algorithm 1; Nishio and Yonetani 2019, "Client Selection for
Federated Learning with Heterogeneous Resources in Mobile Edge" (fastest).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.seeds import generator

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LOSSES, ROUNDS = "selection.losses", "selection.rounds"
"""Names of what is known of the clients among a checkpoint's vectors."""


@dataclass(frozen=True)
class Question:
    """What is asked of a selector.

    Args:
        round: communication round, from 1.
        attempt: number of the draw in the round.
        count: clients wanted.
        clients: ids of those that are there, ascending.
        sizes: their training examples.
        seconds: returns the seconds of some clients' parts, where there is a system profile.
        measure: returns the loss of the server's model on some clients' training data, which costs
            each a download and a number.
    """

    round: int
    attempt: int
    count: int
    clients: Ids
    sizes: npt.NDArray[np.int64]
    seconds: Callable[[Ids], Floats] | None
    measure: Callable[[Ids], Mapping[int, float]]


class ClientSelection:
    """A rule, and what it has learnt of the clients.

    Args:
        rule: what it does.
        seed: the run's seed.
        clients: N, the clients of the population.
    """

    def __init__(self, rule: SelectionRule, seed: int, clients: int) -> None:
        self._rule = rule
        self._seed = seed
        self.losses = np.full(clients, np.nan)
        self.rounds = np.zeros(clients)  # of the last participation; 0: never

    def choose(self, question: Question) -> Ids:
        """Return ids of at most `count` clients, ascending."""
        if len(question.clients) <= question.count:
            return question.clients
        rng = generator(self._seed, "selection", question.round, question.attempt)
        return np.sort(self._rule.choose(question, self, rng)).astype(np.int64)

    def learn(self, round: int, clients: Sequence[int], losses: Sequence[float]) -> None:
        """Take in the training losses of clients that took part."""
        for client, loss in zip(clients, losses, strict=True):
            if math.isfinite(loss):
                self.losses[client] = loss
            self.rounds[client] = round

    def vectors(self) -> dict[str, Tensor]:
        """Return what is known, for a checkpoint."""
        return {LOSSES: torch.from_numpy(self.losses), ROUNDS: torch.from_numpy(self.rounds)}

    def load(self, vectors: Mapping[str, Tensor]) -> None:
        """Take back what `vectors` returned."""
        self.losses = vectors[LOSSES].numpy().copy()
        self.rounds = vectors[ROUNDS].numpy().copy()


class SelectionRule:
    """The base of rules."""

    def choose(self, question: Question, known: ClientSelection, rng: np.random.Generator) -> Ids:
        """Return ids of `count` of the question's clients, which are more."""
        raise TypeError(f"{type(self).__name__} defines no choose")


@dataclass(frozen=True)
class BySize(SelectionRule):
    """In proportion to the examples, without replacement."""

    def choose(self, question: Question, known: ClientSelection, rng: np.random.Generator) -> Ids:
        """Return the drawn clients."""
        return weighted_sample(question.clients, question.sizes, question.count, rng)


@dataclass(frozen=True)
class PowerOfChoice(SelectionRule):
    """The clients with the highest loss among candidates.

    Args:
        candidates: d, as a multiple of the clients wanted, >= 1.
        measure: whether candidates measure the server's model; else the loss of a client's last
            participation counts, and those that never took part come first.

    Source: Cho et al. 2022, algorithm 1 (pow-d), and section 5 (rpow-d).
    """

    candidates: float = 2.0
    measure: bool = True

    def choose(self, question: Question, known: ClientSelection, rng: np.random.Generator) -> Ids:
        """Return the candidates with the highest loss, of equals those drawn first."""
        wanted = min(len(question.clients), math.ceil(self.candidates * question.count - 1e-9))
        drawn = weighted_sample(question.clients, question.sizes, wanted, rng)
        if self.measure:
            found = question.measure(drawn)
            losses = np.array([found.get(int(client), -np.inf) for client in drawn])
        else:
            losses = known.losses[drawn]
            losses = np.where(np.isnan(losses), np.inf, losses)
        return drawn[np.argsort(-losses, kind="stable")[: question.count]]


@dataclass(frozen=True)
class Oort(SelectionRule):
    """By utility, with a share for clients that were never tried.

    The utility of client i is n_i loss_i + sqrt(0.1 ln r / r_i), scaled to the largest of its first
    part, r_i being the round of its last participation; it is multiplied by (T / t_i)^alpha where
    its part takes t_i > T seconds, T being a quantile of the times of the clients that are there.
    The paper's loss is the root of the mean square over a client's examples; here it is the mean,
    which clients report anyway.

    Args:
        explore: share of the round for clients never tried, at first, in [0, 1].
        decay: factor of that share from round to round, in (0, 1].
        least: its smallest value, in [0, 1].
        quantile: of the times, in (0, 1].
        alpha: how much slowness costs, >= 0.
        cutoff: clients with at least this share of the smallest utility that would be taken may be
            drawn, in (0, 1].

    Source: Lai et al. 2021, algorithm 1 and equation 1.
    """

    explore: float = 0.9
    decay: float = 0.98
    least: float = 0.2
    quantile: float = 0.8
    alpha: float = 2.0
    cutoff: float = 0.95

    def choose(self, question: Question, known: ClientSelection, rng: np.random.Generator) -> Ids:
        """Return the clients to explore and to exploit."""
        clients, count = question.clients, question.count
        tried = known.rounds[clients] > 0
        share = max(self.least, self.explore * self.decay ** (question.round - 1))
        new = min(int((~tried).sum()), max(round(share * count), count - int(tried.sum())))
        explored = rng.choice(clients[~tried], new, replace=False)
        mine, sizes = clients[tried], question.sizes[tried]
        wanted = count - new
        if not wanted:
            return explored
        utility = self.utility(question, known, mine, sizes)
        smallest = np.sort(utility)[-wanted]
        good = utility >= self.cutoff * smallest
        drawn = weighted_sample(mine[good], np.maximum(utility[good], 1e-12), wanted, rng)
        return np.concatenate([explored, drawn])

    def utility(
        self,
        question: Question,
        known: ClientSelection,
        clients: Ids,
        sizes: npt.NDArray[np.int64],
    ) -> Floats:
        """Return the utility of clients that took part before."""
        losses = np.nan_to_num(known.losses[clients], nan=0.0)
        gains = sizes * np.maximum(losses, 0.0)
        gains = gains / max(float(gains.max(initial=0.0)), 1e-300)
        waited = np.sqrt(0.1 * np.log(max(question.round, 2)) / known.rounds[clients])
        utility: Floats = gains + waited
        if question.seconds is not None and self.alpha:
            times = question.seconds(clients)
            preferred = float(np.quantile(question.seconds(question.clients), self.quantile))
            slow = times > preferred
            utility = np.where(
                slow, utility * (preferred / np.where(slow, times, 1.0)) ** self.alpha, utility
            )
        return utility


@dataclass(frozen=True)
class Fastest(SelectionRule):
    """The clients whose parts take least time.

    Source: Nishio and Yonetani 2019 (FedCS), without its deadline.
    """

    def choose(self, question: Question, known: ClientSelection, rng: np.random.Generator) -> Ids:
        """Return the fastest clients, of equals those with the smaller id."""
        assert question.seconds is not None
        order = np.argsort(question.seconds(question.clients), kind="stable")
        return question.clients[order[: question.count]]


def weighted_sample(
    clients: Ids,
    weights: npt.NDArray[np.int64] | Floats,
    count: int,
    rng: np.random.Generator,
) -> Ids:
    """Return `count` clients, drawn one after another in proportion to their weights.

    Source: Efraimidis and Spirakis 2006 (keys log(u) / w).
    """
    keys = np.log(1 - rng.random(len(clients))) / weights
    return clients[np.argsort(-keys, kind="stable")[:count]]


def jain_index(counts: npt.NDArray[np.int64] | Floats) -> float:
    """Return Jain's index of fairness, in [1/N, 1]: (sum x)^2 / (N sum x^2); 1 where all are equal.

    Source: Jain, Chiu and Hawe 1984.
    """
    total, square = float(counts.sum()), float((counts.astype(np.float64) ** 2).sum())
    return total**2 / (len(counts) * square) if square else math.nan
