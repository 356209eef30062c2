"""Every technique of a local step, in both engines: as its formula says, and each client's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedopt
from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.loop import LoopEngine
from fedopt.client.plan import ClientPlan, LocalWork, plan_clients
from fedopt.client.rates import RatePlan, constant_rates
from fedopt.client.recipe import LocalAverage, Recipe, Sharpness
from fedopt.client.stacked import StackedEngine
from fedopt.data.population import Examples
from fedopt.models.layout import ModelState, ParameterLayout
from fedopt.optim import SAM, make_rule
from fedopt.optim.rules import Adam, Sgd
from fedopt.optim.transforms import GradientTransforms
from fedopt.schedules import make_schedule
from fedopt.seeds import torch_seed

CPU = torch.device("cpu")
SEED = 3
SIZES = (9, 1, 23, 9, 14)
CLIENTS = (4, 0, 2, 7, 5)
loss = nn.functional.cross_entropy

# Float64 sums of a few products in another order: some 1e-15 a step, over tens of steps.
TOLERANCE = 1e-11


def network(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)]
        return nn.Sequential(*(layers if dropout else [*layers[:2], layers[3]])).double()


def population(scale: float = 1.0) -> list[Examples]:
    rng = np.random.default_rng(0)
    return [Examples(scale * rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in SIZES]


def plans_of(rates: RatePlan, round: int = 2, shorten: int = 0) -> list[ClientPlan]:
    work = LocalWork(2, None, 4)
    steps = [max(1, work.planned_steps(n) - shorten * (i % 2)) for i, n in enumerate(SIZES)]
    return plan_clients(work, SEED, round, CLIENTS, SIZES, rates, steps)


def start_of(model: nn.Module) -> ModelState:
    return ParameterLayout.of(model).state({n: p.detach() for n, p in model.named_parameters()})


def both(
    recipe: Recipe,
    terms: Callable[[int, int], LocalTerms] = lambda clients, size: LocalTerms(),
    rates: RatePlan | None = None,
    model: nn.Module | None = None,
    data: list[Examples] | None = None,
    shorten: int = 0,
) -> list[tuple[int, LocalResult, int, LocalResult]]:
    """Train all clients stacked, and one by one; return the results of each client beside it."""
    model = model or network()
    data = data or population()
    plans = plans_of(rates or constant_rates(0.1), shorten=shorten)
    order = sorted(range(len(plans)), key=lambda i: -plans[i].steps)
    plans, data = [plans[i] for i in order], [data[i] for i in order]
    start = start_of(model)
    size = len(start.parameters)
    shared = terms(len(plans), size)
    stacked = StackedEngine(copy.deepcopy(model), loss, recipe, SEED, CPU)
    joined = Examples(*(np.concatenate(part) for part in zip(*data, strict=True)))
    together = stacked.train(start, 2, plans, joined, shared)
    loop = LoopEngine(copy.deepcopy(model), loss, recipe, SEED, CPU)
    found = []
    for i, (plan, examples) in enumerate(zip(plans, data, strict=True)):
        own = LocalTerms(
            proximal=shared.proximal,
            correction=None if shared.correction is None else shared.correction[i : i + 1],
            full_gradient=shared.full_gradient,
            gradient_scale=shared.gradient_scale,
        )
        alone = loop.train(start, 2, [plan], examples, own)
        alone = replace(alone, delta=alone.delta.clone())  # an engine uses its memory again
        found.append((plan.client, together, i, alone))
    return found


def assert_agree(
    results: list[tuple[int, LocalResult, int, LocalResult]], tolerance: float = TOLERANCE
) -> None:
    for client, together, i, alone in results:
        for name in (
            "delta",
            "train_loss",
            "lr_sum",
            "last",
            "skipped",
            "optimizer_steps",
            "mixed",
        ):
            mine, yours = getattr(together, name), getattr(alone, name)
            assert (mine is None) == (yours is None), name
            if mine is not None:
                torch.testing.assert_close(
                    mine[i],
                    yours[0],
                    rtol=tolerance,
                    atol=tolerance,
                    equal_nan=name == "train_loss",  # of a client that skipped every step
                    msg=f"{name}, {client}",
                )
        assert together.optimizer_state.keys() == alone.optimizer_state.keys()
        for slot, rows in together.optimizer_state.items():
            torch.testing.assert_close(
                rows[i], alone.optimizer_state[slot][0], rtol=tolerance, atol=tolerance
            )


def corrected(clients: int, size: int) -> LocalTerms:
    rng = torch.Generator().manual_seed(0)
    rows = 0.1 * torch.randn(clients, size, dtype=torch.float64, generator=rng)
    return LocalTerms(proximal=0.2, correction=rows, gradient_scale=0.7)


RECIPES: dict[str, Recipe] = {
    "sam": Recipe(Sgd(), sam=Sharpness(0.1)),
    "sam with momentum": Recipe(Sgd(momentum=0.9, weight_decay=0.01), sam=Sharpness(0.1)),
    "asam with adam": Recipe(Adam(), sam=Sharpness(1.0, adaptive=True)),
    "sam along the correction": Recipe(Sgd(), sam=Sharpness(0.1, corrected=True)),
    "clip": Recipe(Sgd(), transforms=GradientTransforms(clip_norm=0.3)),
    "clip by value": Recipe(Adam(), transforms=GradientTransforms(clip_value=0.05)),
    "noise": Recipe(Sgd(momentum=0.5), transforms=GradientTransforms(noise_eta=0.01)),
    "skip": Recipe(Sgd(momentum=0.9), transforms=GradientTransforms(skip_norm=0.8)),
    "skip with adam": Recipe(Adam(), transforms=GradientTransforms(skip_norm=0.8)),
    "penalty": Recipe(Sgd(), penalty=0.3),
    "last steps": Recipe(Sgd(), average=LocalAverage(last_steps=3)),
    "last epoch": Recipe(Sgd(momentum=0.9), average=LocalAverage(last_epochs=1)),
    "moving average": Recipe(Sgd(), average=LocalAverage(decay=0.8)),
    "kept": Recipe(Adam(), optimizer_state="keep"),
    "everything": Recipe(
        Adam(weight_decay=0.01),
        sam=Sharpness(0.5, adaptive=True, corrected=True),
        transforms=GradientTransforms(clip_norm=0.5, clip_value=0.2, noise_eta=1e-3, skip_norm=1.5),
        penalty=0.1,
        average=LocalAverage(last_steps=4),
        optimizer_state="average",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("terms", [lambda c, p: LocalTerms(), corrected], ids=["plain", "terms"])
def test_the_engines_agree(name: str, terms: Callable[[int, int], LocalTerms]) -> None:
    assert_agree(both(RECIPES[name], terms, shorten=1))


SECOND_ORDER: dict[str, dict[str, Any]] = {
    "kfac": {"fisher": "empirical"},
    "kfac mc": {"fisher": "mc", "momentum": 0.9, "factor_every": 2, "inverse_every": 3},
    "kfac type-2": {"fisher": "type-2", "kl_clip": 1e-2, "weight_decay": 0.1},
    "kfac exact": {"fisher": "mc", "damping_style": "exact", "decoupled_weight_decay": True},
    "kfac adapted": {"adapt_damping": True, "weight_decay": 0.01, "factor_every": [(0, 1), (4, 3)]},
    "ekfac": {"fisher": "type-2", "damping": 0.3, "momentum": 0.5, "inverse_every": 2},
    "ekfac mc": {"fisher": "mc", "kl_clip": 1e-3, "adapt_damping": True, "fallback": "adam"},
}


def second_order(name: str, **parts: Any) -> Recipe:
    rule, _ = make_rule(name.split()[0], **SECOND_ORDER[name])
    return Recipe(rule, **parts)


def normalised_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 3)]
        return nn.Sequential(*layers).double()


# The factors' eigenvectors turn by rounding over their gaps: some digits are lost with them.
SECOND_ORDER_TOLERANCE = 1e-8


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize("terms", [lambda c, p: LocalTerms(), corrected], ids=["plain", "terms"])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"optimizer_state": "keep", "sam": Sharpness(0.1)},
        {"transforms": GradientTransforms(skip_norm=0.8, clip_norm=0.5), "penalty": 0.1},
        {"transforms": GradientTransforms(noise_eta=0.01), "average": LocalAverage(last_steps=3)},
    ],
    ids=["alone", "sam", "skip", "noise"],
)
def test_the_engines_agree_on_second_order_steps(
    name: str, terms: Callable[[int, int], LocalTerms], parts: dict[str, Any]
) -> None:
    recipe = second_order(name, **parts)
    results = both(recipe, terms, model=normalised_network(), shorten=1)
    assert_agree(results, SECOND_ORDER_TOLERANCE)
    assert all(result.delta.isfinite().all() for _, result, _, _ in results)


@pytest.mark.parametrize("name", ["kfac mc", "kfac adapted", "ekfac"])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_engines_agree_on_second_order_steps_with_dropout(name: str, penalty: float) -> None:
    transforms = GradientTransforms(skip_norm=1.0 if penalty else None)
    recipe = second_order(name, penalty=penalty, transforms=transforms)
    assert_agree(both(recipe, model=network(dropout=0.4)), SECOND_ORDER_TOLERANCE)


def convolutions() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, stride=2, groups=2),
            nn.ReLU(),
            nn.Conv2d(4, 3, 2, bias=False),
            nn.Flatten(),
            nn.Linear(12, 3),
        ).double()


@pytest.mark.parametrize("name", ["kfac", "kfac type-2", "ekfac mc"])
def test_the_engines_agree_on_second_order_convolutions(name: str) -> None:
    rng = np.random.default_rng(0)
    data = [Examples(rng.normal(size=(n, 2, 6, 6)), rng.integers(0, 3, n)) for n in SIZES]
    results = both(second_order(name), model=convolutions(), data=data)
    assert_agree(results, SECOND_ORDER_TOLERANCE)


@pytest.mark.parametrize("name", ["sam", "penalty", "everything"])
def test_the_engines_draw_the_same_dropout(name: str) -> None:
    assert_agree(both(RECIPES[name], model=network(dropout=0.4)))


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    maybe = st.booleans()
    optimizer = draw(
        st.sampled_from(
            [
                ("sgd", {"momentum": 0.9, "dampening": 0.3}),
                ("sgd", {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1}),
                ("sgd", {}),
                ("adam", {"weight_decay": 0.01}),
                ("adamw", {}),
                ("rmsprop", {"momentum": 0.5, "centered": True}),
                ("adagrad", {"initial_accumulator_value": 0.1}),
                ("lion", {}),
                ("nadam", {}),
            ]
        )
    )
    rule, _ = make_rule(optimizer[0], **optimizer[1])
    kept = draw(st.sampled_from(["reset", "keep"])) if rule.slots else "reset"
    return Recipe(
        rule,
        sam=Sharpness(0.2, draw(maybe), 0.01, draw(maybe)) if draw(maybe) else None,
        transforms=GradientTransforms(
            clip_norm=0.4 if draw(maybe) else None,
            clip_value=0.1 if draw(maybe) else None,
            noise_eta=1e-3 if draw(maybe) else None,
            skip_norm=draw(st.sampled_from([None, 0.7, 1.2])),
        ),
        penalty=draw(st.sampled_from([0.0, 0.2])),
        average=LocalAverage(last_steps=draw(st.integers(1, 9))) if draw(maybe) else None,
        optimizer_state=kept,
    )


@settings(max_examples=60, deadline=None)
@given(recipe=recipes(), shorten=st.integers(0, 2), with_terms=st.booleans())
def test_the_engines_agree_on_any_combination(
    recipe: Recipe, shorten: int, with_terms: bool
) -> None:
    rates = RatePlan(make_schedule("cosine", 0.02), "within", 5, 6)
    terms = corrected if with_terms else (lambda clients, size: LocalTerms())
    assert_agree(both(recipe, terms, rates, shorten=shorten))


@pytest.mark.parametrize("scope", ["within", "round", "across"])
@pytest.mark.parametrize("rule", [Sgd(momentum=0.9), Adam()])
def test_the_engines_agree_on_one_cycle_with_its_momentum(scope: str, rule: Any) -> None:
    schedule = make_schedule("one_cycle", 0.05, cycle_momentum=True)
    rates = RatePlan(schedule, scope, 10, 6)
    assert_agree(both(Recipe(rule, cycles_momentum=True), rates=rates, shorten=1))


# Formulas -------------------------------------------------------------------------------------


def one_client(
    recipe: Recipe, rates: RatePlan, model: nn.Module, examples: Examples
) -> tuple[LocalResult, ClientPlan]:
    engine = LoopEngine(copy.deepcopy(model), loss, recipe, SEED, CPU)
    work = LocalWork(3, None, 5)
    n = len(examples.y)
    (plan,) = plan_clients(work, SEED, 1, [6], [n], rates, [work.planned_steps(n)])
    return engine.train(start_of(model), 1, [plan], examples, LocalTerms()), plan


def batches(plan: ClientPlan, examples: Examples) -> list[tuple[Tensor, Tensor]]:
    assert plan.order is not None
    pieces = [plan.order[a:b] for a, b in pairwise(plan.offsets.tolist())]
    return [(torch.from_numpy(examples.x[p]), torch.from_numpy(examples.y[p])) for p in pieces]


def moved(model: nn.Module, start: ModelState) -> Tensor:
    return start_of(model).parameters - start.parameters


def client_data(n: int = 23) -> Examples:
    rng = np.random.default_rng(8)
    return Examples(rng.normal(size=(n, 6)), rng.integers(0, 3, n))


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam_is_the_optimizer_of_that_name(adaptive: bool) -> None:
    """Two implementations: the engine's, and the `torch.optim.Optimizer` for any project."""
    model, examples = network(), client_data()
    recipe = Recipe(
        Sgd(momentum=0.9, weight_decay=0.05), sam=Sharpness(0.3, adaptive=adaptive, eta=0.02)
    )
    result, plan = one_client(recipe, constant_rates(0.1), model, examples)
    mine = copy.deepcopy(model)
    optimizer = SAM(
        mine.parameters(),
        torch.optim.SGD,
        rho=0.3,
        adaptive=adaptive,
        eta=0.02,
        lr=0.1,
        momentum=0.9,
        weight_decay=0.05,
    )
    for x, y in batches(plan, examples):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            value = loss(mine(x), y)
            value.backward()
            return value

        optimizer.step(closure)
    torch.testing.assert_close(
        result.delta[0], moved(mine, start_of(model)), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_the_penalty_is_differentiated_exactly() -> None:
    """One full-batch step along g + 2 mu H g, with a dense Hessian."""
    model, examples = network(), client_data(7)
    engine = LoopEngine(copy.deepcopy(model), loss, Recipe(Sgd(), penalty=0.4), SEED, CPU)
    work = LocalWork(None, 1, None)
    (plan,) = plan_clients(work, SEED, 1, [0], [7], constant_rates(1.0), [1])
    start = start_of(model)
    result = engine.train(start, 1, [plan], examples, LocalTerms())
    layout = ParameterLayout.of(model)
    names = [spec.name for spec in layout.parameters]
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)

    def objective(flat: Tensor) -> Tensor:
        named = dict(zip(names, layout.views(flat), strict=True))
        return loss(torch.func.functional_call(model, named, (x,)), y)

    g = torch.func.grad(objective)(start.parameters)
    hessian = torch.func.hessian(objective)(start.parameters)
    torch.testing.assert_close(result.delta[0], -(g + 0.8 * hessian @ g))


def test_clipping_is_that_of_torch() -> None:
    model, examples = network(), client_data()
    recipe = Recipe(Adam(), transforms=GradientTransforms(clip_norm=0.2, clip_value=0.04))
    result, plan = one_client(recipe, constant_rates(0.01), model, examples)
    mine = copy.deepcopy(model)
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.01)
    for x, y in batches(plan, examples):
        optimizer.zero_grad()
        loss(mine(x), y).backward()
        nn.utils.clip_grad_norm_(mine.parameters(), 0.2)
        nn.utils.clip_grad_value_(mine.parameters(), 0.04)
        optimizer.step()
    torch.testing.assert_close(result.delta[0], moved(mine, start_of(model)))


def test_noise_has_the_variance_of_its_step_in_the_run() -> None:
    """With a loss of zero gradient, parameters move by the noise alone."""
    model = nn.Linear(100, 100).double()
    eta, lr = 0.3, 0.5
    recipe = Recipe(Sgd(), transforms=GradientTransforms(noise_eta=eta))
    engine = LoopEngine(model, lambda out, y: 0 * out.sum(), recipe, SEED, CPU)
    work = LocalWork(None, 1, None)
    rates = RatePlan(make_schedule("constant", lr), "round", 100, nominal_steps=10)
    examples = Examples(np.zeros((2, 100)), np.zeros(2, dtype=np.int64))
    start = start_of(model)
    for round in (1, 4):
        (plan,) = plan_clients(work, SEED, round, [0], [2], rates, [1])
        delta = engine.train(start, round, [plan], examples, LocalTerms()).delta[0]
        expected = lr * (eta / (1 + (round - 1) * 10) ** 0.55) ** 0.5
        # 10,100 draws: the deviation of a standard deviation is 0.7 %.
        assert float(delta.std()) == pytest.approx(expected, rel=0.03)
        assert float(delta.mean()) == pytest.approx(0, abs=4 * expected / 100)


def test_a_skipped_step_leaves_parameters_momentum_and_counter_alone() -> None:
    """With a poisoned batch skipped, training is that on the other batches."""
    examples = client_data(20)
    model = network()
    work = LocalWork(2, None, 5)
    rates = RatePlan(make_schedule("exponential", 0.05, gamma=0.9), "within", 1, 8)
    (plan,) = plan_clients(work, SEED, 1, [6], [20], rates, [8])
    assert plan.order is not None
    poisoned = examples.x.copy()
    poisoned[plan.order[0]] = np.nan  # once an epoch
    dirty = Examples(poisoned, examples.y)
    recipe = Recipe(Adam(), transforms=GradientTransforms(skip_nonfinite=True))
    for engine_type in (LoopEngine, StackedEngine):
        engine = engine_type(copy.deepcopy(model), loss, recipe, SEED, CPU)
        result = engine.train(start_of(model), 1, [plan], dirty, LocalTerms())
        mine = copy.deepcopy(model)
        optimizer = torch.optim.Adam(mine.parameters())
        for (x, y), lr in zip(batches(plan, dirty), plan.learning_rates, strict=True):
            if torch.isfinite(x).all():
                optimizer.param_groups[0]["lr"] = lr
                optimizer.zero_grad()
                loss(mine(x), y).backward()
                optimizer.step()
        torch.testing.assert_close(result.delta[0], moved(mine, start_of(model)))
        assert result.skipped is not None
        assert result.skipped.tolist() == [2]


def test_clipping_is_each_clients_own() -> None:
    """A client with huge gradients is clipped; its neighbours' steps are as without it."""
    data = population()
    wild = [Examples(d.x * 1e3, d.y) if i == 2 else d for i, d in enumerate(data)]
    recipe = Recipe(Sgd(), transforms=GradientTransforms(clip_norm=0.5))
    for client, together, i, alone in both(recipe, data=wild):
        bound = 0.1 * 0.5 * len(plans_of(constant_rates(0.1))[CLIENTS.index(client)].offsets)
        assert float(together.delta[i].norm()) <= bound
        torch.testing.assert_close(together.delta[i], alone.delta[0], rtol=1e-9, atol=1e-12)
    tame = {c: together.delta[i] for c, together, i, _ in both(recipe, data=data)}
    for client, together, i, _ in both(recipe, data=wild):
        same = torch.equal(together.delta[i], tame[client])
        assert same == (client != CLIENTS[2])


def test_a_norm_over_layers_one_by_one_would_be_noticed() -> None:
    """The control of the test above: SAM and clipping use one norm over all parameters."""
    model, examples = network(), client_data(7)
    work = LocalWork(None, 1, None)
    (plan,) = plan_clients(work, SEED, 1, [0], [7], constant_rates(1.0), [1])
    recipe = Recipe(Sgd(), transforms=GradientTransforms(clip_norm=0.05))
    engine = LoopEngine(copy.deepcopy(model), loss, recipe, SEED, CPU)
    delta = engine.train(start_of(model), 1, [plan], examples, LocalTerms()).delta[0]
    assert float(delta.norm()) == pytest.approx(0.05, rel=1e-3)
    layers = [float(v.norm()) for v in ParameterLayout.of(model).views(delta)]
    assert max(layers) < 0.049


def test_the_local_average_is_the_mean_of_the_last_iterates() -> None:
    model, examples = network(), client_data()
    recipe = Recipe(Sgd(momentum=0.9), average=LocalAverage(last_steps=6))
    result, plan = one_client(recipe, constant_rates(0.1), model, examples)
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1, momentum=0.9)
    iterates = []
    for x, y in batches(plan, examples):
        optimizer.zero_grad()
        loss(mine(x), y).backward()
        optimizer.step()
        iterates.append(moved(mine, start_of(model)))
    torch.testing.assert_close(result.delta[0], torch.stack(iterates[-6:]).mean(0))
    assert result.last is not None
    torch.testing.assert_close(result.last[0], iterates[-1])


def test_batch_norm_counts_the_first_pass_only_and_fits_the_average() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    examples = client_data(20)
    work = LocalWork(1, None, 5)
    (plan,) = plan_clients(work, SEED, 1, [6], [20], constant_rates(0.0001), [4])
    layout = ParameterLayout.of(model)
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    start = layout.state({n: t.detach() for n, t in named.items()})

    def buffers(recipe: Recipe) -> Tensor:
        engine = LoopEngine(copy.deepcopy(model), loss, recipe, SEED, CPU)
        return engine.train(start, 1, [plan], examples, LocalTerms()).buffers[0]

    plain, sam = buffers(Recipe(Sgd())), buffers(Recipe(Sgd(), sam=Sharpness(0.5)))
    assert sam[-1] == plain[-1] == 4  # batches counted
    torch.testing.assert_close(sam, plain, rtol=1e-3, atol=1e-3)  # lr is tiny, rho is not
    averaged = buffers(Recipe(Sgd(), average=LocalAverage(last_steps=2)))
    hidden = model[0](torch.from_numpy(examples.x)).detach()
    torch.testing.assert_close(averaged[:5], hidden.mean(0), rtol=1e-3, atol=1e-3)


# In a run -------------------------------------------------------------------------------------


def simulate(**tables: Any) -> fedopt.Run:
    clients = [(d.x, d.y) for d in population()]
    defaults: dict[str, Any] = {
        "rounds": 4,
        "clients_per_round": 3,
        "dtype": "float64",
        "engine": {"name": "inline"},
    }
    return fedopt.simulate(model=network, clients=clients, **(defaults | tables))


def test_kept_state_is_each_clients_own_and_resumes_where_it_was() -> None:
    """One client, whose optimizer is kept, trains as if there were no rounds."""
    x, y = client_data(20)
    tables: dict[str, Any] = {
        "model": network,
        "clients": [(x, y)],
        "clients_per_round": 1,
        "dtype": "float64",
        "engine": {"name": "inline"},
    }
    local = {
        "steps": 1,
        "batch_size": "full",
        "optimizer": {"name": "adam", "lr": 0.02},
        "optimizer_state": "keep",
    }
    kept = fedopt.simulate(rounds=7, local=local, **tables)
    mine = network()
    optimizer = torch.optim.Adam(mine.parameters(), lr=0.02)
    for _ in range(7):
        optimizer.zero_grad()
        loss(mine(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        optimizer.step()
    for name, value in kept.parameters().items():
        torch.testing.assert_close(value, mine.get_parameter(name).detach())


@pytest.mark.parametrize("mode", ["reset", "keep", "average"])
def test_one_client_averages_to_what_it_keeps(mode: str) -> None:
    """With one client of one step, the average of the states is that client's own."""
    x, y = client_data(20)
    local = {"steps": 2, "batch_size": "full", "optimizer": {"name": "adam", "lr": 0.02}}
    runs = {
        state: fedopt.simulate(
            model=network,
            clients=[(x, y)],
            clients_per_round=1,
            dtype="float64",
            engine={"name": "inline"},
            rounds=3,
            local={**local, "optimizer_state": state},
        )
        for state in (mode, "keep")
    }
    same = all(
        torch.allclose(v, runs["keep"].parameters()[n], rtol=1e-12, atol=1e-12)
        for n, v in runs[mode].parameters().items()
    )
    assert same == (mode != "reset")


def test_averaged_state_costs_its_bytes() -> None:
    local = {"optimizer": {"name": "adam", "lr": 0.01}}
    reset = simulate(local=local).history
    averaged = simulate(local={**local, "optimizer_state": "average"}).history
    # Two moments besides the model, both ways.
    assert averaged["bytes_up"].iloc[-1] == 3 * reset["bytes_up"].iloc[-1]
    assert averaged["bytes_down"].iloc[-1] == 3 * reset["bytes_down"].iloc[-1]


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold", "mofedsam"])
def test_everything_combines_in_every_strategy(strategy: str) -> None:
    """Both engines, all techniques at once."""
    local = {
        "epochs": 2,
        "batch_size": 4,
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5},
        "schedule": {"name": "one_cycle"},
        "sam": {"rho": 0.05},
        "gradient": {"clip_norm": 1.0, "noise_eta": 1e-4, "skip_norm": 5.0, "penalty": 0.01},
        "swa": {"last_epochs": 1},
    }
    runs = [
        simulate(
            strategy=strategy,
            local=local,
            server={"swa": {"start": 2}},
            engine={"name": "inline", "training": training},
        )
        for training in ("loop", "stacked")
    ]
    for name, value in runs[0].parameters().items():
        torch.testing.assert_close(value, runs[1].parameters()[name], rtol=1e-9, atol=1e-9)
    assert np.isfinite(runs[0].history["train_loss"]).all()


def test_noise_differs_between_clients_rounds_and_steps() -> None:
    recipe = Recipe(Sgd(), transforms=GradientTransforms(noise_eta=1.0))
    engine = LoopEngine(nn.Linear(6, 3).double(), lambda o, y: 0 * o.sum(), recipe, SEED, CPU)
    start = start_of(nn.Linear(6, 3).double())
    work = LocalWork(None, 1, None)
    seen = set()
    for round in (1, 2):
        for client in (0, 1):
            (plan,) = plan_clients(work, SEED, round, [client], [9], constant_rates(1.0), [1])
            delta = engine.train(start, round, [plan], population()[0], LocalTerms()).delta
            seen.add(float(delta[0, 0]))
    assert len(seen) == 4


def test_a_client_that_skips_everything_keeps_its_control_variate() -> None:
    """K counts applied steps: with none, c_i stays, and nothing is divided by zero."""
    local = {"steps": 2, "batch_size": 4, "gradient": {"skip_norm": 1e-9}}
    run = simulate(strategy="scaffold", local=local, rounds=2)
    for value in run.state()["control_variate"].values():
        assert not value.any()
    assert (run.clients["skipped_steps"] == 2).all()
    assert (run.clients["update_norm"] == 0).all()


def test_seeds_of_noise_and_batches_are_unrelated() -> None:
    assert torch_seed(0, "noise", 1, 2) != torch_seed(0, "train", 1, 2)


@pytest.mark.parametrize(
    "recipe", [Recipe(Sgd()), Recipe(Adam(), sam=Sharpness(0.1)), Recipe(Sgd(), penalty=0.1)]
)
def test_bfloat16_passes_keep_parameters_in_float32(recipe: Recipe) -> None:
    """Results are those of float32 to bfloat16's three digits, and not the same."""
    layers = [nn.Linear(6, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 3)]
    model = nn.Sequential(*layers)
    examples = Examples(client_data().x.astype(np.float32), client_data().y)
    work = LocalWork(2, None, 5)
    (plan,) = plan_clients(work, SEED, 1, [6], [23], constant_rates(0.05), [10])
    for engine_type in (LoopEngine, StackedEngine):
        full, half = (
            engine_type(copy.deepcopy(model), loss, recipe, SEED, CPU, precision)
            .train(start_of(model), 1, [plan], examples, LocalTerms())
            .delta.clone()
            for precision in ("full", "bf16")
        )
        assert half.dtype == torch.float32
        assert not torch.equal(full, half)
        # Adam turns rounding of small gradients into whole steps: some elements differ.
        assert float((full - half).norm() / full.norm()) < 0.1


def poisoned_clients(scale: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three clients, of which the second has one example of class 2 and other inputs."""
    rng = np.random.default_rng(1)
    clients = [(rng.normal(size=(12, 6)).astype("float32"), rng.integers(0, 2, 12)) for _ in "abc"]
    clients[1][1][5] = 2
    clients[1] = (clients[1][0] * np.float32(scale), clients[1][1])
    return clients


def loss_without_class_two(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy that is NaN for a batch with class 2 in it."""
    factor = torch.where((target == 2).any(), torch.nan, 1.0)
    return loss(output, target) * factor


@pytest.mark.parametrize("training", ["loop", "stacked"])
@pytest.mark.parametrize("gradient", [{"skip_nonfinite": True}, {"skip_norm": 100.0}])
def test_a_batch_without_a_finite_loss_is_skipped(training: str, gradient: dict[str, Any]) -> None:
    """The run goes on; the loss is that of the steps that happened."""
    run = fedopt.simulate(
        model=lambda: network().float(),
        loss=loss_without_class_two,
        clients=poisoned_clients(),
        clients_per_round=None,
        rounds=3,
        local={"epochs": 2, "batch_size": 4, "gradient": gradient},
        engine={"name": "inline", "training": training},
    )
    skipped = run.clients.groupby("client")["skipped_steps"].sum()
    assert skipped.tolist() == [0, 6, 0]
    assert np.isfinite(run.clients["train_loss"]).all()
    assert run.history["skipped_steps"].tolist() == [2, 2, 2]


def test_a_skipped_step_leaves_the_statistics_alone() -> None:
    def batch_norm() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    for limit, batches in ((1e-9, 0), (1e9, 6)):
        run = fedopt.simulate(
            model=batch_norm,
            clients=poisoned_clients(),
            clients_per_round=None,
            rounds=2,
            local={"epochs": 1, "batch_size": 4, "gradient": {"skip_norm": limit}},
            engine={"name": "inline"},
        )
        assert run.parameters()["1.num_batches_tracked"] == batches  # three a round
        assert bool(run.parameters()["1.running_mean"].any()) == (batches > 0)
        assert np.isnan(run.history["train_loss"]).all() == (batches == 0)


def test_statistics_that_are_not_finite_fail_their_client() -> None:
    def batch_norm() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))

    with pytest.raises(fedopt.ClientError, match="statistics that are not finite"):
        fedopt.simulate(
            model=batch_norm,
            clients=poisoned_clients(scale=1e21),
            clients_per_round=None,
            rounds=2,
            local={"epochs": 1, "batch_size": 4},
            engine={"name": "inline"},
        )


def test_dropout_is_the_same_in_both_engines_after_a_full_gradient() -> None:
    runs = [
        fedopt.simulate(
            model=lambda: network(dropout=0.3),
            clients=[(d.x, d.y) for d in population()],
            clients_per_round=None,
            rounds=3,
            dtype="float64",
            strategy={"name": "scaffold", "option": "I"},
            engine={"name": "inline", "training": training},
        )
        for training in ("loop", "stacked")
    ]
    for name, value in runs[0].parameters().items():
        torch.testing.assert_close(value, runs[1].parameters()[name], rtol=1e-9, atol=1e-9)
