"""Strategies that are federated averaging for some of their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedopt.testing.check import Check, Measurement, compare_rounds
from fedopt.testing.checks.populations import EQUAL, ROUNDED, ROUNDING, START, UNEQUAL
from fedopt.testing.subject import Subject
from fedopt.testing.task import NotApplicableError, Quadratics, Task

Measure = Callable[[Subject], Measurement]


def is_fedavg(population: Quadratics, rounds: int = 4, **options: Any) -> Measure:
    """Return a measure of the distance to federated averaging that runs in the same way.

    Args:
        population: the clients.
        rounds: how many.
        options: for which the subject is federated averaging.
    """

    def measure(subject: Subject) -> Measurement:
        task = Task(population, rounds=rounds, start=START)
        expected = subject.fedavg().run(task).models
        return compare_rounds(expected, subject.run(task.with_options(**options)).models)

    return measure


def server_sgd(subject: Subject) -> Measurement:
    """Compare a server with rate 1, and no momentum where it has one, with federated averaging."""
    task = Task(UNEQUAL, rounds=4, start=START)
    expected = subject.fedavg().run(task).models
    wanted: Mapping[str, float] = {"server_lr": 1.0, "momentum": 0.0}
    try:
        models = subject.run(task.with_options(**wanted)).models
    except NotApplicableError:
        models = subject.run(task.with_options(server_lr=1.0)).models
    return compare_rounds(expected, models)


CHECKS = (
    Check(
        "fedprox_without_term",
        "FedProx with mu = 0 is federated averaging",
        "w <- w - lr (g_i(w) + 0 (w - x))",
        "Li et al. 2020, section 3.2",
        ("fedprox",),
        ROUNDING,
        ROUNDED,
        is_fedavg(UNEQUAL, mu=0.0),
        exact=True,
    ),
    Check(
        "server_sgd",
        "a server optimizer that is SGD with rate 1 is federated averaging",
        "x <- x - 1 * (-mean_i(w_i - x)) = mean_i w_i",
        "Reddi et al. 2021, algorithm 1",
        ("server_optimizer",),
        ROUNDING,
        ROUNDED,
        server_sgd,
    ),
    Check(
        "fednova_equal_steps",
        "FedNova is federated averaging where all clients take equally many steps",
        "tau_i = tau: x <- x + tau sum_i p_i (w_i - x) / tau",
        "Wang et al. 2020, section 4",
        ("fednova",),
        ROUNDING,
        "a division and a multiplication by the same number round",
        is_fedavg(UNEQUAL),
    ),
    Check(
        "scaffold_first_round",
        "SCAFFOLD's first round, when all control variates are 0, is federated averaging",
        "y <- y - lr (g_i(y) - 0 + 0);  x <- mean_i y_i",
        "Karimireddy et al. 2020, algorithm 1",
        ("scaffold",),
        ROUNDING,
        ROUNDED,
        is_fedavg(EQUAL, rounds=1),
        exact=True,
    ),
    Check(
        "mimelite_without_momentum",
        "MimeLite whose momentum has no share in a step is federated averaging",
        "y <- y - lr ((1 - 0) g_i(y) + 0 m)",
        "Karimireddy et al. 2021, algorithm 1",
        ("mimelite",),
        ROUNDING,
        ROUNDED,
        is_fedavg(UNEQUAL, beta1=0.0),
    ),
    Check(
        "qfedavg_without_q",
        "q-FedAvg with q = 0 is federated averaging of equal clients",
        "x <- x - sum_i L (x - w_i) / sum_i L",
        "Li et al. 2020 (q-FFL), algorithm 2",
        ("qfedavg",),
        ROUNDING,
        ROUNDED,
        is_fedavg(EQUAL, q=0.0),
    ),
    Check(
        "mofedsam_without_momentum",
        "MoFedSAM with beta = 1 is federated averaging of sharpness-aware steps",
        "w <- w - lr (1 g(w + e) + 0 m)",
        "Qu et al. 2022 (MoFedSAM)",
        ("mofedsam",),
        ROUNDING,
        ROUNDED,
        is_fedavg(UNEQUAL, beta=1.0),
    ),
    Check(
        "ditto_shared_model",
        "Ditto's shared model is that of federated averaging, whatever the personal ones do",
        "x <- sum_i p_i w_i; v_i enters no message",
        "Li et al. 2021 (Ditto), algorithm 1",
        ("ditto",),
        ROUNDING,
        ROUNDED,
        is_fedavg(UNEQUAL, lam=0.3),
        exact=True,
    ),
    Check(
        "fedavg_with_head",
        "how the parameters are cut into arrays does not matter to federated averaging",
        "x <- sum_i p_i w_i, array by array",
        "McMahan et al. 2017, algorithm 1",
        ("fedavg",),
        ROUNDING,
        ROUNDED,
        lambda subject: compare_rounds(
            subject.run(Task(UNEQUAL, start=START, rounds=3)).models,
            subject.run(Task(UNEQUAL, start=START, rounds=3, head=1)).models,
        ),
    ),
)
