"""Rules as `torch.optim.Optimizer`s, and the factories that make both by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.optim.curvature import KroneckerRule
from fedopt.optim.kfac import second_order
from fedopt.optim.rules import Rule, RuleState
from fedopt.optim.torch_rule import TorchRule, torch_rule
from fedopt.registry import entries, get, import_object
from fedopt.validation import validate


class RuleOptimizer(torch.optim.Optimizer):
    """Any elementwise rule as a torch optimizer: groups, schedulers and `state_dict` work.

    Where the rule has a momentum, groups have the key `momentum` (beta1 of Adam too), which
    `OneCycleLR` and `CyclicLR` cycle.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        rule: the update rule, shared by all groups.
        lr: learning rate, > 0; a group may have its own.

    Raises:
        ValueError: `lr` is not > 0, or the rule is not elementwise.
    """

    def __init__(self, params: Iterable[Any], rule: Rule, lr: float) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        if not rule.is_elementwise:
            raise ValueError(f"the rule must be elementwise, got {rule}: use its build(params)")
        self.rule = rule
        defaults = {"lr": lr}
        if rule.momentum_like:
            defaults["momentum"] = rule.momentum_like
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply one step to every parameter that has a gradient; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                self._update(trained, group["lr"], group.get("momentum"))
        return loss

    def _update(self, trained: list[Tensor], lr: float, momentum: float | None) -> None:
        fresh = [p for p in trained if p not in self.state]
        if fresh:
            made = self.rule.init(fresh)
            for i, parameter in enumerate(fresh):
                own = {name: tensors[i] for name, tensors in made.slots.items()}
                self.state[parameter] = {"step": made.step, **own}
        by_step: dict[int, list[Tensor]] = {}
        for parameter in trained:
            by_step.setdefault(self.state[parameter]["step"], []).append(parameter)
        for step, parameters in by_step.items():
            slots = {n: [self.state[p][n] for p in parameters] for n in self.rule.slots}
            state = RuleState(step, slots)
            gradients = [p.grad for p in parameters if p.grad is not None]
            self.rule.update(parameters, gradients, state, lr, momentum)
            for parameter in parameters:
                self.state[parameter]["step"] = state.step


def make_rule(name: str, **options: Any) -> tuple[Rule, float]:
    """Return the rule called `name` and its learning rate.

    Args:
        name: one of `list_optimizers()`, or `"package.module:Class"` of a subclass of
            `torch.optim.Optimizer`.
        options: as in `[local.optimizer]`; of a class by path, its own keywords.

    Raises:
        ConfigError: the name is not known, or an option is unknown or out of range; the message
            names the key, the value, what is allowed and the nearest match.
    """
    if ":" in name:
        kind = import_object(name, key="optimizer")
        try:
            return torch_rule(kind, **options)
        except ConfigError as error:
            if error.key:
                raise
            raise ConfigError(f'"{name}": {error}', key="optimizer") from error.__cause__
    entry = get("optimizers", name, key="optimizer")
    values = validate(entry.options, options, "").model_dump()
    lr = values.pop("lr")
    rule = entry.load()(**values)
    if isinstance(rule, KroneckerRule):
        rule = replace(rule, lr=lr)
    return rule, lr


def create_optimizer(
    name: str, model: nn.Module | Iterable[Any], **options: Any
) -> torch.optim.Optimizer:
    """Return the optimizer called `name`, for any training loop.

    Args:
        name: one of `list_optimizers()`, or `"package.module:Class"`.
        model: a module, whose parameters with `requires_grad` are trained; or parameters or
            parameter groups, as for every torch optimizer.
        options: as in `[local.optimizer]`, for example `lr`, `momentum`, `weight_decay`.

    Raises:
        ConfigError: as `make_rule`.
    """
    rule, lr = make_rule(name, **options)
    if isinstance(rule, KroneckerRule):
        if not isinstance(model, nn.Module):
            raise ConfigError(f'"{name}" needs the model, got {type(model).__name__}', key="model")
        return second_order(model, rule, lr)
    if isinstance(model, nn.Module):
        model = (p for p in model.parameters() if p.requires_grad)
    if isinstance(rule, TorchRule):
        return TorchRule(rule.kind, rule.options, lr).build(model)
    return RuleOptimizer(model, rule, lr)


def list_optimizers() -> list[str]:
    """Return the names that `create_optimizer` knows, besides any `"package.module:Class"`."""
    return [entry.name for entry in entries("optimizers")]
