"""The rules: equal to torch.optim, elementwise, and honest about what gradients did."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.optim import RuleOptimizer, create_optimizer, list_optimizers, make_rule
from fedopt.optim.adaptive import Adagrad, Lion, RmsProp
from fedopt.optim.rules import Adam, AdamW, Rule, Sgd

# Both sides do the same few operations a step; some differ in order by an ulp, 40 steps at most.
TOLERANCE = 1e-12

below_one = st.floats(0, 0.999)
decay = st.one_of(st.just(0.0), st.floats(1e-4, 1))


@st.composite
def sgd_options(draw: st.DrawFn) -> dict[str, Any]:
    options = {
        "momentum": draw(st.one_of(st.just(0.0), below_one)),
        "dampening": draw(st.one_of(st.just(0.0), st.floats(0, 1))),
        "weight_decay": draw(decay),
        "nesterov": draw(st.booleans()),
    }
    if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
        options["nesterov"] = False
    return options


ADAM = st.fixed_dictionaries(
    {
        "beta1": below_one,
        "beta2": below_one,
        "eps": st.floats(1e-10, 1e-2),
        "weight_decay": decay,
        "amsgrad": st.booleans(),
    }
)
ADAGRAD = st.fixed_dictionaries(
    {
        "lr_decay": st.floats(0, 1),
        "weight_decay": decay,
        "initial_accumulator_value": st.one_of(st.just(0.0), st.floats(1e-3, 1)),
        "eps": st.floats(1e-10, 1e-2),
    }
)
RMSPROP = st.fixed_dictionaries(
    {
        # Torch's centered form takes the root of a difference, which rounding makes negative
        # where little is averaged.
        "alpha": st.floats(0.1, 0.999),
        "eps": st.floats(1e-8, 1e-2),
        "weight_decay": decay,
        "momentum": st.one_of(st.just(0.0), below_one),
        "centered": st.booleans(),
    }
)
LION = st.fixed_dictionaries({"beta1": below_one, "beta2": below_one, "weight_decay": decay})


class ReferenceLion(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2, word for word."""

    def __init__(self, params: Any, lr: float, beta1: float, beta2: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "betas": (beta1, beta2), "decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                c = beta1 * m + (1 - beta1) * p.grad
                p.copy_(p - group["lr"] * (c.sign() + group["decay"] * p))
                self.state[p]["m"] = beta2 * m + (1 - beta2) * p.grad


OPTIONS = {
    "sgd": sgd_options(),
    "adam": ADAM,
    "adamw": ADAM,
    "adagrad": ADAGRAD,
    "rmsprop": RMSPROP,
    "lion": LION,
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A registered optimizer with valid options and a learning rate."""
    name = draw(st.sampled_from(list(OPTIONS)))
    options = draw(OPTIONS[name])
    return name, {**options, "lr": draw(st.floats(1e-4, 0.5))}


def theirs(name: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    """Torch's optimizer with our options."""
    plain = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
        "lion": ReferenceLion,
    }
    if name in plain:
        return plain[name](params, **options)
    betas = (options.pop("beta1"), options.pop("beta2"))
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(params, betas=betas, **options)


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), ()]
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    ]


def set_gradients(params: Sequence[Tensor], step: int) -> None:
    """Gradients that depend on parameters and step, as a loss's would."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = (0.3 * p.detach() + noise).clone()


def assert_equal_within(mine: Sequence[Tensor], yours: Sequence[Tensor]) -> None:
    for a, b in zip(mine, yours, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@given(pairs(), st.integers(1, 40))
def test_rules_equal_torch(pair: tuple[str, dict[str, Any]], steps: int) -> None:
    name, options = pair
    mine, yours = parameters(), parameters()
    rule, lr = make_rule(name, **options)
    ours, torchs = RuleOptimizer(mine, rule, lr), theirs(name, yours, **options)
    for step in range(steps):
        for params, optimizer in ((mine, ours), (yours, torchs)):
            set_gradients(params, step)
            optimizer.step()
    assert_equal_within(mine, yours)


@given(pairs(), st.lists(st.floats(0.01, 0.99), min_size=1, max_size=20))
def test_a_cycled_momentum_is_torchs(
    pair: tuple[str, dict[str, Any]], momenta: list[float]
) -> None:
    """As `OneCycleLR` does it: the group's momentum or first beta changes between steps."""
    name, options = pair
    rule, lr = make_rule(name, **options)
    if not rule.momentum_like:
        with pytest.raises(ValueError, match="has none"):
            rule.update([torch.ones(1)], [torch.ones(1)], rule.init([torch.ones(1)]), lr, 0.5)
        return
    mine, yours = parameters(), parameters()
    state, torchs = rule.init(mine), theirs(name, yours, **options)
    for step, momentum in enumerate(momenta):
        (group,) = torchs.param_groups
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        else:
            group["momentum"] = momentum
        for params in (mine, yours):
            set_gradients(params, step)
        with torch.no_grad():
            gradients = [p.grad.clone() for p in mine if p.grad is not None]
            rule.update(mine, gradients, state, lr, momentum)
        torchs.step()
    assert_equal_within(mine, yours)
    assert state.step == len(momenta)


def test_a_momentum_out_of_range_is_refused() -> None:
    rule = Sgd(momentum=0.9)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1\.0"):
        rule.update([torch.ones(1)], [torch.ones(1)], rule.init([torch.ones(1)]), 0.1, 1.0)


@given(pairs())
def test_all_slots_exist_from_the_start(pair: tuple[str, dict[str, Any]]) -> None:
    name, options = pair
    rule, lr = make_rule(name, **options)
    params = [p.detach() for p in parameters()]
    state = rule.init(params)
    assert state.step == 0
    assert tuple(state.slots) == rule.slots
    before = {slot: [id(t) for t in tensors] for slot, tensors in state.slots.items()}
    for tensors in state.slots.values():
        assert [t.shape for t in tensors] == [p.shape for p in params]
    rule.update(params, [torch.ones_like(p) for p in params], state, lr)
    assert state.step == 1
    assert before == {slot: [id(t) for t in tensors] for slot, tensors in state.slots.items()}
    assert rule.is_elementwise


def test_what_a_schedule_may_cycle() -> None:
    assert Sgd().momentum_like == 0
    assert RmsProp(momentum=0.3).momentum_like == 0.3
    assert (Adam().momentum_like, AdamW().momentum_like, Lion().momentum_like) == (0.9, 0.9, 0.9)
    assert Adagrad().momentum_like is None


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3, 0.5),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(
        o, 0.01, 0.1, step_size_up=4, cycle_momentum=False
    ),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=20, cycle_momentum=False
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize(
    ("name", "options"), [("sgd", {"momentum": 0.9}), ("adam", {"beta1": 0.9, "beta2": 0.99})]
)
def test_torchs_schedulers_drive_rules(schedule: str, name: str, options: dict[str, float]) -> None:
    mine, yours = parameters(), parameters()
    rule, lr = make_rule(name, lr=0.1, **options)
    ours, torchs = RuleOptimizer(mine, rule, lr), theirs(name, yours, lr=0.1, **options)
    schedulers = [SCHEDULERS[schedule](o) for o in (ours, torchs)]
    rates = set()
    for step in range(20):
        assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
        rates.add(ours.param_groups[0]["lr"])
        for params, optimizer, scheduler in (
            (mine, ours, schedulers[0]),
            (yours, torchs, schedulers[1]),
        ):
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
    assert len(rates) > 4
    assert_equal_within(mine, yours)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adam", {"beta1": 0.9, "beta2": 0.99}),
        ("rmsprop", {"momentum": 0.9}),
    ],
)
def test_one_cycle_cycles_the_momentum_of_rules(name: str, options: dict[str, Any]) -> None:
    mine, yours = parameters(), parameters()
    rule, lr = make_rule(name, lr=0.1, **options)
    pairs = [(mine, RuleOptimizer(mine, rule, lr)), (yours, theirs(name, yours, lr=0.1, **options))]
    schedulers = [torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20) for _, o in pairs]
    momenta = set()
    for step in range(20):
        momenta.add(pairs[0][1].param_groups[0]["momentum"])
        for (params, optimizer), scheduler in zip(pairs, schedulers, strict=True):
            set_gradients(params, step)
            optimizer.step()
            scheduler.step()
    assert len(momenta) > 10
    assert_equal_within(mine, yours)


def test_a_rule_optimizer_can_be_copied_and_pickled() -> None:
    params = parameters()
    optimizer = RuleOptimizer(params, Adam(), 0.1)
    set_gradients(params, 0)
    optimizer.step()
    for same in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert isinstance(same, RuleOptimizer)
        assert same.rule == Adam()
        own = same.param_groups[0]["params"]
        assert all(torch.equal(a, b) for a, b in zip(own, params, strict=True))
        set_gradients(own, 1)
        same.step()


@given(pairs(), st.integers(0, 5), st.integers(1, 5))
def test_a_saved_optimizer_resumes_to_the_bit(
    pair: tuple[str, dict[str, Any]], before: int, after: int
) -> None:
    name, options = pair
    rule, lr = make_rule(name, **options)
    whole = parameters()
    optimizer = RuleOptimizer(whole, rule, lr)
    for step in range(before):
        set_gradients(whole, step)
        optimizer.step()
    resumed = [nn.Parameter(p.detach().clone()) for p in whole]
    second = RuleOptimizer(resumed, rule, lr=1.0)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as saving and loading does
    for step in range(before, before + after):
        for params, o in ((whole, optimizer), (resumed, second)):
            set_gradients(params, step)
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


@given(pairs())
def test_groups_have_their_own_rates_and_may_lack_gradients(
    pair: tuple[str, dict[str, Any]],
) -> None:
    name, options = pair
    rule, lr = make_rule(name, **options)
    mine, yours = parameters(), parameters()

    def groups(p: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": p[:1]}, {"params": p[1:], "lr": lr / 3}]

    ours, torchs = RuleOptimizer(groups(mine), rule, lr), theirs(name, groups(yours), **options)
    for step in range(6):
        for params, optimizer in ((mine, ours), (yours, torchs)):
            set_gradients(params, step)
            if step < 3:
                params[2].grad = None  # joins late: its moments and counter start then
            if step == 4:
                params[1].grad = None  # pauses: its moments and counter stay
            optimizer.step()
        if step == 2:
            assert torch.equal(mine[2], parameters()[2])
    assert_equal_within(mine, yours)


def test_a_group_can_be_added() -> None:
    mine, yours = parameters(), parameters()
    ours, torchs = (
        RuleOptimizer(mine[:1], Sgd(momentum=0.5), 0.1),
        theirs("sgd", yours[:1], lr=0.1, momentum=0.5),
    )
    ours.add_param_group({"params": mine[1:], "lr": 0.01})
    torchs.add_param_group({"params": yours[1:], "lr": 0.01})
    for step in range(3):
        for params, optimizer in ((mine, ours), (yours, torchs)):
            set_gradients(params, step)
            optimizer.step()
    assert_equal_within(mine, yours)


def test_the_closure_is_run_with_gradients_and_its_loss_returned() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = RuleOptimizer([weight], Sgd(), 0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    torch.testing.assert_close(weight.detach(), torch.tensor([1.6]))


@given(pairs(), st.integers(1, 6), st.integers(1, 5))
def test_stacked_clients_are_stepped_as_each_alone(
    pair: tuple[str, dict[str, Any]], clients: int, steps: int
) -> None:
    name, options = pair
    rule, lr = make_rule(name, **options)
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(clients, 7, generator=generator, dtype=torch.float64)
    gradients = torch.randn(steps, clients, 7, generator=generator, dtype=torch.float64)
    stacked = start.clone()
    state = rule.init([stacked])
    alone = [row.clone() for row in start]
    states = [rule.init([row]) for row in alone]
    for gradient in gradients:
        rule.update([stacked], [gradient.clone()], state, lr)
        for row, own, own_state in zip(alone, gradient, states, strict=True):
            rule.update([row], [own.clone()], own_state, lr)
    torch.testing.assert_close(stacked, torch.stack(alone), rtol=TOLERANCE, atol=TOLERANCE)


@given(
    sgd_options(),
    st.lists(st.tuples(st.floats(1e-3, 1), st.floats(0, 0.99)), min_size=1, max_size=12),
    st.booleans(),
)
def test_the_sum_of_rates_is_what_unit_gradients_move(
    options: dict[str, Any], steps: list[tuple[float, float]], cycles: bool
) -> None:
    """Weight decay is a gradient of its own, so it does not enter the sum."""
    rule = Sgd(**{**options, "weight_decay": 0.0})
    cycles = cycles and rule.momentum > 0
    weight = torch.zeros(1, dtype=torch.float64)
    state = rule.init([weight])
    for lr, momentum in steps:
        unit = torch.ones(1, dtype=torch.float64)
        rule.update([weight], [unit], state, lr, momentum if cycles else None)
    rates, momenta = [lr for lr, _ in steps], [momentum for _, momentum in steps]
    expected = Sgd(**options).effective_lr_sum(rates, momenta if cycles else None)
    assert expected is not None
    assert -float(weight) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("rule", [Adam(), AdamW(), Adagrad(), RmsProp(), Lion()])
def test_nonlinear_rules_have_no_sum_of_rates(rule: Rule) -> None:
    assert rule.effective_lr_sum([0.1, 0.1]) is None


def test_updates_leave_the_callers_gradients_of_sgd_without_momentum_alone() -> None:
    weight, gradient = torch.ones(3), torch.full((3,), 2.0)
    Sgd(weight_decay=0.5).update([weight], [gradient], Sgd().init([weight]), 0.1)
    assert torch.equal(gradient, torch.full((3,), 2.0))


@pytest.mark.parametrize("lr", [0.0, -0.1, float("nan")])
def test_rates_are_positive(lr: float) -> None:
    with pytest.raises(ValueError, match="lr must be > 0"):
        RuleOptimizer(parameters(), Sgd(), lr)


def test_optimizers_are_made_by_name() -> None:
    assert list_optimizers()[:6] == ["sgd", "adam", "adamw", "adagrad", "rmsprop", "lion"]
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    optimizer = create_optimizer("sgd", model, lr=0.5, momentum=0.9)
    assert isinstance(optimizer, RuleOptimizer)
    assert optimizer.rule == Sgd(momentum=0.9)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(model[0].bias),
        id(model[1].weight),
        id(model[1].bias),
    ]


def test_parameters_and_groups_may_be_given_in_place_of_a_model() -> None:
    params = parameters()
    assert create_optimizer("adam", iter(params)).param_groups[0]["params"] == params
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:]}]
    optimizer = create_optimizer("nadam", groups, lr=0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]


RATES = {"adagrad": 0.5, "adadelta": 20.0, "adafactor": 0.5, "kfac": 0.5, "ekfac": 0.5}


def test_a_model_learns_under_every_optimizer() -> None:
    for name in list_optimizers():
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        x = torch.randn(64, 4)
        y = x @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
        optimizer = create_optimizer(name, model, lr=RATES.get(name, 0.05))
        losses = []
        for _ in range(100):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0], name


def test_bad_names_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'"adamm" is not known\. Did you mean "adam"'):
        create_optimizer("adamm", nn.Linear(1, 1))
    for options in ({"lr": -1}, {"momentum": 1.0}, {"nesterov": True}, {"beta1": 0.9}):
        with pytest.raises(ConfigError, match=f"^{next(iter(options))}: "):
            create_optimizer("sgd", nn.Linear(1, 1), **options)
    with pytest.raises(
        ConfigError, match=r'momentun: unknown key\. Did you mean "momentum"\? Known'
    ):
        make_rule("rmsprop", momentun=0.9)
