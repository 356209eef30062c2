"""K-FAC and EKFAC against dense algebra, curvlinops, natural gradients, and as torch optimizers."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.optim import EKFAC, KFAC, SAM, create_optimizer
from fedopt.optim.kronecker import KroneckerModel

# Double precision; products, decompositions and sums of at most some thousand terms around one.
EXACT = 1e-9
DAMPING = 0.05


def dense_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Linear(4, 3))


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


INPUTS = {dense_net: (5,), conv_net: (2, 6, 6)}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
}


def problem(make: Callable[[], nn.Module], loss: str) -> tuple[nn.Module, Tensor, Tensor]:
    model = make().double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, *INPUTS[make], dtype=torch.float64, generator=generator)
    if loss == "mse":
        return model, x, torch.randn(7, 3, dtype=torch.float64, generator=generator)
    return model, x, torch.randint(0, 3, (7,), generator=generator)


def columns(loss: str, output: Tensor) -> Tensor:
    """The columns of an example's Hessian, one example at a time, from the Hessian itself."""

    def of_one(row: Tensor) -> Tensor:
        if loss == "mse":
            hessian = torch.eye(len(row), dtype=row.dtype) * 2 / len(row)
        else:
            p = row.softmax(0)
            hessian = torch.diag(p) - torch.outer(p, p)
        values, vectors = torch.linalg.eigh(hessian)
        return (vectors * values.clamp(min=0).sqrt()).T

    return torch.stack([of_one(row) for row in output.detach()], dim=1)


def _keep(place: int, seen: Any, made: Any, module: Any, args: Any, output: Tensor) -> Tensor:
    seen[place], made[place] = args[0], output
    return output * 1


class Reference:
    """Factors and per-example gradients of every layer, by jacobians of each example alone."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, loss: str, fisher: str) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.blocks: list[Tensor] = []  # Fisher of each layer, [o i, o i]
        self.a: list[Tensor] = []
        self.g: list[Tensor] = []
        self.examples: list[Tensor] = []  # gradients of examples, [N K, o, i]
        rows: list[list[Tensor]] = [[] for _ in self.layers]
        back: list[list[Tensor]] = [[] for _ in self.layers]
        for n in range(len(x)):
            seen: dict[int, Tensor] = {}
            made: dict[int, Tensor] = {}
            handles = []
            for place, layer in enumerate(self.layers):
                hook = partial(_keep, place, seen, made)
                handles.append(layer.register_forward_hook(hook))
            output = model(x[n : n + 1])
            for handle in handles:
                handle.remove()
            outputs = [made[i] for i in range(len(self.layers))]
            if fisher == "empirical":
                own = LOSSES[loss](output, y[n : n + 1])
                gradients = [torch.autograd.grad(own, outputs)]
            else:
                cols = columns(loss, output)
                gradients = [
                    torch.autograd.grad(output, outputs, c, retain_graph=True) for c in cols
                ]
            for place, layer in enumerate(self.layers):
                rows[place].append(self._rows(layer, seen[place]).detach())
                back[place].append(
                    torch.stack([self._positions(layer, g[place]) for g in gradients])
                )
        for a, s in zip(rows, back, strict=True):
            inputs, gradients = torch.stack(a), torch.stack(s)  # [N, T, i], [N, K, T, o]
            count, positions = inputs.shape[:2]
            self.a.append(torch.einsum("nti,ntj->ij", inputs, inputs) / (count * positions))
            self.g.append(torch.einsum("nkto,nktp->op", gradients, gradients) / count)
            examples = torch.einsum("nkto,nti->nkoi", gradients, inputs).flatten(0, 1)
            self.examples.append(examples)
            flat = examples.flatten(1)
            self.blocks.append(flat.T @ flat / count)
        self.count = len(x)

    @staticmethod
    def _rows(layer: nn.Module, x: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            x = nn.functional.unfold(
                x, layer.kernel_size, padding=layer.padding, stride=layer.stride
            )[0].T
        return x if layer.bias is None else torch.cat([x, torch.ones_like(x[:, :1])], dim=1)

    @staticmethod
    def _positions(layer: nn.Module, s: Tensor) -> Tensor:
        return s[0].flatten(1).T if isinstance(layer, nn.Conv2d) else s

    def gradients(self, model: nn.Module, loss: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        by_id = {id(p): g for p, g in zip(model.parameters(), found, strict=True)}
        out = []
        for layer in self.layers:
            weight = by_id[id(layer.weight)].flatten(1)
            bias = [] if layer.bias is None else [by_id[id(layer.bias)].unsqueeze(1)]
            out.append(torch.cat([weight, *bias], dim=1))
        return out


def directions(optimizer: KFAC, model: nn.Module) -> list[Tensor]:
    """What a step of rate 1 moved each layer by, `[o, i]`."""
    optimizer.param_groups[0]["lr"] = 1.0
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    moved = [(b - p.detach()).unsqueeze(0) for b, p in zip(before, model.parameters(), strict=True)]
    return [layer.matrix(moved)[0, 0] for layer in KroneckerModel.of(model).layers]


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("style", ["factored", "exact", "ekfac"])
def test_steps_are_those_of_dense_algebra(
    make: Callable[[], nn.Module], loss: str, fisher: str, style: str
) -> None:
    model, x, y = problem(make, loss)
    reference = Reference(model, x, y, loss, fisher)
    kind, options = (EKFAC, {}) if style == "ekfac" else (KFAC, {"damping_style": style})
    optimizer = kind(model, lr=1.0, damping=DAMPING, fisher=fisher, loss=loss, **options)
    value = LOSSES[loss](model(x), y)
    wanted = reference.gradients(model, value)
    value.backward()
    found = directions(optimizer, model)
    for place, gradient in enumerate(wanted):
        a, g = reference.a[place], reference.g[place]
        curvature = optimizer.curvature
        torch.testing.assert_close(curvature.inputs[place][0, 0], a, rtol=EXACT, atol=EXACT)
        torch.testing.assert_close(curvature.gradients[place][0, 0], g, rtol=EXACT, atol=EXACT)
        if style == "factored":
            pi = ((a.trace() / len(a)) / (g.trace() / len(g))).sqrt()
            damped_a = a + pi * DAMPING**0.5 * torch.eye(len(a), dtype=a.dtype)
            damped_g = g + DAMPING**0.5 / pi * torch.eye(len(g), dtype=a.dtype)
            block = torch.kron(damped_g, damped_a)
        else:
            block = torch.kron(g, a)
            if style == "ekfac":
                _, va = torch.linalg.eigh(a)
                _, vg = torch.linalg.eigh(g)
                basis = torch.kron(vg, va)
                block = basis @ torch.diag((basis.T @ reference.blocks[place] @ basis).diag())
                block = block @ basis.T
            block = block + DAMPING * torch.eye(len(block), dtype=a.dtype)
        expected = torch.linalg.solve(block, gradient.flatten()).view_as(gradient)
        torch.testing.assert_close(found[place], expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("make", INPUTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("style", ["factored", "exact", "ekfac"])
def test_steps_are_those_of_curvlinops(
    make: Callable[[], nn.Module], loss: str, fisher: str, style: str
) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, x, y = problem(make, loss)
    model = nn.Sequential(*(nn.ReLU() if isinstance(m, nn.ReLU) else m for m in model))
    kind = curvlinops.EKFACLinearOperator if style == "ekfac" else curvlinops.KFACLinearOperator
    operator = kind(
        model,
        nn.CrossEntropyLoss() if loss == "cross_entropy" else nn.MSELoss(),
        list(model.parameters()),
        [(x, y)],
        fisher_type=fisher,
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    inverse = curvlinops.KFACInverseLinearOperator(
        operator,
        damping=DAMPING,
        use_heuristic_damping=style == "factored",
        use_exact_damping=style != "factored",
    )
    value = LOSSES[loss](model(x), y)
    gradients = [g.detach() for g in torch.autograd.grad(value, list(model.parameters()))]
    expected = inverse @ gradients
    ours, options = (EKFAC, {}) if style == "ekfac" else (KFAC, {"damping_style": style})
    options["loss"] = loss
    # There the empirical Fisher of a mean over C outputs is C times the square of its gradient.
    scale = 3 if (loss, fisher) == ("mse", "empirical") else 1
    optimizer = ours(model, lr=1 / scale, damping=DAMPING / scale, fisher=fisher, **options)
    LOSSES[loss](model(x), y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    for b, p, step in zip(before, model.parameters(), expected, strict=True):
        torch.testing.assert_close(b - p.detach(), step, rtol=EXACT, atol=EXACT)


def test_exact_damping_is_the_natural_gradient_of_a_deep_linear_net() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    reference = Reference(model, x, y, "mse", "type-2")
    optimizer = KFAC(
        model, lr=1.0, damping=1e-3, fisher="type-2", damping_style="exact", loss="mse"
    )
    value = nn.functional.mse_loss(model(x), y)
    wanted = reference.gradients(model, value)
    value.backward()
    for step, gradient, block in zip(
        directions(optimizer, model), wanted, reference.blocks, strict=True
    ):
        damped = block + 1e-3 * torch.eye(len(block), dtype=torch.float64)
        expected = torch.linalg.solve(damped, gradient.flatten()).view_as(gradient)
        torch.testing.assert_close(step, expected, rtol=EXACT, atol=EXACT)


@given(seed=st.integers(0, 10_000), fisher=st.sampled_from(["type-2", "empirical", "mc"]))
@settings(max_examples=25)
def test_the_correction_never_moves_away_from_the_fisher(seed: int, fisher: str) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))
    optimizer = EKFAC(model, lr=1e-9, fisher=fisher, seed=seed)
    nn.functional.cross_entropy(model(x), y).backward()
    seen = optimizer._statistics()
    optimizer.step()
    curvature = optimizer.curvature
    for place, layer in enumerate(seen):
        a, g = curvature.inputs[place][0, 0], curvature.gradients[place][0, 0]
        gradients = torch.einsum("knto,nti->knoi", layer.gradients[:, 0, 0], layer.rows[0, 0])
        flat = gradients.flatten(2).flatten(0, 1)
        fisher_block = flat.T @ flat / len(x)
        basis = torch.kron(curvature._left[place][0, 0], curvature._right[place][0, 0])
        corrected = basis @ torch.diag(curvature._values[place][0, 0].flatten()) @ basis.T
        errors = [(fisher_block - m).norm() for m in (corrected, torch.kron(g, a))]
        assert errors[0] <= errors[1] * (1 + EXACT) + EXACT


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_one_undamped_step_solves_a_linear_regression(kind: type[KFAC]) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 5).double() * torch.logspace(-1, 1, 5).double()
    y = torch.randn(40, 2).double()
    model = nn.Linear(5, 2).double()
    options = {"damping_style": "exact"} if kind is KFAC else {}
    # EKFAC's corrected diagonal is exact in the eigenbasis as well: G is a multiple of 1.
    optimizer = kind(model, lr=1.0, damping=1e-14, fisher="type-2", loss="mse", **options)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    augmented = torch.cat([x, torch.ones(40, 1).double()], dim=1)
    solution = torch.linalg.lstsq(augmented, y).solution
    torch.testing.assert_close(model.weight.T, solution[:5], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(model.bias, solution[5], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
def test_sampled_labels_give_the_true_fisher_in_expectation(loss: str) -> None:
    model, x, y = problem(dense_net, loss)
    true = KFAC(copy.deepcopy(model), lr=1e-9, fisher="type-2", loss=loss, ema=0.0)
    sampled = KFAC(model, lr=1e-9, fisher="mc", loss=loss, ema=0.0)
    many = x.repeat(3000, 1), y.repeat(3000, *(1,) * (y.dim() - 1))
    LOSSES[loss](model(many[0]), many[1]).backward()
    sampled.step()
    clone = nn.Sequential(*copy.deepcopy(model))
    true = KFAC(clone, lr=1e-9, fisher="type-2", loss=loss)
    LOSSES[loss](clone(x), y).backward()
    true.step()
    for mine, exact in zip(sampled.curvature.gradients, true.curvature.gradients, strict=True):
        # 21,000 draws: standard errors of about a hundredth of the largest entry.
        assert (mine - exact).abs().max() < 0.05 * exact.abs().max()


@given(
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "circular", "replicate"]),
    bias=st.booleans(),
)
def test_patches_times_output_gradients_are_the_weights_gradient(
    groups: int,
    kernel: int,
    stride: int,
    dilation: int,
    padding: int | str,
    mode: str,
    bias: bool,
) -> None:
    if padding == "same":
        stride = 1
    torch.manual_seed(0)
    convolution = nn.Conv2d(
        2, 4, kernel, stride, padding, dilation, groups, bias, padding_mode=mode
    ).double()
    (layer,) = KroneckerModel.of(convolution).layers
    x = torch.randn(3, 2, 7, 8).double()
    output = convolution(x)
    s = torch.randn_like(output)
    found = torch.autograd.grad(output, list(convolution.parameters()), s)
    rows, gradients = layer.rows(x.unsqueeze(0)), layer.output_rows(s.unsqueeze(0).unsqueeze(0))
    product = torch.einsum("agbto,agbti->agoi", gradients[0], rows)
    expected = layer.matrix([g.unsqueeze(0) for g in found])
    torch.testing.assert_close(product, expected, rtol=EXACT, atol=EXACT)
    again = dict(layer.parts(expected))
    for position, gradient in enumerate(found):
        assert torch.equal(again[position][0], gradient)


# As an optimizer ----------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "fisher": "mc",
        "momentum": 0.9,
        "kl_clip": 1e-2,
        "weight_decay": 0.01,
        "factor_every": 2,
        "inverse_every": lambda step: 1 if step < 3 else 4,
        "fallback": "adam",
        "fallback_lr": 1e-3,
    },
    "adapted": {"adapt_damping": True, "decoupled_weight_decay": True, "weight_decay": 0.1},
}


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Linear(6, 3))


def train(model: nn.Module, optimizer: KFAC, steps: range) -> list[float]:
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 5, generator=generator)
        y = (x.sum(1) > 0).long() + (x[:, 0] > 1).long()

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(float(optimizer.step(closure)))
        with torch.no_grad():
            model(x)  # an evaluation in between is of no matter
    return losses


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_optimizer_goes_on_to_the_same_bits(kind: type[KFAC], name: str) -> None:
    whole = normalised()
    train(whole, kind(whole, lr=0.1, **OPTIONS[name]), range(12))
    model = normalised()
    first = kind(model, lr=0.1, **OPTIONS[name])
    train(model, first, range(7))
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": first.state_dict()}, saved)
    saved.seek(0)
    state = torch.load(saved)
    other = normalised()
    other.load_state_dict(state["model"])
    second = kind(other, lr=0.7, **OPTIONS[name])
    second.load_state_dict(state["optimizer"])
    losses = train(other, second, range(7, 12))
    assert all(
        torch.equal(p, q) for p, q in zip(other.parameters(), whole.parameters(), strict=True)
    )
    assert losses[-1] < 1.0  # of three classes: log 3 is chance


@pytest.mark.parametrize("fisher", ["empirical", "type-2"])
def test_accumulated_passes_are_one_batch(fisher: str) -> None:
    model, x, y = problem(dense_net, "cross_entropy")
    other = copy.deepcopy(model)
    x, y = x[:6], y[:6]
    whole = KFAC(model, fisher=fisher)
    parts = KFAC(other, fisher=fisher, accumulation_steps=3)
    for _ in range(3):
        whole.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        whole.step()
        parts.zero_grad()
        for first in range(0, 6, 2):
            part = slice(first, first + 2)
            (nn.functional.cross_entropy(other(x[part]), y[part]) / 3).backward()
        parts.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=EXACT, atol=EXACT)


def test_factors_under_sam_are_those_before_the_ascent() -> None:
    model, x, y = problem(dense_net, "cross_entropy")
    other = copy.deepcopy(model)
    plain, base = KFAC(other, lr=0.1), KFAC(model, lr=0.1)
    sam = SAM(model.parameters(), base, rho=0.5)
    sam.step(lambda: backward(model, x, y, sam))
    backward(other, x, y, plain)
    plain.step()
    for mine, theirs in zip(base.curvature.inputs, plain.curvature.inputs, strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(base.curvature.gradients, plain.curvature.gradients, strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.allclose(model[0].weight, other[0].weight)


def backward(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


@pytest.mark.parametrize("style", ["factored", "exact", "ekfac"])
@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e10, 1e25])
def test_steps_are_finite_whatever_the_factors(style: str, scale: float) -> None:
    """Dead inputs, factors that underflow, overflow, or are singular: in single precision."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    kind, options = (EKFAC, {}) if style == "ekfac" else (KFAC, {"damping_style": style})
    optimizer = kind(model, lr=1e-3, damping=1e-8, **options)
    x = torch.randn(3, 4) * scale
    for _ in range(3):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).clamp(-1e4, 1e4), torch.tensor([0, 1, 2]))
        loss.backward()
        optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters())


def test_single_precision_follows_double_on_singular_factors() -> None:
    """Four examples of 20 features, two of which are the same: factors of low rank."""
    torch.manual_seed(0)
    x = torch.randn(4, 20)
    x[:, 1] = x[:, 0]
    y = torch.tensor([0, 1, 2, 0])
    found = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        optimizer = KFAC(model, lr=0.1, damping=1e-5)
        for _ in range(3):
            backward(model, x.to(dtype), y, optimizer)
            optimizer.step()
        found[dtype] = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    change = (found[torch.float32] - found[torch.float64]).norm() / found[torch.float64].norm()
    assert change < 1e-2


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
def test_nothing_of_a_step_is_kept(fisher: str) -> None:
    """Hooks of the graph and what they hold must not keep each other alive."""
    model = normalised()
    optimizer = KFAC(model, fisher=fisher)
    outputs: list[weakref.ref[Tensor]] = []
    model.register_forward_hook(lambda _m, _a, output: outputs.append(weakref.ref(output)))
    for _ in range(3):
        model(torch.randn(4, 5))  # in training mode, without a backward pass
        backward(model, torch.randn(4, 5), torch.tensor([0, 1, 2, 0]), optimizer)
        optimizer.step()
    assert len(outputs) == 6
    assert all(reference() is None for reference in outputs)


def test_schedulers_cycle_rate_and_momentum() -> None:
    model = normalised()
    optimizer = KFAC(model, lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=6)
    seen = []
    for step in range(5):
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
    assert len(set(seen)) > 3


def test_damping_falls_where_the_model_is_good_and_rises_where_it_is_not() -> None:
    model, x, y = problem(dense_net, "mse")
    assert damping_after(model, x, y, lr=1e-4, damping=1.0) == pytest.approx((19 / 20) ** 5)
    # w^3 at 0.1 looks flat, so that a step to -1 is far too long.
    cubic = nn.Sequential(nn.Linear(1, 1, bias=False), Cube()).double()
    with torch.no_grad():
        cubic[0].weight.fill_(0.1)
    one = torch.ones(4, 1, dtype=torch.float64)
    found = damping_after(cubic, one, -one, lr=1.0, damping=1e-6, factor_every=100)
    assert found == pytest.approx(1e-6 * (20 / 19) ** 5)


class Cube(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


def damping_after(model: nn.Module, x: Tensor, y: Tensor, lr: float, **options: Any) -> float:
    """Lambda after the first adaptation, in the fifth step; the others have a rate of 0."""
    optimizer = KFAC(model, lr=lr, adapt_damping=True, fisher="type-2", loss="mse", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for rate in (0.0, 0.0, 0.0, 0.0, lr):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step(closure)
    return optimizer.damping


def test_the_factory_builds_what_a_configuration_names() -> None:
    built = create_optimizer("ekfac", normalised(), lr=0.2, fisher="mc", momentum=0.5)
    assert isinstance(built, EKFAC)
    assert (built.rule.fisher, built.param_groups[0]["momentum"]) == ("mc", 0.5)
    assert type(create_optimizer("kfac", normalised(), damping_style="exact")) is KFAC
    with pytest.raises(ConfigError, match="needs the model"):
        create_optimizer("kfac", normalised().parameters())


def test_what_has_no_factors_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.table(x)
            mixed, _ = self.attention(tokens, tokens, tokens)
            return self.out(mixed.mean(1))

    model = Attending()
    optimizer = KFAC(model, fallback="adam", fallback_lr=1e-3)
    assert set(optimizer.fallback_parameters) == {
        "table.weight",
        "attention.in_proj_weight",
        "attention.in_proj_bias",
        "attention.out_proj.weight",
        "attention.out_proj.bias",
    }
    assert "attention.out_proj.weight (an attention projection of attention)" in caplog.text
    before = [p.detach().clone() for p in model.parameters()]
    backward(model, torch.randint(0, 7, (5, 3)), torch.tensor([0, 1, 2, 0, 1]), optimizer)
    optimizer.step()
    assert all(not torch.equal(b, p) for b, p in zip(before, model.parameters(), strict=True))


def test_layers_over_tokens_have_factors() -> None:
    """A linear layer at every token: the gradient is that of the sum over tokens."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(6, 3)).double()
    x, y = torch.randn(5, 2, 4).double(), torch.tensor([0, 1, 2, 0, 1])
    optimizer = EKFAC(model)
    nn.functional.cross_entropy(model(x), y).backward()
    (first, _) = optimizer._statistics()
    product = torch.einsum("agbto,agbti->agoi", first.gradients[0], first.rows) / 5
    weight = torch.cat([model[0].weight.grad, model[0].bias.grad.unsqueeze(1)], dim=1)
    torch.testing.assert_close(product[0, 0], weight, rtol=EXACT, atol=EXACT)
    optimizer.step()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 3)
        self.outer.weight = self.inner.weight


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"damping": 0.0}, "damping must be > 0, got 0.0"),
        ({"damping": -1.0}, "damping must be > 0, got -1.0"),
        ({"lr": 0.0}, "lr must be > 0, got 0.0"),
        ({"fisher": "true"}, 'fisher must be one of empirical, mc, type-2, got "true"'),
        ({"damping_style": "both"}, "damping_style must be one of factored, exact"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"factor_every": 0}, "factor_every must be >= 1, got 0"),
        ({"kl_clip": 0.0}, "kl_clip must be > 0 or None, got 0.0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"fallback": "lion"}, 'fallback must be one of sgd, adam, got "lion"'),
        ({"accumulation_steps": 0}, "accumulation_steps must be >= 1, got 0"),
        ({"loss": "hinge"}, "loss must be one of cross_entropy, mse, or a function"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        KFAC(normalised(), **options)


def test_models_without_a_block_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"inner\.weight and outer\.weight are one tied parameter"):
        KFAC(Tied())
    with pytest.raises(ValueError, match="no layer of the model has Kronecker factors"):
        KFAC(nn.LayerNorm(3))
    with pytest.raises(ValueError, match="damping_style must be exact for EKFAC"):
        EKFAC(normalised(), damping_style="factored")


def test_steps_without_what_they_need_are_refused() -> None:
    model = normalised()
    optimizer = KFAC(model)
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError, match="0 passes with a backward were recorded"):
        optimizer.step()
    backward(model, x, y, optimizer)
    backward(model, x, y, optimizer)
    with pytest.raises(RuntimeError, match="2 passes with a backward were recorded"):
        optimizer.step()
    adapting = KFAC(normalised(), adapt_damping=True)
    with pytest.raises(RuntimeError, match=r"give step\(\) a closure"):
        adapting.step()

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    partly = Partly()
    idle = KFAC(partly)
    backward(partly, x, y, idle)
    with pytest.raises(RuntimeError, match="layer idle took no part in a recorded pass"):
        idle.step()
    assert pickle.dumps(optimizer.state_dict()["steps"])
