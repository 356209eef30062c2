"""Sharpness-aware strategies on quadratics: every round is what their papers' steps give.

In one dimension e = rho sign(g), so that the gradient at the perturbed point is a (w + e - b).
"""

from __future__ import annotations

import math

import pytest
from quadratics import LR, STEPS, A, B, simulate, weight

RHO, ROUNDS = 0.3, 12

# A few hundred roundings of 1e-16.
TOLERANCE = 1e-12

TRAINING = pytest.mark.parametrize("training", ["loop", "stacked"])


def gradient(w: float, i: int) -> float:
    return A[i] * (w - B[i])


def perturbed(w: float, i: int, direction: float) -> float:
    """The gradient at w + rho direction / |direction|."""
    return gradient(w + (math.copysign(RHO, direction) if direction else 0.0), i)


def run(strategy: str, training: str, **sam: object) -> list[float]:
    """The server's weights, from the first on; every client counts the same."""
    done = simulate(
        {"name": strategy, "weighting": "uniform"},
        rounds=ROUNDS,
        local={"sam": {"rho": RHO, **sam}},
        engine={"training": training},
        keep_parameters=True,
    )
    return [weight(done, round) for round in range(1, ROUNDS + 1)]


@TRAINING
def test_fedsam_is_fedavg_of_sharpness_aware_steps(training: str) -> None:
    x, expected = 0.0, []
    for _ in range(ROUNDS):
        ends = []
        for i in range(2):
            w = x
            for _ in range(STEPS):
                w -= LR * perturbed(w, i, gradient(w, i))
            ends.append(w)
        x = sum(ends) / 2
        expected.append(x)
    assert run("fedavg", training) == pytest.approx(expected, abs=TOLERANCE)


@TRAINING
def test_mofedsam_steps_along_the_servers_momentum(training: str) -> None:
    """Qu et al. 2022 (MoFedSAM), with beta = 0.1."""
    x, m, beta, expected = 0.0, 0.0, 0.1, []
    for _ in range(ROUNDS):
        moves = []
        for i in range(2):
            w = x
            for _ in range(STEPS):
                w -= LR * (beta * perturbed(w, i, gradient(w, i)) + (1 - beta) * m)
            moves.append(w - x)
        mean = sum(moves) / 2
        x, m = x + mean, -mean / (STEPS * LR)
        expected.append(x)
    assert run("mofedsam", training) == pytest.approx(expected, abs=TOLERANCE)


@TRAINING
@pytest.mark.parametrize("corrected", [False, True])
def test_fedgamma_corrects_the_gradient_at_the_perturbed_point(
    training: str, corrected: bool
) -> None:
    """SCAFFOLD with option II: c_i is the mean of the perturbed gradients along the steps."""
    x, c, controls, expected = 0.0, 0.0, [0.0, 0.0], []
    for _ in range(ROUNDS):
        moves, changes = [], []
        for i in range(2):
            w, correction = x, c - controls[i]
            for _ in range(STEPS):
                own = gradient(w, i)
                direction = own + correction if corrected else own
                w -= LR * (perturbed(w, i, direction) + correction)
            new = controls[i] - c + (x - w) / (STEPS * LR)
            moves.append(w - x)
            changes.append(new - controls[i])
            controls[i] = new
        x, c = x + sum(moves) / 2, c + sum(changes) / 2
        expected.append(x)
    got = run("scaffold", training, corrected=corrected)
    assert got == pytest.approx(expected, abs=TOLERANCE)


def test_the_perturbations_direction_matters() -> None:
    assert run("scaffold", "loop", corrected=True) != run("scaffold", "loop", corrected=False)


def test_mofedsam_with_full_weight_on_the_gradient_is_fedsam() -> None:
    strategies = ({"name": "mofedsam", "beta": 1.0}, {"name": "fedavg"})
    ends = [
        weight(simulate(strategy, rounds=5, local={"sam": {"rho": RHO}})) for strategy in strategies
    ]
    assert ends[0] == pytest.approx(ends[1], abs=TOLERANCE)
