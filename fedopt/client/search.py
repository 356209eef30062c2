"""Federated architecture search: what a client does with a supernet in a round (FedNAS).

The client splits its examples once into a part for weights and a part for the architecture. A step
takes an architecture step on a batch of the second part, then the recipe's weight step on a batch
of the first. Weights and architecture parameters travel as one model, so any strategy averages
both; corrections, proximal terms and everything in the recipe act on the weights alone.

Source: He, Annavaram and Avestimehr 2020 (FedNAS), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.gradients import gradients_of, owned, passes
from fedopt.client.losses import Loss
from fedopt.client.plan import ClientPlan
from fedopt.client.recipe import Recipe
from fedopt.client.steps import LocalSteps
from fedopt.data.population import Examples
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout
from fedopt.search.bilevel import Bilevel, SearchSettings, split_examples
from fedopt.search.supernet import Supernet
from fedopt.seeds import generator, seed_torch, torch_seed

Batch = tuple[Tensor, Tensor]


class SearchEngine:
    """Searches on one client at a time.

    The architecture's Adam begins afresh in each round, as a client's optimizer does.

    Args:
        model: the supernet, whose architecture parameters come first.
        loss: function of (output, target) that returns the batch mean.
        recipe: how a weight step is taken.
        settings: how an architecture step is taken.
        seed: the run's seed.
        device: where to train.

    Source: He et al. 2020 (FedNAS), algorithm 1.
    """

    group_size: ClassVar[int] = 1

    def __init__(
        self,
        model: Supernet,
        loss: Loss,
        recipe: Recipe,
        settings: SearchSettings,
        seed: int,
        device: torch.device,
    ) -> None:
        self._bound = BoundModel(model, device)
        self._bilevel = Bilevel(self._bound.module, loss, settings)
        self._loss = loss
        self._recipe = recipe
        self._settings = settings
        self._seed = seed
        self.device = device
        count = len(self._bilevel.alpha_names)
        specs = self.layout.parameters
        assert [spec.name for spec in specs[:count]] == self._bilevel.alpha_names
        self._alphas = sum(spec.size for spec in specs[:count])
        self._weight_layout = ParameterLayout(specs[count:], ())
        self._weights = list(self._bound.parameters[count:])

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the supernet's parameters."""
        return self._bound.layout

    def train(
        self,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        terms: LocalTerms,
    ) -> LocalResult:
        """Search on one client from `start`; see `Engine`.

        Raises:
            ValueError: the client has fewer than two examples.
        """
        (plan,) = plans
        self._bound.load(start)
        self._bound.module.train()
        seed_torch(torch_seed(self._seed, "train", round, plan.client), self.device)
        x = torch.tensor(examples.x).to(self.device)
        y = torch.tensor(examples.y).to(self.device)
        splitter = generator(self._seed, "search split", plan.client)  # the same in each round
        train, val = split_examples(plan.examples, self._settings.validation_share, splitter)
        full = None
        if terms.full_gradient:
            full = self._full_gradient(x[torch.from_numpy(train)], y[torch.from_numpy(train)])
        n = self._alphas
        steps = LocalSteps(
            self._recipe,
            self._weight_layout,
            [view.unsqueeze(0) for view in self._weight_layout.views(self._bound.flat[n:])],
            ModelState(start.parameters[n:], start.buffers),
            replace(
                terms,
                correction=None if terms.correction is None else terms.correction[:, n:],
                full_gradient=False,
            ),
            plans,
            self._seed,
            round,
        )
        loss_sum, seen = self._take_steps(steps, plan, round, (x, y), train, val)
        delta = (self._bound.flat - start.parameters).unsqueeze(0)
        last = delta.clone()
        last[:, :n] = 0  # control variates are of the weights alone
        if steps.averages is not None:
            delta[:, n:] = self._weight_layout.vector(steps.averages) - start.parameters[n:]
        result = steps.result(delta, last)
        return replace(
            result,
            buffers=(self._bound.buffers() - start.buffers.cpu()).unsqueeze(0),
            train_loss=(loss_sum / seen).unsqueeze(0),
            full_gradient=full,
        )

    def _take_steps(
        self,
        steps: LocalSteps,
        plan: ClientPlan,
        round: int,
        data: Batch,
        train: np.ndarray,
        val: np.ndarray,
    ) -> tuple[Tensor, int]:
        """Take the steps of a round; return sum and number of the losses that happened."""
        rng = generator(self._seed, "search batches", round, plan.client)
        size = int(plan.offsets[1] - plan.offsets[0])
        ours, theirs = _Stream(train, size, rng), _Stream(val, size, rng)
        _, alphas = self._bilevel.values()
        values, rule = list(alphas.values()), self._settings.rule
        state = rule.init(values)
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for number, lr in enumerate(plan.learning_rates.tolist()):
            batch, held = (_taken(data, stream.next()) for stream in (ours, theirs))
            gradients = self._bilevel.architecture_gradient(batch, held, lr)
            with torch.no_grad():
                rule.update(values, list(gradients.values()), state, self._settings.lr)
            loss, slopes = self._gradients(batch)

            def again(batch: Batch = batch) -> list[Tensor]:
                return self._gradients(batch)[1]

            with torch.no_grad():
                applied = steps.take(number, slopes, again)
            if applied is None or applied[0]:
                loss_sum += loss * len(batch[1])
                seen += len(batch[1])
        return loss_sum, seen

    def _gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the loss, and its gradients by the weights, `[1, *shape]` each."""
        with torch.enable_grad(), passes(self.device, "full"):
            loss = self._loss(self._bound.module(batch[0]), batch[1])
            found = gradients_of(loss, self._weights)
        return loss.detach(), [gradient.unsqueeze(0) for gradient in owned(found)]

    def _full_gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient at the server's model over the weights' part, `[1, P]`."""
        _, found = self._gradients((x, y))
        weights = self._weight_layout.vector(found)
        return torch.cat([weights.new_zeros(1, self._alphas), weights], dim=1)


class _Stream:
    """Batches of some positions, passed through in shuffled order again and again."""

    def __init__(self, places: np.ndarray, size: int, rng: np.random.Generator) -> None:
        self._places = places
        self._size = size
        self._rng = rng
        self._left = places[:0]

    def next(self) -> np.ndarray:
        """Return the positions of the next batch."""
        if not len(self._left):
            self._left = self._rng.permutation(self._places)
        taken, self._left = self._left[: self._size], self._left[self._size :]
        return taken


def _taken(data: Batch, places: np.ndarray) -> Batch:
    where = torch.from_numpy(places).to(data[1].device)
    return data[0][where], data[1][where]
