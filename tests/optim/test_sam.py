"""SAM and ASAM: exact steps, one norm, shared groups and state, exact resumption."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedopt.optim import ASAM, SAM, GradientTransforms, RuleOptimizer, Transformed
from fedopt.optim import frozen_statistics as frozen
from fedopt.optim.rules import Sgd

TOLERANCE = 1e-12
"""Both sides do the same few float64 operations, some in another order."""

BASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.05}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1, "amsgrad": True}),
}


def network(seed: int = 0) -> nn.Sequential:
    """Layers whose gradients differ in size, so that one norm is not a norm a layer."""
    torch.manual_seed(seed)
    built = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        built[0].weight *= 3
        built[2].weight *= 0.1
    return built


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def closure_of(optimizer: torch.optim.Optimizer, model: nn.Module, step: int) -> Callable[[], Any]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


def take(optimizer: torch.optim.Optimizer, model: nn.Module, steps: range) -> None:
    for step in steps:
        optimizer.step(closure_of(optimizer, model, step))


def reference(
    base: str,
    steps: int,
    perturbation: Callable[[list[Tensor], list[Tensor]], list[Tensor]],
) -> list[Tensor]:
    """Train by torch.autograd.grad at w + e, computed on copies, and the base at w."""
    model = network()
    kind, options = BASES[base]
    params = list(model.parameters())
    optimizer = kind(params, **options)
    for step in range(steps):
        gradients = list(torch.autograd.grad(loss_of(model, step), params))
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for p, e in zip(moved.parameters(), perturbation(params, gradients), strict=True):
                p.copy_(p + e)
        at_moved = torch.autograd.grad(loss_of(moved, step), list(moved.parameters()))
        for p, g in zip(params, at_moved, strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params]


def sam_perturbation(rho: float) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
    def perturbation(_: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
        return [rho * g / norm for g in gradients]

    return perturbation


def asam_perturbation(
    rho: float, eta: float
) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
    def perturbation(params: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        w, g = (torch.cat([t.detach().reshape(-1) for t in ts]) for ts in (params, gradients))
        scale = torch.diag(w.abs() + eta)
        e = rho * scale @ scale @ g / (scale @ g).norm()
        pieces = e.split([p.numel() for p in params])
        return [piece.view(p.shape) for piece, p in zip(pieces, params, strict=True)]

    return perturbation


def per_layer(_: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    return [0.05 * g / g.norm() for g in gradients]


def difference(model: nn.Module, expected: list[Tensor]) -> float:
    return max(
        float((p.detach() - e).abs().max())
        for p, e in zip(model.parameters(), expected, strict=True)
    )


def test_the_step_on_a_quadratic_in_closed_form() -> None:
    """L = 1/2 sum a_i w_i^2, so the gradient at w + rho a w / |a w| is a (w + rho a w / |a w|)."""
    a, rho, lr, decay = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64), 0.3, 0.1, 0.2
    w = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    parts = [nn.Parameter(w[:1].clone()), nn.Parameter(w[1:].clone())]
    optimizer = SAM(parts, torch.optim.SGD, rho, lr=lr, weight_decay=decay)

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0.5 * (a * torch.cat(parts) ** 2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(0.5 * float((a * w**2).sum()))
    moved = w + rho * a * w / (a * w).norm()
    expected = w - lr * (a * moved + decay * w)  # weight decay at w, not at w + e
    torch.testing.assert_close(torch.cat(parts).detach(), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("base", BASES)
def test_steps_equal_an_autograd_reference(base: str) -> None:
    model = network()
    kind, options = BASES[base]
    take(SAM(model.parameters(), kind, **options), model, range(15))
    assert difference(model, reference(base, 15, sam_perturbation(0.05))) < TOLERANCE


@pytest.mark.parametrize("base", BASES)
def test_adaptive_steps_equal_an_autograd_reference(base: str) -> None:
    model = network()
    kind, options = BASES[base]
    take(ASAM(model.parameters(), kind, **options), model, range(15))
    expected = reference(base, 15, asam_perturbation(0.5, 0.01))
    assert difference(model, expected) < TOLERANCE
    same = network()
    take(SAM(same.parameters(), kind, 0.5, adaptive=True, **options), same, range(15))
    assert difference(same, [p.detach() for p in model.parameters()]) == 0


def test_the_reference_tells_other_perturbations_apart() -> None:
    """What would be computed with a norm a layer, or without a perturbation, is far off."""
    model = network()
    take(SAM(model.parameters(), torch.optim.SGD, lr=0.1), model, range(15))
    assert difference(model, reference("sgd", 15, per_layer)) > 1e-4
    nothing = reference("sgd", 15, lambda _, gradients: [0 * g for g in gradients])
    assert difference(model, nothing) > 1e-4


def test_the_norm_is_over_all_groups_and_radii_are_each_groups() -> None:
    model = network()
    layers = [model[0], model[2]]
    groups = [
        {"params": layers[0].parameters(), "rho": 0.3},
        {"params": layers[1].parameters(), "lr": 0.01},
    ]
    optimizer = SAM(groups, torch.optim.SGD, lr=0.1)
    assert [group["rho"] for group in optimizer.param_groups] == [0.3, 0.05]
    before = [p.detach().clone() for p in model.parameters()]
    loss_of(model, 0).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    norm = torch.cat([g.reshape(-1) for g in gradients]).norm()
    optimizer.first_step()
    for p, w, g, rho in zip(
        model.parameters(), before, gradients, [0.3, 0.3, 0.05, 0.05], strict=True
    ):
        torch.testing.assert_close(p.detach(), w + rho * g / norm, rtol=TOLERANCE, atol=TOLERANCE)
    optimizer.second_step()
    for p, w, g, lr in zip(
        model.parameters(), before, gradients, [0.1, 0.1, 0.01, 0.01], strict=True
    ):
        torch.testing.assert_close(p.detach(), w - lr * g, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_two_calls_are_the_closures_step() -> None:
    mine, yours = network(), network()
    one, two = (SAM(m.parameters(), torch.optim.Adam, lr=0.05) for m in (mine, yours))
    take(one, mine, range(5))
    for step in range(5):
        loss_of(yours, step).backward()
        two.first_step(zero_grad=True)
        assert all(p.grad is None for p in yours.parameters())
        loss_of(yours, step).backward()
        two.second_step(zero_grad=True)
    assert difference(mine, [p.detach() for p in yours.parameters()]) == 0


def test_parameters_come_back_to_the_bit() -> None:
    """Adding and subtracting e would not: 1e8 + e - e differs in float32."""
    weight = nn.Parameter(torch.tensor([1e8, 1e-8, 1.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=10.0, lr=0.1)
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.first_step(zero_grad=True)
    assert not torch.equal(weight, before)
    optimizer.restore()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_without_a_direction_parameters_stay(value: float, adaptive: bool) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = SAM([weight], torch.optim.SGD, adaptive=adaptive, lr=0.1)
    weight.grad = torch.full((3,), value)
    optimizer.first_step(zero_grad=True)
    assert torch.equal(weight.detach(), torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer.second_step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.9))


def test_parameters_without_a_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SAM([used, unused], torch.optim.Adam, lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (used**2).sum()
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert torch.equal(unused.detach(), torch.ones(2))
    assert unused not in optimizer.state
    assert not torch.equal(used.detach(), torch.ones(2))


def test_with_radius_zero_it_is_the_base() -> None:
    mine, yours = network(), network()
    take(SAM(mine.parameters(), torch.optim.Adam, rho=0.0, lr=0.05), mine, range(5))
    take(torch.optim.Adam(yours.parameters(), lr=0.05), yours, range(5))
    assert difference(mine, [p.detach() for p in yours.parameters()]) == 0


def test_maximisation_perturbs_downhill() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = SAM([weight], torch.optim.SGD, rho=0.5, lr=0.1, maximize=True)
    weight.grad = torch.tensor([3.0])
    optimizer.first_step()
    assert weight.item() == 0.5


# Sharing and resuming -------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("way", ["state_dict", "torch.save", "pickle", "deepcopy"])
def test_training_resumes_to_the_bit(kind: type[SAM], base: str, way: str) -> None:
    base_class, options = BASES[base]
    whole = network()
    optimizer = kind(whole.parameters(), base_class, rho=0.2, **options)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    for step in range(5):
        take(optimizer, whole, range(step, step + 1))
        scheduler.step()
    if way in ("state_dict", "torch.save"):
        resumed = network(1)
        resumed.load_state_dict(whole.state_dict())
        second = kind(resumed.parameters(), base_class, rho=1.0, **{**options, "lr": 7.0})
        saved = copy.deepcopy(optimizer.state_dict())
        if way == "torch.save":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        second.load_state_dict(saved)
    else:
        pair = (whole, optimizer)
        resumed, second = (
            copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
        )
    assert second.param_groups[0]["rho"] == 0.2
    assert second.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
    assert second.param_groups is second.base.param_groups
    assert second.state is second.base.state
    for m, o in ((whole, optimizer), (resumed, second)):
        take(o, m, range(5, 10))
    assert difference(resumed, [p.detach() for p in whole.parameters()]) == 0


def test_a_state_saved_by_the_base_alone_can_be_loaded() -> None:
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    take(plain, model, range(2))
    optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.param_groups[0]["rho"] == 0.2
    take(optimizer, model, range(2, 3))


def test_a_base_keeps_its_state_when_it_is_wrapped() -> None:
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    take(base, model, range(2))
    buffer = base.state[model[0].weight]["momentum_buffer"].clone()
    optimizer = SAM(model.parameters(), base)
    assert torch.equal(optimizer.state[model[0].weight]["momentum_buffer"], buffer)
    assert optimizer.param_groups is base.param_groups


def test_named_parameters_may_be_given() -> None:
    model = network()
    optimizer = SAM(model.named_parameters(), torch.optim.SGD, lr=0.1)
    take(optimizer, model, range(1))
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"
    SAM(model.named_parameters(), torch.optim.SGD(model.named_parameters(), lr=0.1))


@pytest.mark.parametrize("on_base", [False, True])
def test_schedulers_reach_both(on_base: bool) -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    target = optimizer.base if on_base else optimizer
    scheduler = torch.optim.lr_scheduler.OneCycleLR(target, 0.4, total_steps=11)
    rates, momenta = set(), set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "scheduler before optimizer" among them
        for step in range(7):
            take(optimizer, model, range(step, step + 1))
            scheduler.step()
            for group in (optimizer.param_groups[0], optimizer.base.param_groups[0]):
                rates.add(group["lr"])
                momenta.add(group["momentum"])
            assert scheduler.get_last_lr()[0] == optimizer.base.param_groups[0]["lr"]
    assert len(rates) == len(momenta) == 7


def test_a_group_added_later_is_the_bases_too() -> None:
    model = network()
    optimizer = SAM(model[0].parameters(), torch.optim.SGD, lr=0.1)
    optimizer.add_param_group({"params": model[2].parameters(), "rho": 0.5})
    assert [group["rho"] for group in optimizer.base.param_groups] == [0.05, 0.5]
    assert optimizer.param_groups[1]["lr"] == 0.1
    with pytest.raises(ValueError, match="rho must be finite and >= 0, got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1})


def test_our_rules_and_transforms_may_be_the_base() -> None:
    mine, yours = network(), network()
    ours = SAM(mine.parameters(), RuleOptimizer, rule=Sgd(momentum=0.9), lr=0.1)
    theirs = SAM(yours.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    take(ours, mine, range(5))
    take(theirs, yours, range(5))
    assert difference(mine, [p.detach() for p in yours.parameters()]) < TOLERANCE

    model = network()
    clipped = Transformed(
        torch.optim.SGD(model.parameters(), lr=0.1), GradientTransforms(clip_norm=1e-3)
    )
    optimizer = SAM(model.parameters(), clipped)
    before = [p.detach().clone() for p in model.parameters()]
    take(optimizer, model, range(1))
    moved = torch.cat(
        [(p.detach() - w).reshape(-1) for p, w in zip(model.parameters(), before, strict=True)]
    )
    assert float(moved.norm()) == pytest.approx(1e-4, rel=2e-3)  # 1e-6 in the divisor
    assert optimizer.state_dict()["transformed"]["steps"] == 1
    optimizer.load_state_dict(optimizer.state_dict())


# BatchNorm ------------------------------------------------------------------------------------


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()


def test_a_batch_is_counted_once() -> None:
    model, plain = normed(), normed()
    plain(batch(0)[0])  # the first pass alone, at the same weights
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    take(optimizer, model, range(1))
    assert model[1].num_batches_tracked == 1
    for mine, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, expected)
    without = normed()
    take(SAM(without.parameters(), torch.optim.SGD, lr=0.1), without, range(1))
    assert without[1].num_batches_tracked == 2
    assert difference(without, [p.detach() for p in model.parameters()]) == 0


@pytest.mark.parametrize("training", [True, False])
def test_frozen_statistics_are_as_before_even_after_errors(training: bool) -> None:
    model = normed().train(training)
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(6, 4, dtype=torch.float64)
    free = copy.deepcopy(model)(x)
    with frozen(model):
        assert torch.equal(model(x), free)  # still normalised by the batch
    with pytest.raises(RuntimeError, match="mat1"), frozen(model):
        model(torch.randn(6, 5, dtype=torch.float64))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training == training


# Mixed precision ------------------------------------------------------------------------------


def amp_step(
    optimizer: SAM,
    scaler: torch.amp.GradScaler,
    model: nn.Module,
    step: int,
    spoil: tuple[int, ...] = (),
) -> None:
    """The recipe of SAM's docstring; the passes in `spoil` overflow."""
    scaler.scale(loss_of(model, step)).backward()
    if 0 in spoil:
        next(model.parameters()).grad[0] = float("inf")
    scaler.unscale_(optimizer)
    optimizer.first_step(zero_grad=True)
    with frozen(model):
        scaler.scale(loss_of(model, step)).backward()
    if 1 in spoil:
        next(model.parameters()).grad[0] = float("inf")
    optimizer.restore()
    scaler.unscale_(optimizer.base)
    scaler.step(optimizer.base)
    scaler.update()
    optimizer.zero_grad()


def test_the_recipe_with_a_grad_scaler() -> None:
    # The scale is a power of two, so scaling is exact.
    mine, yours = network(), network()
    scaled = SAM(mine.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    plain = SAM(yours.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    scheduler = torch.optim.lr_scheduler.StepLR(scaled, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(6):
            amp_step(scaled, scaler, mine, step)
            scheduler.step()
    take(plain, yours, range(6))
    assert difference(mine, [p.detach() for p in yours.parameters()]) < TOLERANCE
    assert scaler.get_scale() == 2.0**12  # grown once in three steps


@pytest.mark.parametrize("spoil", [(1,), (0, 1)])
def test_an_overflow_skips_the_step_and_lowers_the_scale(spoil: tuple[int, ...]) -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    amp_step(optimizer, scaler, model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    amp_step(optimizer, scaler, model, 1, spoil)
    assert difference(model, before) == 0
    assert scaler.get_scale() == 2.0**9
    amp_step(optimizer, scaler, model, 2)
    assert 0 < difference(model, before) < 1


# Refusals -------------------------------------------------------------------------------------


def test_a_step_without_a_gradient_to_start_from_is_refused() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="SAM takes two gradients a step"):
        optimizer.step()


def test_an_error_in_the_second_pass_leaves_the_parameters_at_w() -> None:
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    passes = []

    def closure() -> float:
        passes.append(difference(model, before))
        if len(passes) == 2:
            raise RuntimeError("out of memory")
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss.item()

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert passes[0] == 0 < passes[1]
    assert difference(model, before) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho must be finite and >= 0, got -0.1"),
        ({"rho": float("nan")}, "rho must be finite and >= 0, got nan"),
        ({"eta": -1.0}, "eta must be finite and >= 0, got -1.0"),
        ({"base": torch.optim.LBFGS}, "LBFGS cannot be a base"),
        ({"base": ASAM}, "SAM cannot be the base of SAM"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SAM(network().parameters(), **{"base": torch.optim.SGD, "lr": 0.1, **options})


def test_a_base_over_other_parameters_is_refused() -> None:
    mine = list(network().parameters())
    base = torch.optim.SGD(mine[:2], lr=0.1)
    with pytest.raises(ValueError, match="over the same parameters"):
        SAM(mine, base)
    with pytest.raises(ValueError, match=r"options are for a class.*\['lr'\]"):
        SAM(mine[:2], base, lr=0.2)
    with pytest.raises(ValueError, match="give its groups their keys"):
        SAM([{"params": mine[:2], "rho": 0.1}], base)
    with pytest.raises(TypeError, match="iterable of tensors"):
        SAM(mine[0], base)  # type: ignore[arg-type]
