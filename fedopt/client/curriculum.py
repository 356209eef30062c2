"""A client's curriculum and pace: which examples its steps take, and from which loss on none.

The plan of a round says which examples each step takes. A curriculum restricts it to those that
are available by then, easiest first; self-paced learning gives the client a threshold. Both come
from the difficulty of the client's examples at the round's start, so that local training stays a
function of (parameters, broadcast, client state, plan).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.plan import ClientPlan
from fedopt.client.scoring import ExampleScorer
from fedopt.curriculum.ordering import difficulty_order
from fedopt.curriculum.pacing import available, pacing_share
from fedopt.data.population import Examples
from fedopt.models.layout import ModelState
from fedopt.seeds import generator

UserScore = Callable[[int, npt.NDArray[np.generic], npt.NDArray[np.generic]], npt.ArrayLike]
"""From client id, inputs and targets to a difficulty for each example."""


@dataclass(frozen=True)
class Curriculum:
    """In which order examples become available, and when.

    Args:
        order: `curriculum`, `anti` or `random`.
        score: `loss` or `margin` of the reference model, or `user`.
        reference: `global` (the server's model of the round), `local` (that model after the
            client's own local training of the round) or `teacher`.
        pacing: see `fedopt.curriculum.pacing_share`.
        start: share of the examples at the start, in (0, 1].
        full_at: share of the training after which all are available, in (0, 1].
        scope: `across` the rounds of the run, or `within` each round.
        rounds: of the run.
        teacher: the model of `teacher`.
        user: the difficulties of `user`.

    Source: Wu, Dyer and Neyshabur 2021; Vahidian et al. 2023 (global and local reference).
    """

    order: str
    score: str = "loss"
    reference: str = "global"
    pacing: str = "linear"
    start: float = 0.2
    full_at: float = 0.8
    scope: str = "across"
    rounds: int = 1
    teacher: ModelState | None = None
    user: UserScore | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether a model scores the examples."""
        return self.order != "random" and self.score != "user"

    def shares(self, round: int, steps: int) -> npt.NDArray[np.float64]:
        """Return the share that is available in each step of a round, `[S]`."""
        if self.scope == "across":
            return np.full(steps, self._share((round - 1) / self.rounds))
        return np.array([self._share(step / steps) for step in range(steps)])

    def _share(self, progress: float) -> float:
        return pacing_share(self.pacing, progress, self.start, self.full_at)


@dataclass(frozen=True)
class Pace:
    """The threshold of self-paced learning.

    Args:
        threshold: lambda of the first round, > 0, or None where it is a quantile.
        growth: factor of the threshold from round to round, >= 1.
        quantile: share of the client's losses below the threshold in the first round, in (0, 1].
        quantile_step: what is added to it from round to round, >= 0; from 1 on all are taken.
        shared: whether the quantile's threshold is the mean over the last cohort.
    """

    threshold: float | None
    growth: float = 1.2
    quantile: float | None = None
    quantile_step: float = 0.05
    shared: bool = False

    def fixed(self, round: int) -> float:
        """Return the threshold that needs no losses, lambda growth^(t - 1)."""
        assert self.threshold is not None
        return self.threshold * self.growth ** (round - 1)

    def quantile_at(self, round: int) -> float:
        """Return the quantile of a round, at most 1."""
        assert self.quantile is not None
        return min(1.0, self.quantile + (round - 1) * self.quantile_step)

    def threshold_of(self, losses: Tensor, round: int) -> float:
        """Return the threshold that leaves the round's share of some losses below it.

        At the quantile q of n losses it is halfway from the ceil(q n)-th smallest to the next, so
        that rounding does not decide who is below it.
        """
        quantile = self.quantile_at(round)
        if quantile >= 1:
            return float("inf")
        ordered = losses.sort().values.clamp(min=0).tolist()
        place = available(quantile, len(ordered))
        last = float(ordered[place - 1])
        beyond = [float(loss) for loss in ordered[place:] if loss > last]
        return (last + beyond[0]) / 2 if beyond else last * (1 + 1e-6) + 1e-12


@dataclass(frozen=True)
class Selected:
    """What a group of clients is to train on.

    Args:
        plans: restricted to the available examples.
        available: share of the examples that is available, mean over the steps, of each client.
        thresholds: of each client, `[G]` in float64, or None.
        quantiles: threshold at the quantile of the client's own losses, `[G]`, where it is shared.
    """

    plans: list[ClientPlan]
    available: list[float]
    thresholds: Tensor | None
    quantiles: Tensor | None = None


Train = Callable[[LocalTerms], LocalResult]


class Selector:
    """Restricts plans and sets thresholds, from the difficulty of the clients' examples.

    Args:
        curriculum: or None.
        pace: or None.
        scorer: scores examples.
        seed: the run's seed.
    """

    def __init__(
        self, curriculum: Curriculum | None, pace: Pace | None, scorer: ExampleScorer, seed: int
    ) -> None:
        self.curriculum = curriculum
        self.pace = pace
        self._scorer = scorer
        self._seed = seed

    def select(
        self,
        round: int,
        start: ModelState,
        plans: Sequence[ClientPlan],
        examples: Examples,
        shared_threshold: float | None,
        train: Train,
    ) -> Selected:
        """Return what a group trains on in a round.

        Args:
            round: communication round, from 1.
            start: the server's model.
            plans: of the clients.
            examples: theirs, one after another.
            shared_threshold: what the server sent; None or 0 before it has one.
            train: trains the group on its plans, for the reference `local`.
        """
        ends = np.cumsum([plan.examples for plan in plans])[:-1]
        thresholds, quantiles = self._thresholds(round, start, examples, ends, shared_threshold)
        if thresholds is None and self.pace is not None:
            thresholds = torch.full((len(plans),), self.pace.fixed(round), dtype=torch.float64)
        if self.curriculum is None:
            return Selected(list(plans), [1.0] * len(plans), thresholds, quantiles)
        curriculum = self.curriculum
        if all((curriculum.shares(round, p.planned_steps) >= 1).all() for p in plans):
            return Selected(list(plans), [1.0] * len(plans), thresholds, quantiles)
        scores = self._difficulties(curriculum, round, start, plans, examples, ends, train)
        restricted, shares = [], []
        for plan, own in zip(plans, scores, strict=True):
            share = curriculum.shares(round, plan.planned_steps)[: plan.steps]
            counts = np.array([available(value, plan.examples) for value in share])
            rng = generator(self._seed, "curriculum order", plan.client)  # the same each round
            order = difficulty_order(own, curriculum.order, rng)
            draws = generator(self._seed, "curriculum", round, plan.client)
            restricted.append(restrict(plan, order, counts, draws))
            shares.append(float((counts / plan.examples).mean()))
        return Selected(restricted, shares, thresholds, quantiles)

    def _thresholds(
        self,
        round: int,
        start: ModelState,
        examples: Examples,
        ends: npt.NDArray[np.int64],
        shared_threshold: float | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        pace = self.pace
        if pace is None or pace.quantile is None:
            return None, None
        losses = self._scorer.losses(start, examples).tensor_split(ends.tolist())
        own = torch.tensor([pace.threshold_of(part, round) for part in losses], dtype=torch.float64)
        if not pace.shared:
            return own, None
        # What is sent must have a mean: all are taken at the quantile 1, whatever is sent.
        largest = torch.tensor([float(part.max()) for part in losses], dtype=torch.float64)
        quantiles = torch.where(own.isfinite(), own, largest)
        if shared_threshold and pace.quantile_at(round) < 1:
            own = torch.full_like(own, shared_threshold)
        return own, quantiles

    def _difficulties(
        self,
        curriculum: Curriculum,
        round: int,
        start: ModelState,
        plans: Sequence[ClientPlan],
        examples: Examples,
        ends: npt.NDArray[np.int64],
        train: Train,
    ) -> list[npt.NDArray[np.float64]]:
        """Return a difficulty for each example of each client."""
        parts = [
            Examples(x, y)
            for x, y in zip(np.split(examples.x, ends), np.split(examples.y, ends), strict=True)
        ]
        if curriculum.order == "random":
            return [np.zeros(plan.examples) for plan in plans]
        if curriculum.user is not None:
            return [
                np.asarray(curriculum.user(plan.client, part.x, part.y), dtype=np.float64)
                for plan, part in zip(plans, parts, strict=True)
            ]
        score = self._scorer.losses
        if curriculum.score == "margin":
            score = self._scorer.negative_margins
        if curriculum.reference != "local":
            reference = start if curriculum.teacher is None else curriculum.teacher
            return [s.numpy() for s in score(reference, examples).tensor_split(ends.tolist())]
        result = train(LocalTerms())
        found = []
        for place, part in enumerate(parts):
            buffers = start.buffers.cpu() + result.buffers[place] if len(start.buffers) else None
            reference = ModelState(
                start.parameters + result.delta[place],
                start.buffers if buffers is None else buffers,
            )
            found.append(score(reference, part).numpy())
        return found


def restrict(
    plan: ClientPlan,
    order: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> ClientPlan:
    """Return a plan whose steps take only the examples that are available.

    It has as many steps as before, of the same batch size where that many are available. The
    available examples are passed through in shuffled order again and again, as all would be; when
    more become available, a new pass begins. Where no step may take a single example, at least two
    are available, and a last one goes with the batch before it.

    Args:
        plan: over all examples.
        order: positions, in the order in which they become available, `[n]`.
        counts: how many are available in each step, `[S]`, ascending.
        rng: draws the shuffling.
    """
    if plan.merges_single:
        counts = np.maximum(counts, 2)
    if (counts >= plan.examples).all():
        return plan
    batch = int(plan.offsets[1] - plan.offsets[0])
    takes_all = plan.order is None
    pieces: list[npt.NDArray[np.int64]] = []
    left, known = np.empty(0, dtype=np.int64), 0
    for count in counts.tolist():
        if takes_all:
            pieces.append(np.sort(order[:count]))
            continue
        if count != known or not len(left):
            left, known = rng.permutation(order[:count]), count
        taken = batch + 1 if plan.merges_single and len(left) == batch + 1 else batch
        pieces.append(left[:taken])
        left = left[taken:]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return replace(plan, order=np.concatenate(pieces), offsets=offsets.astype(np.int64))
