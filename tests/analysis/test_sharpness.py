from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from fedopt.analysis.sharpness import sam_ball_increase, top_hessian_eigenvalue


def quadratic(spectrum: list[float] | Tensor, seed: int = 0):
    """Return the loss w'Aw/2 with the spectrum, w, and A, in float64."""
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    random = torch.Generator().manual_seed(seed)
    size = len(values)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=random, dtype=torch.float64))
    matrix = basis @ torch.diag(values) @ basis.T
    point = torch.randn(size, generator=random, dtype=torch.float64).requires_grad_()
    return (lambda: 0.5 * point @ matrix @ point), point, matrix


def network(dtype: torch.dtype = torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    inputs, targets = torch.randn(30, 4, dtype=dtype), torch.randint(3, (30,))
    return model, inputs, targets


def dense_hessian(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    names = [name for name, _ in model.named_parameters()]
    parts = [p.detach() for p in model.parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [p.numel() for p in parts])
        arrays = {n: v.view(p.shape) for n, v, p in zip(names, pieces, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, arrays, inputs), targets)

    flat = torch.cat([p.reshape(-1) for p in parts])
    return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize(
    "spectrum",
    [
        torch.linspace(0, 5, 40),
        torch.linspace(-10, 3, 40),  # the dominant eigenvalue is negative
        torch.linspace(-10, -1, 40),  # all are
        [1.0] * 30 + [7.0],  # a space of one eigenvalue: Lanczos ends early
        [2.0] * 10,
        [0.0] * 10,
        [3.5],
        [1e6, 1.0, 1e-6],
    ],
    ids=["psd", "indefinite", "negative", "outlier", "identity", "zero", "one", "wide"],
)
def test_the_largest_eigenvalue_of_a_quadratic_is_found(spectrum) -> None:
    loss, point, matrix = quadratic(spectrum)
    top = float(torch.as_tensor(spectrum, dtype=torch.float64).max())
    found = top_hessian_eigenvalue(loss, [point], iterations=len(point), tolerance=0.0)
    # 1e-8, relative for large ones: as many products as dimensions, but for rounding.
    assert found == pytest.approx(top, rel=1e-8, abs=1e-8)
    assert found == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-8, abs=1e-8)


@given(seed=st.integers(0, 2**32), size=st.integers(1, 25))
def test_every_spectrum_is_met_and_few_iterations_give_a_lower_bound(seed: int, size: int) -> None:
    random = torch.Generator().manual_seed(seed)
    spectrum = 3 * torch.randn(size, generator=random, dtype=torch.float64)
    loss, point, _ = quadratic(spectrum, seed)
    top = float(spectrum.max())
    # 1e-8: rounding of a full Lanczos run of at most 25 steps.
    assert top_hessian_eigenvalue(
        loss, [point], iterations=size, tolerance=0.0, generator=random
    ) == pytest.approx(top, abs=1e-8)
    for iterations in (1, 2, 5):
        assert top_hessian_eigenvalue(loss, [point], iterations) <= top + 1e-10


def test_the_tolerance_holds_and_the_start_is_the_generators() -> None:
    loss, point, _ = quadratic(torch.linspace(-1, 4, 200))

    def found(seed: int) -> float:
        random = torch.Generator().manual_seed(seed)
        return top_hessian_eigenvalue(loss, [point], tolerance=1e-3, generator=random)

    assert found(1) == pytest.approx(4.0, rel=1e-3)
    assert found(1) == found(1) != found(2)
    assert top_hessian_eigenvalue(loss, [point]) == top_hessian_eigenvalue(loss, [point])


def test_a_network_agrees_with_its_dense_hessian() -> None:
    model, inputs, targets = network()
    expected = torch.linalg.eigvalsh(dense_hessian(model, inputs, targets))
    assert expected[0] < 0 < expected[-1]
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(inputs), targets)

    def part(index: int) -> Tensor:
        rows = slice(10 * index, 10 * index + 10)
        return nn.functional.cross_entropy(model(inputs[rows]), targets[rows]) / 3

    # 1e-8: both are float64; 43 parameters, and the spectrum's top is well apart.
    size = sum(p.numel() for p in parameters)
    found = top_hessian_eigenvalue(loss, parameters, size, 0.0)
    assert found == pytest.approx(float(expected[-1]), rel=1e-8)
    terms = [lambda index=index: part(index) for index in range(3)]
    assert top_hessian_eigenvalue(terms, parameters, size, 0.0) == pytest.approx(found, rel=1e-8)
    assert sam_ball_increase(terms, parameters, 0.1) == pytest.approx(
        sam_ball_increase(loss, parameters, 0.1), rel=1e-10
    )
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(p.grad is None for p in parameters)
    narrow, inputs, targets = network(torch.float32)
    narrow.load_state_dict(model.state_dict())
    # 1e-3: the default tolerance, for the sample differs in its last bits only.
    assert top_hessian_eigenvalue(
        lambda: nn.functional.cross_entropy(narrow(inputs), targets), list(narrow.parameters())
    ) == pytest.approx(
        float(torch.linalg.eigvalsh(dense_hessian(narrow, inputs, targets))[-1]), rel=1e-3
    )


def test_losses_without_curvature_and_unused_parameters() -> None:
    point, unused = torch.ones(3).requires_grad_(), torch.ones(2).requires_grad_()
    assert top_hessian_eigenvalue(lambda: 2 * point.sum(), [point, unused]) == 0.0
    # [point, unused] has the eigenvalues 6 and 0; 1e-5: float32.
    assert top_hessian_eigenvalue(
        lambda: 3 * point.square().sum(), [point, unused]
    ) == pytest.approx(6.0, rel=1e-5)
    assert sam_ball_increase(lambda: 0 * point.sum(), [point]) == 0.0


@given(seed=st.integers(0, 2**32), rho=st.floats(1e-3, 2.0))
def test_the_rise_of_a_quadratic(seed: int, rho: float) -> None:
    loss, point, matrix = quadratic(torch.linspace(-1, 4, 12), seed)
    before = point.detach().clone()
    gradient = matrix @ before
    direction = gradient / gradient.norm()
    expected = rho * gradient.norm() + rho**2 / 2 * direction @ matrix @ direction
    # 1e-10: the difference of two losses of at most about 100, in float64.
    assert sam_ball_increase(loss, [point], rho) == pytest.approx(float(expected), abs=1e-10)
    assert torch.equal(point, before)


def test_more_steps_stay_in_the_ball_and_climb_a_convex_loss() -> None:
    loss, point, matrix = quadratic([0.0, 1.0, 50.0])
    one, ten = (sam_ball_increase(loss, [point], 0.5, steps) for steps in (1, 10))
    w = point.detach()
    # For a convex quadratic: at most rho |g| + rho^2 / 2 times the largest eigenvalue.
    most = float(0.5 * (matrix @ w).norm() + 0.125 * 50.0)
    assert 0 < one <= most
    assert 0 < ten <= most
    peak = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    rise = sam_ball_increase(lambda: -(peak**2).sum(), [peak], rho=1.0)
    assert rise == pytest.approx(-(0.9**2) + 0.01)  # over the top, and down on the other side


def test_what_is_not_finite_gives_nan_and_the_parameters_are_kept() -> None:
    point = torch.tensor([1.0, 2.0], requires_grad=True)
    for loss in (lambda: (point * math.nan).square().sum(), lambda: (point * 1e30).pow(2).sum()):
        assert math.isnan(sam_ball_increase(loss, [point]))
        assert math.isnan(top_hessian_eigenvalue(loss, [point]))

    def fails_elsewhere() -> Tensor:
        if point.detach()[0] != 1.0:
            raise RuntimeError("elsewhere")
        return point.square().sum()

    with pytest.raises(RuntimeError, match="elsewhere"):
        sam_ball_increase(fails_elsewhere, [point])
    assert point.tolist() == [1.0, 2.0]


def test_arguments_are_checked() -> None:
    loss, point, _ = quadratic([1.0, 2.0])
    fixed, narrow = torch.ones(2), torch.ones(2).requires_grad_()
    for wrong in ([], [fixed], [point, narrow]):
        with pytest.raises(ValueError, match="parameter"):
            top_hessian_eigenvalue(loss, wrong)
        with pytest.raises(ValueError, match="parameter"):
            sam_ball_increase(loss, wrong)
    with pytest.raises(ValueError, match="no term"):
        top_hessian_eigenvalue([], [point])
    with pytest.raises(ValueError, match="got 0"):
        top_hessian_eigenvalue(loss, [point], iterations=0)
    with pytest.raises(ValueError, match="got -1"):
        top_hessian_eigenvalue(loss, [point], tolerance=-1)
    for rho in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="rho"):
            sam_ball_increase(loss, [point], rho)
    with pytest.raises(ValueError, match="steps"):
        sam_ball_increase(loss, [point], steps=0)
