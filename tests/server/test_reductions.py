"""FedNova, FedDyn, MimeLite, q-FedAvg and FedProx with adaptive mu, on quadratics.

Each is FedAvg where its paper says so, and its papers' recursion, written out here, elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quadratics import (
    LR,
    OPTIMUM,
    STEPS,
    A,
    B,
    clients,
    half_squares,
    plane,
    plane_clients,
    simulate,
    weight,
)
from resuming import assert_resumes

import fedopt
from fedopt.errors import ConfigError
from fedopt.server.fedprox import AdaptiveMu

# A few hundred roundings of numbers around one.
EXACT = 1e-12

# Where an iteration that contracts is left with such roundings over one minus its factor.
CONVERGED = 1e-9

TRAINING = pytest.mark.parametrize("training", ["loop", "stacked"])
ROUNDS = 12

A5 = (1.0, 4.0, 2.0, 10.0, 0.5)
B5 = (1.0, -1.0, 0.3, 2.0, -0.7)


def gradient(w: float, i: int) -> float:
    return A[i] * (w - B[i])


def weights(run: fedopt.Run) -> list[float]:
    """The server's weight after each round."""
    return [weight(run, round) for round in run.history["round"]]


def repeated(sizes: Sequence[int]) -> list[Any]:
    """The clients, with so many copies of their example: their weights in means, or steps."""
    return [(x.repeat(n, 1), y.repeat(n, 1)) for (x, y), n in zip(clients(), sizes, strict=True)]


def trained(x: float, slope: Callable[[float], float], steps: int, momentum: float = 0) -> float:
    """Where some steps along a slope lead from x."""
    w, v = x, 0.0
    for _ in range(steps):
        v = momentum * v + slope(w)
        w -= LR * v
    return w


def assert_path(run: fedopt.Run, expected: Sequence[float]) -> None:
    assert weights(run) == pytest.approx(expected, abs=EXACT)


# FedNova ------------------------------------------------------------------------------------------

MU = 0.7
VARIANTS: dict[str, tuple[float, float]] = {
    "sgd": (0.0, 0.0),
    "momentum": (0.6, 0.0),
    "proximal": (0.0, MU),
    "both": (0.6, MU),
}
"""Momentum and weight of the proximal term."""

ONE_BY_ONE: dict[str, Any] = {"steps": None, "epochs": 2, "batch_size": 1}
"""Local work of as many steps as two passes have examples."""


def coefficients(steps: int, momentum: float, mu: float) -> list[float]:
    """With what each gradient enters x - w, found by making one of them 1 and the others 0."""
    found = []
    for there in range(steps):
        moved, velocity = 0.0, 0.0
        for step in range(steps):
            velocity = momentum * velocity + (step == there) - mu * moved
            moved += LR * velocity
        found.append(moved)
    return found


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_sum_of_coefficients_is_the_papers(steps: int) -> None:
    """Wang et al. 2020, section 4, times the rate that the paper leaves out."""
    rho = 0.6
    heavy = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    shrinking = (1 - (1 - LR * MU) ** steps) / MU
    assert sum(coefficients(steps, 0.0, 0.0)) == pytest.approx(LR * steps, rel=1e-12)
    assert sum(coefficients(steps, rho, 0.0)) == pytest.approx(LR * heavy, rel=1e-12)
    assert sum(coefficients(steps, 0.0, MU)) == pytest.approx(shrinking, rel=1e-12)


def fednova(steps: Sequence[Sequence[int]], p: Sequence[float], variant: str) -> list[float]:
    """The weights of algorithm 1 when the clients take some steps in each round."""
    momentum, mu = VARIANTS[variant]
    x, found = 0.0, []
    for taken in steps:
        sums = [sum(coefficients(n, momentum, mu)) for n in taken]
        changes = []
        for i, n in enumerate(taken):
            slope = lambda w, i=i, x=x: gradient(w, i) + mu * (w - x)  # noqa: E731
            changes.append(trained(x, slope, n, momentum) - x)
        effective = sum(pi * a for pi, a in zip(p, sums, strict=True))
        x += effective * sum(pi * c / a for pi, c, a in zip(p, changes, sums, strict=True))
        found.append(x)
    return found


@TRAINING
@pytest.mark.parametrize("variant", VARIANTS)
def test_fednova_normalises_unequal_numbers_of_steps(variant: str, training: str) -> None:
    """Clients with 3 and 1 examples, one a step, take 6 and 2 steps and weigh 3/4 and 1/4."""
    momentum, mu = VARIANTS[variant]
    run = simulate(
        {"name": "fednova", "mu": mu},
        repeated([3, 1]),
        local={**ONE_BY_ONE, "optimizer": {"lr": LR, "momentum": momentum}},
        engine={"training": training},
        rounds=ROUNDS,
        keep_parameters=True,
    )
    assert run.clients["steps"].tolist() == [6, 2] * ROUNDS
    assert_path(run, fednova([[6, 2]] * ROUNDS, [0.75, 0.25], variant))


@TRAINING
@pytest.mark.parametrize("variant", ["sgd", "both"])
def test_fednova_normalises_the_work_of_stragglers(variant: str, training: str) -> None:
    momentum, mu = VARIANTS[variant]
    run = simulate(
        {"name": "fednova", "mu": mu},
        local={"optimizer": {"lr": LR, "momentum": momentum}},
        system={"stragglers": 0.5},
        engine={"training": training},
        rounds=ROUNDS,
        keep_parameters=True,
    )
    steps = [rows["steps"].tolist() for _, rows in run.clients.groupby("round")]
    assert any(len(set(taken)) == 2 for taken in steps)
    assert_path(run, fednova(steps, [0.5, 0.5], variant))


@TRAINING
@pytest.mark.parametrize("variant", VARIANTS)
def test_fednova_with_equal_work_is_fedavg(variant: str, training: str) -> None:
    momentum, mu = VARIANTS[variant]
    one, other = (
        simulate(
            strategy,
            repeated([3, 1]),
            local={"optimizer": {"lr": LR, "momentum": momentum}},
            engine={"training": training},
            rounds=ROUNDS,
            keep_parameters=True,
        )
        for strategy in ({"name": "fednova", "mu": mu}, {"name": "fedprox", "mu": mu})
    )
    assert_path(one, weights(other))


def test_fednova_removes_the_inconsistency_of_unequal_work() -> None:
    """With equal weights the fixed points are means of the b_i under weights.

    FedAvg's are s_i = 1 - (1 - lr a_i)^K_i and FedNova's s_i / K_i, so that as the rate goes to 0
    FedNova's become a_i, and its fixed point the optimum; FedAvg's become K_i a_i.
    """
    taken = (6, 2)

    def end(name: str, lr: float) -> float:
        moved = [1 - (1 - lr * a) ** n for a, n in zip(A, taken, strict=True)]
        pulls = [s / (n if name == "fednova" else 1) for s, n in zip(moved, taken, strict=True)]
        return sum(p * b for p, b in zip(pulls, B, strict=True)) / sum(pulls)

    for name in ("fednova", "fedavg"):
        run = simulate(
            {"name": name, "weighting": "uniform"},
            repeated([3, 1]),
            local={**ONE_BY_ONE, "optimizer": {"lr": 0.02}},
            rounds=120,
        )
        assert weight(run) == pytest.approx(end(name, 0.02), abs=CONVERGED)
    assert end("fednova", 1e-7) == pytest.approx(OPTIMUM, abs=1e-6)
    assert abs(end("fedavg", 1e-7) - OPTIMUM) > 0.1


@TRAINING
def test_fednova_counts_applied_steps(training: str) -> None:
    """The steeper client's gradients are all skipped: it moves nothing, but halves tau_eff."""
    run = simulate(
        {"name": "fednova"},
        local={"gradient": {"skip_norm": 5.0}},
        engine={"training": training},
        rounds=ROUNDS,
        keep_parameters=True,
    )
    assert run.clients["skipped_steps"].tolist() == [0, STEPS] * ROUNDS
    x, expected = 0.0, []
    for _ in range(ROUNDS):
        x += 0.5 * 0.5 * (trained(x, lambda w: gradient(w, 0), STEPS) - x)
        expected.append(x)
    assert_path(run, expected)


@pytest.mark.parametrize(
    ("local", "says"),
    [
        ({"optimizer": {"name": "adam", "lr": 0.1}}, r"optimizer\.name: fednova normalises.*Adam"),
        (
            {"optimizer": {"momentum": 0.9}, "optimizer_state": "keep"},
            r'local\.optimizer_state: got "keep", but fednova',
        ),
        ({"swa": {"last_steps": 2}}, r"local\.swa: fednova normalises.*server\.swa"),
    ],
)
def test_fednova_refuses_updates_whose_coefficients_are_unknown(local: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate({"name": "fednova"}, local=local, rounds=1)


# FedDyn -------------------------------------------------------------------------------------------


@TRAINING
@pytest.mark.parametrize("server_lr", [1.0, 0.6])
def test_feddyn_is_algorithm_1_under_partial_participation(server_lr: float, training: str) -> None:
    alpha, rounds = 2.0, 10
    run = simulate(
        {"name": "feddyn", "alpha": alpha, "server_lr": server_lr},
        clients(A5, B5),
        clients_per_round=2,
        engine={"training": training},
        rounds=rounds,
        keep_parameters=True,
    )
    x, h, g, expected = 0.0, 0.0, [0.0] * 5, []
    for _, rows in run.clients.groupby("round"):
        cohort, ends = rows["client"].tolist(), []
        for k in cohort:
            slope = lambda w, k=k, x=x: A5[k] * (w - B5[k]) - g[k] + alpha * (w - x)  # noqa: E731
            end = trained(x, slope, STEPS)
            g[k] -= alpha * (end - x)
            ends.append(end)
        h -= alpha / 5 * sum(end - x for end in ends)
        x += server_lr * (float(np.mean(ends)) - h / alpha - x)
        expected.append(x)
    assert_path(run, expected)
    state = run.state()
    assert float(state["h"]["weight"]) == pytest.approx(h, abs=EXACT)
    assert h == pytest.approx(sum(g) / 5, abs=EXACT), "h is the mean of what they regularise with"
    for client, rows in state["client_linear"].items():
        assert float(rows["weight"]) == pytest.approx(g[client], abs=EXACT)


@TRAINING
@pytest.mark.parametrize(("alpha", "steps"), [(1.0, 10), (4.0, 3)])
def test_feddyn_goes_to_the_optimum(alpha: float, steps: int, training: str) -> None:
    run = simulate(
        {"name": "feddyn", "alpha": alpha},
        local={"steps": steps},
        engine={"training": training},
        rounds=200,
    )
    assert weight(run) == pytest.approx(OPTIMUM, abs=CONVERGED)
    for client, rows in run.state()["client_linear"].items():
        assert float(rows["weight"]) == pytest.approx(gradient(OPTIMUM, client), abs=1e-7)


def test_feddyn_goes_to_the_optimum_under_partial_participation_and_work() -> None:
    run = simulate(
        {"name": "feddyn", "alpha": 4.0},
        clients(A5, B5),
        clients_per_round=3,
        system={"stragglers": 0.4},
        rounds=500,
    )
    assert set(run.clients["status"]) == {"trained", "partial"}
    optimum = sum(a * b for a, b in zip(A5, B5, strict=True)) / sum(A5)
    assert weight(run) == pytest.approx(optimum, abs=CONVERGED)


def test_feddyn_is_uniform_only() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.weighting: .*uniform only"):
        simulate({"name": "feddyn", "weighting": "examples"}, rounds=1)


# MimeLite -----------------------------------------------------------------------------------------


@TRAINING
@pytest.mark.parametrize("base", ["sgdm", "adam"])
def test_mimelite_steps_with_the_servers_state(base: str, training: str) -> None:
    """Karimireddy et al. 2021, algorithm 1 and table 1, with weights 3/4 and 1/4."""
    beta1, beta2, eps, v = 0.7, 0.8, 0.01, 0.5
    p = (0.75, 0.25)
    options = {"beta1": beta1, "beta2": beta2, "eps": eps, "initial_square": v}
    run = simulate(
        {"name": "mimelite", "base": base, **options, "server_lr": 0.9},
        repeated([3, 1]),
        engine={"training": training},
        rounds=ROUNDS,
        keep_parameters=True,
    )
    x, m, expected = 0.0, 0.0, []
    for _ in range(ROUNDS):
        scale = 1 / (math.sqrt(v) + eps) if base == "adam" else 1.0
        mean = sum(pi * gradient(x, i) for i, pi in enumerate(p))
        moved = 0.0
        for i, pi in enumerate(p):
            slope = lambda w, i=i, m=m, s=scale: s * ((1 - beta1) * gradient(w, i) + beta1 * m)  # noqa: E731
            moved += pi * (trained(x, slope, STEPS) - x)
        x += 0.9 * moved
        m = (1 - beta1) * mean + beta1 * m
        v = (1 - beta2) * mean**2 + beta2 * v
        expected.append(x)
    assert_path(run, expected)
    state = run.state()
    assert float(state["momentum"]["weight"]) == pytest.approx(m, abs=EXACT)
    if base == "adam":
        assert float(state["second_moment"]["weight"]) == pytest.approx(v, abs=EXACT)


@TRAINING
def test_mimelite_without_momentum_is_fedavg(training: str) -> None:
    one, other = (
        simulate(strategy, engine={"training": training}, rounds=ROUNDS, keep_parameters=True)
        for strategy in ({"name": "mimelite", "beta1": 0.0}, {"name": "fedavg"})
    )
    assert_path(one, weights(other))


def test_mimelites_gradient_is_over_all_examples() -> None:
    """Steps of one example each; the momentum is the mean gradient at x all the same."""
    population = [
        tuple(torch.cat([pair[0], 2 * pair[0], 3 * pair[0]]) for pair in zip(client, strict=True))
        for client in clients()
    ]
    run = simulate({"name": "mimelite"}, population, local={"batch_size": 1}, rounds=1)
    mean = np.mean([(1 + 4 + 9) / 3 * gradient(0.0, i) for i in range(2)])
    assert float(run.state()["momentum"]["weight"]) == pytest.approx(0.1 * mean, rel=1e-12)


def test_mimelite_refuses_optimizers_of_the_clients_own() -> None:
    for optimizer in ({"momentum": 0.9}, {"name": "adam", "lr": 0.1}):
        with pytest.raises(ConfigError, match=r"local\.optimizer\.name: mimelite's clients step"):
            simulate({"name": "mimelite"}, local={"optimizer": optimizer}, rounds=1)


# q-FedAvg -----------------------------------------------------------------------------------------

CENTRES = torch.tensor([[1.0, 3.0], [-1.0, 0.5], [0.2, -2.0]], dtype=torch.float64)
SLOPES = torch.tensor([1.0, 10.0, 3.0], dtype=torch.float64)


def fair(q: float, lipschitz: float | None, training: str = "loop", **changes: Any) -> fedopt.Run:
    """q-FedAvg in the plane, where the length of an update is that of all its elements."""
    options = {"lipschitz": lipschitz} if lipschitz else {}
    return simulate(
        {"name": "qfedavg", "q": q, **options},
        plane_clients(CENTRES, SLOPES.tolist()),
        model=plane,
        loss=half_squares,
        engine={"training": training},
        rounds=ROUNDS,
        keep_parameters=True,
        **changes,
    )


@TRAINING
@pytest.mark.parametrize(("q", "lipschitz"), [(1.0, None), (0.4, None), (3.0, 7.0)])
def test_qfedavg_is_algorithm_2(q: float, lipschitz: float | None, training: str) -> None:
    run = fair(q, lipschitz, training)
    L = lipschitz or 1 / LR
    moved = (1 - (1 - LR * SLOPES) ** STEPS).unsqueeze(1)
    x = torch.zeros(2, dtype=torch.float64)
    for round in range(1, ROUNDS + 1):
        losses = SLOPES / 2 * (x - CENTRES).square().sum(1)
        steps = -L * moved * (CENTRES - x)
        h = q * losses ** (q - 1) * steps.square().sum(1) + L * losses**q
        x = x - (losses.unsqueeze(1) ** q * steps).sum(0) / h.sum()
        found = run.parameters(round)["weight"].squeeze(-1)
        torch.testing.assert_close(found, x, rtol=0, atol=EXACT)


@TRAINING
@pytest.mark.parametrize("state", ["reset", "keep"])
def test_qfedavg_without_fairness_is_fedavg(state: str, training: str) -> None:
    """Also weighted by examples, with clients whose loss is zero, and under kept momentum."""
    optimizer = {"lr": LR, "momentum": 0.3}
    one, other = (
        simulate(
            strategy,
            [*repeated([3, 1]), *clients([1.0], [0.0])],
            local={"optimizer": optimizer, "optimizer_state": state},
            engine={"training": training},
            rounds=ROUNDS,
            keep_parameters=True,
        )
        for strategy in ({"name": "qfedavg", "q": 0.0}, {"name": "fedavg"})
    )
    assert_path(one, weights(other))


def test_fairness_brings_the_losses_together() -> None:
    def spread(q: float) -> float:
        x = fair(q, None).parameters()["weight"].squeeze(-1)
        losses = SLOPES / 2 * (x - CENTRES).square().sum(1)
        return float(losses.max() - losses.min())

    assert spread(4.0) < spread(1.0) < spread(0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"q": -1.0}, r"strategy\.q: .*>= 0"), ({"lipschitz": 0.0}, r"strategy\.lipschitz: .*> 0")],
)
def test_qfedavgs_options_are_checked(options: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate({"name": "qfedavg", **options}, rounds=1)


# FedProx with adaptive mu -------------------------------------------------------------------------


def test_the_rule_for_mu() -> None:
    """0.1 more after a rise, 0.1 less after five falls in a row; never below 0."""
    rule, seen = AdaptiveMu(0.1), []
    for loss in [9, 8, 7, 6, 5, 4, 3, 2, 5, 5, 4, math.nan, 3, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4]:
        rule.observe(float(loss))
        seen.append(round(rule.mu, 9))
    assert seen == [*[0.1] * 5, *[0.0] * 3, *[0.1] * 5, *[0.2] * 5, *[0.1] * 5, 0.0]


ADAPTIVE = {"name": "fedprox", "mu": 0.3, "adaptive": True, "mu_step": 0.25, "patience": 2}


@TRAINING
def test_adaptive_mu_follows_the_training_loss(training: str) -> None:
    run = simulate(
        ADAPTIVE,
        clients(A5, B5),
        clients_per_round=2,
        engine={"training": training},
        rounds=20,
        keep_parameters=True,
    )
    losses = run.history["train_loss"].tolist()
    x, mu, falls, used, expected = 0.0, 0.3, 0, [], []
    for round, rows in run.clients.groupby("round"):
        ends = []
        for k in rows["client"]:
            slope = lambda w, k=k, x=x, mu=mu: A5[k] * (w - B5[k]) + mu * (w - x)  # noqa: E731
            ends.append(trained(x, slope, STEPS))
        x = float(np.mean(ends))
        expected.append(x)
        used.append(mu)
        now, before = losses[round - 1], losses[round - 2] if round > 1 else math.nan
        if now > before:
            mu, falls = mu + 0.25, 0
        elif now < before:
            falls += 1
            if falls == 2:
                mu, falls = max(0.0, mu - 0.25), 0
        assert float(run.state(round)["adaptive_mu"]["adaptive_mu"][0]) == pytest.approx(mu)
    assert_path(run, expected)
    changes = np.diff(used)
    assert (changes > 0).any()
    assert (changes < 0).any()


def test_a_constant_mu_stays() -> None:
    assert simulate({"name": "fedprox", "mu": 0.3}, rounds=2).state() == {}


# Resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        {"name": "fednova", "mu": 0.1},
        {"name": "feddyn", "alpha": 2.0},
        {"name": "mimelite"},
        {"name": "mimelite", "base": "adam"},
        {"name": "qfedavg"},
        ADAPTIVE,
    ],
    ids=lambda strategy: "_".join(str(v) for v in strategy.values()),
)
def test_a_resumed_run_is_the_undisturbed_one(strategy: dict[str, Any], tmp_path: Path) -> None:
    population = clients(A5, B5)
    more = {"clients_per_round": 3, "system": {"stragglers": 0.4}}
    assert_resumes(tmp_path, strategy, population, **more)
