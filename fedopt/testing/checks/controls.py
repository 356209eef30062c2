"""SCAFFOLD and FedDyn: recursions, optima and the invariants of what clients remember."""

from __future__ import annotations

import numpy as np

from fedopt.testing import reference
from fedopt.testing.check import Check, Measurement, compare, compare_rounds
from fedopt.testing.checks.populations import (
    CONVERGED,
    CONVERGENCE,
    EQUAL,
    ROUNDED,
    ROUNDING,
    START,
)
from fedopt.testing.subject import Subject
from fedopt.testing.task import NotApplicableError, Task, Trajectory

ALPHA = 2.0
SERVER_C, CLIENT_C, H = "control_variate", "client_control_variate", "h"


def _run_option(subject: Subject, task: Task, option: str) -> Trajectory:
    """Run SCAFFOLD with one of its options; where it has one only, that is taken for II."""
    try:
        return subject.run(task.with_options(option=option))
    except NotApplicableError:
        if option == "I":
            raise
        return subject.run(task)


def scaffold_rounds_one(subject: Subject) -> Measurement:
    """Compare rounds under option I with the paper's."""
    task = Task(EQUAL, start=START, rounds=6)
    return compare_rounds(reference.scaffold(task, "I")[0], _run_option(subject, task, "I").models)


def scaffold_rounds_two(subject: Subject) -> Measurement:
    """Compare rounds under option II with the paper's."""
    task = Task(EQUAL, start=START, rounds=6)
    return compare_rounds(
        reference.scaffold(task, "II")[0], _run_option(subject, task, "II").models
    )


def scaffold_optimum_one(subject: Subject) -> Measurement:
    """Compare the limit under option I with the optimum."""
    task = Task(EQUAL, start=START, rounds=100, steps=8)
    last = _run_option(subject, task, "I").last
    return compare(EQUAL.best(), last, "the model after 100 rounds")


def scaffold_optimum_two(subject: Subject) -> Measurement:
    """Compare the limit under option II with the optimum."""
    task = Task(EQUAL, start=START, rounds=100, steps=8)
    last = _run_option(subject, task, "II").last
    return compare(EQUAL.best(), last, "the model after 100 rounds")


def scaffold_sampled_optimum(subject: Subject) -> Measurement:
    """Compare the limit where some clients train a round with the optimum."""
    task = Task(EQUAL, start=START, rounds=250, steps=4, cohort=2)
    last = _run_option(subject, task, "II").last
    return compare(EQUAL.best(), last, "the model after 250 rounds of 2 of 5 clients")


def scaffold_controls(subject: Subject) -> Measurement:
    """Compare c with the mean of all c_i in rounds of some clients."""
    run = _run_option(subject, Task(EQUAL, start=START, rounds=8, cohort=2), "II")
    means = [rows.mean(0) for rows in run.state(CLIENT_C)]
    return compare_rounds(means, run.state(SERVER_C), "c", first=1)


def scaffold_gradients(subject: Subject) -> Measurement:
    """Compare the clients' control variates in the limit with their gradients at the optimum."""
    run = _run_option(subject, Task(EQUAL, start=START, rounds=100, steps=8), "II")
    gradients = EQUAL.curvature * (EQUAL.best() - EQUAL.optimum)
    return compare(gradients, run.state(CLIENT_C)[-1], "the c_i after 100 rounds")


def feddyn_rounds(subject: Subject) -> Measurement:
    """Compare rounds with the paper's."""
    task = Task(EQUAL, start=START, rounds=6).with_options(alpha=ALPHA)
    return compare_rounds(reference.feddyn(task, ALPHA)[0], subject.run(task).models)


def feddyn_optimum(subject: Subject) -> Measurement:
    """Compare the limit with the optimum."""
    task = Task(EQUAL, start=START, rounds=120, steps=12).with_options(alpha=ALPHA)
    return compare(EQUAL.best(), subject.run(task).last, "the model after 120 rounds")


def feddyn_server_state(subject: Subject) -> Measurement:
    """Compare h with the mean of the clients' linear terms in rounds of some clients."""
    run = subject.run(Task(EQUAL, start=START, rounds=8, cohort=2).with_options(alpha=ALPHA))
    means = [np.asarray(rows.mean(0)) for rows in run.state("client_linear")]
    return compare_rounds(means, run.state(H), "h", first=1)


SOURCE = "Karimireddy et al. 2020, algorithm 1"
ROUND = "y <- y - lr (g_i(y) - c_i + c);  x <- mean_i y_i;  c <- c + |S|/N mean_i(c_i+ - c_i)"

CHECKS = (
    Check(
        "scaffold_rounds_option_one",
        "rounds under option I are the paper's",
        f"{ROUND};  c_i+ = g_i(x)",
        SOURCE,
        ("scaffold",),
        ROUNDING,
        ROUNDED,
        scaffold_rounds_one,
    ),
    Check(
        "scaffold_rounds",
        "rounds under option II are the paper's",
        f"{ROUND};  c_i+ = c_i - c + (x - y_i) / (K lr)",
        SOURCE,
        ("scaffold",),
        ROUNDING,
        ROUNDED,
        scaffold_rounds_two,
    ),
    Check(
        "scaffold_optimum_option_one",
        "under option I SCAFFOLD goes to the optimum, whatever the number of local steps",
        "x* = sum_i a_i b_i / sum_i a_i",
        f"{SOURCE}; section 5",
        ("scaffold",),
        CONVERGED,
        CONVERGENCE,
        scaffold_optimum_one,
    ),
    Check(
        "scaffold_optimum",
        "under option II SCAFFOLD goes to the optimum, whatever the number of local steps",
        "x* = sum_i a_i b_i / sum_i a_i",
        f"{SOURCE}; section 5",
        ("scaffold",),
        CONVERGED,
        CONVERGENCE,
        scaffold_optimum_two,
    ),
    Check(
        "scaffold_sampled_optimum",
        "SCAFFOLD goes to the optimum where two of five clients train a round",
        "x* = sum_i a_i b_i / sum_i a_i",
        f"{SOURCE}; section 5",
        ("scaffold",),
        1e-6,
        "under sampling the distance shrinks on average, by less a round",
        scaffold_sampled_optimum,
    ),
    Check(
        "scaffold_controls",
        "the server's control variate is the mean of all clients', whoever trains",
        "c = (1/N) sum_i c_i",
        f"{SOURCE}, line 17",
        ("scaffold",),
        ROUNDING,
        ROUNDED,
        scaffold_controls,
    ),
    Check(
        "scaffold_gradients",
        "in the limit each client's control variate is its gradient at the optimum",
        "c_i = a_i (x* - b_i)",
        f"{SOURCE}; section 5",
        ("scaffold",),
        1e-7,
        CONVERGENCE,
        scaffold_gradients,
    ),
    Check(
        "feddyn_rounds",
        "rounds are the paper's, the local optimum approached by the local steps",
        "w <- w - lr (g_i(w) - h_i + alpha (w - x));  h_i <- h_i - alpha (w_i - x);  "
        "h <- h - alpha/m sum_S (w_i - x);  x <- mean_S w_i - h / alpha",
        "Acar et al. 2021, algorithm 1",
        ("feddyn",),
        ROUNDING,
        ROUNDED,
        feddyn_rounds,
    ),
    Check(
        "feddyn_optimum",
        "FedDyn goes to the optimum",
        "w_i = x for all i, so that mean_i g_i(x) = 0",
        "Acar et al. 2021, algorithm 1; section 2",
        ("feddyn",),
        CONVERGED,
        CONVERGENCE,
        feddyn_optimum,
    ),
    Check(
        "feddyn_server_state",
        "the server's h is the mean of the clients' linear terms, whoever trains",
        "h = (1/m) sum_i h_i",
        "Acar et al. 2021, algorithm 1",
        ("feddyn",),
        ROUNDING,
        ROUNDED,
        feddyn_server_state,
    ),
)
