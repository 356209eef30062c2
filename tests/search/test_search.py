"""Architecture search: exact gradients, what is found, discretised and built, and bad input."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.search import (
    DARTS_OPERATIONS,
    CellSupernet,
    DenseSupernet,
    Genotype,
    MixedOp,
    SearchSettings,
    Supernet,
    architecture_gradient,
    draw_genotype,
    finite_difference_gradient,
    random_genotype,
    search,
)
from fedopt.search.bilevel import Bilevel, split_examples
from fedopt.search.genotype import DenseLayer
from fedopt.search.supernet import split_names

cross_entropy = nn.functional.cross_entropy


def cell_net() -> CellSupernet:
    torch.manual_seed(0)
    net = CellSupernet((1, 6, 6), 3, channels=2, cells=2, nodes=2)
    return net.double()


def dense_net() -> DenseSupernet:
    torch.manual_seed(0)
    return DenseSupernet((5,), 3, widths=(3, 6), depth=2).double()


def batches(shape: tuple[int, ...]) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.randn(6, *shape, dtype=torch.float64, generator=generator)
        return x, torch.randint(0, 3, (6,), generator=generator)

    return batch(), batch()


NETS = {"cells": (cell_net, (1, 6, 6)), "dense": (dense_net, (5,))}


# The gradient -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_the_unrolled_objective(name: str) -> None:
    make, shape = NETS[name]
    model, xi = make(), 0.1
    train, val = batches(shape)
    bilevel = Bilevel(model, cross_entropy, SearchSettings(xi=xi))
    found = bilevel.architecture_gradient(train, val, lr=0.5)

    weights, alphas = bilevel.values()
    w = {n: v.clone().requires_grad_() for n, v in weights.items()}
    a = {n: v.clone().requires_grad_() for n, v in alphas.items()}

    def loss(batch: Any, w: Any, a: Any) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, {**w, **a}, (batch[0],)), batch[1])

    slopes = torch.autograd.grad(
        loss(train, w, a), list(w.values()), create_graph=True, allow_unused=True
    )
    moved = {n: v if g is None else v - xi * g for (n, v), g in zip(w.items(), slopes, strict=True)}
    expected = torch.autograd.grad(loss(val, moved, a), list(a.values()))
    for gradient, own in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, own, rtol=1e-12, atol=1e-12)

    def unrolled(a: dict[str, Tensor]) -> float:
        values = {n: v.clone().requires_grad_() for n, v in weights.items()}
        slopes = torch.autograd.grad(
            loss(train, values, a), list(values.values()), allow_unused=True
        )
        after = {
            n: v.detach() if g is None else v.detach() - xi * g
            for (n, v), g in zip(values.items(), slopes, strict=True)
        }
        return float(loss(val, after, a))

    generator = torch.Generator().manual_seed(3)
    step = 1e-5
    for _ in range(4):
        direction = {
            n: torch.randn(v.shape, dtype=torch.float64, generator=generator)
            for n, v in alphas.items()
        }
        ahead, behind = (
            unrolled({n: v + s * step * direction[n] for n, v in alphas.items()}) for s in (1, -1)
        )
        slope = sum(float((found[n] * direction[n]).sum()) for n in alphas)
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, abs=1e-6)


def test_the_gradient_of_a_quadratic_is_its_closed_form() -> None:
    """L_train = |w - B a|^2 / 2 and L_val = |w - c|^2 / 2: the gradient is xi B^T (w' - c)."""
    generator = torch.Generator().manual_seed(0)
    w, c = (torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(2))
    b = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    a, xi = torch.randn(3, dtype=torch.float64, generator=generator), 0.3

    def train(w: Tensor, a: Tensor) -> Tensor:
        return (w - b @ a).square().sum() / 2

    def val(w: Tensor, a: Tensor) -> Tensor:
        return (w - c).square().sum() / 2 + 0 * a.sum()

    moved = w - xi * (w - b @ a)
    expected = xi * b.T @ (moved - c)
    found = architecture_gradient(train, val, w, a, xi)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The mixed derivative is constant, so that the finite difference has no error but rounding.
    near = finite_difference_gradient(train, val, w, a, xi)
    torch.testing.assert_close(near, expected, rtol=1e-9, atol=1e-9)
    for trivial in (
        architecture_gradient(train, val, w, a, 0.0),
        architecture_gradient(train, val, w, a, xi, order=1),
    ):
        assert torch.equal(trivial, torch.zeros(3, dtype=torch.float64))


def test_the_papers_finite_difference_tends_to_the_exact_gradient() -> None:
    model = dense_net()
    train, val = batches((5,))
    bilevel = Bilevel(model, cross_entropy, SearchSettings())
    losses, values = (bilevel.loss_of(train), bilevel.loss_of(val)), bilevel.values()
    exact = architecture_gradient(*losses, *values, xi=0.5)
    errors = []
    for scale in (1.0, 0.1, 0.01):
        near = finite_difference_gradient(*losses, *values, xi=0.5, scale=scale)
        errors.append(max(float((near[n] - exact[n]).abs().max()) for n in exact))
    assert errors[0] > 10 * errors[1] > 100 * errors[2] or errors[2] < 1e-6
    first = architecture_gradient(*losses, *values, xi=0.5, order=1)
    assert max(float((first[n] - exact[n]).abs().max()) for n in exact) > errors[2]


# What is found ------------------------------------------------------------------------------------

TOY = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "sin 3x": lambda x: torch.sin(3 * x),
    "zero": lambda x: 0 * x,
}


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


class Toy(Supernet):
    """One mixed operation between two scales."""

    def __init__(self) -> None:
        super().__init__({"choice": (len(TOY),)})
        self.mixture = MixedOp([Function(f) for f in TOY.values()])
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.mixture(x, self.weights_of("choice"))

    def genotype(self) -> Genotype:
        name = list(TOY)[int(self.alphas["choice"].argmax())]
        return Genotype("dense", {"depth": 1}, layers=(DenseLayer(1, name, False),))


@pytest.mark.parametrize("gradient", ["second", "first"])
def test_the_search_finds_a_known_operation(gradient: str) -> None:
    """y = sin 3x, among identity, relu, sin 3x and zero, on ten seeds."""
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        x = 4 * torch.rand(128, 1) - 2
        y = torch.sin(3 * x) + 0.1 * torch.randn(128, 1)
        result = search(
            Toy(),
            nn.functional.mse_loss,
            x,
            y,
            SearchSettings(gradient=gradient, lr=0.02),
            epochs=15,
            batch_size=16,
            lr=0.05,
            seed=seed,
        )
        found.append(result.genotype.layers[0].activation)
    assert found.count("sin 3x") >= 9, found


def test_entropy_falls_and_is_bounded() -> None:
    torch.manual_seed(0)
    x = 4 * torch.rand(64, 1) - 2
    settings = SearchSettings(lr=0.05)
    result = search(Toy(), nn.functional.mse_loss, x, torch.sin(3 * x), settings, epochs=10)
    entropies = [float(str(row["entropy"])) for row in result.history]
    assert entropies[-1] < entropies[0] <= math.log(4) + 1e-9
    assert result.model.largest_entropies() == {"choice": math.log(4)}


def test_the_search_ends_when_skips_take_over() -> None:
    """A cell of nothing but skips has as many as edges in its first epoch."""
    torch.manual_seed(0)
    model = CellSupernet((1, 4, 4), 3, cells=1, nodes=2, operations=("none", "skip_connect"))
    x, y = torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,))
    result = search(
        model, cross_entropy, x, y, SearchSettings(skip_limit=3), epochs=5, batch_size=4
    )
    assert result.collapsed_at == 1
    assert len(result.history) == 1
    assert result.history[0]["skip_connections"] == 4
    free = search(model, cross_entropy, x, y, SearchSettings(), epochs=2, batch_size=4)
    assert free.collapsed_at is None
    assert len(free.history) == 2


# Discretisation -----------------------------------------------------------------------------------


def test_cells_are_discretised_as_in_the_paper() -> None:
    """Two best edges into a node by their heaviest operation besides none; none never wins."""
    net = cell_net()
    names = list(net.operations)
    with torch.no_grad():
        alpha = net.alphas["normal"]
        alpha.zero_()
        alpha[:, names.index("none")] = 5.0
        # Edges into node 3 come from states 0, 1 and 2, in rows 2 to 4.
        alpha[2, names.index("sep_conv_3x3")] = 3.0
        alpha[3, names.index("max_pool_3x3")] = 1.0
        alpha[4, names.index("dil_conv_5x5")] = 2.0
    found = net.genotype().cells["normal"]
    assert [(e.source, e.operation) for e in found if e.target == 3] == [
        (0, "sep_conv_3x3"),
        (2, "dil_conv_5x5"),
    ]
    assert len([e for e in found if e.target == 2]) == 2
    assert all(e.operation != "none" for e in found)


@pytest.mark.parametrize("name", NETS)
def test_one_hot_mixtures_compute_what_is_chosen(name: str) -> None:
    """With one choice certain, the supernet computes with that operation alone."""
    make, shape = NETS[name]
    model = make()
    (x, _), _ = batches(shape)
    before = model(x)
    with torch.no_grad():
        for alpha in model.alphas.values():
            chosen = alpha.argmax(-1, keepdim=True)
            alpha.fill_(-1e4).scatter_(-1, chosen, 0.0)
    assert not torch.allclose(model(x), before)
    for parameter in model.alphas.values():
        weights = parameter.softmax(-1)
        assert torch.equal(weights, weights.round())
    if name == "dense":
        genotype = model.genotype()
        built = genotype.build(shape, 3).double()
        with torch.no_grad():
            widths = [5, *(layer.width for layer in genotype.layers)]
            for place, layer in enumerate(built.layers):
                own = model.layers[place]
                layer.weight.copy_(own.weight[: widths[place + 1], : widths[place]])
                layer.bias.copy_(own.bias[: widths[place + 1]])
            built.classifier.weight.copy_(model.classifier.weight[:, : widths[-1]])
            built.classifier.bias.copy_(model.classifier.bias)
        if not any(layer.skip for layer in genotype.layers):
            torch.testing.assert_close(built(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operation", [n for n in DARTS_OPERATIONS if n != "none"])
def test_every_operation_can_be_built_and_trained(operation: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for shape in ((1, 8, 8), (3, 7, 5), (8, 8)):
        net = CellSupernet(shape, 4, cells=3, operations=(operation,))
        genotype = Genotype.from_json(net.genotype().to_json())
        assert genotype == net.genotype()
        assert set(genotype.operation_counts) == {operation}
        built = genotype.build(shape, 4)
        assert built(torch.randn(2, *shape)).shape == (2, 4)
        assert net(torch.randn(1, *shape)).shape == (1, 4)
    drawn = draw_genotype(genotype, tmp_path / "cell.png")
    assert drawn.stat().st_size > 5_000


def test_random_architectures_are_uniform() -> None:
    net = DenseSupernet((2,), 2, widths=(2, 3), activations=("relu", "tanh"), depth=2)
    rng = np.random.default_rng(0)
    counts: dict[Any, int] = {}
    draws = 3200
    for _ in range(draws):
        layers = random_genotype(net, rng).layers
        counts[layers] = counts.get(layers, 0) + 1
    assert len(counts) == 2 * 2 * 2 * 2 * 2  # one skip, in the second layer
    # 100 expected each: a chi-square of 31 degrees beyond 62 has probability 0.001.
    assert sum((n - draws / 32) ** 2 / (draws / 32) for n in counts.values()) < 62
    cells = CellSupernet((4, 4), 2, cells=1, nodes=2, operations=("none", "skip_connect"))
    pairs = [
        tuple(e.source for e in random_genotype(cells, rng).cells["normal"] if e.target == 3)
        for _ in range(900)
    ]
    for pair in itertools.combinations(range(3), 2):
        assert pairs.count(pair) == pytest.approx(300, abs=60)


def test_the_split_is_disjoint_and_whole() -> None:
    for n in (2, 3, 10, 101):
        train, val = split_examples(n, 0.3, np.random.default_rng(0))
        assert sorted([*train.tolist(), *val.tolist()]) == list(range(n))
        assert len(val) == min(n - 1, max(1, round(0.3 * n)))


def test_architecture_parameters_come_first() -> None:
    for make, _ in NETS.values():
        model = make()
        weights, alphas = split_names(model)
        assert [name for name, _ in model.named_parameters()] == alphas + weights


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CellSupernet((8, 8), 2, operations=()), "the search space is empty"),
        (lambda: CellSupernet((8, 8), 2, operations=("none",)), "the search space is empty"),
        (
            lambda: CellSupernet((8, 8), 2, operations=("sep_conv_3",)),
            'model.operations: "sep_conv_3" is not known. Did you mean "sep_conv_3x3"',
        ),
        (lambda: CellSupernet((8, 8), 2, operations=("none",) * 2), "is there twice"),
        (lambda: CellSupernet((5,), 2), "cells need images"),
        (lambda: DenseSupernet((5,), 2, widths=()), r"model\.widths"),
        (lambda: DenseSupernet((5,), 2, activations=()), "the search space is empty"),
        (lambda: DenseSupernet((5,), 2, activations=("rellu",)), 'Did you mean "relu"'),
        (lambda: Genotype.from_json("{"), "is no JSON"),
        (lambda: Genotype.from_json("{}"), "is no architecture"),
        (
            lambda: Genotype.from_json(cell_net().genotype().to_json().replace("cells", "cell")),
            "is no architecture",
        ),
        (
            lambda: Genotype.from_json(
                cell_net().genotype().to_json().replace('"target": 3', '"target": 9')
            ),
            r"genotype\.cells\.normal",
        ),
        (lambda: Genotype.load("nowhere.json"), 'model.path: "nowhere.json" cannot be read'),
    ],
)
def test_bad_spaces_and_architectures_are_refused_by_name(make: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"xi": -0.1}, r"xi must be >= 0, got -0\.1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"validation_share": 1.0}, "validation_share must be in"),
        ({"gradient": "third"}, "gradient must be second, first or finite"),
        ({"skip_limit": 0}, "skip_limit must be >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchSettings(**options)


def test_calls_out_of_range_are_refused() -> None:
    one = torch.ones(1)

    def loss(w: Tensor, a: Tensor) -> Tensor:
        return (w * a).sum()

    with pytest.raises(ValueError, match="xi must be >= 0"):
        architecture_gradient(loss, loss, one, one, -1.0)
    with pytest.raises(ValueError, match="order must be 1 or 2, got 3"):
        architecture_gradient(loss, loss, one, one, 0.1, order=3)
    with pytest.raises(ValueError, match="scale must be > 0"):
        finite_difference_gradient(loss, loss, one, one, 0.1, scale=0.0)
    with pytest.raises(ValueError, match="at least 2 examples"):
        split_examples(1, 0.5, np.random.default_rng(0))
