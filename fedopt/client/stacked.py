"""The `stacked` engine: a group of clients at once, parameters with a leading client axis.

Batched products replace one small product a client. Clients are sorted by steps, so that those
still training are always a prefix; batches of unequal length are padded and masked. Every step of
plain SGD, with or without proximal term, correction and weight decay, is fused into the backward
pass; any other recipe is carried out on the stacked gradients (see `fedopt.client.steps`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.curvature import (
    FisherDraws,
    Seen,
    example_weights,
    fisher_columns,
    hessian_kind,
    kronecker_model,
    statistics,
    through,
)
from fedopt.client.dense_steps import DenseSteps
from fedopt.client.gradients import differentiate, gradients_of, owned, passes
from fedopt.client.handwritten import HandwrittenSteps, dense_model
from fedopt.client.losses import Loss
from fedopt.client.plan import ClientPlan
from fedopt.client.recipe import Recipe
from fedopt.client.self_paced import Selected, Selection, example_losses, thresholds_of
from fedopt.client.softmax_steps import SoftmaxSteps, fits
from fedopt.client.stacked_batches import (
    Batch,
    Stretch,
    group_padding,
    group_stretches,
    most_examples,
)
from fedopt.client.stacked_layers import (
    STACKED_FORMS,
    Draws,
    Parameters,
    StackedBranches,
    StackedLayer,
    backward_through,
    forward_through,
    recorded_through,
    register_stacked,
)
from fedopt.client.stacked_steps import Collect, FusedSgd, drift
from fedopt.client.steps import LocalSteps
from fedopt.data.population import Examples
from fedopt.memory import empty_rows
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.models.residual import Residual
from fedopt.optim.kronecker import KroneckerModel, LayerStatistics
from fedopt.optim.rules import Sgd
from fedopt.seeds import torch_seed

CACHE_NBYTES = 8 * 2**20
"""Stacked parameters are kept below this size on a CPU: beyond it memory is the limit."""

DEVICE_NBYTES = 2 * 2**30
"""The same on an accelerator."""

MAX_GROUP = 256
"""The most clients stacked."""


class NotStackableError(Exception):
    """The model has a part without a stacked form; the message names it."""


def group_size(
    layout: ParameterLayout, device: torch.device, kronecker: KroneckerModel | None = None
) -> int:
    """Return the clients to stack: a fixed rule of the model's size and the kind of device.

    Args:
        layout: of the parameters.
        device: where they are.
        kronecker: the layers with Kronecker factors, where clients have factors as well.
    """
    budget = CACHE_NBYTES if device.type == "cpu" else DEVICE_NBYTES
    scalars = layout.size
    if kronecker is not None:
        scalars += 4 * sum(kronecker.sizes.values())  # two triangles, and a matrix of inverses
    return max(1, min(MAX_GROUP, budget // (scalars * layout.dtype.itemsize)))


def sequence(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return the layers of a (nested) `nn.Sequential` in order, or another model itself.

    With each comes what the names of its parameters begin with.
    """
    if type(model) is not nn.Sequential:
        yield prefix, model
        return
    for name, child in model._modules.items():  # a layer that is used twice is there twice
        if child is not None:
            yield from sequence(child, f"{prefix}{name}.")


def leaves(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the layers of a (nested) `nn.Sequential`, with the names of their parameters.

    Raises:
        NotStackableError: a container is not an `nn.Sequential`, or a layer has no stacked form.
    """
    found = list(sequence(model, prefix))
    for _, layer in found:
        _check_layer(layer)
    return found


def _check_layer(layer: nn.Module) -> None:
    if type(layer) not in STACKED_FORMS:
        raise NotStackableError(f"{type(layer).__name__} has no stacked form")
    if isinstance(layer, Residual):
        for branch in (layer.body, layer.shortcut):
            leaves(branch)
    if isinstance(layer, nn.Conv2d) and (
        layer.padding_mode != "zeros" or isinstance(layer.padding, str)
    ):
        raise NotStackableError("Conv2d with padding other than zeros has no stacked form")
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        raise NotStackableError("Flatten of some axes only has no stacked form")
    if isinstance(layer, nn.Embedding) and (
        layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        raise NotStackableError("Embedding that renorms, scales or is sparse has no stacked form")
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise NotStackableError(f"{type(layer).__name__} has hooks")


def check_stackable(model: nn.Module, kronecker: KroneckerModel | None = None) -> None:
    """Check that a model can be stacked.

    Args:
        model: the model.
        kronecker: the layers with Kronecker factors, where clients have factors.

    Raises:
        NotStackableError: naming the part that cannot.
    """
    found = [layer for _, layer in leaves(model)]
    if kronecker is not None and any(layer.module not in found for layer in kronecker.layers):
        raise NotStackableError("Kronecker factors inside residual blocks have no stacked form")
    seen: set[int] = set()
    for layer in found:
        for _, parameter in layer.named_parameters(remove_duplicate=False):
            if id(parameter) in seen:
                raise NotStackableError("tied parameters have no stacked form")
            if not parameter.requires_grad:
                raise NotStackableError("frozen parameters have no stacked form")
            seen.add(id(parameter))


def is_fused(recipe: Recipe, terms: LocalTerms | None = None) -> bool:
    """Return whether steps are fused into the backward pass: SGD without any technique."""
    rule = recipe.rule
    is_additive = terms is None or terms.is_additive
    return recipe.is_plain and isinstance(rule, Sgd) and not rule.momentum and is_additive


class StackedEngine:
    """Trains a group of clients at once.

    Args:
        model: a (nested) `nn.Sequential` of layers with a stacked form.
        loss: function of (output, target) that returns the batch mean as a scalar.
        recipe: how a step is taken.
        seed: the run's seed, from which dropout and noise draw.
        device: where to train.
        precision: arithmetic of the passes, "full" or "bf16".

    Raises:
        NotStackableError: the model has a part without a stacked form.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str = "full",
    ) -> None:
        rule = recipe.kronecker
        self._kronecker = kronecker_model(model, rule) if rule is not None else None
        check_stackable(model, self._kronecker)
        self.layout = ParameterLayout.of(model)
        modules = [module for _, module in leaves(model)]
        with_factors = self._kronecker.layers if self._kronecker is not None else ()
        self._places = [modules.index(layer.module) for layer in with_factors]
        self._dense = dense_model(modules, loss) if precision == "full" else None
        self.group_size = group_size(self.layout, device, self._kronecker)
        self._model = model.to(device)
        self._loss = loss
        self._recipe = recipe
        self._seed = seed
        self._precision = precision
        self.device = device
        self._generators: list[torch.Generator] = []
        self._draw_ids: list[tuple[int, int]] = []
        self._lengths = torch.empty(0)
        self._parameters: list[Tensor] = []
        self._layers: list[StackedLayer] = []
        self._capacity = 0
        self._delta = torch.empty(0)

    def train(
        self,
        start: ModelState,
        round: int,
        plans: Sequence[ClientPlan],
        examples: Examples,
        terms: LocalTerms,
    ) -> LocalResult:
        """Train a group of clients from `start`; the plans are in descending order of steps.

        The result's `delta` is overwritten by the next call.
        """
        clients = len(plans)
        self._allocate(clients)
        begin = start.parameters if terms.start is None else terms.start
        self._seed_clients(round, plans)
        inputs = torch.from_numpy(examples.x).to(self.device)
        targets = torch.from_numpy(examples.y).to(self.device)
        firsts = list(accumulate((p.examples for p in plans[:-1]), initial=0))
        padding = terms.padding or group_padding(plans)
        is_plain = is_fused(self._recipe, terms)
        by_hand = is_plain and self._dense is not None and self._dense.takes(inputs, targets)
        if terms.full_gradient or not by_hand:
            for stacked, view in zip(self._parameters, self._vectors(begin), strict=True):
                stacked[:clients].copy_(view)
        full = None
        if terms.full_gradient:
            widths = padding.examples
            sizes = [p.examples for p in plans]
            full = self._full_gradient(inputs, targets, firsts, sizes, *widths)
            self._seed_clients(round, plans)
        stretches = group_stretches(plans, firsts, padding)
        if is_plain:
            longest = most_examples(plans, padding) if by_hand else None
            result = self._take_plain_steps(
                inputs, targets, stretches, longest, start, terms, plans
            )
            return replace(result, full_gradient=full)
        own = [stacked[:clients] for stacked in self._parameters]
        steps = LocalSteps(
            self._recipe,
            self.layout,
            own,
            start,
            terms,
            plans,
            self._seed,
            round,
            self._kronecker,
        )
        loss_sum, seen, selected = self._take_steps(
            steps, inputs, targets, stretches, terms, clients
        )
        result = self._outcome(steps, start, clients)
        if selected is not None:
            result = replace(result, selected=selected.shares)
        return replace(result, train_loss=loss_sum / seen, full_gradient=full)

    def _take_plain_steps(
        self,
        inputs: Tensor,
        targets: Tensor,
        stretches: Iterator[Stretch],
        longest: int | None,
        start: ModelState,
        terms: LocalTerms,
        plans: Sequence[ClientPlan],
    ) -> LocalResult:
        """Take steps of plain SGD.

        Args:
            longest: examples of the largest batch where steps are written by hand; they then change
                parameters that lie where the changes will be. None where they are not.
        """
        clients = len(plans)
        delta = self._delta[:clients]
        pull = drift(terms, self.layout, start, clients)
        if longest is None:
            loss_sum = self._take_fused_steps(inputs, targets, stretches, terms, pull, clients)
            self._displacement(start, self._parameters, delta)
        else:
            delta.copy_(start.parameters if terms.start is None else terms.start)
            steps = self._by_hand(inputs, targets, longest, terms, pull, clients)
            for stretch in stretches:
                steps.take(stretch)
            loss_sum = steps.finish()
            delta.sub_(start.parameters)
        seen = torch.tensor([int(p.offsets[-1]) for p in plans], device=self.device)
        return LocalResult(
            delta=delta,
            buffers=torch.zeros(clients, 0, dtype=torch.float64),
            train_loss=loss_sum / seen,
            lr_sum=self._lr_sums(plans, terms.proximal),
        )

    def _outcome(self, steps: LocalSteps, start: ModelState, clients: int) -> LocalResult:
        """Return what the recipe's steps came to."""
        delta, last = self._delta[:clients], None
        if steps.averages is None:
            self._displacement(start, self._parameters, delta)
        else:
            last = self._displacement(start, self._parameters, torch.empty_like(delta))
            self._displacement(start, steps.averages, delta)
        return steps.result(delta, last)

    def _displacement(self, start: ModelState, parameters: Sequence[Tensor], out: Tensor) -> Tensor:
        """Write w - x of the group's parameters into `out` `[G, P]`, and return it."""
        anchor, changes = self._vectors(start.parameters), self._vectors(out)
        for change, stacked, view in zip(changes, parameters, anchor, strict=True):
            torch.sub(stacked[: len(out)], view, out=change)
        return out

    # Preparation -------------------------------------------------------------------------------

    def _allocate(self, clients: int) -> None:
        """Make room for a group; a larger group than before makes it anew."""
        if clients <= self._capacity:
            return
        self._capacity, self._parameters, self._delta, self._layers = 0, [], torch.empty(0), []
        dtype = self.layout.dtype
        self._parameters = [
            empty_rows(1, clients * spec.size, dtype, self.device).view(clients, *spec.shape)
            for spec in self.layout.parameters
        ]
        self._delta = empty_rows(clients, self.layout.size, dtype, self.device)
        positions = {spec.name: i for i, spec in enumerate(self.layout.parameters)}
        self._layers = [
            _stacked_form(layer, prefix, self._parameters, positions, self._draws)
            for prefix, layer in leaves(self._model)
        ]
        self._capacity = clients  # now that there was memory for all of it

    def _seed_clients(self, round: int, plans: Sequence[ClientPlan]) -> None:
        """Let the clients' draws begin anew."""
        self._generators = []
        self._draw_ids = [(round, plan.client) for plan in plans]

    def _draws(self) -> Iterable[tuple[torch.Generator, int]]:
        """Return each active client's generator, seeded as in the loop engine, and batch."""
        if not self._generators:
            self._generators = [
                torch.Generator(self.device).manual_seed(torch_seed(self._seed, "train", *ids))
                for ids in self._draw_ids
            ]
        return zip(self._generators, self._lengths.tolist(), strict=False)

    # Steps -------------------------------------------------------------------------------------

    def _by_hand(
        self,
        inputs: Tensor,
        targets: Tensor,
        longest: int,
        terms: LocalTerms,
        pull: Sequence[Tensor] | None,
        clients: int,
    ) -> HandwrittenSteps:
        """Return steps of plain SGD on the parameters that lie where the changes will be."""
        assert self._dense is not None
        own = self._vectors(self._delta[:clients])
        shrink = self._shrink(terms)
        if fits(self._dense, longest):
            return SoftmaxSteps(own, inputs, targets, shrink, pull)
        return DenseSteps(self._dense, own, inputs, targets, shrink, pull)

    def _shrink(self, terms: LocalTerms) -> float:
        """Return mu + weight decay of plain SGD."""
        rule = self._recipe.rule
        assert isinstance(rule, Sgd)
        return terms.proximal + rule.weight_decay

    def _take_fused_steps(
        self,
        inputs: Tensor,
        targets: Tensor,
        stretches: Iterator[Stretch],
        terms: LocalTerms,
        pull: Sequence[Tensor] | None,
        clients: int,
    ) -> Tensor:
        """Take steps of plain SGD; return each client's sum of losses, `[G]`."""
        shrink = self._shrink(terms)
        loss_sum = torch.zeros(clients, dtype=torch.float64, device=self.device)
        for batch in self._batches(stretches):
            sink = FusedSgd(self._parameters, shrink, batch.rates, pull)
            losses = self._pass(inputs, targets, batch, sink)
            loss_sum[: len(losses)] += losses
        return loss_sum

    def _batches(self, stretches: Iterable[Stretch]) -> Iterator[Batch]:
        """Return the steps of stretches one by one."""
        for stretch in stretches:
            yield from stretch.batches(self.device)

    def _take_steps(
        self,
        steps: LocalSteps,
        inputs: Tensor,
        targets: Tensor,
        stretches: Iterator[Stretch],
        terms: LocalTerms,
        clients: int,
    ) -> tuple[Tensor, Tensor, Selected | None]:
        """Take steps by the recipe.

        Returns:
            Each client's sum and number of the losses of the steps that happen, `[G]`, and what
            was selected.
        """
        loss_sum = torch.zeros(clients, dtype=torch.float64, device=self.device)
        seen = torch.zeros(clients, dtype=torch.int64, device=self.device)
        pace = self._recipe.self_pace
        selected = Selected(clients) if pace is not None else None
        thresholds = thresholds_of(terms, clients)
        for number, batch in enumerate(self._batches(stretches)):
            active = len(batch.lengths)
            found = selection = wanted = None
            if pace is not None:
                selection = Selection(pace, thresholds[:active], _mask(batch))
            if steps.wants_statistics(number, active):
                draws = self._fisher_draws(number, active)
                losses, gradients, found = self._with_statistics(
                    inputs, targets, batch, draws, selection
                )
            else:
                losses, gradients = self._gradients(inputs, targets, batch, selection)
            if selection is not None and selected is not None:
                selected.add(selection.counts, batch.lengths)
                wanted = selection.wanted
            curvature = None
            if self._kronecker is not None:
                now = partial(self._losses_now, inputs, targets, batch, selection)
                values = losses / batch.lengths if selection is None else selection.values
                curvature = Seen(found, values, now)

            def again(
                batch: Batch = batch, selection: Selection | None = selection
            ) -> list[Tensor]:
                return self._gradients(inputs, targets, batch, selection)[1]

            with torch.no_grad():
                applied = steps.take(number, gradients, again, curvature, wanted)
                lengths = batch.lengths
                if applied is not None:
                    mask = torch.from_numpy(applied).to(self.device)
                    losses, lengths = losses.where(mask, 0), lengths * mask
                loss_sum[: len(losses)] += losses
                seen[: len(losses)] += lengths
        return loss_sum, seen, selected

    def _gradients(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch: Batch,
        selection: Selection | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return each client's sum of losses `[A]` and gradients of its objective."""
        if self._recipe.penalty:
            return self._penalised(inputs, targets, batch, selection)
        sink = Collect(self._parameters)
        losses = self._pass(inputs, targets, batch, sink, selection)
        return losses, sink.all()

    def _penalised(
        self, inputs: Tensor, targets: Tensor, batch: Batch, selection: Selection | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return losses, and the gradients of loss + penalty by differentiating twice."""
        active, lengths = len(batch.lengths), batch.lengths.tolist()
        own = [p[:active].detach().requires_grad_() for p in self._parameters]
        x, y = self._examples(inputs, targets, batch)
        with torch.enable_grad():
            with passes(self.device, self._precision):
                x = recorded_through(self._layers, own, x)
            x = x.to(self.layout.dtype)
            if selection is not None:
                losses = self._example_losses(x, y, batch)
                gradients = gradients_of(
                    selection.objective(losses).sum(), own, penalty=self._recipe.penalty
                )
                return losses.detach().sum(1, dtype=torch.float64), gradients
            means = torch.stack([self._loss(x[i, :n], y[i, :n]) for i, n in enumerate(lengths)])
            # The clients' losses share no parameter: their sum has each one's own gradient.
            gradients = gradients_of(means.sum(), own, penalty=self._recipe.penalty)
        return means.detach().double() * batch.lengths, gradients

    def _fisher_draws(self, step: int, active: int) -> FisherDraws:
        """Return the random columns of the Fisher in a step."""
        round, _ = self._draw_ids[0]
        return FisherDraws(self._seed, round, step, [c for _, c in self._draw_ids[:active]])

    @contextmanager
    def _besides(self) -> Iterator[None]:
        """Make passes that leave no draws of dropout behind."""
        kept = [generator.get_state() for generator in self._generators]
        try:
            yield
        finally:
            if kept:
                for generator, state in zip(self._generators, kept, strict=True):
                    generator.set_state(state)
            else:
                self._generators = []

    def _with_statistics(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch: Batch,
        draws: FisherDraws,
        selection: Selection | None,
    ) -> tuple[Tensor, list[Tensor], list[LayerStatistics]]:
        """Return losses and gradients, and what the layers with Kronecker factors saw."""
        if self._recipe.penalty:  # the objective's gradient, and one more pass for the loss's
            losses, gradients = self._penalised(inputs, targets, batch, selection)
            with self._besides():
                found = self._recorded(inputs, targets, batch, draws, selection)[2]
            return losses, gradients, found
        return self._recorded(inputs, targets, batch, draws, selection)

    def _recorded(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch: Batch,
        draws: FisherDraws,
        selection: Selection | None,
    ) -> tuple[Tensor, list[Tensor], list[LayerStatistics]]:
        """Return losses, gradients and what the layers saw, in one forward pass."""
        assert self._kronecker is not None
        assert self._recipe.kronecker is not None
        fisher, layers = self._recipe.kronecker.fisher, self._kronecker.layers
        own = [p[: len(batch.lengths)].detach().requires_grad_() for p in self._parameters]
        x, y = self._examples(inputs, targets, batch)
        seen: dict[int, Tensor] = {}
        made: dict[int, Tensor] = {}
        with torch.enable_grad(), passes(self.device, self._precision):
            for place, layer in enumerate(self._layers):
                seen[place] = x.detach()
                x = layer.recorded(own, x)
                made[place] = x
        losses, gradient = self._loss_and_gradient(x.detach(), y, batch, selection)
        outputs = [made[place] for place in self._places]
        filled = differentiate(x, [*own, *outputs], gradient.to(x.dtype), keep_graph=True)
        at_outputs = [g.unsqueeze(0) for g in filled[len(own) :]]
        if fisher != "empirical":
            kind = hessian_kind(self._loss)
            assert kind is not None
            wide, lengths = x.detach().to(self.layout.dtype), batch.lengths.tolist()
            columns = fisher_columns(fisher, kind, wide, draws, lengths)
            at_outputs = through(x, outputs, columns)
        weights = example_weights(x.shape[1], batch.lengths, self.layout.dtype)
        if selection is not None:
            weights = selection.weights.to(weights)
        inputs_of = [seen[place] for place in self._places]
        of_objective = fisher == "empirical"
        return (
            losses,
            owned(filled[: len(own)]),
            statistics(layers, inputs_of, at_outputs, weights, of_objective=of_objective),
        )

    def _losses_now(
        self, inputs: Tensor, targets: Tensor, batch: Batch, selection: Selection | None
    ) -> Tensor:
        """Return each client's objective on a batch at the current parameters, `[A]`."""
        with self._besides(), torch.no_grad(), passes(self.device, self._precision):
            x, y = self._examples(inputs, targets, batch)
            x = forward_through(self._layers, x)
            if selection is not None:
                return selection.objective(self._example_losses(x, y, batch))
            return self._loss_and_gradient(x, y, batch)[0] / batch.lengths

    def _examples(self, inputs: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the examples of a step, `[A, B, ...]`, and let the clients' draws see it."""
        shape = batch.rows.shape
        self._lengths = batch.lengths
        flat = batch.rows.flatten()
        x = inputs.index_select(0, flat).view(*shape, *inputs.shape[1:])
        y = targets.index_select(0, flat).view(*shape, *targets.shape[1:])
        return x, y

    def _example_losses(self, output: Tensor, y: Tensor, batch: Batch) -> Tensor:
        """Return the loss of each example, `[A, B]`; 0 for what only fills a batch up."""
        wide = output.to(self.layout.dtype).flatten(0, 1)
        losses = example_losses(self._loss, wide, y.flatten(0, 1)).view(y.shape[:2])
        mask = _mask(batch)
        return losses if mask is None else torch.where(mask, losses, torch.zeros_like(losses))

    def _pass(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch: Batch,
        sink: FusedSgd | Collect,
        selection: Selection | None = None,
    ) -> Tensor:
        """Do a forward and a backward pass; return each client's sum of losses, `[A]`."""
        with torch.no_grad(), passes(self.device, self._precision):
            x, y = self._examples(inputs, targets, batch)
            x = forward_through(self._layers, x)
            losses, gradient = self._loss_and_gradient(x, y, batch, selection)
            backward_through(self._layers, gradient, sink, need_input=False)
        return losses

    def _loss_and_gradient(
        self, output: Tensor, y: Tensor, batch: Batch, selection: Selection | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return each client's sum of losses `[A]` and its objective's gradient at the output."""
        lengths = batch.lengths
        if selection is not None:
            output = output.detach().requires_grad_()
            with torch.enable_grad():
                each = self._example_losses(output, y, batch)
                (gradient,) = torch.autograd.grad(selection.objective(each).sum(), output)
            return each.detach().sum(1, dtype=torch.float64), gradient
        output = output.to(self.layout.dtype)
        if self._loss is nn.functional.cross_entropy and output.dim() == 3:
            log_probabilities = output.log_softmax(-1)
            targets = y.unsqueeze(-1)
            own = -log_probabilities.gather(-1, targets).squeeze(-1)
            gradient = log_probabilities.exp_()
            gradient.scatter_add_(-1, targets, torch.full_like(own, -1).unsqueeze(-1))
            if batch.is_padded:
                mask = torch.arange(y.shape[1], device=y.device) < lengths.unsqueeze(1)
                own = own * mask
                gradient *= (mask.to(gradient.dtype) / lengths.unsqueeze(1)).unsqueeze(-1)
            else:
                gradient /= y.shape[1]
            return own.sum(1, dtype=torch.float64), gradient
        output = output.detach().requires_grad_()
        with torch.enable_grad():
            means = [self._loss(output[i, :n], y[i, :n]) for i, n in enumerate(lengths.tolist())]
            (gradient,) = torch.autograd.grad(torch.stack(means).sum(), output)
        return torch.stack(means).detach().double() * lengths, gradient

    def _full_gradient(
        self,
        inputs: Tensor,
        targets: Tensor,
        firsts: Sequence[int],
        sizes: Sequence[int],
        longest: int,
        is_padded: bool,
    ) -> Tensor:
        """Return each client's gradient over all its examples, `[C, P]`."""
        clients = len(sizes)
        lengths = np.array(sizes)
        rows = np.array(firsts)[:, None] + np.minimum(np.arange(longest), lengths[:, None] - 1)
        batch = Batch(
            torch.from_numpy(rows).to(self.device),
            torch.from_numpy(lengths).to(self.device),
            is_padded,
            np.zeros(clients),
        )
        sink = Collect(self._parameters)
        self._pass(inputs, targets, batch, sink)
        return self.layout.vector(sink.all())

    def _vectors(self, flat: Tensor) -> list[Tensor]:
        """Return `flat` `[..., P]` as views of the parameters' shapes."""
        return self.layout.views(flat)

    def _lr_sums(self, plans: Sequence[ClientPlan], proximal: float) -> Tensor | None:
        known: dict[int, float | None] = {}
        for plan in plans:
            key = id(plan.learning_rates)
            if key not in known:
                rates = plan.learning_rates.tolist()
                known[key] = self._recipe.rule.effective_lr_sum(rates, proximal=proximal)
        sums = [known[id(plan.learning_rates)] for plan in plans]
        if any(value is None for value in sums):
            return None
        return torch.tensor(sums, dtype=torch.float64)


def _stacked_form(
    layer: nn.Module,
    prefix: str,
    parameters: Parameters,
    positions: Mapping[str, int],
    draws: Draws,
) -> StackedLayer:
    """Return the stacked form of a layer, whose parameters' names begin with a prefix."""
    own = {name: positions[f"{prefix}{name}"] for name, _ in layer.named_parameters()}
    return STACKED_FORMS[type(layer)](layer, parameters, own, draws)


def _residual(
    block: Residual, parameters: Parameters, own: Mapping[str, int], draws: Draws
) -> StackedBranches:
    """Return the stacked form of a residual block."""
    branches = (("body", block.body), ("shortcut", block.shortcut))
    return StackedBranches(
        [
            [
                _stacked_form(layer, prefix, parameters, own, draws)
                for prefix, layer in leaves(branch, f"{name}.")
            ]
            for name, branch in branches
        ]
    )


register_stacked(Residual, _residual)


def _mask(batch: Batch) -> Tensor | None:
    """Return which examples of a padded batch there are, `[A, B]`, or None for all."""
    if not batch.is_padded:
        return None
    places = torch.arange(batch.rows.shape[1], device=batch.rows.device)
    return places < batch.lengths.unsqueeze(1)
