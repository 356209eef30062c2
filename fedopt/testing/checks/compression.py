"""Codecs: contraction, right expectation, and what error feedback makes of the biased ones."""

from __future__ import annotations

import numpy as np

from fedopt.testing.check import Check, Measurement, compare, shown
from fedopt.testing.checks.populations import ROUNDED, ROUNDING
from fedopt.testing.function_subject import FunctionSubject
from fedopt.testing.subject import Subject
from fedopt.testing.task import NotApplicableError, Quadratics, Task, Vector

SIZE, DRAWS, SIGMAS = 16, 4000, 6.0
ROUNDS = 600


def _codec(subject: Subject) -> FunctionSubject:
    if not isinstance(subject, FunctionSubject) or subject.codec is None:
        raise NotApplicableError("only a FunctionSubject with a codec is tested as one")
    return subject


def _rows(count: int) -> Vector:
    return np.random.default_rng(5).normal(size=(count, SIZE))


def _disagreeing() -> Quadratics:
    """Return four clients in 16 dimensions whose optima are far apart."""
    rng = np.random.default_rng(6)
    optima = rng.normal(0.0, 3.0, size=(4, SIZE))
    curvatures = rng.uniform(0.5, 2.0, size=(4, SIZE))
    return Quadratics(curvatures, optima, (1,) * 4)


def contraction(subject: Subject) -> Measurement:
    """Measure the largest share of the squared length that is lost, on average over a vector."""
    rows, draws = _rows(20), 50
    shares = []
    for row in rows:
        arrived, _ = _codec(subject).stream(np.tile(row, (draws, 1)), feedback=False)
        shares.append(float(np.square(arrived - row).sum(1).mean() / (row @ row)))
    worst = max(shares)
    return Measurement(
        0.0 if worst < 1 else worst, "a share below 1 of |x|^2 is lost", f"{worst:.6g} is lost"
    )


def unbiased(subject: Subject) -> Measurement:
    """Measure by how many standard errors the mean of what arrives is off."""
    row = _rows(1)[0]
    arrived, _ = _codec(subject).stream(np.tile(row, (DRAWS, 1)), feedback=False)
    spread = arrived.std(0) / np.sqrt(DRAWS)
    single = np.finfo(np.float32).eps * np.abs(row).max()  # codecs may send single precision
    off = np.abs(arrived.mean(0) - row)
    error = float((off / np.maximum(spread, single)).max())
    return Measurement(
        error, f"the mean of {DRAWS} draws: {shown(row)}", f"{shown(arrived.mean(0))}"
    )


def feedback_telescopes(subject: Subject) -> Measurement:
    """Compare what arrived in all with what was sent in all, less the last residual."""
    rows = _rows(30)
    arrived, residual = _codec(subject).stream(rows, feedback=True)
    return compare(rows.sum(0), arrived.sum(0) + residual, "what was sent over 30 rounds")


def feedback_converges(subject: Subject) -> Measurement:
    """Compare the mean of the later models under error feedback with the optimum."""
    population = _disagreeing()
    best = population.best()
    task = Task(population, rounds=ROUNDS, steps=1, lr=0.05, feedback=True)
    late = np.mean(subject.run(task).models[ROUNDS // 3 :], axis=0)
    return compare(best, late, f"the mean model of rounds {ROUNDS // 3} to {ROUNDS}")


def bias_shows(subject: Subject) -> Measurement:
    """Measure whether the same run without error feedback misses the optimum."""
    population = _disagreeing()
    task = Task(population, rounds=ROUNDS, steps=1, lr=0.05)
    late = np.mean(subject.run(task).models[ROUNDS // 3 :], axis=0)
    found = compare(population.best(), late, "the mean of the later models")
    missed = found.error > 10 * MISSED
    return Measurement(
        0.0 if missed else 1.0,
        f"more than {10 * MISSED:g} from the optimum: else the check of feedback shows nothing",
        f"{found.error:.4g} from it",
    )


MISSED = 0.05

CHECKS = (
    Check(
        "contraction",
        "what is lost is a share below one of the squared length",
        "E |C(x) - x|^2 <= (1 - delta) |x|^2,  delta > 0",
        "Stich et al. 2018, definition 2.1; Karimireddy et al. 2019, assumption A",
        ("contraction",),
        0.0,
        "any share below 1 will do",
        contraction,
    ),
    Check(
        "unbiased",
        "what arrives is right in expectation",
        "E C(x) = x",
        "Alistarh et al. 2017, lemma 3.1",
        ("unbiased",),
        SIGMAS,
        "in standard errors of the mean; six of them are passed once in 10^8",
        unbiased,
    ),
    Check(
        "feedback_telescopes",
        "with error feedback nothing is lost: what arrived and the residual are what was sent",
        "e <- (x + e) - C(x + e):  sum_t C_t + e_T = sum_t x_t",
        "Karimireddy et al. 2019, algorithm 2; Stich et al. 2018, algorithm 1",
        ("contraction",),
        ROUNDING,
        ROUNDED,
        feedback_telescopes,
    ),
    Check(
        "feedback_converges",
        "with error feedback the mean of the models goes to the optimum",
        "mean_t grad f(x_t) = (x_0 - x_T + mean_i(e_T - e_0)) / (lr T) -> 0",
        "Karimireddy et al. 2019, theorem II",
        ("compressed",),
        MISSED,
        "residuals of some units over lr T = 20",
        feedback_converges,
    ),
    Check(
        "bias_without_feedback",
        "without error feedback the same run misses the optimum",
        "mean_i C(grad f_i(x)) = 0 elsewhere than at the optimum",
        "Karimireddy et al. 2019, section 3",
        ("biased",),
        0.0,
        "it misses or it does not",
        bias_shows,
    ),
)
