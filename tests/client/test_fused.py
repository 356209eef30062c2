"""Fused linear layers train as the others do, under every term of the objective."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedopt.client import fused
from fedopt.client.algorithm import LocalTerms
from fedopt.client.fused import FusedLinears, pool_first
from fedopt.client.loop import LoopEngine
from fedopt.client.plan import LocalWork, plan_clients
from fedopt.client.rates import constant_rates
from fedopt.client.recipe import LocalAverage, Recipe, Sharpness
from fedopt.client.stacked import NotStackableError, check_stackable
from fedopt.data.population import Examples
from fedopt.models.layout import ParameterLayout
from fedopt.models.reference import cnn, mlp
from fedopt.models.residual import Residual
from fedopt.optim.rules import Adam, Sgd

CPU = torch.device("cpu")
loss = nn.functional.cross_entropy

# Float64 products accumulated into the weights or into a gradient: a rounding or two a step.
TOLERANCE = 1e-13

MODELS = {
    "cnn": lambda: cnn((2, 8, 8), 3, channels=(3, 4), hidden=9, kernel_size=3),
    "mlp": lambda: mlp((2, 8, 8), 3, hidden=(7, 5)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 3, bias=False)),
    "inner": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 6), nn.Dropout(0.3), nn.LayerNorm(6), nn.Linear(6, 3)
    ),
}


def corrected(size: int) -> LocalTerms:
    generator = torch.Generator().manual_seed(0)
    rows = 0.1 * torch.randn(1, size, dtype=torch.float64, generator=generator)
    return LocalTerms(proximal=0.3, correction=rows, full_gradient=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("with_terms", [False, True])
def test_fused_steps_are_the_plain_ones(
    name: str, decay: float, with_terms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(4)
    model = MODELS[name]().double()
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(23, 2, 8, 8)), rng.integers(0, 3, 23))
    work = LocalWork(2, None, 5)
    (plan,) = plan_clients(work, 3, 1, [0], [23], constant_rates(0.1), [10])
    layout = ParameterLayout.of(model)
    start = layout.state({n: p.detach() for n, p in model.named_parameters()})
    terms = corrected(layout.size) if with_terms else LocalTerms()
    found = []
    for large in (1, 10**9):
        monkeypatch.setattr(fused, "LARGE", large)
        recipe = Recipe(Sgd(weight_decay=decay))
        engine = LoopEngine(copy.deepcopy(model), loss, recipe, 3, CPU)
        assert (engine._fused is not None) == (large == 1)
        found.append(engine.train(start, 1, [plan], examples, terms))
    mine, yours = found
    torch.testing.assert_close(mine.delta, yours.delta, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(mine.train_loss, yours.train_loss)
    assert torch.equal(mine.lr_sum, yours.lr_sum)  # type: ignore[arg-type]
    if with_terms:
        assert torch.equal(mine.full_gradient, yours.full_gradient)  # type: ignore[arg-type]


@pytest.mark.parametrize("few", [0, 64])
def test_a_fused_step_may_be_taken_in_slices(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows of the weights are taken at once, the last slice being shorter."""
    monkeypatch.setattr(fused, "LARGE", 1)
    monkeypatch.setattr(fused, "FEW", few)
    torch.manual_seed(4)
    model = MODELS["mlp"]().double()
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(23, 2, 8, 8)), rng.integers(0, 3, 23))
    (plan,) = plan_clients(LocalWork(2, None, 5), 3, 1, [0], [23], constant_rates(0.1), [10])
    layout = ParameterLayout.of(model)
    start = layout.state({n: p.detach() for n, p in model.named_parameters()})
    found = []
    for size in (1, 3 * 128, 10**9):
        monkeypatch.setattr(fused, "SLICE", size)
        engine = LoopEngine(copy.deepcopy(model), loss, Recipe(Sgd(weight_decay=0.1)), 3, CPU)
        terms = corrected(layout.size)
        found.append(engine.train(start, 1, [plan], examples, terms).delta)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"stride": 1, "padding": 1}, {"ceil_mode": True}])
def test_pooling_comes_before_a_relu_to_the_same_bits(options: dict[str, Any]) -> None:
    torch.manual_seed(0)

    def build() -> nn.Sequential:
        block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        pool = nn.MaxPool2d(2, **options)
        return nn.Sequential(block, pool, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))

    plain, changed = build(), build()
    changed.load_state_dict(plain.state_dict())
    pool_first(changed)
    assert [k for k, m in changed.named_modules() if "forward" in vars(m)] == ["0.2", "1", "3", "4"]
    x = torch.randn(3, 2, 9, 9).round(decimals=1)  # rounded: ties, and outputs of exactly 0
    results = []
    for model in (plain, changed):
        output = model(x)
        results.append([output, *torch.autograd.grad(output.square().sum(), model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_pooling_stays_where_something_else_sees_the_relu() -> None:
    relu, hooked = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda *_: None)
    shared = nn.Sequential(relu, nn.MaxPool2d(2), relu, nn.MaxPool2d(2))
    watched = nn.Sequential(hooked, nn.MaxPool2d(2))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rectified: torch.Tensor = self.layers[0](x)
            return rectified

    backward = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    backward[0].register_full_backward_hook(lambda *_: None)
    inner = nn.Sequential(nn.Sequential(nn.ReLU()), nn.MaxPool2d(2))
    inner[0].register_forward_hook(lambda *_: None)
    for model in (shared, watched, backward, inner, Own()):
        pool_first(model)
        assert not any("forward" in vars(m) for m in model.modules())


def test_only_large_layers_that_are_used_once_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LARGE", 20)
    once, small = nn.Linear(8, 8), nn.Linear(8, 2)
    assert FusedLinears(nn.Sequential(once, nn.ReLU(), small)).names == {"0.weight", "0.bias"}
    twice = nn.Linear(8, 8)
    assert not FusedLinears(nn.Sequential(twice, nn.ReLU(), twice)).names
    block = Residual(nn.Sequential(nn.Linear(8, 8)), nn.Sequential())
    inside = nn.Sequential(nn.Linear(8, 8), block)
    inside[0].weight = block.body[0].weight
    assert not FusedLinears(inside).names
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    tied[2].weight = tied[0].weight
    assert not FusedLinears(tied).names
    frozen = nn.Sequential(nn.Linear(8, 8).requires_grad_(False))
    assert not FusedLinears(frozen).names

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(self.inner(x))

    assert not FusedLinears(Own()).names


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(Adam()),
        Recipe(Sgd(momentum=0.9)),
        Recipe(Sgd(), sam=Sharpness(0.1)),
        Recipe(Sgd(), average=LocalAverage(last_steps=2)),
    ],
)
def test_other_recipes_are_not_fused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "LARGE", 1)
    engine = LoopEngine(MODELS["mlp"](), loss, recipe, 0, CPU)
    assert engine._fused is None


def test_a_layer_that_is_used_twice_is_not_stacked() -> None:
    twice = nn.Linear(4, 4)
    with pytest.raises(NotStackableError, match="tied"):
        check_stackable(nn.Sequential(twice, nn.ReLU(), twice))


def test_layers_over_positions_are_trained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs `[B, T, F]`: each layer sees all positions as rows."""
    monkeypatch.setattr(fused, "LARGE", 30)
    torch.manual_seed(0)
    layers = [nn.Linear(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    model = nn.Sequential(*layers).double()
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(9, 2, 8)), rng.integers(0, 3, 9))
    (plan,) = plan_clients(LocalWork(1, None, 4), 3, 1, [0], [9], constant_rates(0.1), [3])
    layout = ParameterLayout.of(model)
    start = layout.state({n: p.detach() for n, p in model.named_parameters()})
    found = []
    for large in (30, 10**9):
        monkeypatch.setattr(fused, "LARGE", large)
        engine = LoopEngine(copy.deepcopy(model), loss, Recipe(Sgd()), 3, CPU)
        found.append(engine.train(start, 1, [plan], examples, LocalTerms()).delta)
    torch.testing.assert_close(found[0], found[1], rtol=TOLERANCE, atol=TOLERANCE)
    assert all(view.any() for view in layout.views(found[0][0]))
