"""Schedules are torch's, at every step and for all options; and functions of time alone."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

from fedopt.errors import ConfigError
from fedopt.schedules import list_schedules, make_schedule, momenta, values

STEPS = 60
LR = 0.3

# Torch multiplies step by step, or adds cosines to what it has: some 1e-16 a step. Rates are
# below 5, so that it is relative to about one.
TOLERANCE = 1e-12

Optimizer = torch.optim.Optimizer
whole = st.integers(1, 25)
share = st.floats(0.05, 1.0)
small = st.floats(0.0, 0.2)


def same(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def optimizer(adam: bool = False, lr: float = LR) -> Optimizer:
    parameter = torch.zeros(1, requires_grad=True)
    if adam:
        return torch.optim.Adam([parameter], lr=lr)
    return torch.optim.SGD([parameter], lr=lr, momentum=0.9)


def of_torch(
    make: Callable[[Optimizer], Any], adam: bool = False, steps: int = STEPS
) -> tuple[list[float], list[float]]:
    """Return learning rates and momenta as torch's scheduler sets them, step by step."""
    made = optimizer(adam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = make(made)
        rates, momenta = [], []
        for _ in range(steps):
            group = made.param_groups[0]
            rates.append(group["lr"])
            momenta.append(group["betas"][0] if adam else group["momentum"])
            made.step()
            if len(rates) < steps:
                scheduler.step()
    return rates, momenta


@st.composite
def decays(draw: st.DrawFn) -> tuple[str, dict[str, Any], Callable[[Optimizer], Any]]:
    name = draw(
        st.sampled_from(
            [
                "constant",
                "step",
                "multi_step",
                "exponential",
                "inverse_time",
                "polynomial",
                "linear",
                "cosine",
                "cosine_restarts",
            ]
        )
    )
    options: dict[str, Any] = {}
    if name == "step":
        options = {"step_size": draw(whole), "gamma": draw(share)}
    elif name == "multi_step":
        marks = draw(st.lists(st.integers(1, 70), min_size=1, max_size=4, unique=True))
        options = {"milestones": sorted(marks), "gamma": draw(share)}
    elif name == "exponential":
        options = {"gamma": draw(share)}
    elif name == "inverse_time":
        options = {"k": draw(small)}
    elif name == "polynomial":
        options = {"total_iters": draw(whole), "power": draw(st.floats(0.5, 3))}
    elif name == "linear":
        options = {
            "start_factor": draw(share),
            "end_factor": draw(small),
            "total_iters": draw(whole),
        }
    elif name == "cosine":
        options = {"T_max": draw(st.integers(1, 80)), "eta_min": draw(small)}
    elif name == "cosine_restarts":
        options = {"T_0": draw(whole), "T_mult": draw(st.integers(1, 3)), "eta_min": draw(small)}

    def make(made: Optimizer) -> Any:
        kinds: dict[str, Any] = {
            "step": torch_schedules.StepLR,
            "multi_step": torch_schedules.MultiStepLR,
            "exponential": torch_schedules.ExponentialLR,
            "polynomial": torch_schedules.PolynomialLR,
            "linear": torch_schedules.LinearLR,
            "cosine": torch_schedules.CosineAnnealingLR,
            "cosine_restarts": torch_schedules.CosineAnnealingWarmRestarts,
        }
        if name in kinds:
            return kinds[name](made, **options)
        factor = options.get("k", 0.0)
        return torch_schedules.LambdaLR(made, lambda t: 1 / (1 + factor * t))

    return name, options, make


@settings(deadline=None, max_examples=150)
@given(decays())
def test_decays_are_those_of_torch(case: tuple[str, dict[str, Any], Any]) -> None:
    name, options, make = case
    rates, _ = of_torch(make)
    same(values(name, STEPS, LR, **options), rates)
    assert momenta(name, STEPS, LR, **options) is None


@settings(deadline=None, max_examples=80)
@given(decays(), st.integers(1, 20), share)
def test_warm_up_comes_before_any_of_them(
    case: tuple[str, dict[str, Any], Any], warmup: int, start: float
) -> None:
    name, options, make = case

    def sequence(made: Optimizer) -> Any:
        warming = torch_schedules.LinearLR(made, start_factor=start, total_iters=warmup)
        return torch_schedules.SequentialLR(made, [warming, make(made)], [warmup])

    rates, _ = of_torch(sequence)
    got = values(name, STEPS, LR, warmup=warmup, warmup_start_factor=start, **options)
    same(got, rates)


@settings(deadline=None, max_examples=60)
@given(warmup=st.integers(1, 20), start=share, up=whole, base=share, cycles=st.booleans())
def test_warm_up_leads_to_the_base_rate_of_a_cycle(
    warmup: int, start: float, up: int, base: float, cycles: bool
) -> None:
    options: dict[str, Any] = {
        "base_lr": base,
        "max_lr": 1.5,
        "step_size_up": up,
        "cycle_momentum": cycles,
    }

    def sequence(made: Optimizer) -> Any:
        cycle = torch_schedules.CyclicLR(made, **options)
        warming = torch_schedules.LinearLR(made, start_factor=start, total_iters=warmup)
        return torch_schedules.SequentialLR(made, [warming, cycle], [warmup])

    rates, cycled = of_torch(sequence)
    options |= {"warmup": warmup, "warmup_start_factor": start}
    same(values("cyclical", STEPS, LR, **options), rates)
    mine = momenta("cyclical", STEPS, LR, **options)
    assert (mine is not None) == cycles
    if mine is not None:
        same(mine, cycled)


@settings(deadline=None, max_examples=150)
@given(
    base=st.floats(1e-4, 0.1),
    factor=st.floats(1, 50),
    up=whole,
    down=st.none() | whole,
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
    gamma=st.floats(0.8, 1.0),
    cycles=st.booleans(),
    adam=st.booleans(),
    low=st.floats(0.1, 0.85),
)
def test_cyclical_is_that_of_torch(
    base: float,
    factor: float,
    up: int,
    down: int | None,
    mode: Any,
    gamma: float,
    cycles: bool,
    adam: bool,
    low: float,
) -> None:
    options: dict[str, Any] = {
        "base_lr": base,
        "max_lr": base * factor,
        "step_size_up": up,
        "step_size_down": down,
        "mode": mode,
        "gamma": gamma,
        "cycle_momentum": cycles,
        "base_momentum": low,
        "max_momentum": 0.9,
    }
    rates, cycled = of_torch(lambda made: torch_schedules.CyclicLR(made, **options), adam)
    same(values("cyclical", STEPS, LR, **options), rates)
    mine = momenta("cyclical", STEPS, LR, **options)
    assert (mine is not None) == cycles
    if mine is not None:
        same(mine, cycled)


@settings(deadline=None, max_examples=150)
@given(
    steps=st.integers(1, 90),
    pct=st.floats(0.01, 0.99),
    anneal=st.sampled_from(["cos", "linear"]),
    phases=st.booleans(),
    div=st.floats(1, 50),
    final=st.floats(1, 1e5),
    cycles=st.booleans(),
    adam=st.booleans(),
    low=st.floats(0.1, 0.85),
)
def test_one_cycle_is_that_of_torch(
    steps: int,
    pct: float,
    anneal: Any,
    phases: bool,
    div: float,
    final: float,
    cycles: bool,
    adam: bool,
    low: float,
) -> None:
    assume(abs(pct * steps - 1) > 1e-6)  # torch divides by this
    options: dict[str, Any] = {
        "max_lr": 0.7,
        "pct_start": pct,
        "anneal_strategy": anneal,
        "three_phase": phases,
        "div_factor": div,
        "final_div_factor": final,
        "cycle_momentum": cycles,
        "base_momentum": low,
        "max_momentum": 0.9,
    }
    rates, cycled = of_torch(
        lambda made: torch_schedules.OneCycleLR(made, total_steps=steps, **options), adam, steps
    )
    same(values("one_cycle", steps, LR, total_steps=steps, **options), rates)
    mine = momenta("one_cycle", steps, LR, **options)
    assert (mine is not None) == cycles
    if mine is not None:
        same(mine, cycled)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_ends_at_its_least_rate_and_stays_there(anneal: str, three_phase: bool) -> None:
    """A client with more steps than the nominal ones has times after the last whole one."""
    schedule = make_schedule(
        "one_cycle", LR, anneal_strategy=anneal, three_phase=three_phase, cycle_momentum=True
    )
    late = np.array([99.0, 99.2, 99.9])
    assert np.ptp(schedule.lr(late, 100)) == 0
    assert schedule.lr(late, 100)[0] == pytest.approx(LR / 25 / 1e4)
    cycled = schedule.momentum(late, 100)
    assert cycled is not None
    assert cycled.tolist() == pytest.approx([0.95] * 3)


def test_the_cyclic_rate_of_swa_is_the_published_sequence() -> None:
    """Caldarola's code: t = (r % c + 1) / c for the r-th round from 0, lr = (1-t) lr1 + t lr2."""
    got = values("swa_cyclic", 20, 0.1, start=0.5, cycle=4, lr1=0.1, lr2=0.02)
    t = (np.arange(10) % 4 + 1) / 4
    np.testing.assert_allclose(got[10:], (1 - t) * 0.1 + t * 0.02, rtol=TOLERANCE)
    assert (got[:10] == 0.1).all()


@pytest.mark.parametrize("name", [n for n in list_schedules() if n != "plateau"])
def test_any_time_may_be_asked_for_in_any_order(name: str) -> None:
    """A closed form has no history: shuffled, single and repeated times give the same bits."""
    needed = {"milestones": [5, 9]} if name == "multi_step" else {}
    schedule = make_schedule(name, LR, **needed)
    t = np.arange(40, dtype=np.float64)
    whole_run = schedule.lr(t, 40)
    order = np.random.default_rng(0).permutation(40)
    assert np.array_equal(schedule.lr(t[order], 40), whole_run[order])
    assert [float(schedule.lr(t[i : i + 1], 40)[0]) for i in range(40)] == whole_run.tolist()
    assert (whole_run >= 0).all()
    assert np.isfinite(schedule.lr(t + 0.5, 40)).all()


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(
        [
            ("cosine", {}),
            ("polynomial", {"power": 2.0}),
            ("inverse_time", {}),
            ("exponential", {}),
            ("linear", {}),
            ("cosine", {"warmup": 5}),
            ("cyclical", {"step_size_up": 6}),
            ("one_cycle", {"pct_start": 0.25}),
            ("one_cycle", {"pct_start": 0.25, "three_phase": True, "anneal_strategy": "linear"}),
        ]
    ),
    st.integers(0, 38),
    st.floats(0, 1),
)
def test_between_two_steps_the_rate_is_between_theirs(
    case: tuple[str, dict[str, Any]], step: int, share: float
) -> None:
    """All of these turn at whole t only."""
    name, options = case
    schedule = make_schedule(name, LR, **options)
    before, between, after = schedule.lr(np.array([step, step + share, step + 1.0]), 40)
    rounding = 1e-15
    assert min(before, after) - rounding <= between <= max(before, after) + rounding


@pytest.mark.parametrize("name", [n for n in list_schedules() if n != "plateau"])
def test_values_are_those_of_the_schedule_in_any_scope(name: str) -> None:
    needed = {"milestones": [5, 9]} if name == "multi_step" else {}
    expected = make_schedule(name, LR, **needed).lr(np.arange(20.0), 20)
    for scope in ("within", "round", "across"):
        assert np.array_equal(values(name, 20, LR, scope=scope, **needed), expected)


def test_momentum_is_cycled_unless_it_is_refused() -> None:
    for name in ("cyclical", "one_cycle"):
        assert momenta(name, 9) is not None
        assert momenta(name, 9, cycle_momentum=None) is not None
        assert momenta(name, 9, cycle_momentum=False) is None
        assert make_schedule(name, LR).momentum(np.arange(9.0), 9) is None


def test_open_bounds_come_from_the_optimizers_rate() -> None:
    cyclical = values("cyclical", 21, 0.4)
    assert cyclical.max() == pytest.approx(0.4, rel=0.1)
    assert cyclical.min() == pytest.approx(0.1)
    assert values("one_cycle", 10, 0.4).max() == 0.4
    assert values("swa_cyclic", 100, 0.4).min() == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("one_cycle", {"pct_start": 0.0}, r"one_cycle\.pct_start.*0\.0.*\(0, 1\)"),
        ("one_cycle", {"pct_start": 1.0}, r"one_cycle\.pct_start.*1\.0.*\(0, 1\)"),
        ("one_cycle", {"warmup": 3}, r"one_cycle\.warmup.*its own warm-up"),
        ("one_cycle", {"anneal_strategy": "cosine"}, r"anneal_strategy.*'cosine'.*'cos' or"),
        ("plateau", {"warmup": 3}, r"plateau\.warmup.*follows a metric"),
        ("plateau", {"factor": 1.0}, r"factor.*1\.0.*\(0, 1\)"),
        ("polynomial", {"power": 0.0}, r"power.*0\.0.*> 0"),
        ("cosine", {"eta_min": 0.2}, r"cosine\.eta_min.*lr = 0\.1.*0\.2"),
        ("cosine", {"T_max": 0}, r"T_max.*0.*>= 1"),
        ("cosine_restarts", {"T_mult": 0}, r"T_mult.*0.*>= 1"),
        ("inverse_time", {"k": -1.0}, r"k.*-1\.0.*>= 0"),
        ("cyclical", {"base_lr": 0.0}, r"base_lr.*0\.0.*> 0"),
        ("cosine", {"warmup": 1, "warmup_start_factor": 0.0}, r"warmup_start_factor.*\(0, 1\]"),
        ("one_cycle", {"total_steps": 3}, r"total_steps.*3.*steps = 10"),
        ("one_cycle", {"base_momentum": 0.99}, r"base_momentum.*max_momentum = 0\.95.*0\.99"),
        ("cyclical", {"base_lr": 0.2, "max_lr": 0.1}, r"max_lr.*base_lr = 0\.2.*0\.1"),
        ("cyclical", {"base_lr": 0.5}, r"base_lr.*max_lr = 0\.1.*0\.5"),
        ("cyclical", {"mode": "triangle"}, r'mode.*Did you mean "triangular"'),
        ("swa_cyclic", {"lr1": 0.1, "lr2": 0.2}, r"lr2.*lr1 = 0\.1.*0\.2"),
        ("swa_cyclic", {"start": 1.0}, r"start.*1\.0.*\[0, 1\)"),
        ("step", {"step_size": 0}, r"step\.step_size.*0.*>= 1"),
        ("step", {"gama": 0.5}, r'gama.*Did you mean "gamma"'),
        ("multi_step", {"milestones": [5, 5]}, r"milestones.*rising.*\[5, 5\]"),
        ("exponential", {"gamma": 0.0}, r"gamma.*0\.0.*\(0, 1\]"),
        ("exponential", {"gamma": 1.1}, r"gamma.*1\.1.*\(0, 1\]"),
        ("linear", {"start_factor": 0.0}, r"start_factor.*\(0, 1\]"),
        ("cosine", {"warmup": -1}, r"warmup.*-1.*>= 0"),
        ("cosine", {"scope": "always"}, r"scope.*always"),
        ("plateau", {}, r"depends on a metric"),
        ("cosin", {}, r'"cosin" is not known.*Did you mean "cosine"'),
    ],
)
def test_bad_options_are_refused_with_what_is_allowed(
    name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        values(name, 10, **options)


@pytest.mark.parametrize("steps", [0, -3, 2.5, True, "10"])
def test_a_bad_number_of_steps_is_refused(steps: Any) -> None:
    for function in (values, momenta):
        with pytest.raises(ConfigError, match=f"steps.*{steps!r}.*>= 1"):
            function("cosine", steps)


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf"), "0.1", True])
def test_a_bad_learning_rate_is_refused(lr: Any) -> None:
    with pytest.raises(ConfigError, match="lr"):
        values("cosine", 10, lr)


def test_importing_schedules_brings_in_no_torch() -> None:
    code = (
        "import sys, fedopt.schedules as s; s.values('one_cycle', 9); "
        "assert not {'torch', 'ray', 'flwr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
