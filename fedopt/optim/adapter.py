"""Rules as `torch.optim.Optimizer`s, and the factory that makes one by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from fedopt.optim.rules import Rule, RuleState
from fedopt.registry import entries, get


class RuleOptimizer(torch.optim.Optimizer):
    """Any rule as a torch optimizer: parameter groups, schedulers and `state_dict` work.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        rule: the update rule, shared by all groups.
        lr: learning rate, > 0; a group may have its own.

    Raises:
        ValueError: `lr` is not > 0.
    """

    def __init__(self, params: Iterable[Any], rule: Rule, lr: float) -> None:
        if not lr > 0:
            raise ValueError(f"lr must be > 0, got {lr}")
        self.rule = rule
        super().__init__(params, {"lr": lr})

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
                self._update(trained, group["lr"])
        return loss

    def _update(self, trained: list[Tensor], lr: float) -> None:
        fresh = [p for p in trained if p not in self.state]
        if fresh:
            made = self.rule.init(fresh)
            for i, parameter in enumerate(fresh):
                zero = {name: tensors[i] for name, tensors in made.slots.items()}
                self.state[parameter] = {"step": made.step, **zero}
        by_step: dict[int, list[Tensor]] = {}
        for parameter in trained:
            by_step.setdefault(self.state[parameter]["step"], []).append(parameter)
        for step, parameters in by_step.items():
            names = [n for n in self.state[parameters[0]] if n != "step"]
            slots = {n: [self.state[p][n] for p in parameters] for n in names}
            state = RuleState(step, slots)
            gradients = [p.grad for p in parameters if p.grad is not None]
            self.rule.update(parameters, gradients, state, lr)
            for i, parameter in enumerate(parameters):
                kept = {name: tensors[i] for name, tensors in state.slots.items()}
                self.state[parameter] = {"step": state.step, **kept}


def make_rule(name: str, **options: Any) -> tuple[Rule, float]:
    """Return the rule called `name` and its learning rate.

    Raises:
        ConfigError: the name is not known.
        pydantic.ValidationError: an option is unknown or out of range.
    """
    entry = get("optimizers", name)
    values = entry.options.model_validate(options).model_dump()
    lr = values.pop("lr")
    return entry.load()(**values), lr


def create_optimizer(name: str, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """Return the optimizer called `name` over a model's trainable parameters.

    Args:
        name: one of `list_optimizers()`.
        model: its parameters with `requires_grad` are trained.
        options: as in `[local.optimizer]`, for example `lr`, `momentum`, `weight_decay`.

    Raises:
        ConfigError: the name is not known (the message names the nearest).
        pydantic.ValidationError: an option is unknown or out of range.
    """
    rule, lr = make_rule(name, **options)
    return RuleOptimizer((p for p in model.parameters() if p.requires_grad), rule, lr)


def list_optimizers() -> list[str]:
    """Return the names that `create_optimizer` knows."""
    return [entry.name for entry in entries("optimizers")]
