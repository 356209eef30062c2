"""What optimizers share that wrap another one: one set of groups, one state, one saved state.

`SAM` and `Transformed` are such optimizers. Schedulers, hooks and checkpoints may be given either
the wrapper or its base; both see every change, because the wrapper has no groups or state of its
own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class OptimizerWrapper(torch.optim.Optimizer):
    """An optimizer around another, whose `param_groups` and `state` are those of the base.

    Args:
        base: the wrapped optimizer; it does the step.
        group_defaults: further keys that each group has, with their defaults.

    Raises:
        ValueError: the base's `step` needs a closure.
    """

    def __init__(self, base: torch.optim.Optimizer, group_defaults: dict[str, Any]) -> None:
        if needs_closure(type(base)):
            raise ValueError(
                f"{type(base).__name__} cannot be wrapped: its step evaluates the loss itself"
            )
        for group in base.param_groups:
            self._check_group({**group_defaults, **group})
        self.base = base
        self._group_defaults = group_defaults
        state, groups = base.state, list(base.param_groups)
        super().__init__(groups, {**base.defaults, **group_defaults})  # empties both
        self.state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the base."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """Set those of the base."""
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the base."""
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        """Set that of the base."""
        self.base.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, to the base as well."""
        self._check_group({**self._group_defaults, **param_group})
        self.base.add_param_group(param_group)
        self._complete_groups()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state, which has all that is needed to go on."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`, or from one of the base alone."""
        self.base.load_state_dict(state_dict)
        self._complete_groups()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "base": self.base,
            "defaults": self.defaults,
            "_group_defaults": self._group_defaults,
        }

    def _check_group(self, group: dict[str, Any]) -> None:
        """Refuse a group whose own keys are out of range, with a ValueError."""

    def _complete_groups(self) -> None:
        for group in self.base.param_groups:
            for name, value in self._group_defaults.items():
                group.setdefault(name, value)

    def _trained(self) -> list[tuple[dict[str, Any], list[Tensor], list[Tensor]]]:
        """Return each group with its parameters that have a gradient, and their gradients."""
        found = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                found.append((group, parameters, [p.grad for p in parameters]))
        return found


def needs_closure(kind: type[torch.optim.Optimizer]) -> bool:
    """Return whether a class's `step` cannot be called without a closure, as that of LBFGS."""
    closure = inspect.signature(kind.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def listed(params: Iterable[Any]) -> list[Any]:
    """Return parameters or groups as a list, groups being copied, so that they can be read twice.

    Raises:
        TypeError: a tensor is given where an iterable of them is due.
    """
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of tensors or of groups, got a tensor")
    return [_listed_group(item) if isinstance(item, dict) else item for item in params]


def _listed_group(group: dict[str, Any]) -> dict[str, Any]:
    tensors = group["params"]
    return {**group, "params": [tensors] if isinstance(tensors, Tensor) else list(tensors)}


def parameters_of(params: Iterable[Any]) -> list[Tensor]:
    """Return the tensors of parameters or groups, in order (named ones without their names)."""
    given = [t for i in params for t in (i["params"] if isinstance(i, dict) else [i])]
    return [t[1] if isinstance(t, tuple) else t for t in given]
