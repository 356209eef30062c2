"""K-FAC and EKFAC as `torch.optim.Optimizer`s that take a model, for any training loop.

Hooks of the layers record, in the steps in which the factors are due, what the layers see and the
gradients at their outputs. The algebra is that of `fedopt.optim.kronecker` and
`fedopt.optim.curvature`, which the engines of federated clients share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import torch
from torch import Tensor, nn

from fedopt.optim.curvature import (
    ADAPT_EVERY,
    Curvature,
    Interval,
    KroneckerRule,
    adapted_damping,
    is_due,
    kl_scale,
)
from fedopt.optim.kronecker import KroneckerModel, LayerStatistics, hessian_columns
from fedopt.optim.rules import RuleState

log = logging.getLogger("fedopt")

LOSSES = ("cross_entropy", "mse")

LossColumns = Callable[[Tensor], Tensor]
"""From outputs `[B, ...]` to columns S `[K, B, ...]`: S S^T is the Hessian of an example's loss."""

_EVERYONE = slice(0, 1)


@dataclass
class _Pass:
    """A forward pass: what the layers saw, and the gradients that come back.

    Args:
        inputs: of each layer, by position.
        outputs: of each layer, part of the graph; dropped once the gradients are there.
        gradients: at the outputs, by position: of the loss `[B, ...]`, or of the output's
            products with the Hessian's columns `[K, B, ...]`.
        is_done: whether a backward pass came to the model's output.
        output: of the model, part of the graph, likewise.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    is_done: bool = False
    output: Tensor | None = None

    def let_go(self) -> None:
        """Hold the graph no longer: its hooks hold this pass, which no collector could undo."""
        self.outputs = {}
        self.output = None


class KFAC(torch.optim.Optimizer):
    """K-FAC: w <- w - lr v, v <- momentum v + nu G^-1 (dL/dW) A^-1 for every layer.

    A = E[a a^T] over a layer's inputs and G = E[s s^T] over the gradients at its outputs, biases
    folded in, both averaged over steps; the first step uses the factors of its own batch. Layers
    are `nn.Linear` and `nn.Conv2d` (grouped, strided, dilated, padded in any way). All other
    parameters (norms, embeddings, attention projections) follow `fallback`; `fallback_parameters`
    and a warning name them.

        optimizer = KFAC(model, lr=0.1, damping=1e-2)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    The loss must be the mean over the batch. Passes in evaluation mode or without gradients are
    not recorded.

    Args:
        model: the module; it must be called itself, in training mode.
        lr: learning rate, > 0.
        damping: lambda, > 0, typically 1e-3 to 1e-1.
        fisher: `empirical` (gradients at the batch's own labels), `mc` (labels drawn from the
            model: the true Fisher, sampled once) or `type-2` (the true Fisher exactly, one
            backward pass a class).
        damping_style: `factored` adds pi sqrt(lambda) to A and sqrt(lambda) / pi to G; `exact`
            adds lambda to the eigenvalues of A (x) G.
        ema: decay of the factors, in [0, 1).
        factor_every: steps between updates of the factors: a number, or a function of the step.
        inverse_every: steps between updates of inverses or eigenbases, alike.
        kl_clip: kappa > 0: steps are scaled by min(1, sqrt(kappa / (lr^2 sum p g))); or None.
        momentum: of the preconditioned gradients, in [0, 1).
        weight_decay: L2 penalty in the gradient, before it is preconditioned, >= 0.
        decoupled_weight_decay: whether weights shrink by lr weight_decay instead.
        adapt_damping: whether lambda follows the reduction ratio, every 5 steps; needs
            `step(closure)`, which then is called once more.
        fallback: `sgd` (with the same momentum) or `adam`, for the other parameters.
        fallback_lr: their learning rate, > 0; None for `lr`.
        loss: for `mc` and `type-2`: `cross_entropy`, `mse`, or a function from outputs to
            the columns of the Hessian of each example's loss, `[K, B, ...]`.
        accumulation_steps: backward passes a step, >= 1; each loss is divided by their number,
            as is usual, and the statistics are averaged over them.
        seed: of the labels that `mc` draws.

    Attributes:
        fallback_parameters: name -> why the parameter has no Kronecker factors.

    Raises:
        ValueError: an option is out of range, two layers share a parameter, or no layer has
            factors; the message names it.

    Source: Martens & Grosse 2015, sections 3, 5 and 6.3 to 6.5; Grosse & Martens 2016 (KFC);
    Ba et al. 2017, section 5 (kl clipping).
    """

    _eigenvalue_correction = False

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        damping: float = 1e-2,
        fisher: str = "empirical",
        damping_style: str = "factored",
        ema: float = 0.95,
        factor_every: Interval = 1,
        inverse_every: Interval = 1,
        kl_clip: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        adapt_damping: bool = False,
        fallback: str = "sgd",
        fallback_lr: float | None = None,
        loss: str | LossColumns = "cross_entropy",
        accumulation_steps: int = 1,
        seed: int = 0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be >= 1, got {accumulation_steps}")
        if isinstance(loss, str) and loss not in LOSSES:
            raise ValueError(
                f'loss must be one of {", ".join(LOSSES)}, or a function, got "{loss}"'
            )
        self.rule = KroneckerRule(
            eigenvalue_correction=self._eigenvalue_correction,
            damping=damping,
            fisher=fisher,
            damping_style=damping_style,
            ema=ema,
            factor_every=factor_every,
            inverse_every=inverse_every,
            kl_clip=kl_clip,
            momentum=momentum,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            adapt_damping=adapt_damping,
            fallback=fallback,
            fallback_lr=fallback_lr,
            lr=lr,
        )
        self._layers = KroneckerModel.of(model)
        self.fallback_parameters = dict(self._layers.reasons)
        self._loss = loss
        self._accumulation_steps = accumulation_steps
        self._generator = torch.Generator().manual_seed(seed)
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [self._group(self._layers.layers, lr, momentum)]
        if self._layers.others:
            others = [self._parameters[i] for i in self._layers.others]
            groups.append({"params": others, "lr": fallback_lr or lr, "momentum": momentum})
        super().__init__(groups, {"lr": lr, "momentum": momentum})
        first = self._parameters[0]
        self.curvature = Curvature(self._layers, self.rule, 1, first.dtype, first.device)
        self._steps = 0
        self._passes: list[_Pass] = []
        self._open: list[_Pass] = []
        self._current: _Pass | None = None
        self._is_held = self._is_inside = False
        self._watch(model)
        if self.fallback_parameters:
            log.warning(
                "%s: without Kronecker factors, trained by %s: %s",
                type(self).__name__,
                fallback,
                "; ".join(f"{name} ({why})" for name, why in self.fallback_parameters.items()),
            )

    def _group(self, layers: Sequence[Any], lr: float, momentum: float) -> dict[str, Any]:
        positions = [position for layer in layers for position in layer.positions]
        own = [self._parameters[position] for position in positions]
        return {"params": own, "lr": lr, "momentum": momentum}

    @property
    def damping(self) -> float:
        """Lambda as it is now."""
        return float(self.curvature.damping)

    # Recording ---------------------------------------------------------------------------------

    def _watch(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self._begin)
        for position, layer in enumerate(self._layers.layers):
            layer.module.register_forward_hook(self._layer_hook(position))
        model.register_forward_hook(self._end)

    @property
    def _records(self) -> bool:
        due = is_due(self.rule.factor_every, self._steps) or not self.curvature.has_factors.all()
        return due and not self._is_held and not self._is_inside

    def _begin(self, model: nn.Module, _args: object) -> None:
        wanted = self._records and model.training and torch.is_grad_enabled()
        self._current = _Pass() if wanted else None

    def _layer_hook(self, position: int) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            seen = self._current
            if seen is None or not output.requires_grad:
                return None
            if position in seen.inputs:
                raise RuntimeError(
                    f"layer {self._layers.layers[position].name} is called twice in a forward "
                    "pass: its Kronecker factors would mix two places of the network"
                )
            seen.inputs[position] = args[0].detach()
            seen.outputs[position] = output
            if self.rule.fisher == "empirical":

                def keep(gradient: Tensor) -> None:
                    if not self._is_inside:
                        seen.gradients[position] = gradient.detach()

                output.register_hook(keep)  # type: ignore[no-untyped-call]
            return output.clone()  # what follows may work in place

        return hook

    def _end(self, model: nn.Module, _args: object, output: Any) -> None:
        seen, self._current = self._current, None
        if seen is None:
            return
        if not isinstance(output, Tensor):
            raise RuntimeError(
                f"the model must return a tensor, got {type(output).__name__}: "
                f"{type(self).__name__} follows the gradient from there"
            )

        def came_back(gradient: Tensor) -> None:
            if self._is_inside or seen.is_done:
                return
            seen.is_done = True
            self._passes.append(seen)
            if self.rule.fisher != "empirical" and seen.output is not None:
                self._go_through(seen, seen.output)
            seen.let_go()

        seen.output = output
        self._open.append(seen)
        output.register_hook(came_back)  # type: ignore[no-untyped-call]

    def _go_through(self, seen: _Pass, output: Tensor) -> None:
        """Take the columns of the loss's Hessian back to the layers, while the graph is there."""
        columns = self._columns(output.detach())
        positions = list(seen.outputs)
        self._is_inside = True
        try:
            found = [
                torch.autograd.grad(
                    output,
                    [seen.outputs[p] for p in positions],
                    column.to(output),
                    retain_graph=True,
                )
                for column in columns
            ]
        finally:
            self._is_inside = False
        for place, position in enumerate(positions):
            seen.gradients[position] = torch.stack([gradients[place] for gradients in found])

    def _columns(self, output: Tensor) -> Tensor:
        draws = None
        if callable(self._loss):
            columns = self._loss(output)
            if self.rule.fisher == "type-2":
                return columns
            # A random combination with signs has the same second moment in expectation.
            signs = torch.randint(0, 2, columns.shape[:2], generator=self._generator)
            signs = signs.to(columns).mul_(2).sub_(1)
            shape = (*columns.shape[:2], *(1,) * (columns.dim() - 2))
            return (columns * signs.view(shape)).sum(0, keepdim=True)
        if self.rule.fisher == "mc":
            if self._loss == "mse":
                draws = torch.randn(output.shape, generator=self._generator, dtype=torch.float64)
            else:
                shape = (output.shape[0], *output.shape[2:])
                draws = torch.rand(shape, generator=self._generator, dtype=torch.float64)
            draws = draws.to(output.device)
        return hessian_columns(self._loss, output, draws=draws)

    def hold(self) -> None:
        """Keep what was recorded, and record nothing more until the next step.

        `SAM` calls it before the pass at the perturbed point: the factors are those at w.
        """
        self._is_held = True

    # A step ------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: clears the gradients, computes the loss, calls `backward`, returns the loss.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: no pass was recorded, or another number than `accumulation_steps`; a
                layer with a gradient was not in it; the damping is to adapt without a closure.
        """
        adapts = self.rule.adapt_damping and (self._steps + 1) % ADAPT_EVERY == 0
        if self.rule.adapt_damping and closure is None:
            raise RuntimeError("adapt_damping evaluates the loss again: give step() a closure")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        wanted = is_due(self.rule.factor_every, self._steps) or not self.curvature.has_factors
        seen = self._statistics() if wanted else None
        for one in self._open:  # those without a backward pass too
            one.let_go()
        self._passes, self._open, self._is_held = [], [], False
        self.curvature.update(_EVERYONE, seen, refresh=is_due(self.rule.inverse_every, self._steps))
        before = [p.clone() for p in self._parameters] if adapts else []
        raw = [_gradient(p).clone() for p in self._parameters] if adapts else []
        self._precondition()
        self._fall_back()
        self._steps += 1
        if adapts:
            assert closure is not None
            assert loss is not None
            self._adapt(closure, float(loss), before, raw)
        return loss

    def _statistics(self) -> list[LayerStatistics]:
        """Return what the layers saw in the passes of this step, joined."""
        passes, wanted = self._passes, self._accumulation_steps
        if len(passes) != wanted:
            raise RuntimeError(
                f"{len(passes)} passes with a backward were recorded since the last step, "
                f"expected {wanted} (accumulation_steps): call the model itself in training mode, "
                "and backward once a pass"
            )
        first, found = self._parameters[0].detach(), []
        for position, layer in enumerate(self._layers.layers):
            rows, gradients, weights = [], [], []
            for seen in passes:
                if position not in seen.gradients:
                    raise RuntimeError(
                        f"layer {layer.name} took no part in a recorded pass, so that it has no "
                        "Kronecker factors: it must be called by the model, and reach the loss"
                    )
                x, s = seen.inputs[position], seen.gradients[position]
                share = first.new_full((1, len(x)), 1 / (wanted * len(x)))
                if self.rule.fisher == "empirical":
                    s = s.unsqueeze(0) / share[0, 0]
                rows.append(layer.rows(x.to(share.dtype).unsqueeze(0)))
                gradients.append(layer.output_rows(s.to(share.dtype).unsqueeze(1)))
                weights.append(share)
            found.append(
                LayerStatistics(
                    torch.cat(rows, dim=2), torch.cat(gradients, dim=3), torch.cat(weights, dim=1)
                )
            )
        return found

    def _precondition(self) -> None:
        """Update the parameters that have factors."""
        rule, layers, group = self.rule, self._layers.layers, self.param_groups[0]
        lr, decay = group["lr"], rule.weight_decay
        stacked = [p.unsqueeze(0) for p in self._parameters]
        found = [_gradient(p).unsqueeze(0) for p in self._parameters]
        wanted = [layer.matrix(found) for layer in layers]
        if decay and not rule.decoupled_weight_decay:
            weights = [layer.matrix(stacked) for layer in layers]
            wanted = list(torch._foreach_add(wanted, weights, alpha=decay))
        directions = self.curvature.precondition(_EVERYONE, wanted)
        scale = kl_scale(rule, lr, directions, wanted)
        if scale is not None:
            directions = [p * scale for p in directions]
        for layer, direction in zip(layers, directions, strict=True):
            for position, value in layer.parts(direction):
                parameter, step = self._parameters[position], value[0]
                if decay and rule.decoupled_weight_decay:
                    parameter.mul_(1 - lr * decay)
                if group["momentum"]:
                    state = self.state[parameter]
                    if "velocity" not in state:
                        state["velocity"] = torch.zeros_like(parameter)
                    step = state["velocity"].mul_(group["momentum"]).add_(step)
                parameter.add_(step, alpha=-lr)

    def _fall_back(self) -> None:
        """Update the other parameters by their rule."""
        if not self._layers.others:
            return
        group, rule = self.param_groups[1], self.rule.fallback_rule
        trained = [p for p in group["params"] if p.grad is not None]
        if not trained:
            return
        if self.rule.weight_decay and self.rule.decoupled_weight_decay:
            torch._foreach_mul_(trained, 1 - group["lr"] * self.rule.weight_decay)
        fresh = [p for p in trained if p not in self.state]
        made = rule.init(fresh)
        for place, parameter in enumerate(fresh):
            own = {name: tensors[place] for name, tensors in made.slots.items()}
            self.state[parameter] = {"step": 0, **own}
        for step in sorted({self.state[p]["step"] for p in trained}):
            alike = [p for p in trained if self.state[p]["step"] == step]
            slots = {name: [self.state[p][name] for p in alike] for name in rule.slots}
            gradients = [_gradient(p) for p in alike]
            is_sgd = self.rule.fallback == "sgd" and bool(rule.momentum_like)
            momentum = group["momentum"] if is_sgd else None
            rule.update(alike, gradients, RuleState(step, slots), group["lr"], momentum)
            for parameter in alike:
                self.state[parameter]["step"] = step + 1

    def _adapt(
        self,
        closure: Callable[[], float],
        loss: float,
        before: Sequence[Tensor],
        raw: Sequence[Tensor],
    ) -> None:
        """Adapt the damping to how well the quadratic model told the step's effect."""
        self._is_inside = True
        kept = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        try:
            with torch.enable_grad():
                actual = float(closure()) - loss
        finally:
            self._is_inside = False
        for parameter, gradient in zip(self._parameters, kept, strict=True):
            parameter.grad = gradient
        moved = [(p - b).unsqueeze(0) for p, b in zip(self._parameters, before, strict=True)]
        slope = sum(
            float((g.double() * d[0].double()).sum()) for g, d in zip(raw, moved, strict=True)
        )
        directions = [layer.matrix(moved) for layer in self._layers.layers]
        predicted = slope + self.curvature.quadratic(_EVERYONE, directions) / 2
        self.curvature.damping = adapted_damping(
            self.curvature.damping, torch.full_like(predicted, actual), predicted
        )

    # State -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the state: torch's, the factors and inverses, the step, and the draws."""
        return {
            **super().state_dict(),
            "curvature": self.curvature.state_dict(),
            "steps": self._steps,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned; training goes on to the same bits."""
        own = {"curvature", "steps", "generator"}
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in own})
        self.curvature.load_state_dict(state_dict["curvature"])
        self._steps = state_dict["steps"]
        self._generator.set_state(state_dict["generator"].cpu())
        self._passes, self._is_held = [], False

    def __repr__(self) -> str:
        names = ", ".join(layer.name for layer in self._layers.layers)
        others = ", ".join(self.fallback_parameters) or "none"
        return (
            f"{type(self).__name__}(lr={self.param_groups[0]['lr']}, damping={self.damping:g}, "
            f"fisher={self.rule.fisher}; layers: {names}; {self.rule.fallback}: {others})"
        )


class EKFAC(KFAC):
    """EKFAC: K-FAC whose eigenvalues are re-estimated from the examples' own gradients.

    The gradient is divided, in the eigenbasis of A (x) G, by the second moments of the examples'
    gradients there plus the damping, rather than by the products of eigenvalues of A and G: the
    best diagonal in that basis. Between updates of the basis only the diagonal follows.

    Arguments, attributes and errors are those of `KFAC`, without `damping_style`.

    Source: George et al. 2018, algorithm 1.
    """

    _eigenvalue_correction = True

    def __init__(
        self, model: nn.Module, lr: float = 0.1, damping: float = 1e-2, **options: Any
    ) -> None:
        if "damping_style" in options and options["damping_style"] != "exact":
            raise ValueError(
                f'damping_style must be exact for EKFAC, got "{options["damping_style"]}"'
            )
        super().__init__(model, lr, damping, **{**options, "damping_style": "exact"})


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def second_order(model: nn.Module, rule: KroneckerRule, lr: float) -> KFAC:
    """Return the optimizer of a rule: `EKFAC` where its eigenvalues are corrected, else `KFAC`.

    Raises:
        ValueError: as `KFAC`.
    """
    options = {
        f.name: getattr(rule, f.name)
        for f in fields(rule)
        if f.name not in ("eigenvalue_correction", "lr")
    }
    return (EKFAC if rule.eigenvalue_correction else KFAC)(model, lr, **options)
