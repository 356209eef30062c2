"""K-FAC and EKFAC as a rule: its settings, and the factors of a group of clients over their steps.

`KroneckerRule` says how; `Curvature` keeps the factors A and G of every layer, their inverses or
eigenbases, and preconditions gradients with them, all with a leading axis of clients. Both the
torch optimizers of `fedopt.optim.kfac` and the engines of federated clients are built on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedopt.optim.kronecker import (
    KroneckerModel,
    LayerStatistics,
    damped_inverse,
    eigenbasis,
    factored_damping,
    pack,
    trace,
    unpack,
)
from fedopt.optim.rules import Adam, Rule, RuleState, Sgd, Tensors

Interval = int | tuple[tuple[int, int], ...] | Callable[[int], int]
"""Steps between two events: a number, pairs (from step, number), or a function of the step."""

FISHERS = ("empirical", "mc", "type-2")
DAMPING_STYLES = ("factored", "exact")
FALLBACKS = ("sgd", "adam")

ADAPT_EVERY = 5
"""Steps between two adaptations of the damping (Martens & Grosse 2015, section 6.5)."""

ADAPT_FACTOR = 19 / 20
"""omega: the damping's factor of one step, so omega^5 of an adaptation."""

DAMPING_RANGE = (1e-10, 1e10)
"""Where an adapted damping stays."""


def interval(value: Interval, step: int) -> int:
    """Return the steps between two events at a step, >= 1.

    Raises:
        ValueError: a function gave less than 1.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, tuple):
        return [every for first, every in value if first <= step][-1]
    every = int(value(step))
    if every < 1:
        raise ValueError(f"an interval must be >= 1, got {every} at step {step}")
    return every


def is_due(value: Interval, step: int) -> bool:
    """Return whether something done at intervals is due at a step, from 0; at step 0 it is."""
    return step % interval(value, step) == 0


@dataclass(frozen=True)
class KroneckerRule:
    """K-FAC: w <- w - lr v, v <- momentum v + nu G^-1 (dL/dW) A^-1, for every layer.

    EKFAC replaces the products of the factors' eigenvalues by the second moments of the
    examples' gradients in the same basis. Parameters without factors (norms, embeddings,
    attention projections) follow `fallback`.

    Args:
        eigenvalue_correction: EKFAC rather than K-FAC; needs damping_style "exact".
        damping: lambda, > 0.
        fisher: `empirical` (gradients at the batch's own labels), `mc` (labels drawn from the
            model: the true Fisher, sampled once), `type-2` (the true Fisher exactly, one
            backward pass a class).
        damping_style: `factored` adds pi sqrt(lambda) to A and sqrt(lambda) / pi to G; `exact`
            adds lambda to the eigenvalues of A (x) G.
        ema: of the factors, in [0, 1): F <- ema F + (1 - ema) F_batch, the first as it is.
        factor_every: steps between updates of the factors.
        inverse_every: steps between updates of inverses or eigenbases.
        kl_clip: kappa > 0 or None: nu = min(1, sqrt(kappa / (lr^2 sum p g))), with p the
            preconditioned gradient g, of all layers together.
        momentum: of the preconditioned gradients, in [0, 1).
        weight_decay: L2 penalty in the gradient, before it is preconditioned, >= 0.
        decoupled_weight_decay: whether weights shrink by lr weight_decay instead.
        adapt_damping: whether lambda follows the reduction ratio every 5 steps: times
            (19/20)^5 where the loss falls by more than 3/4 of what the quadratic model predicts,
            divided by it below 1/4.
        fallback: `sgd` (with the same momentum) or `adam`.
        fallback_lr: learning rate of the other parameters, > 0; None for lr.
        lr: what `fallback_lr` is relative to: schedules scale both.

    Raises:
        ValueError: an option is out of range; the message names it.

    Source: Martens & Grosse 2015; Grosse & Martens 2016 (convolutions); George et al. 2018
    (EKFAC); Ba et al. 2017, section 5 (kl clipping).
    """

    eigenvalue_correction: bool = False
    damping: float = 1e-2
    fisher: str = "empirical"
    damping_style: str = "factored"
    ema: float = 0.95
    factor_every: Interval = 1
    inverse_every: Interval = 1
    kl_clip: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    decoupled_weight_decay: bool = False
    adapt_damping: bool = False
    fallback: str = "sgd"
    fallback_lr: float | None = None
    lr: float | None = None

    is_elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check(self.damping > 0, "damping", self.damping, "must be > 0")
        _among(self.fisher, "fisher", FISHERS)
        _among(self.damping_style, "damping_style", DAMPING_STYLES)
        _among(self.fallback, "fallback", FALLBACKS)
        _check(0 <= self.ema < 1, "ema", self.ema, "must be in [0, 1)")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "must be in [0, 1)")
        _check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be >= 0")
        for name in ("kl_clip", "fallback_lr"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, value, "must be > 0 or None")
        for name in ("factor_every", "inverse_every"):
            _check_interval(name, getattr(self, name))
        if self.eigenvalue_correction and self.damping_style != "exact":
            raise ValueError(
                f'damping_style: got "{self.damping_style}", but EKFAC damps the eigenvalues '
                'that it estimates: use "exact"'
            )

    @property
    def is_exact(self) -> bool:
        """Whether damping is added to the eigenvalues of A (x) G."""
        return self.damping_style == "exact"

    @property
    def slots(self) -> tuple[str, ...]:
        """What is kept between rounds: the factors, momentum, the fallback's own, the damping."""
        velocity = ("velocity",) if self.momentum else ()
        moments = ("first_moment", "second_moment") if self.fallback == "adam" else ()
        damping = ("damping",) if self.adapt_damping else ()
        return ("input_factors", "gradient_factors", *velocity, *moments, *damping)

    @property
    def momentum_like(self) -> float | None:
        """The momentum."""
        return self.momentum

    @property
    def fallback_rule(self) -> Rule:
        """The rule of parameters without factors."""
        decay = 0.0 if self.decoupled_weight_decay else self.weight_decay
        if self.fallback == "adam":
            return Adam(weight_decay=decay)
        return Sgd(momentum=self.momentum, weight_decay=decay)

    @property
    def fallback_scale(self) -> float:
        """Learning rate of the other parameters, relative to that of the step."""
        if self.fallback_lr is None:
            return 1.0
        if self.lr is None:
            raise ValueError("fallback_lr: lr, which it is relative to, is not known")
        return self.fallback_lr / self.lr

    def init(self, parameters: Tensors) -> RuleState:
        """Refuse: the rule needs a model and what its layers saw.

        Raises:
            TypeError: always.
        """
        raise TypeError("K-FAC needs the model: use KFAC(model, ...) or EKFAC(model, ...)")

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Refuse, as `init`.

        Raises:
            TypeError: always.
        """
        self.init(parameters)

    def effective_lr_sum(
        self,
        lrs: Sequence[float],
        momenta: Sequence[float] | None = None,
        proximal: float = 0.0,
    ) -> float | None:
        """Return None: gradients enter the parameters preconditioned."""
        return None


def ekfac_rule(**options: object) -> KroneckerRule:
    """Return the rule of EKFAC: K-FAC with the eigenvalue correction, which damps exactly.

    Source: George et al. 2018, algorithm 1.
    """
    return KroneckerRule(eigenvalue_correction=True, damping_style="exact", **options)  # type: ignore[arg-type]


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} {allowed}, got {value}")


def _among(value: str, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}, got "{value}"')


def _check_interval(name: str, value: Interval) -> None:
    if isinstance(value, int):
        _check(value >= 1, name, value, "must be >= 1")
    elif isinstance(value, tuple):
        steps = [first for first, _ in value]
        good = bool(steps) and steps[0] == 0 and steps == sorted(set(steps))
        good = good and all(every >= 1 for _, every in value)
        _check(good, name, value, "must be pairs (from step, number >= 1) in order, from step 0")
    else:
        _check(callable(value), name, value, "must be a number, pairs, or a function of the step")


Where = slice | Tensor
"""Clients of the group: a run of them, or their positions."""


class Curvature:
    """The factors of every layer for a group of clients, and what they precondition with.

    Args:
        model: the layers.
        rule: the settings.
        clients: C, of the group.
        dtype: of the parameters.
        device: where they are.

    Attributes:
        damping: lambda of each client, `[C]` in float64 on the CPU.
        has_factors: whether a client has factors yet, `[C]` on the CPU.
        rejected: batches of each client whose factors were not finite and so were not taken
            in, `[C]` on the CPU.
    """

    def __init__(
        self,
        model: KroneckerModel,
        rule: KroneckerRule,
        clients: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model = model
        self.rule = rule
        self.damping = torch.full((clients,), rule.damping, dtype=torch.float64)
        self.has_factors = torch.zeros(clients, dtype=torch.bool)
        self.rejected = torch.zeros(clients, dtype=torch.int64)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(clients, *shape, dtype=dtype, device=device)

        shapes = [layer.factor_shapes for layer in model.layers]
        self.inputs = [zeros(*a) for a, _ in shapes]
        self.gradients = [zeros(*g) for _, g in shapes]
        # Factored: the damped inverses. Exact: the eigenvectors, and the eigenvalues [C, g, o, i].
        self._left = [zeros(*g) for _, g in shapes]
        self._right = [zeros(*a) for a, _ in shapes]
        self._values = (
            [zeros(layer.groups, layer.outputs, layer.inputs) for layer in model.layers]
            if rule.is_exact
            else []
        )
        # Where eigenvalues are 0: their eigenvectors are any basis of what no batch reached.
        self._null: list[tuple[Tensor, Tensor]] = (
            [
                (
                    zeros(layer.groups, layer.outputs).bool(),
                    zeros(layer.groups, layer.inputs).bool(),
                )
                for layer in model.layers
            ]
            if rule.eigenvalue_correction
            else []
        )
        self._has_basis = torch.zeros(clients, dtype=torch.bool)
        self._has_values = torch.zeros(clients, dtype=torch.bool)
        self._was_given = torch.zeros(clients, dtype=torch.bool)

    # Factors -----------------------------------------------------------------------------------

    def update(
        self,
        where: Where,
        statistics: Sequence[LayerStatistics] | None,
        *,
        refresh: bool,
    ) -> None:
        """Take in a batch of some clients, and make the inverses anew where that is due.

        A client whose batch gives factors that are not finite keeps those that it has.

        Args:
            where: the clients, n of them.
            statistics: of each layer, for these clients; None where only `refresh` is wanted.
            refresh: whether inverses or eigenbases are made anew. Those of a client without any
                always are.
        """
        taken: Tensor | None = None
        if statistics is not None:
            taken = self._absorb(where, statistics)
        known = self.has_factors[where]
        wanted = known if refresh else known & ~self._has_basis[where]
        if wanted.any():
            self._refresh(_within(where, wanted))
        if self.rule.eigenvalue_correction and statistics is not None and taken is not None:
            self._correct(where, statistics, taken)

    def _absorb(self, where: Where, statistics: Sequence[LayerStatistics]) -> Tensor:
        """Average the factors of a batch in; return whose were finite, `[n]` on the CPU."""
        new = [(s.input_factor(), s.gradient_factor()) for s in statistics]
        device = new[0][0].device
        good = torch.ones(len(new[0][0]), dtype=torch.bool, device=device)
        for pair in new:
            for factor in pair:
                good &= factor.flatten(1).isfinite().all(1)
        good_there, good = good, good.cpu()
        self.rejected[where] += ~good
        weights = torch.where(self.has_factors[where], 1 - self.rule.ema, 1.0)
        for kept, batch in zip(zip(self.inputs, self.gradients, strict=True), new, strict=True):
            for running, factor in zip(kept, batch, strict=True):
                old = running[where]
                weight = weights.to(old)[:, None, None, None]
                mixed = old.lerp(factor.to(old.dtype), weight)
                running[where] = torch.where(good_there[:, None, None, None], mixed, old)
        self.has_factors[where] |= good
        return good

    def load(self, where: Where, inputs: Tensor, gradients: Tensor) -> None:
        """Go on from packed factors `[n, size]` each; inverses are made at the next update."""
        shapes = [layer.factor_shapes for layer in self.model.layers]
        for running, packed, side in ((self.inputs, inputs, 0), (self.gradients, gradients, 1)):
            for kept, factor in zip(
                running, unpack(packed, [s[side] for s in shapes]), strict=True
            ):
                kept[where] = factor.to(kept)
        self.has_factors[where] = True
        self._has_basis[where] = False
        self._has_values[where] = False
        self._was_given[where] = True

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, as tensors and lists of tensors."""
        return {name: getattr(self, name) for name in _KEPT}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back copies of what `state_dict` returned."""
        for name in _KEPT:
            setattr(self, name, _like(getattr(self, name), state[name]))

    def packed(self) -> dict[str, Tensor]:
        """Return the factors as vectors of upper triangles, `[C, size]` each."""
        return {"input_factors": pack(self.inputs), "gradient_factors": pack(self.gradients)}

    # Inverses ----------------------------------------------------------------------------------

    def _refresh(self, where: Where) -> None:
        """Make inverses or eigenbases of some clients, all of whom have factors."""
        damping = self.damping[where]
        for position in range(len(self.model.layers)):
            a, g = self.inputs[position][where], self.gradients[position][where]
            lam = damping.to(a.device)
            if not self.rule.is_exact:
                for_a, for_g = factored_damping(a, g, lam)
                self._right[position][where] = damped_inverse(a, for_a)
                self._left[position][where] = damped_inverse(g, for_g)
                continue
            tiny = torch.finfo(a.dtype).tiny
            values_a, vectors_a = eigenbasis(a, lam.to(a).unsqueeze(-1) / (trace(g) + tiny))
            values_g, vectors_g = eigenbasis(g, lam.to(a).unsqueeze(-1) / (trace(a) + tiny))
            product = values_g.unsqueeze(-1) * values_a.unsqueeze(-2)
            if self.rule.eigenvalue_correction:
                # The running diagonal is turned into the new basis, as a diagonal there.
                turn_g = (vectors_g.mT @ self._left[position][where]).square()
                turn_a = (vectors_a.mT @ self._right[position][where]).square()
                null = null_space(values_g), null_space(values_a)
                for kept, found in zip(self._null[position], null, strict=True):
                    kept[where] = found
                turned = levelled(turn_g @ self._values[position][where] @ turn_a.mT, *null)
                old = self._has_values[where].to(a.device)
                product = torch.where(old[:, None, None, None], turned, product)
            self._values[position][where] = product
            self._right[position][where] = vectors_a
            self._left[position][where] = vectors_g
        self._has_basis[where] = True
        # Given factors have no diagonal of their own: batches average into their eigenvalues'.
        self._has_values[where] |= self._was_given[where]

    def _correct(self, where: Where, statistics: Sequence[LayerStatistics], taken: Tensor) -> None:
        """Average the second moments of the examples' gradients into the eigenvalues."""
        weights = torch.where(self._has_values[where], 1 - self.rule.ema, 1.0)
        weights = weights * taken
        for position, seen in enumerate(statistics):
            values = self._values[position]
            own = seen.diagonal(self._right[position][where], self._left[position][where])
            own = levelled(own, *(mask[where] for mask in self._null[position]))
            old = values[where]
            mixed = old.lerp(own.to(old.dtype), weights.to(old)[:, None, None, None])
            finite = own.flatten(1).isfinite().all(1)[:, None, None, None]
            values[where] = torch.where(finite, mixed, old)
        self._has_values[where] |= taken

    # Directions --------------------------------------------------------------------------------

    def precondition(self, where: Where, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the layers preconditioned, `[n, g, o, i]` each.

        That is (G + ..)^-1 V (A + ..)^-1, or U_G ((U_G^T V U_A) / (values + damping)) U_A^T.
        A client without factors, all of whose batches had factors that were not finite, gets 0:
        its curvature is beyond all bounds.
        """
        found = []
        known = self._has_basis[where]
        for position, gradient in enumerate(gradients):
            left, right = self._left[position][where], self._right[position][where]
            if self.rule.is_exact:
                lam = self.damping[where].to(gradient)[:, None, None, None]
                inner = left.mT @ gradient @ right
                inner /= self._values[position][where] + lam
                direction = left @ inner @ right.mT
            else:
                direction = left @ gradient @ right
            if not known.all():
                direction = torch.where(
                    known.to(direction.device)[:, None, None, None], direction, 0.0
                )
            found.append(direction)
        return found

    def quadratic(self, where: Where, directions: Sequence[Tensor]) -> Tensor:
        """Return d^T (F + lambda) d of each client over all layers, `[n]` in float64.

        F is the Fisher as it is kept: A (x) G, or the corrected eigenvalues in their basis.

        Args:
            where: the clients.
            directions: d, `[n, g, o, i]` of each layer.
        """
        total = torch.zeros(len(directions[0]), dtype=torch.float64)
        for position, d in enumerate(directions):
            if self.rule.is_exact:
                left, right = self._left[position][where], self._right[position][where]
                curved = (left.mT @ d @ right).square() * self._values[position][where]
            else:
                curved = d * (self.gradients[position][where] @ d @ self.inputs[position][where])
            lam = self.damping[where]
            squares = d.double().square().flatten(1).sum(1).cpu()
            total += curved.double().flatten(1).sum(1).cpu() + lam * squares
        return total


_KEPT = (
    "damping",
    "has_factors",
    "rejected",
    "inputs",
    "gradients",
    "_left",
    "_right",
    "_values",
    "_null",
    "_has_basis",
    "_has_values",
    "_was_given",
)
"""Attributes of `Curvature` that make up its state."""


def _like(old: Any, new: Any) -> Any:
    """Return copies of tensors on the devices of others, in the same lists and pairs."""
    if isinstance(old, Tensor):
        return new.to(old.device, copy=True)
    return type(old)(_like(a, b) for a, b in zip(old, new, strict=True))


def null_space(values: Tensor) -> Tensor:
    """Return which eigenvalues `[..., d]` are 0 but for rounding."""
    largest = values.amax(-1, keepdim=True)
    return values <= 10 * values.shape[-1] * torch.finfo(values.dtype).eps * largest


def levelled(diagonal: Tensor, null_g: Tensor, null_a: Tensor) -> Tensor:
    """Return a diagonal `[n, g, o, i]` with its mean wherever the eigenvectors are arbitrary.

    Within the null space of a factor any basis is an eigenbasis: what later batches show there
    must not depend on which one the decomposition happened to return.

    Args:
        diagonal: in the eigenbasis.
        null_g: the null space of G, `[n, g, o]`.
        null_a: the null space of A, `[n, g, i]`.
    """
    for axis, null in ((-1, null_a.unsqueeze(-2)), (-2, null_g.unsqueeze(-1))):
        count = null.sum(axis, keepdim=True).clamp(min=1)
        mean = (diagonal * null).sum(axis, keepdim=True) / count
        diagonal = torch.where(null, mean, diagonal)
    return diagonal


def _within(where: Where, mask: Tensor) -> Where:
    """Return the clients of `where` that a mask `[n]` keeps."""
    if bool(mask.all()):
        return where
    if isinstance(where, Tensor):
        return where[mask.to(where.device)]
    return torch.arange(where.start or 0, where.stop)[mask]


def kl_scale(
    rule: KroneckerRule,
    lr: float | Tensor,
    directions: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> Tensor | None:
    """Return nu of each client, `[n]`, or None without kl clipping.

    Args:
        rule: the settings.
        lr: of the step; of each client, `[n]`, or of all.
        directions: p, `[n, ...]` of each layer.
        gradients: g, alike.

    Source: Ba et al. 2017, section 5: a step changes the model's distribution by at most kappa.
    """
    if rule.kl_clip is None:
        return None
    product = torch.stack(
        [(p * g).flatten(1).sum(1) for p, g in zip(directions, gradients, strict=True)]
    ).sum(0)
    tiny = torch.finfo(product.dtype).tiny
    return (rule.kl_clip / (lr**2 * product).clamp_(min=tiny)).sqrt_().clamp_(max=1)


def adapted_damping(damping: Tensor, actual: Tensor, predicted: Tensor) -> Tensor:
    """Return the damping after a step whose effect on the loss is known, `[n]`.

    Args:
        damping: lambda, `[n]`.
        actual: change of the loss on the step's batch, `[n]`.
        predicted: change by the quadratic model, `[n]`; where it is not < 0, as strategies'
            corrections may make it, nothing is learnt of the damping.

    Source: Martens & Grosse 2015, section 6.5.
    """
    ratio = torch.where(predicted < 0, actual / predicted, torch.full_like(actual, 0.5))
    change = ADAPT_FACTOR**ADAPT_EVERY
    moved = torch.where(ratio > 0.75, damping * change, damping)
    # A loss that is not finite has no ratio: the step was far too long.
    moved = torch.where((ratio < 0.25) | ~ratio.isfinite(), damping / change, moved)
    return moved.clamp_(*DAMPING_RANGE)


def slot_sizes(model: KroneckerModel, rule: KroneckerRule, sizes: Sequence[int]) -> dict[str, int]:
    """Return the scalars of each of the rule's slots.

    Args:
        model: the layers.
        rule: the settings.
        sizes: scalars of each parameter.
    """
    others = sum(sizes[position] for position in model.others)
    known = {**model.sizes, "velocity": sum(sizes), "damping": 1}
    return {name: known.get(name, others) for name in rule.slots}
