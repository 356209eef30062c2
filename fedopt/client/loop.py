"""The `loop` engine: one client after another, for any model, any loss, any recipe.

Parameters are views into one flat vector, convolution weights channels-last; nothing but
activations and gradients is allocated in a plain step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.curvature import (
    FisherDraws,
    Seen,
    Taps,
    fisher_columns,
    hessian_kind,
    kronecker_model,
    statistics,
    through,
)
from fedopt.client.fused import FusedLinears, SgdStep, pool_first
from fedopt.client.gradients import differentiate, gradients_of, mean_gradient, owned, passes
from fedopt.client.losses import Loss
from fedopt.client.plan import ClientPlan
from fedopt.client.recipe import Recipe
from fedopt.client.self_paced import Selected, Selection, example_losses, thresholds_of
from fedopt.client.stacked import is_fused
from fedopt.client.stacked_steps import drift
from fedopt.client.steps import LocalSteps
from fedopt.data.population import Examples
from fedopt.models.batch_norm import statistics_batches
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout
from fedopt.optim.averaging import update_batch_norm
from fedopt.optim.kronecker import LayerStatistics
from fedopt.optim.rules import Sgd
from fedopt.seeds import seed_torch, torch_seed

Batch = tuple[Tensor, Tensor]


class LoopEngine:
    """Trains one client at a time.

    Args:
        model: the module to train; its parameters are moved into one flat vector.
        loss: function of (output, target) that returns the batch mean as a scalar.
        recipe: how a step is taken.
        seed: the run's seed, from which dropout and the like draw.
        device: where to train.
        precision: arithmetic of the passes, "full" or "bf16".
    """

    group_size: ClassVar[int] = 1

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str = "full",
    ) -> None:
        pool_first(model)
        self._bound = BoundModel(model, device)
        self._loss = loss
        self._recipe = recipe
        self._seed = seed
        self._precision = precision
        self.device = device
        self._has_images = any(len(s.shape) == 4 for s in self._bound.layout.parameters)
        rule = recipe.kronecker
        self._kronecker = kronecker_model(model, rule) if rule is not None else None
        self._group = [view.unsqueeze(0) for view in self.layout.views(self._bound.flat)]
        self._fused: FusedLinears | None = None
        if is_fused(recipe) and precision == "full":
            fused = FusedLinears(model)
            self._fused = fused if fused.names else None

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model's parameters."""
        return self._bound.layout

    def train(
        self,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        terms: LocalTerms,
    ) -> LocalResult:
        """Train a group of one client from `start`.

        The result's `delta` may lie where the model's parameters were, and be overwritten by the
        next call.

        Args:
            start: the server's parameters and buffers, on the engine's device.
            round: communication round, from 1.
            plans: what the client does; one plan.
            examples: the client's examples.
            terms: what is added to its gradients.
        """
        (plan,) = plans
        bound, recipe = self._bound, self._recipe
        self._load(start, terms)
        if not bound.module.training:  # setting it walks through all layers
            bound.module.train()
        seed_torch(torch_seed(self._seed, "train", round, plan.client), self.device)
        inputs, targets = self._tensors(examples)
        full = None
        if terms.full_gradient:
            full = self._full_gradient(inputs, targets)
            self._load(start, terms)
            seed_torch(torch_seed(self._seed, "train", round, plan.client), self.device)
        batches = self._batches(plan, inputs, targets)
        if recipe.is_plain and terms.is_additive:
            loss_sum = self._take_plain_steps(plan, batches, start, terms)
            seen = int(plan.offsets[-1])
            rates = plan.learning_rates.tolist()
            lr_sum = recipe.rule.effective_lr_sum(rates, proximal=terms.proximal)
            result = LocalResult(
                delta=bound.flat.sub_(start.parameters).unsqueeze(0),
                buffers=torch.empty(0),
                train_loss=torch.empty(0),
                lr_sum=None if lr_sum is None else torch.tensor([lr_sum], dtype=torch.float64),
            )
        else:
            steps = LocalSteps(
                recipe,
                self.layout,
                self._group,
                start,
                terms,
                plans,
                self._seed,
                round,
                self._kronecker,
            )
            draws = partial(FisherDraws, self._seed, round, clients=[plan.client])
            loss_sum, seen, selected = self._take_steps(steps, batches, draws, terms)
            result = self._outcome(steps, start, plan, inputs, targets)
            if selected is not None:
                result = replace(result, selected=selected.shares)
        return replace(
            result,
            buffers=(bound.buffers() - self._first_buffers(start, terms).cpu()).unsqueeze(0),
            train_loss=(loss_sum / seen).unsqueeze(0),
            full_gradient=None if full is None else full.unsqueeze(0),
        )

    def _load(self, start: ModelState, terms: LocalTerms) -> None:
        """Load what the client begins with."""
        parameters = start.parameters if terms.start is None else terms.start[0]
        self._bound.load(ModelState(parameters, self._first_buffers(start, terms)))

    def _first_buffers(self, start: ModelState, terms: LocalTerms) -> Tensor:
        """Return the buffers that the client begins with, `[Q]`."""
        return start.buffers if terms.start_buffers is None else terms.start_buffers[0]

    # Steps -------------------------------------------------------------------------------------

    def _take_plain_steps(
        self, plan: ClientPlan, batches: Iterator[Batch], start: ModelState, terms: LocalTerms
    ) -> Tensor:
        """Take steps that are the rule's alone; return the sum of the examples' losses."""
        if self._fused is not None:
            return self._take_fused_steps(self._fused, plan, batches, start, terms)
        parameters, rule = self._bound.parameters, self._recipe.rule
        anchor = self.layout.views(start.parameters) if terms.proximal else []
        correction = (
            self.layout.views(terms.correction[0]) if terms.correction is not None else None
        )
        state = rule.init(parameters)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, lr in zip(batches, plan.learning_rates.tolist(), strict=True):
            loss, gradients = self._gradients(batch)
            with torch.no_grad():
                if terms.proximal:
                    pulls = torch._foreach_sub(list(parameters), anchor)  # exactly 0 at the start
                    gradients = list(torch._foreach_add(gradients, pulls, alpha=terms.proximal))
                if correction is not None:
                    gradients = list(torch._foreach_add(gradients, correction))
                rule.update(parameters, gradients, state, lr)
                loss_sum += loss * len(batch[1])
        return loss_sum

    def _take_fused_steps(
        self,
        fused: FusedLinears,
        plan: ClientPlan,
        batches: Iterator[Batch],
        start: ModelState,
        terms: LocalTerms,
    ) -> Tensor:
        """Take steps of plain SGD, those of large linear layers in the backward pass."""
        rule, layout = self._recipe.rule, self.layout
        assert isinstance(rule, Sgd)
        shrink = terms.proximal + rule.weight_decay
        names = (spec.name for spec in layout.parameters)
        pull = drift(terms, layout, start, 1)
        drifts = {} if pull is None else {n: p[0] for n, p in zip(names, pull, strict=True)}
        others: list[Tensor] = []
        pulls: list[Tensor] = []
        for parameter, spec in zip(self._bound.parameters, layout.parameters, strict=True):
            if spec.name not in fused.names:
                others.append(parameter)
                pulls.extend([drifts[spec.name]] if drifts else [])
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch, lr in zip(batches, plan.learning_rates.tolist(), strict=True):
            fused.step = SgdStep(lr, shrink, drifts)
            try:
                loss = self._loss(self._bound.module(batch[0]), batch[1])
                *gradients, _ = torch.autograd.grad(loss, [*others, fused.token])
            finally:
                fused.step = None
            with torch.no_grad():
                if others and shrink:
                    torch._foreach_mul_(others, 1 - lr * shrink)
                if others:
                    torch._foreach_add_(others, list(gradients), alpha=-lr)
                if pulls:
                    torch._foreach_add_(others, pulls, alpha=lr)
                loss_sum += loss.detach() * len(batch[1])
        return loss_sum

    def _take_steps(
        self,
        steps: LocalSteps,
        batches: Iterator[Batch],
        draws: Callable[[int], FisherDraws],
        terms: LocalTerms,
    ) -> tuple[Tensor, int, Selected | None]:
        """Take steps by the recipe.

        Returns:
            Sum and number of the losses of the steps that happen, and what was selected.
        """
        loss_sum, seen = torch.zeros((), dtype=torch.float64, device=self.device), 0
        can_skip, pace = self._recipe.can_skip, self._recipe.self_pace
        selected = Selected(1) if pace is not None else None
        for number, batch in enumerate(batches):
            before = self._bound.kept_buffers() if can_skip else []
            found = selection = wanted = None
            if pace is not None:
                selection = Selection(pace, thresholds_of(terms, 1))
            if steps.wants_statistics(number, 1):
                loss, gradients, found = self._with_statistics(batch, draws(number), selection)
            else:
                loss, gradients = self._gradients(batch, selection)
            if selection is not None and selected is not None:
                selected.add(selection.counts, torch.tensor([len(batch[1])]))
                wanted = selection.wanted
            curvature = None
            if self._kronecker is not None:
                value = loss.unsqueeze(0) if selection is None else selection.values
                curvature = Seen(found, value, partial(self._loss_now, batch, selection))

            def again(
                batch: Batch = batch, selection: Selection | None = selection
            ) -> list[Tensor]:
                with self._bound.frozen_buffers():  # statistics are those of the first pass
                    return _stacked(self._gradients(batch, selection)[1])

            with torch.no_grad():
                applied = steps.take(number, _stacked(gradients), again, curvature, wanted)
                if applied is None or applied[0]:
                    loss_sum += loss * len(batch[1])
                    seen += len(batch[1])
                else:  # nothing of a step that is skipped remains
                    self._bound.restore_buffers(before)
        return loss_sum, seen, selected

    def _outcome(
        self,
        steps: LocalSteps,
        start: ModelState,
        plan: ClientPlan,
        inputs: Tensor,
        targets: Tensor,
    ) -> LocalResult:
        """Return what the recipe's steps came to; the model holds what is sent."""
        bound, last = self._bound, None
        if steps.averages is not None:
            last = (bound.flat - start.parameters).unsqueeze(0)
            torch._foreach_copy_(self._group, steps.averages)
            if bound.has_batch_statistics and plan.examples > 1:
                size = -(-plan.examples // plan.steps_per_epoch)
                update_batch_norm(bound.module, statistics_batches(inputs, size))
        return steps.result((bound.flat - start.parameters).unsqueeze(0), last)

    def _gradients(
        self, batch: Batch, selection: Selection | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean loss of a batch, and the gradients of the objective."""
        with torch.enable_grad():
            with passes(self.device, self._precision):
                output = self._bound.module(batch[0])
                loss, objective = self._objective(output, batch[1], selection)
            return loss.detach(), gradients_of(
                objective, self._bound.parameters, penalty=self._recipe.penalty
            )

    def _objective(
        self, output: Tensor, target: Tensor, selection: Selection | None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss, and what is minimised: the same, or the weighted mean."""
        if selection is None:
            loss = self._loss(output, target)
            return loss, loss
        losses = example_losses(self._loss, output, target)
        return losses.mean(), selection.objective(losses.unsqueeze(0)).squeeze(0)

    def _with_statistics(
        self, batch: Batch, draws: FisherDraws, selection: Selection | None
    ) -> tuple[Tensor, list[Tensor], list[LayerStatistics]]:
        """Return loss and gradients, and what the layers with Kronecker factors saw."""
        assert self._kronecker is not None
        if self._recipe.penalty:  # the objective's gradient, and one more pass for the loss's
            loss, gradients = self._gradients(batch, selection)
            with self._besides():
                _, _, found = self._recorded(batch, draws, selection)
            return loss, gradients, found
        return self._recorded(batch, draws, selection)

    @contextmanager
    def _besides(self) -> Iterator[None]:
        """Make passes that leave neither buffers nor draws of dropout behind."""
        devices = [self.device] if self.device.type == "cuda" else []
        with self._bound.frozen_buffers(), torch.random.fork_rng(devices):
            yield

    def _recorded(
        self, batch: Batch, draws: FisherDraws, selection: Selection | None
    ) -> tuple[Tensor, list[Tensor], list[LayerStatistics]]:
        """Return the loss, its gradients, and what the layers saw, in one forward pass."""
        assert self._kronecker is not None
        assert self._recipe.kronecker is not None
        fisher, layers = self._recipe.kronecker.fisher, self._kronecker.layers
        parameters, count = self._bound.parameters, len(batch[1])
        with torch.enable_grad():
            with Taps(layers) as taps, passes(self.device, self._precision):
                output = self._bound.module(batch[0])
                loss, objective = self._objective(output, batch[1], selection)
            filled = differentiate(objective, [*parameters, *taps.outputs], keep_graph=True)
        at_outputs = [g.unsqueeze(0).unsqueeze(0) for g in filled[len(parameters) :]]
        if fisher != "empirical":
            kind = hessian_kind(self._loss)
            assert kind is not None
            own = output.detach().to(self.layout.dtype).unsqueeze(0)
            columns = fisher_columns(fisher, kind, own, draws, [count]).squeeze(1)
            at_outputs = [g.unsqueeze(1) for g in through(output, taps.outputs, columns)]
        weights = torch.full((1, count), 1 / count, dtype=self.layout.dtype, device=self.device)
        if selection is not None:
            weights = selection.weights.to(weights)
        seen = statistics(
            layers,
            [x.unsqueeze(0) for x in taps.inputs],
            at_outputs,
            weights,
            of_objective=fisher == "empirical",
        )
        return loss.detach(), filled[: len(parameters)], seen

    def _loss_now(self, batch: Batch, selection: Selection | None) -> Tensor:
        """Return the objective on a batch at the current parameters, `[1]`; changes no buffer."""
        full = passes(self.device, self._precision)
        with self._besides(), torch.no_grad(), full:
            output = self._bound.module(batch[0])
            return self._objective(output, batch[1], selection)[1].unsqueeze(0)

    # Data --------------------------------------------------------------------------------------

    def _tensors(self, data: Examples) -> tuple[Tensor, Tensor]:
        inputs = _to_tensor(data.x).to(self.device)
        targets = _to_tensor(data.y).to(self.device)
        if self._has_images and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs, targets

    def _batches(self, plan: ClientPlan, inputs: Tensor, targets: Tensor) -> Iterator[Batch]:
        if plan.order is None:
            return iter([(inputs, targets)] * plan.steps)
        order = torch.from_numpy(plan.order).to(self.device)
        pieces = [order[a:b] for a, b in pairwise(plan.offsets.tolist())]
        return ((inputs[p], targets[p]) for p in pieces)

    def _full_gradient(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of the loss over all examples at the current parameters, `[P]`."""
        *_, gradient = mean_gradient(self._bound, self._loss, inputs, targets, self._precision)
        return gradient


def _stacked(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return gradients with a client axis, each with memory of its own."""
    return [gradient.unsqueeze(0) for gradient in owned(gradients)]


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())
