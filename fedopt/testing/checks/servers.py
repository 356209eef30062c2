"""Servers that do more than average: optimizers, MimeLite, q-FedAvg, FedPM."""

from __future__ import annotations

from collections.abc import Callable

from fedopt.testing import reference
from fedopt.testing.check import Check, Measurement, compare, compare_rounds
from fedopt.testing.checks.populations import (
    CONVERGENCE,
    EQUAL,
    LINE,
    ROUNDED,
    ROUNDING,
    START,
    UNEQUAL,
)
from fedopt.testing.subject import Subject
from fedopt.testing.task import Task

LR, BETA1, BETA2, TAU = 0.3, 0.8, 0.95, 0.05


def fedavgm_rounds(subject: Subject) -> Measurement:
    """Compare rounds with momentum with the paper's."""
    task = Task(UNEQUAL, start=START, rounds=5)
    expected = reference.fedavgm(task, LR, BETA1)
    run = subject.run(task.with_options(server_lr=LR, momentum=BETA1))
    return compare_rounds(expected, run.models)


def adaptive_rounds(rule: str) -> Callable[[Subject], Measurement]:
    """Return a measure of the distance to the paper's rounds.

    Args:
        rule: how v grows: `adagrad`, `adam` or `yogi`.
    """

    def measure(subject: Subject) -> Measurement:
        task = Task(UNEQUAL, start=START, rounds=5)
        options = {"server_lr": LR, "tau": TAU}
        beta1 = BETA1
        if rule == "adagrad":
            beta1 = 0.0
        else:
            options |= {"beta1": BETA1, "beta2": BETA2}
        expected = reference.adaptive(task, rule, LR, beta1, BETA2, TAU)
        return compare_rounds(expected, subject.run(task.with_options(**options)).models)

    return measure


def server_fixed_point(subject: Subject) -> Measurement:
    """Compare the limit of a slow server with that of federated averaging."""
    task = Task(UNEQUAL, start=START, rounds=300, steps=8)
    expected = reference.fixed_point(task, UNEQUAL.shares)
    options = {"server_lr": 0.5, "tau": 1.0}
    if "fedavgm" in subject.claims:
        options = {"server_lr": 0.3, "momentum": 0.5}
    run = subject.run(task.with_options(**options))
    return compare(expected, run.last, "the model after 300 rounds")


def mimelite_rounds(subject: Subject) -> Measurement:
    """Compare rounds with the server's momentum in the clients' steps with the paper's."""
    task = Task(UNEQUAL, start=START, rounds=5).with_options(beta1=BETA1)
    return compare_rounds(reference.mimelite(task, BETA1), subject.run(task).models)


def qfedavg_rounds(subject: Subject) -> Measurement:
    """Compare rounds of equal clients with the paper's."""
    task = Task(EQUAL, start=START, rounds=4).with_options(q=1.5)
    return compare_rounds(reference.qfedavg(task, 1.5, 1 / task.lr), subject.run(task).models)


def fedpm_solves(subject: Subject) -> Measurement:
    """Compare one round of clients that solve their own quadratics with the pooled solution."""
    run = subject.run(Task(LINE, start=START[:1], steps=1, lr=1.0))
    return compare(LINE.best(LINE.shares), run.last, "the model after one round")


REDDI = "Reddi et al. 2021, algorithm 2"
MOMENTS = "m <- b1 m + (1 - b1) D;  {v};  x <- x + lr m / (sqrt(v) + tau);  m_0 = 0, v_0 = tau^2"

CHECKS = (
    Check(
        "fedavgm_rounds",
        "the server's momentum is the paper's",
        "m <- beta m + D;  x <- x + lr m,  D = sum_i p_i (w_i - x)",
        "Hsu et al. 2019, section 4.3",
        ("fedavgm",),
        ROUNDING,
        ROUNDED,
        fedavgm_rounds,
    ),
    Check(
        "fedadagrad_rounds",
        "the server's Adagrad is the paper's",
        MOMENTS.format(v="v <- v + D^2") + ", b1 = 0",
        f"{REDDI} (FedAdagrad)",
        ("fedadagrad",),
        ROUNDING,
        ROUNDED,
        adaptive_rounds("adagrad"),
    ),
    Check(
        "fedadam_rounds",
        "the server's Adam is the paper's, without correction of a bias",
        MOMENTS.format(v="v <- b2 v + (1 - b2) D^2"),
        f"{REDDI} (FedAdam)",
        ("fedadam",),
        ROUNDING,
        ROUNDED,
        adaptive_rounds("adam"),
    ),
    Check(
        "fedyogi_rounds",
        "the server's Yogi is the paper's",
        MOMENTS.format(v="v <- v - (1 - b2) D^2 sign(v - D^2)"),
        f"{REDDI} (FedYogi)",
        ("fedyogi",),
        ROUNDING,
        ROUNDED,
        adaptive_rounds("yogi"),
    ),
    Check(
        "server_fixed_point",
        "a server optimizer stands still where federated averaging does",
        "D = 0: x* = sum_i p_i s_i b_i / sum_i p_i s_i,  s_i = 1 - (1 - lr a_i)^K",
        "Reddi et al. 2021, algorithm 1",
        ("fedavgm", "fedadagrad", "fedadam", "fedyogi"),
        1e-6,
        CONVERGENCE,
        server_fixed_point,
    ),
    Check(
        "mimelite_rounds",
        "clients step with the server's momentum, which moves once a round",
        "y <- y - lr ((1 - b) g_i(y) + b m);  m <- (1 - b) mean g_i(x) + b m",
        "Karimireddy et al. 2021, algorithm 1 (MimeLite)",
        ("mimelite",),
        ROUNDING,
        ROUNDED,
        mimelite_rounds,
    ),
    Check(
        "qfedavg_rounds",
        "clients weigh by a power of their loss, under the paper's step size",
        "x <- x - sum F_i^q d_i / sum h_i,  d_i = L (x - w_i),  "
        "h_i = q F_i^(q-1) |d_i|^2 + L F_i^q,  L = 1 / lr",
        "Li et al. 2020 (q-FFL), algorithm 2",
        ("qfedavg",),
        1e-8,
        "implementations may add 1e-10 to a loss",
        qfedavg_rounds,
    ),
    Check(
        "fedpm_solves",
        "clients that solve their own quadratics are mixed to the solution of all together",
        "x <- sum n_i a_i b_i / sum n_i a_i",
        "Ishii et al. 2025 (FedPM)",
        ("fedpm",),
        1e-5,
        "the clients' factors are damped by the root of 1e-12, 1e-6",
        fedpm_solves,
    ),
)
