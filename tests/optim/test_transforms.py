"""Skipping, clipping and noise: each client by itself, in a fixed order; and around optimizers."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedopt.optim import SAM, GradientTransforms, Transformed
from fedopt.optim.transforms import (
    client_norms,
    clip_norm_,
    clip_value_,
    is_applied,
    noise_std,
    scale_,
)

SHAPES = [(4, 3), (5,), (), (2, 3, 2, 2)]
ULPS = 1e-15
"""A few operations in float64, whose results are of order one."""


def stacked(clients: int, scales: list[float] | None = None, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(clients, *shape, generator=generator, dtype=torch.float64) for shape in SHAPES
    ]
    if scales is not None:
        scale_(tensors, torch.tensor(scales, dtype=torch.float64))
    return tensors


def flat(tensors: list[Tensor], client: int) -> Tensor:
    return torch.cat([t[client].reshape(-1) for t in tensors])


@given(st.integers(1, 5), st.integers(0, 100))
def test_a_norm_is_of_one_client_over_all_tensors(clients: int, seed: int) -> None:
    tensors = stacked(clients, seed=seed)
    expected = torch.stack([flat(tensors, i).norm() for i in range(clients)])
    torch.testing.assert_close(client_norms(tensors), expected, rtol=ULPS * 10, atol=0)


def test_norms_of_float32_do_not_overflow_before_they_must() -> None:
    tensors = [torch.full((2, 3), 1e30), torch.full((2, 1), 1e30)]
    norms = client_norms(tensors)
    assert norms.dtype == torch.float32
    torch.testing.assert_close(norms, torch.full((2,), 2e30))


def test_each_client_is_clipped_by_its_own_norm() -> None:
    """One norm over both clients would shrink the small gradient with the large one."""
    tensors = stacked(2, [1e-3, 1e3])
    before = [t.clone() for t in tensors]
    norms = clip_norm_(tensors, 1.0)
    assert norms[0] < 1 < norms[1]
    assert all(torch.equal(t[0], b[0]) for t, b in zip(tensors, before, strict=True))
    assert float(client_norms(tensors)[1]) == pytest.approx(1.0, rel=1e-6)  # 1e-6 in the divisor
    together = math.hypot(*norms.tolist())
    assert float(norms[0]) / together < 1e-5  # what one norm would have left of the small one


@given(st.floats(1e-3, 1e3), st.integers(0, 50))
def test_clipping_is_torchs(max_norm: float, seed: int) -> None:
    tensors = stacked(3, [0.01, 1.0, 100.0], seed)
    for client in range(3):
        alone = [nn.Parameter(torch.zeros_like(t[client])) for t in tensors]
        for parameter, tensor in zip(alone, tensors, strict=True):
            parameter.grad = tensor[client].clone()
        norm = nn.utils.clip_grad_norm_(alone, max_norm)
        mine = [t[client : client + 1].clone() for t in tensors]
        torch.testing.assert_close(clip_norm_(mine, max_norm)[0], norm, rtol=1e-14, atol=0)
        for parameter, tensor in zip(alone, mine, strict=True):
            torch.testing.assert_close(parameter.grad, tensor[0], rtol=1e-14, atol=0)


def test_values_are_clipped_both_ways() -> None:
    tensors = [torch.tensor([[-3.0, -0.5, 2.0]])]
    clip_value_(tensors, 1.0)
    assert tensors[0].tolist() == [[-1.0, -0.5, 1.0]]


def test_what_is_skipped() -> None:
    norms = torch.tensor([1.0, 2.0, math.nan, math.inf])
    assert is_applied(norms).tolist() == [True, True, False, False]
    assert is_applied(norms, 1.0).tolist() == [True, False, False, False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_element_skips_one_client(bad: float) -> None:
    tensors = stacked(3)
    tensors[1][1, 2] = bad
    before = [t.clone() for t in tensors]
    applied = GradientTransforms(skip_nonfinite=True, clip_norm=1e6).apply_(tensors)
    assert applied.tolist() == [True, False, True]
    for client in (0, 2):
        assert torch.equal(flat(tensors, client), flat(before, client))


def test_the_order_is_skip_norm_value_noise() -> None:
    def gradient() -> list[Tensor]:
        return [torch.tensor([[3.0, 4.0]], dtype=torch.float64)]

    transforms = GradientTransforms(clip_norm=2.5, clip_value=1.8, noise_eta=0.25, skip_norm=5.0)
    seen = []

    def noise(std: float) -> list[Tensor]:
        seen.append(std)
        return [torch.full((1, 2), 10.0, dtype=torch.float64)]

    mine = gradient()
    assert transforms.apply_(mine, noise, step=3).tolist() == [True]
    # Norm 5 is not skipped; clipped to (1.5, 2), then to (1.5, 1.8); noise is not clipped.
    torch.testing.assert_close(
        mine[0], torch.tensor([[11.5, 11.8]], dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert seen == [noise_std(3, 0.25)]
    smaller = GradientTransforms(clip_norm=2.5, skip_norm=4.9)  # the norm before clipping counts
    assert smaller.apply_(gradient()).tolist() == [False]


@pytest.mark.parametrize("eta", [0.01, 0.3, 1.0])
def test_the_variance_of_noise_follows_the_law(eta: float) -> None:
    for step in (0, 1, 10, 1000):
        std = noise_std(step, eta)
        assert std**2 == pytest.approx(eta / (1 + step) ** 0.55, rel=1e-12)
        weight = nn.Parameter(torch.zeros(40_000, dtype=torch.float64))
        generator = torch.Generator().manual_seed(step)
        transforms = GradientTransforms(noise_eta=eta)
        optimizer = Transformed(torch.optim.SGD([weight], lr=1.0), transforms, generator)
        optimizer.steps = step
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        # Standard errors: mean std/200, variance 0.7 % of itself; five of each are allowed.
        drawn = weight.detach()
        assert abs(float(drawn.mean())) < 5 * std / 200
        assert float(drawn.var()) == pytest.approx(std**2, rel=0.035)


def test_without_arguments_nothing_happens() -> None:
    transforms = GradientTransforms()
    assert transforms.is_identity
    assert not transforms
    assert not transforms.can_skip
    tensors = stacked(2)
    before = [t.clone() for t in tensors]
    assert transforms.apply_(tensors).tolist() == [True, True]
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    "wanted",
    [{"clip_norm": 1.0}, {"clip_value": 1.0}, {"noise_eta": 0.1}, {"skip_norm": 1.0}],
)
def test_with_one_something_does(wanted: dict[str, float]) -> None:
    transforms = GradientTransforms(**wanted)
    assert transforms
    assert transforms.can_skip == ("skip_norm" in wanted)
    assert GradientTransforms(skip_nonfinite=True).can_skip


@pytest.mark.parametrize("name", ["clip_norm", "clip_value", "noise_eta", "skip_norm"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_ranges(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be finite and > 0, or None, got {value}"):
        GradientTransforms(**{name: value})
    with pytest.raises(ValueError, match="noise_gamma must be finite and >= 0, got -1"):
        GradientTransforms(noise_gamma=-1)


def test_noise_needs_its_maker() -> None:
    with pytest.raises(ValueError, match="step_noise is needed"):
        GradientTransforms(noise_eta=0.1).apply_(stacked(1))


# Around an optimizer --------------------------------------------------------------------------

BASES: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64)) for s in SHAPES]


def set_gradients(params: list[Any], step: int, scale: float = 1.0) -> None:
    for parameter, gradient in zip(params, stacked(1, seed=10 + step), strict=True):
        parameter.grad = gradient[0] * scale


@pytest.mark.parametrize("base", BASES)
def test_a_wrapped_optimizer_clips_as_torch_does(base: str) -> None:
    mine, yours = parameters(), parameters()
    ours = Transformed(BASES[base](mine), GradientTransforms(clip_norm=0.5))
    theirs = BASES[base](yours)
    for step in range(4):
        set_gradients(mine, step)
        set_gradients(yours, step)
        ours.step()
        nn.utils.clip_grad_norm_(yours, 0.5)
        theirs.step()
    for a, b in zip(mine, yours, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert (ours.steps, ours.skipped) == (4, 0)


@pytest.mark.parametrize("bad", [math.nan, 1e6])
@pytest.mark.parametrize("base", BASES)
def test_a_skipped_step_leaves_parameters_and_state_alone(base: str, bad: float) -> None:
    mine, yours = parameters(), parameters()
    ours = Transformed(BASES[base](mine), GradientTransforms(skip_norm=1e3))
    theirs = BASES[base](yours)
    for step in range(5):
        set_gradients(mine, step)
        if step == 2:
            set_gradients(mine, step, scale=bad)
            before = copy.deepcopy(ours.base.state_dict()["state"])
            ours.step()
            after = ours.base.state_dict()["state"]
            for key, slots in before.items():
                for name, value in slots.items():
                    assert torch.equal(after[key][name], value)
            continue
        set_gradients(yours, step)
        ours.step()
        theirs.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))
    assert (ours.steps, ours.skipped) == (5, 1)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
def test_noise_and_counters_resume_to_the_bit(base: str, way: str) -> None:
    transforms = GradientTransforms(noise_eta=0.3, skip_norm=1e3)
    whole = parameters()
    optimizer = Transformed(BASES[base](whole), transforms)
    for step in range(3):
        set_gradients(whole, step, scale=1e6 if step == 1 else 1.0)
        optimizer.step()
    if way == "state_dict":
        resumed: Any = [nn.Parameter(p.detach().clone()) for p in whole]
        second = Transformed(BASES[base](resumed), transforms)
        second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        second = (
            copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        )
        resumed = second.param_groups[0]["params"]
    for step in range(3, 6):
        for params, o in ((whole, optimizer), (resumed, second)):
            set_gradients(params, step)
            o.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert (second.steps, second.skipped) == (6, 1)


def test_the_generator_is_seeded_by_torchs() -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        params = parameters()
        optimizer = Transformed(torch.optim.SGD(params, lr=1.0), GradientTransforms(noise_eta=1.0))
        set_gradients(params, 0)
        optimizer.step()
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_schedulers_and_closures_work() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    base = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    optimizer = Transformed(base, GradientTransforms(clip_value=1.0))
    schedulers = [
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        torch.optim.lr_scheduler.StepLR(base, 1, 0.5),
    ]

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss.item()

    rate = base.param_groups[0]["lr"]
    assert optimizer.step(closure) == 4.0
    assert weight.item() == pytest.approx(2 - rate)  # the gradient 4 is clipped to 1
    for scheduler in schedulers:
        scheduler.step()
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state


def test_what_cannot_be_wrapped() -> None:
    transforms = GradientTransforms(clip_norm=1.0)
    with pytest.raises(ValueError, match="LBFGS cannot be wrapped"):
        Transformed(torch.optim.LBFGS(parameters()), transforms)
    with pytest.raises(ValueError, match=r"use SAM\(params, Transformed"):
        Transformed(SAM(parameters(), torch.optim.SGD, lr=0.1), transforms)
