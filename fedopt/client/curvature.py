"""Second-order steps of a group of clients: what an engine records for them, and the updates.

An engine records, in the steps in which it is asked to, what the layers with Kronecker factors
saw: `Taps` for a module with hooks, `statistics` from inputs and gradients of any origin.
`KroneckerUpdates` stands where `RuleUpdates` does for other rules. The algebra is that of
`fedopt.optim.kronecker` and `fedopt.optim.curvature`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fedopt.client.algorithm import OPTIMIZER, LocalTerms
from fedopt.client.losses import Loss, mean_squared_error
from fedopt.client.rule_updates import Gradients, RuleUpdates
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.optim.curvature import (
    ADAPT_EVERY,
    Curvature,
    KroneckerRule,
    Where,
    adapted_damping,
    is_due,
    kl_scale,
    slot_sizes,
)
from fedopt.optim.kronecker import (
    KroneckerLayer,
    KroneckerModel,
    LayerStatistics,
    UnsupportedModelError,
    factored_damping,
    hessian_columns,
    pack,
    packed_size,
    unpack,
)
from fedopt.seeds import torch_generator

MIXING_FACTORS = "mixing_factors"
"""Name of the damped input factors with which the server mixes models (see `FedPM`)."""


def kronecker_model(model: nn.Module, rule: KroneckerRule) -> KroneckerModel:
    """Return the layers of a model that have Kronecker factors.

    Raises:
        ConfigError: there are none, or parameters are tied.
    """
    try:
        return KroneckerModel.of(model)
    except UnsupportedModelError as error:
        name = "ekfac" if rule.eigenvalue_correction else "kfac"
        raise ConfigError(f'"{name}" cannot train this model: {error}', key="model") from None


def vector_sizes(
    model: KroneckerModel, rule: KroneckerRule, sizes: Sequence[int]
) -> dict[str, int]:
    """Return the length of the vectors of the rule's state, by full name.

    Args:
        model: the layers.
        rule: the settings.
        sizes: scalars of each parameter.
    """
    found = {OPTIMIZER + name: size for name, size in slot_sizes(model, rule, sizes).items()}
    return {**found, OPTIMIZER + MIXING_FACTORS: model.sizes["input_factors"]}


def hessian_kind(loss: Loss) -> str | None:
    """Return the name of a loss whose Hessian is known, or None."""
    known: dict[object, str] = {
        nn.functional.cross_entropy: "cross_entropy",
        nn.functional.mse_loss: "mse",
        mean_squared_error: "mse",
    }
    return known.get(loss)


# Recording ------------------------------------------------------------------------------------


class Taps:
    """Records inputs and outputs of the layers in one forward pass, as a context.

    Args:
        layers: those with factors.

    Attributes:
        inputs: of each layer, detached, `[B, ...]`.
        outputs: of each layer, part of the graph.

    Raises:
        UnsupportedModelError: a layer is called twice in the pass.
    """

    def __init__(self, layers: Sequence[KroneckerLayer]) -> None:
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self._inputs: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}

    def __enter__(self) -> Taps:
        for position, layer in enumerate(self._layers):
            self._handles.append(layer.module.register_forward_hook(self._hook(position)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, position: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if position in self._outputs:
                raise UnsupportedModelError(
                    f"layer {self._layers[position].name} is called twice in a forward pass: "
                    "its Kronecker factors would mix two places of the network"
                )
            self._inputs[position] = args[0].detach()
            self._outputs[position] = output
            return output.clone()  # what follows may work in place

        return hook

    @property
    def inputs(self) -> list[Tensor]:
        """Inputs of the layers.

        Raises:
            UnsupportedModelError: a layer was not called.
        """
        self._check()
        return [self._inputs[i] for i in range(len(self._layers))]

    @property
    def outputs(self) -> list[Tensor]:
        """Outputs of the layers; raises as `inputs`."""
        self._check()
        return [self._outputs[i] for i in range(len(self._layers))]

    def _check(self) -> None:
        for position, layer in enumerate(self._layers):
            if position not in self._outputs:
                raise UnsupportedModelError(
                    f"layer {layer.name} is not called in a forward pass: "
                    "it can have no Kronecker factors"
                )


class FisherDraws:
    """The random columns of the Fisher "mc", the same for a client in any engine and group.

    They are drawn on the CPU, so that a run on another device has the same.

    Args:
        seed: the run's seed.
        round: communication round, from 1.
        step: number of the step in the round, from 0.
        clients: ids of the active clients, A of them.
    """

    def __init__(self, seed: int, round: int, step: int, clients: Sequence[int]) -> None:
        self._keys = [(seed, "fisher", round, client, step) for client in clients]

    def draw(self, kind: str, output: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the draws of `hessian_columns` for outputs `[A, B, ...]`, classes last."""
        shape = output.shape if kind == "mse" else output.shape[:-1]
        draws = torch.zeros(shape, dtype=torch.float64)
        for row, key, length in zip(draws, self._keys, lengths, strict=True):
            generator = torch_generator(*key)
            if kind == "mse":
                row[:length].normal_(generator=generator)
            else:
                row[:length].uniform_(generator=generator)
        return draws.to(output.device)


def fisher_columns(
    fisher: str, kind: str, output: Tensor, draws: FisherDraws, lengths: Sequence[int]
) -> Tensor:
    """Return the columns of the loss's Hessian, `[K, A, B, ...]`, for outputs `[A, B, ...]`.

    Args:
        fisher: `mc` or `type-2`.
        kind: `cross_entropy` or `mse`.
        output: of the model.
        draws: for `mc`.
        lengths: examples of each client, A of them; the others are of no matter.
    """
    # The loss has its classes as the first axis of an example.
    moved = output.movedim(2, -1) if kind == "cross_entropy" else output
    drawn = draws.draw(kind, moved, lengths) if fisher == "mc" else None
    flat = moved.flatten(0, 1)
    columns = hessian_columns(
        kind, flat, draws=None if drawn is None else drawn.flatten(0, 1), classes_last=True
    )
    shaped = columns.reshape(len(columns), *moved.shape)
    return shaped.movedim(-1, 3) if kind == "cross_entropy" else shaped


def through(output: Tensor, outputs: Sequence[Tensor], columns: Tensor) -> list[Tensor]:
    """Return the gradients of the output's products with some columns, at the layers' outputs.

    Args:
        output: of the model, part of a graph that is kept.
        outputs: of the layers, in the same graph.
        columns: `[K, *output.shape]`.

    Returns:
        `[K, *shape]` for each layer.
    """
    found = []
    for column in columns:
        gradients = torch.autograd.grad(
            output, outputs, column.to(output.dtype), retain_graph=True, allow_unused=True
        )
        found.append(
            [
                torch.zeros_like(o) if g is None else g
                for o, g in zip(outputs, gradients, strict=True)
            ]
        )
    return [torch.stack(own) for own in zip(*found, strict=True)]


def example_weights(batch: int, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 1 / n for each example of a client with n, 0 for what fills up, `[A, B]`."""
    mask = torch.arange(batch, device=lengths.device) < lengths.unsqueeze(1)
    return mask.to(dtype) / lengths.unsqueeze(1)


def statistics(
    layers: Sequence[KroneckerLayer],
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
    weights: Tensor,
    *,
    of_objective: bool,
) -> list[LayerStatistics]:
    """Return what the layers saw in a step.

    Args:
        layers: those with factors.
        inputs: of each layer, `[A, B, ...]`.
        gradients: at the output of each, `[K, A, B, ...]`.
        weights: of the examples in the clients' objectives, `[A, B]`.
        of_objective: whether the gradients are those of the objective, in which the weights
            are a factor already, rather than those of each example's own loss.
    """
    found = []
    for layer, seen, gradient in zip(layers, inputs, gradients, strict=True):
        gradient = gradient.detach().to(weights.dtype)
        if of_objective:
            own = torch.where(weights > 0, 1 / weights, torch.zeros_like(weights))
            gradient = gradient * own.view(1, *own.shape, *(1,) * (gradient.dim() - 3))
        rows = layer.rows(seen.detach().to(weights.dtype))
        found.append(LayerStatistics(rows, layer.output_rows(gradient), weights))
    return found


@dataclass(frozen=True)
class Seen:
    """What an engine recorded in a step, besides the gradients.

    Args:
        statistics: of each layer, where they were wanted.
        losses: mean loss of each client before the step, `[A]`.
        losses_now: returns the same on the same batch at the parameters as they are then.
    """

    statistics: Sequence[LayerStatistics] | None
    losses: Tensor
    losses_now: Callable[[], Tensor]


# Updates ----------------------------------------------------------------------------------------


class KroneckerUpdates:
    """Applies K-FAC or EKFAC to the clients of a group, each with its own factors.

    Args:
        rule: the settings.
        model: the layers.
        parameters: `[G, *shape]` each, changed in place.
        layout: of the parameters.
        terms: what the strategy adds; the state to go on from.
    """

    def __init__(
        self,
        rule: KroneckerRule,
        model: KroneckerModel,
        parameters: Sequence[Tensor],
        layout: ParameterLayout,
        terms: LocalTerms,
    ) -> None:
        self._rule = rule
        self._model = model
        self._layout = layout
        clients, first = len(parameters[0]), parameters[0]
        self.curvature = Curvature(model, rule, clients, first.dtype, first.device)
        self.steps = np.zeros(clients, dtype=np.int64)
        self._velocity = (
            [
                first.new_zeros(clients, layer.groups, layer.outputs, layer.inputs)
                for layer in model.layers
            ]
            if rule.momentum
            else []
        )
        self._others: RuleUpdates | None = None
        self._specs = tuple(layout.parameters[i] for i in model.others)
        given = self._resume(terms)
        if model.others:
            self._others = RuleUpdates(
                rule.fallback_rule,
                [parameters[i] for i in model.others],
                ParameterLayout(self._specs, ()),
                LocalTerms(optimizer_state=given, optimizer_steps=terms.optimizer_steps)
                if given
                else LocalTerms(),
            )
        self._seen: Seen | None = None
        self._step = 0
        self._raw: Gradients | None = None

    def _resume(self, terms: LocalTerms) -> dict[str, Tensor]:
        """Take the state of clients that have taken a step; return that of the fallback."""
        if terms.optimizer_state is None or terms.optimizer_steps is None:
            return {}
        clients = len(self.steps)
        self.steps[:] = terms.optimizer_steps.numpy()
        kept = {name: v.expand(clients, -1) for name, v in terms.optimizer_state.items()}
        where = torch.from_numpy(self.steps > 0).nonzero().flatten()
        if len(where):
            there = where.to(next(iter(kept.values())).device)
            self.curvature.load(
                where, kept["input_factors"][there], kept["gradient_factors"][there]
            )
            if "damping" in kept:
                self.curvature.damping[where] = kept["damping"][there, 0].double().cpu()
            if self._velocity:
                views = self._layout.views(kept["velocity"])
                for own, layer in zip(self._velocity, self._model.layers, strict=True):
                    own[where] = layer.matrix(views)[there].to(own)
        return self._fallback_state(kept)

    def _fallback_state(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for slot in self._rule.fallback_rule.slots:
            if slot == "velocity":
                views = self._layout.views(kept[slot])
                pieces = [views[i] for i in self._model.others]
                found[slot] = _flat(ParameterLayout(self._specs, ()), pieces) if pieces else None
            else:
                found[slot] = kept[slot]
        return {name: vector for name, vector in found.items() if vector is not None}

    # A step ------------------------------------------------------------------------------------

    def wants_statistics(self, step: int, active: int) -> bool:
        """Return whether the factors are due in a step of the round, or a client has none."""
        due = is_due(self._rule.factor_every, step)
        return due or not bool(self.curvature.has_factors[:active].all())

    def adapts(self, step: int) -> bool:
        """Return whether the damping is adapted in a step of the round."""
        return self._rule.adapt_damping and (step + 1) % ADAPT_EVERY == 0

    def observe(self, step: int, seen: Seen, gradients: Gradients) -> None:
        """Take what was recorded in a step that `apply` is about to take.

        Args:
            step: number of the step in the round, from 0.
            seen: what was recorded.
            gradients: of the clients' own losses, `[A, *shape]` each.
        """
        self._step, self._seen = step, seen
        self._raw = [g.clone() for g in gradients] if self.adapts(step) else None

    def apply(
        self,
        parameters: list[Tensor],
        gradients: Gradients,
        rates: npt.NDArray[np.float64],
        momenta: npt.NDArray[np.float64] | None,
        applied: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Update the clients whose step is applied (None: all), in place."""
        assert self._seen is not None, "observe comes before apply"
        active = len(rates)
        mask = np.ones(active, dtype=bool) if applied is None else applied
        if mask.any():
            self._apply(_where(mask), mask, parameters, gradients, rates, momenta, applied)
        self.steps[:active] += mask
        self._seen = self._raw = None

    def _apply(
        self,
        where: Where,
        mask: npt.NDArray[np.bool_],
        parameters: list[Tensor],
        gradients: Gradients,
        rates: npt.NDArray[np.float64],
        momenta: npt.NDArray[np.float64] | None,
        applied: npt.NDArray[np.bool_] | None,
    ) -> None:
        rule, layers = self._rule, self._model.layers
        self._update_factors(mask)
        before = self._copies(parameters, where) if self._raw is not None else []
        own = _chosen(parameters, where)
        lr = torch.from_numpy(rates[mask]).to(parameters[0])
        wanted = [layer.matrix(_chosen(gradients, where)) for layer in layers]
        weights = [layer.matrix(own) for layer in layers]
        if rule.weight_decay and not rule.decoupled_weight_decay:
            wanted = list(torch._foreach_add(wanted, weights, alpha=rule.weight_decay))
        directions = self.curvature.precondition(where, wanted)
        scale = kl_scale(rule, lr, directions, wanted)
        if scale is not None:
            directions = [p * _column(scale, p) for p in directions]
        if rule.momentum:
            factors = np.full(len(rates), rule.momentum) if momenta is None else momenta
            factor = torch.from_numpy(factors[mask]).to(lr)
            for velocity, p in zip(self._velocity, directions, strict=True):
                velocity[where] = velocity[where] * _column(factor, p) + p
            directions = [velocity[where] for velocity in self._velocity]
        if rule.weight_decay and rule.decoupled_weight_decay:
            shrink = 1 - lr * rule.weight_decay
            weights = [w * _column(shrink, w) for w in weights]
        for layer, weight, p in zip(layers, weights, directions, strict=True):
            for position, value in layer.parts(weight - _column(lr, p) * p):
                parameters[position][where] = value
        if self._others is not None:
            self._apply_fallback(where, parameters, gradients, rates, momenta, applied)
        if self._raw is not None:
            self._adapt(where, mask, before, parameters)

    def _update_factors(self, mask: npt.NDArray[np.bool_]) -> None:
        """Take the batch in for the applied clients that it is due for, and refresh inverses."""
        rule, step = self._rule, self._step
        assert self._seen is not None
        refresh, taken = is_due(rule.inverse_every, step), np.zeros_like(mask)
        if self._seen.statistics is not None:
            has_factors = self.curvature.has_factors[: len(mask)].numpy()
            taken = mask & (is_due(rule.factor_every, step) | ~has_factors)
        for chosen, statistics in ((taken, self._seen.statistics), (mask & ~taken, None)):
            if not chosen.any():
                continue
            where = _where(chosen)
            seen = statistics
            if seen is not None and not chosen.all():
                seen = [
                    LayerStatistics(s.rows[where], s.gradients[:, where], s.weights[where])
                    for s in seen
                ]
            self.curvature.update(where, seen, refresh=refresh)

    def _apply_fallback(
        self,
        where: Where,
        parameters: list[Tensor],
        gradients: Gradients,
        rates: npt.NDArray[np.float64],
        momenta: npt.NDArray[np.float64] | None,
        applied: npt.NDArray[np.bool_] | None,
    ) -> None:
        """Update the parameters without factors."""
        assert self._others is not None
        rule, others = self._rule, self._model.others
        own, rates = [parameters[i] for i in others], rates * rule.fallback_scale
        if rule.weight_decay and rule.decoupled_weight_decay:
            shrink = torch.from_numpy(1 - rates * rule.weight_decay).to(own[0])[where]
            for parameter in own:
                parameter[where] = parameter[where] * _column(shrink, parameter)
        given = momenta if rule.fallback_rule.momentum_like and rule.fallback == "sgd" else None
        self._others.apply(own, [gradients[i] for i in others], rates, given, applied)

    def _copies(self, parameters: Sequence[Tensor], where: Where) -> list[Tensor]:
        return [p[where].clone() for p in parameters]

    def _adapt(
        self,
        where: Where,
        mask: npt.NDArray[np.bool_],
        before: Sequence[Tensor],
        parameters: Sequence[Tensor],
    ) -> None:
        """Adapt the damping to how well the quadratic model of the loss told the step's effect."""
        assert self._seen is not None
        assert self._raw is not None
        moved = [p[where] - b for p, b in zip(parameters, before, strict=True)]
        slope = torch.stack(
            [
                (g[where].double() * d.double()).flatten(1).sum(1).cpu()
                for g, d in zip(self._raw, moved, strict=True)
            ]
        ).sum(0)
        directions = [layer.matrix(moved) for layer in self._model.layers]
        predicted = slope + self.curvature.quadratic(where, directions) / 2
        losses = self._seen.losses_now().double().cpu() - self._seen.losses.double().cpu()
        chosen = losses[torch.from_numpy(mask)]
        damping = self.curvature.damping
        damping[where] = adapted_damping(damping[where], chosen, predicted)

    # What is kept ------------------------------------------------------------------------------

    def vectors(self) -> dict[str, Tensor]:
        """Return the state as vectors `[G, size]`, by slot."""
        found = dict(self.curvature.packed())
        others = self._others.vectors() if self._others is not None else {}
        clients = len(self.steps)
        if self._velocity:
            flat = self._velocity[0].new_zeros(clients, self._layout.size)
            views = self._layout.views(flat)
            for layer, velocity in zip(self._model.layers, self._velocity, strict=True):
                for position, value in layer.parts(velocity):
                    views[position].copy_(value)
            if "velocity" in others:
                pieces = ParameterLayout(self._specs, ()).views(others.pop("velocity"))
                for position, piece in zip(self._model.others, pieces, strict=True):
                    views[position].copy_(piece)
            found["velocity"] = flat
        if self._rule.adapt_damping:
            found["damping"] = self.curvature.damping.unsqueeze(1).to(found["input_factors"])
        empty = found["input_factors"].new_zeros(clients, 0)
        return found | {s: others.get(s, empty) for s in self._rule.slots if s not in found}

    def mixing(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the server mixes models with.

        Args:
            delta: w - x, `[G, P]`.

        Returns:
            The change times the damped input factor, D (A + pi sqrt(damping)), where a layer
            has one, and the plain change elsewhere, `[G, P]`; and these factors, packed
            `[G, size]`.
        """
        mixed = delta.clone()
        changes, views = self._layout.views(delta), self._layout.views(mixed)
        factors = []
        kept = zip(self._model.layers, self.curvature.inputs, self.curvature.gradients, strict=True)
        for layer, a, g in kept:
            added, _ = factored_damping(a, g, self.curvature.damping.to(a.device))
            eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
            factors.append(a + added[..., None, None] * eye)
            for position, value in layer.parts(layer.matrix(changes) @ factors[-1]):
                views[position].copy_(value)
        return mixed, pack(factors)


def mixed_models(
    model: KroneckerModel, layout: ParameterLayout, mixed: Tensor, factors: Tensor
) -> Tensor:
    """Return the model change that clients' mixed changes and factors agree on, `[P]`.

    For each layer that is (mean_i D_i A_i) (mean_i A_i)^-1: what minimises the sum over clients
    of the squared distance from D_i in the metric of A_i. Elsewhere the plain mean.

    Args:
        model: the layers.
        layout: of the parameters.
        mixed: mean of the clients' mixed changes, `[P]` in float64.
        factors: mean of their damped factors, packed `[size]` in float64.

    Source: Ishii et al. 2025 (FedPM), with the factors of FOOF (Benzing 2022).
    """
    found = mixed.clone()
    changes, views = layout.views(mixed.unsqueeze(0)), layout.views(found.unsqueeze(0))
    shapes = [layer.factor_shapes[0] for layer in model.layers]
    assert len(factors) == sum(packed_size(shape) for shape in shapes)
    for layer, a in zip(model.layers, unpack(factors.unsqueeze(0), shapes), strict=True):
        solved = torch.linalg.solve(a, layer.matrix(changes).mT).mT  # A is symmetric
        for position, value in layer.parts(solved):
            views[position].copy_(value)
    return found


def _where(mask: npt.NDArray[np.bool_]) -> Where:
    """Return the clients that a mask `[A]` keeps."""
    return slice(0, len(mask)) if mask.all() else torch.from_numpy(mask).nonzero().flatten()


def _chosen(tensors: Sequence[Tensor], where: Where) -> list[Tensor]:
    return [t[where] for t in tensors]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Return `[n]` in a shape that multiplies `[n, ...]`."""
    return values.to(like).view(-1, *(1,) * (like.dim() - 1))


def _flat(layout: ParameterLayout, pieces: Sequence[Tensor]) -> Tensor:
    """Return tensors `[G, *shape]` as vectors `[G, size]`."""
    flat = pieces[0].new_empty(len(pieces[0]), layout.size)
    for view, piece in zip(layout.views(flat), pieces, strict=True):
        view.copy_(piece)
    return flat
