"""Torch's optimizers as rules: the same steps, and refusals that say why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.optim import RuleOptimizer, create_optimizer, list_optimizers, make_rule
from fedopt.optim.torch_rule import TorchRule, TorchRuleState

NAMED: dict[str, tuple[dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "nadam": ({"beta1": 0.8}, torch.optim.NAdam, {"betas": (0.8, 0.999)}),
    "radam": ({"weight_decay": 0.1}, torch.optim.RAdam, {"weight_decay": 0.1}),
    "adamax": ({"eps": 1e-6}, torch.optim.Adamax, {"eps": 1e-6}),
    "adadelta": ({"rho": 0.5}, torch.optim.Adadelta, {"rho": 0.5}),
    "rprop": ({"etas": [0.4, 1.1]}, torch.optim.Rprop, {"etas": (0.4, 1.1)}),
    "asgd": ({"lambd": 0.1}, torch.optim.ASGD, {"lambd": 0.1}),
    "adafactor": ({"d": 2.0}, torch.optim.Adafactor, {"d": 2.0}),
    "torch.optim:SGD": ({"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
    "torch.optim:AdamW": ({"betas": [0.5, 0.9]}, torch.optim.AdamW, {"betas": (0.5, 0.9)}),
}
SHAPES = [(3, 4), (2, 2, 3, 3), (5,)]


def values() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


def views() -> list[Tensor]:
    """Views of one flat vector; of four axes, the one of channels stored last."""
    flat = torch.empty(sum(v.numel() for v in values()), dtype=torch.float64)
    pieces = flat.split([v.numel() for v in values()])
    shaped = [pieces[0].view(3, 4), pieces[1].view(2, 3, 3, 2).movedim(-1, 1), pieces[2]]
    for view, value in zip(shaped, values(), strict=True):
        view.copy_(value)
    return shaped


KINDS: dict[str, Callable[[], list[Tensor]]] = {
    "tensors": values,
    "views": views,
    "parameters": lambda: [nn.Parameter(v) for v in values()],
    "parameters on views": lambda: [nn.Parameter(v) for v in views()],
    "not leaves": lambda: [v.clone().requires_grad_() * 1 for v in values()],
}


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMED)
def test_steps_are_those_of_torch(name: str, kind: str) -> None:
    ours, torch_class, theirs = NAMED[name]
    rule, lr = make_rule(name, lr=0.05, **ours)
    assert lr == 0.05
    mine, yours = KINDS[kind](), [nn.Parameter(v) for v in values()]
    state, reference = rule.init(mine), torch_class(yours, lr=0.05, **theirs)
    for step, rate in enumerate([0.05, 0.02, 0.03, 0.03]):
        reference.param_groups[0]["lr"] = rate
        for parameter, gradient in zip(yours, gradients(step), strict=True):
            parameter.grad = gradient
        reference.step()
        with torch.no_grad():
            rule.update(mine, gradients(step), state, rate)
    # The same arithmetic; the memory format of a view may change the order of a sum.
    for a, b in zip(mine, yours, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-12, atol=1e-12)
    assert state.step == 4
    if kind != "not leaves":
        assert all(p.grad is None for p in mine)


@pytest.mark.parametrize("name", NAMED)
def test_created_optimizers_are_torchs_own(name: str) -> None:
    ours, torch_class, theirs = NAMED[name]
    optimizer = create_optimizer(name, nn.Linear(3, 2), lr=0.05, **ours)
    assert type(optimizer) is torch_class
    for option, value in {**theirs, "lr": 0.05}.items():
        assert optimizer.param_groups[0][option] == value


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("torch.optim:SGD", 0.0), ("nadam", 0.9), ("adadelta", None), ("torch.optim:RMSprop", 0.0)],
)
def test_what_a_schedule_may_cycle(name: str, momentum: float | None) -> None:
    rule, _ = make_rule(name)
    assert rule.momentum_like == momentum
    assert rule.slots == ()
    assert not rule.is_elementwise
    assert rule.effective_lr_sum([0.1]) is None


@pytest.mark.parametrize("name", ["torch.optim:SGD", "torch.optim:Adam"])
def test_the_momentum_of_a_step_can_be_set(name: str) -> None:
    options = {"momentum": 0.9} if name.endswith("SGD") else {}
    rule, _ = make_rule(name, lr=0.1, **options)
    ours, _ = make_rule(name.rsplit(":")[1].lower(), lr=0.1, **options)
    mine, yours = values(), values()
    states = rule.init(mine), ours.init(yours)
    for step, momentum in enumerate([0.9, 0.5, 0.7]):
        rule.update(mine, gradients(step), states[0], 0.1, momentum)
        ours.update(yours, gradients(step), states[1], 0.1, momentum)
    for a, b in zip(mine, yours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    adadelta, _ = make_rule("adadelta")
    with pytest.raises(ValueError, match="Adadelta has none"):
        adadelta.update(mine, gradients(0), adadelta.init(mine), 0.1, 0.5)


def test_the_same_parameters_may_move_in_memory() -> None:
    rule, lr = make_rule("torch.optim:SGD", lr=0.1, momentum=0.9)
    mine, yours = values(), values()
    state, other = rule.init(mine), rule.init(yours)
    rule.update(mine, gradients(0), state, lr)
    rule.update(yours, gradients(0), other, lr)
    moved = [m.clone() for m in mine]
    rule.update(moved, gradients(1), state, lr)
    rule.update(yours, gradients(1), other, lr)
    assert all(torch.equal(a, b) for a, b in zip(moved, yours, strict=True))
    assert isinstance(state, TorchRuleState)


class NeedsLoss(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is None:
            raise RuntimeError("I want the loss")


class NoRate(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("torch.optim:LBFGS", {}, "LBFGS cannot be used: its step evaluates the loss"),
        ("torch.optim:SparseAdam", {}, "SparseAdam cannot step with a dense gradient"),
        ("torch.optim:Adamm", {}, 'has no "Adamm". Did you mean "Adam"'),
        ("torch.optimm:Adam", {}, 'cannot import "torch.optimm"'),
        ("torch.nn:Linear", {}, "expected a subclass of torch.optim.Optimizer"),
        (f"{__name__}:NeedsLoss", {"lr": 0.1}, "no closure: I want the loss"),
        (f"{__name__}:NoRate", {}, "lr: required; NoRate has no default"),
        ("torch.optim:SGD", {"momentun": 0.9}, "momentun: unknown option of SGD, got 0.9. Did you"),
        ("torch.optim:SGD", {"momentun": 0.9}, "Known: lr, momentum, dampening, weight_decay"),
        ("torch.optim:SGD", {"lr": 0}, "lr: got 0; must be a finite number > 0"),
        ("torch.optim:SGD", {"lr": "fast"}, "lr: got 'fast'; must be"),
        ("torch.optim:Adam", {"betas": [2, 0.9]}, "betas=(2, 0.9)): Invalid beta"),
        ("torch.optim:Adam", {"betas": 0.9}, "Adam(lr=0.001, betas=0.9)"),
        ("nadam", {"beta1": 1.0}, "beta1: got 1.0; input should be less than 1"),
        ("nadam", {"betas": [0.9, 0.9]}, 'betas: unknown key. Did you mean "beta'),
        ("rprop", {"etas": [1.5, 1.2]}, "etas: need 0 < first < 1 < second, got [1.5, 1.2]"),
        ("rprop", {"step_sizes": [2.0, 1.0]}, "step_sizes: need 0 < first <= second"),
    ],
)
def test_refusals_say_why(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_rule(name, **options)
    assert message in str(caught.value)


def test_parameters_that_a_class_refuses_are_named_at_the_start() -> None:
    rule, _ = make_rule("torch.optim:Muon")
    rule.init([torch.ones(2, 2)])
    with pytest.raises(ConfigError, match="Muon only supports 2D"):
        rule.init([torch.ones(2)])


def test_rule_optimizers_are_for_elementwise_rules() -> None:
    with pytest.raises(ValueError, match="must be elementwise"):
        RuleOptimizer(values(), TorchRule(torch.optim.SGD, lr=0.1), 0.1)


def test_torchs_names_are_listed() -> None:
    assert {name for name in NAMED if ":" not in name} <= set(list_optimizers())
