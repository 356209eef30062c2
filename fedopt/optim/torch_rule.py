"""Any `torch.optim.Optimizer` as a rule: torch's own by name, others by path.

The optimizer of torch does the arithmetic; `TorchRule` hands it the gradients, the learning rate
and the momentum of each step. What it remembers has no names and shapes known here, so clients
cannot be stacked, and its state cannot be averaged between them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedopt.errors import ConfigError, did_you_mean
from fedopt.optim.rules import RuleState, Tensors
from fedopt.optim.wrapping import needs_closure


@dataclass
class TorchRuleState(RuleState):
    """The optimizer of torch, over aliases of the parameters that share their memory."""

    optimizer: torch.optim.Optimizer | None = None
    aliases: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class TorchRule:
    """A class of torch optimizers as a rule, checked by a trial step when it is made.

    Args:
        kind: the class; its `step` must not need a closure.
        options: keywords of the class, without `params` and `lr`.
        lr: the rate that optimizers are made with, > 0; each step's own replaces it. None for the
            class's default.

    Raises:
        ConfigError: an option is unknown or refused, or the class cannot be used, with the reason.

    Source: torch.optim.
    """

    kind: type[torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None

    is_elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        _check_names(self.kind, self.options)
        assert self._defaults is not None  # makes the trial step

    @property
    def slots(self) -> tuple[str, ...]:
        """None: what torch's optimizer keeps is its own."""
        return ()

    @property
    def momentum_like(self) -> float | None:
        """The option `momentum`, or the first of `betas`, of the class."""
        if "momentum" in self._defaults:
            return float(self._defaults["momentum"])
        betas = self._defaults.get("betas")
        return None if betas is None else float(betas[0])

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The options of a parameter group, read from an optimizer that took a step on zeros."""
        parameter = torch.zeros(2, 2)
        parameter.grad = torch.ones(2, 2)
        optimizer = self.build([parameter])
        try:
            optimizer.step()
        except Exception as error:  # the class may be anyone's
            raise ConfigError(
                f"{self.kind.__name__} cannot step with a dense gradient and no closure: {error}"
            ) from error
        group = optimizer.param_groups[0]
        if "lr" not in group:
            raise ConfigError(f"{self.kind.__name__} has no lr that a step could set")
        return {name: value for name, value in group.items() if name != "params"}

    def build(self, parameters: Any) -> torch.optim.Optimizer:
        """Return the optimizer of torch over parameters or parameter groups.

        Raises:
            ConfigError: the class refuses an option or the parameters.
        """
        options = dict(self.options) if self.lr is None else {"lr": self.lr, **self.options}
        try:
            return self.kind(parameters, **options)
        except (ValueError, TypeError) as error:
            given = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise ConfigError(f"{self.kind.__name__}({given}): {error}") from error

    def init(self, parameters: Tensors) -> TorchRuleState:
        """Return a fresh optimizer of torch over the parameters, leaves or not.

        Raises:
            ConfigError: the class does not take such parameters (Muon: matrices only).
        """
        aliases = [p.detach() for p in parameters]
        return TorchRuleState(optimizer=self.build(aliases), aliases=aliases)

    def update(
        self,
        parameters: Tensors,
        gradients: list[Tensor],
        state: RuleState,
        lr: float,
        momentum: float | None = None,
    ) -> None:
        """Let torch's optimizer take one step; the parameters' own `grad` is left alone."""
        assert isinstance(state, TorchRuleState)
        assert state.optimizer is not None
        state.step += 1
        for alias, parameter, gradient in zip(state.aliases, parameters, gradients, strict=True):
            if alias.data_ptr() != parameter.data_ptr():
                alias.data = parameter.detach()  # the same parameters in other memory
            alias.grad = gradient
        (group,) = state.optimizer.param_groups
        group["lr"] = lr
        if momentum is not None:
            self._set_momentum(group, momentum)
        state.optimizer.step()
        for alias in state.aliases:
            alias.grad = None

    def _set_momentum(self, group: dict[str, Any], momentum: float) -> None:
        if "momentum" in group:
            group["momentum"] = momentum
        elif "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            raise ValueError(f"momentum cannot be set in a step: {self.kind.__name__} has none")

    def effective_lr_sum(
        self,
        lrs: Sequence[float],
        momenta: Sequence[float] | None = None,
        proximal: float = 0.0,
    ) -> float | None:
        """Return None: how gradients enter the parameters is torch's optimizer's own."""
        return None


def torch_rule(kind: Any, **options: Any) -> tuple[TorchRule, float]:
    """Return a class of torch optimizers as a rule, and its learning rate.

    Args:
        kind: a subclass of `torch.optim.Optimizer`.
        options: keywords of the class; lists stand for tuples, as in TOML. `lr` is the class's
            default where it is not given.

    Raises:
        ConfigError: as `TorchRule`; or there is no learning rate > 0.
    """
    _check_kind(kind)
    lr = options.pop("lr", None)
    if lr is None:
        parameter = inspect.signature(kind).parameters.get("lr")
        if parameter is None or parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"required; {kind.__name__} has no default", key="lr")
        lr = parameter.default
    if isinstance(lr, bool) or not isinstance(lr, int | float | Tensor) or not 0 < lr < torch.inf:
        raise ConfigError(f"got {lr!r}; must be a finite number > 0", key="lr")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return TorchRule(kind, values, float(lr)), float(lr)


def _check_kind(kind: Any) -> None:
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(f"expected a subclass of torch.optim.Optimizer, got {kind!r}")
    if needs_closure(kind):
        raise ConfigError(
            f"{kind.__name__} cannot be used: its step evaluates the loss several times through "
            "a closure, but here each step has one gradient"
        )


def _check_names(kind: type[torch.optim.Optimizer], options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(kind).parameters if name != "params"]
    takes_any = any(
        p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(kind).parameters.values()
    )
    for name, value in options.items():
        if name == "lr" or (name not in known and not takes_any):
            allowed = ", ".join(known) or "none"
            raise ConfigError(
                f"unknown option of {kind.__name__}, got {value!r}."
                f"{did_you_mean(name, known)} Known: {allowed}.",
                key=name,
            )


# Torch's own, by name -------------------------------------------------------------------------


def nadam(**options: Any) -> TorchRule:
    """Adam with Nesterov's momentum.

    Source: Dozat 2016; torch.optim.NAdam.
    """
    return _own(torch.optim.NAdam, options)


def radam(**options: Any) -> TorchRule:
    """Adam whose adaptive rate is rectified for its variance.

    Source: Liu et al. 2020, algorithm 2; torch.optim.RAdam.
    """
    return _own(torch.optim.RAdam, options)


def adamax(**options: Any) -> TorchRule:
    """Adam with the infinity norm.

    Source: Kingma & Ba 2015, algorithm 2; torch.optim.Adamax.
    """
    return _own(torch.optim.Adamax, options)


def adadelta(**options: Any) -> TorchRule:
    """Adadelta.

    Source: Zeiler 2012, algorithm 1; torch.optim.Adadelta.
    """
    return _own(torch.optim.Adadelta, options)


def rprop(**options: Any) -> TorchRule:
    """Resilient backpropagation.

    Source: Riedmiller & Braun 1993; torch.optim.Rprop.
    """
    return _own(torch.optim.Rprop, options)


def asgd(**options: Any) -> TorchRule:
    """SGD with a decaying rate, as for averaging; the average that torch keeps is not used.

    Source: Polyak & Juditsky 1992; torch.optim.ASGD.
    """
    return _own(torch.optim.ASGD, options)


def adafactor(**options: Any) -> TorchRule:
    """Adafactor.

    Source: Shazeer & Stern 2018, algorithm 4; torch.optim.Adafactor.
    """
    return _own(torch.optim.Adafactor, options)


def _own(kind: type[torch.optim.Optimizer], options: dict[str, Any]) -> TorchRule:
    """Return a class of torch's with our names of its options."""
    if "beta1" in options:
        options["betas"] = (options.pop("beta1"), options.pop("beta2"))
    return TorchRule(kind, options)
