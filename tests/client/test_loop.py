"""The loop engine: what a plain PyTorch loop does, for every model, rule and objective term."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedopt.client.algorithm import LocalResult, LocalTerms
from fedopt.client.loop import LoopEngine
from fedopt.client.plan import ClientPlan, LocalWork, plan_clients
from fedopt.client.rates import constant_rates
from fedopt.client.recipe import Recipe
from fedopt.data.population import Examples
from fedopt.models.layout import ModelState, ParameterLayout, model_buffers
from fedopt.models.reference import cnn, logistic, mlp
from fedopt.optim import make_rule
from fedopt.seeds import torch_seed

CPU = torch.device("cpu")
SEED = 11
LR = 0.05

# Float64: a few hundred roundings of 1e-16, more where channels-last changes the order of sums.
DOUBLE = 1e-12
# Float32: the same number of roundings of 6e-8, amplified by a few steps of training.
SINGLE = 1e-5


def batch_norm(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    width = int(np.prod(input_shape))
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, classes)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: logistic((2, 8, 8), 3),
    "mlp": lambda: mlp((2, 8, 8), 3, hidden=(7, 5)),
    "cnn": lambda: cnn((2, 8, 8), 3, channels=(3, 4), hidden=9, kernel_size=3),
    "group_norm": lambda: cnn((2, 8, 8), 3, channels=(4, 4), hidden=9, norm="group", groups=2),
    "batch_norm": lambda: batch_norm((2, 8, 8), 3),
    "dropout": lambda: mlp((2, 8, 8), 3, hidden=(16,), dropout=0.5),
}

OPTIMIZERS: dict[str, tuple[str, dict[str, Any], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": ("sgd", {}, lambda p: torch.optim.SGD(p, lr=LR)),
    "momentum": (
        "sgd",
        {"momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        "sgd",
        {"momentum": 0.8, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=LR, momentum=0.8, nesterov=True),
    ),
    "adam": ("adam", {}, lambda p: torch.optim.Adam(p, lr=LR)),
    "adamw": (
        "adamw",
        {"weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=LR, weight_decay=0.1),
    ),
}

cross_entropy = torch.nn.functional.cross_entropy


def build(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(4)
    return MODELS[name]().to(dtype)


def data(n: int = 23, dtype: str = "float64", seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    return Examples(rng.normal(size=(n, 2, 8, 8)).astype(dtype), rng.integers(0, 3, n))


def state_of(model: nn.Module) -> ModelState:
    named = {n: p.detach() for n, p in model.named_parameters()} | model_buffers(model)
    return ParameterLayout.of(model).state(named)


def plan_of(n: int, client: int = 0, round: int = 1, batch: int | None = 5) -> ClientPlan:
    work = LocalWork(2, None, batch)
    (plan,) = plan_clients(
        work, SEED, round, [client], [n], constant_rates(LR), [work.planned_steps(n)]
    )
    return plan


def by_hand(
    model: nn.Module,
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    plan: ClientPlan,
    examples: Examples,
    *,
    round: int = 1,
    mu: float = 0.0,
    correction: Tensor | None = None,
) -> tuple[ModelState, float]:
    """Local training as anyone would write it; return the model's state and the mean loss."""
    model = copy.deepcopy(model).train()
    start = [p.detach().clone() for p in model.parameters()]
    layout = ParameterLayout.of(model)
    added = None if correction is None else layout.views(correction)
    optimizer = make_optimizer(model.parameters())
    torch.manual_seed(torch_seed(SEED, "train", round, plan.client))
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    order = plan.order if plan.order is not None else np.tile(np.arange(len(y)), plan.steps)
    total, seen = 0.0, 0
    for first, last in pairwise(plan.offsets.tolist()):
        rows = torch.from_numpy(order[first:last])
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        for i, parameter in enumerate(model.parameters()):
            assert parameter.grad is not None
            parameter.grad += mu * (parameter.detach() - start[i])
            if added is not None:
                parameter.grad += added[i]
        optimizer.step()
        total += loss.item() * len(rows)
        seen += len(rows)
    return state_of(model), total / seen


def train(
    engine: LoopEngine,
    start: ModelState,
    plan: ClientPlan,
    examples: Examples,
    terms: LocalTerms = LocalTerms(),  # noqa: B008
    round: int = 1,
) -> LocalResult:
    result = engine.train(start, round, [plan], examples, terms)
    return replace(result, delta=result.delta.clone())  # an engine uses its memory again


def engine_of(name: str, rule: str = "sgd", dtype: torch.dtype = torch.float64, **options: Any):
    return LoopEngine(
        build(name, dtype), cross_entropy, Recipe(make_rule(rule, **options)[0]), SEED, CPU
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_engine_is_a_plain_loop(model: str, optimizer: str) -> None:
    rule, options, make_optimizer = OPTIMIZERS[optimizer]
    start, examples = state_of(build(model)), data()
    plan = plan_of(23)
    result = train(engine_of(model, rule, **options), start, plan, examples)
    expected, loss = by_hand(build(model), make_optimizer, plan, examples)
    torch.testing.assert_close(
        start.parameters + result.delta[0], expected.parameters, rtol=DOUBLE, atol=DOUBLE
    )
    torch.testing.assert_close(
        start.buffers + result.buffers[0], expected.buffers, rtol=DOUBLE, atol=DOUBLE
    )
    assert float(result.train_loss[0]) == pytest.approx(loss, rel=DOUBLE)
    assert result.full_gradient is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_objective_terms_are_added_to_every_gradient(model: str, optimizer: str) -> None:
    rule, options, make_optimizer = OPTIMIZERS[optimizer]
    start, examples, plan = state_of(build(model)), data(), plan_of(23)
    generator = torch.Generator().manual_seed(2)
    correction = 0.1 * torch.randn(len(start.parameters), generator=generator, dtype=torch.float64)
    terms = LocalTerms(proximal=0.7, correction=correction.unsqueeze(0))
    result = train(engine_of(model, rule, **options), start, plan, examples, terms)
    expected, _ = by_hand(
        build(model), make_optimizer, plan, examples, mu=0.7, correction=correction
    )
    torch.testing.assert_close(
        start.parameters + result.delta[0], expected.parameters, rtol=DOUBLE, atol=DOUBLE
    )


@pytest.mark.parametrize("model", ["mlp", "cnn", "batch_norm", "dropout"])
def test_the_engine_is_a_plain_loop_in_single_precision(model: str) -> None:
    start, examples = state_of(build(model, torch.float32)), data(dtype="float32")
    plan = plan_of(23)
    result = train(engine_of(model, dtype=torch.float32), start, plan, examples)
    expected, _ = by_hand(build(model, torch.float32), OPTIMIZERS["sgd"][2], plan, examples)
    assert result.delta.dtype == torch.float32
    torch.testing.assert_close(
        start.parameters + result.delta[0], expected.parameters, rtol=SINGLE, atol=SINGLE
    )


def test_full_batches_and_single_examples() -> None:
    for n, batch in ((23, None), (1, 5), (5, 5), (6, 5)):
        start, examples, plan = state_of(build("mlp")), data(n), plan_of(n, batch=batch)
        result = train(engine_of("mlp"), start, plan, examples)
        expected, _ = by_hand(build("mlp"), OPTIMIZERS["sgd"][2], plan, examples)
        torch.testing.assert_close(
            start.parameters + result.delta[0], expected.parameters, rtol=DOUBLE, atol=DOUBLE
        )


def test_the_sum_of_rates_counts_the_steps() -> None:
    start, examples, plan = state_of(build("logistic")), data(), plan_of(23)
    plain = train(engine_of("logistic"), start, plan, examples)
    assert plain.lr_sum is not None
    assert float(plain.lr_sum[0]) == pytest.approx(plan.steps * LR, rel=DOUBLE)
    heavy = train(engine_of("logistic", momentum=0.9), start, plan, examples)
    assert heavy.lr_sum is not None
    assert float(heavy.lr_sum[0]) > float(plain.lr_sum[0])
    assert train(engine_of("logistic", "adam"), start, plan, examples).lr_sum is None


@pytest.mark.parametrize("model", ["logistic", "cnn", "batch_norm"])
def test_the_full_gradient_is_taken_at_the_start(model: str) -> None:
    start, examples, plan = state_of(build(model)), data(), plan_of(23)
    engine = engine_of(model)
    result = train(engine, start, plan, examples, LocalTerms(full_gradient=True))
    module = build(model).train()
    loss = cross_entropy(module(torch.from_numpy(examples.x)), torch.from_numpy(examples.y))
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    names = [n for n, _ in module.named_parameters()]
    assert result.full_gradient is not None
    got = engine.layout.named_vector(result.full_gradient[0])
    for name, gradient in zip(names, gradients, strict=True):
        torch.testing.assert_close(got[name], gradient, rtol=DOUBLE, atol=DOUBLE)
    without = train(engine_of(model), start, plan, examples)
    assert torch.equal(result.delta, without.delta), "it leaves training as it was"
    assert torch.equal(result.buffers, without.buffers)


def test_batch_norms_statistics_come_back() -> None:
    start, examples, plan = state_of(build("batch_norm")), data(), plan_of(23, batch=5)
    engine = engine_of("batch_norm")
    result = train(engine, start, plan, examples)
    end = ModelState(start.parameters + result.delta[0], start.buffers + result.buffers[0])
    named = engine.layout.named(end)
    counter = named["2.num_batches_tracked"]
    assert (int(counter), counter.dtype) == (plan.steps, torch.int64)
    assert named["2.running_mean"].abs().sum() > 0


@pytest.mark.parametrize("model", ["cnn", "batch_norm", "dropout"])
def test_a_client_does_not_feel_who_came_before(model: str) -> None:
    """The order of clients, rounds and rules' states leave no trace: to the bit."""
    start = state_of(build(model, torch.float32))
    sizes = (9, 10, 12, 13)  # no batch of one example, which BatchNorm cannot take
    clients = {c: (plan_of(n, c), data(n, "float32", seed=c)) for c, n in enumerate(sizes)}

    def deltas(order: list[int]) -> dict[int, LocalResult]:
        engine = engine_of(model, "sgd", torch.float32, momentum=0.9)
        return {c: train(engine, start, *clients[c]) for c in order}

    forward, backward = deltas([0, 1, 2, 3]), deltas([3, 1, 2, 0])
    for client, result in forward.items():
        assert torch.equal(result.delta, backward[client].delta)
        assert torch.equal(result.buffers, backward[client].buffers)
        assert torch.equal(result.train_loss, backward[client].train_loss)


def test_training_does_not_change_what_it_starts_from() -> None:
    start = state_of(build("batch_norm"))
    kept, examples = start.clone(), data()
    inputs = examples.x.copy()
    train(engine_of("batch_norm"), start, plan_of(23), examples)
    assert torch.equal(start.parameters, kept.parameters)
    assert torch.equal(start.buffers, kept.buffers)
    np.testing.assert_array_equal(examples.x, inputs)


def test_read_only_examples_can_be_trained_on() -> None:
    examples = data()
    examples.x.flags.writeable = examples.y.flags.writeable = False
    start = state_of(build("mlp"))
    result = train(engine_of("mlp"), start, plan_of(23), examples)
    assert torch.equal(result.delta, train(engine_of("mlp"), start, plan_of(23), data()).delta)


def test_dropout_is_drawn_from_seed_round_and_client() -> None:
    start, examples = state_of(build("dropout")), data()
    seen = set()
    base = plan_of(23)
    for round in (1, 2):
        for client in (0, 1):
            plan = replace(base, client=client)
            torch.manual_seed(len(seen))  # what the process drew before does not matter
            once = train(engine_of("dropout"), start, plan, examples, round=round)
            torch.rand(3)
            again = train(engine_of("dropout"), start, plan, examples, round=round)
            assert torch.equal(once.delta, again.delta)
            seen.add(tuple(once.delta[0, :5].tolist()))
    assert len(seen) == 4


def test_unused_and_frozen_parameters_stay() -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(128, 3)
            self.unused = nn.Linear(2, 2)
            self.frozen = nn.Linear(3, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.frozen(self.used(x.flatten(1)))
            return out

    torch.manual_seed(0)
    model = Partial().double()
    start = state_of(model)
    engine = LoopEngine(model, cross_entropy, Recipe(make_rule("sgd")[0]), SEED, CPU)
    result = train(engine, start, plan_of(23), data())
    named = engine.layout.named_vector(result.delta[0])
    assert set(named) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    assert not named["unused.weight"].any()
    assert named["used.weight"].any()
    assert not result.buffers.any()
