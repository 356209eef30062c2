"""FedAvg, FedProx and FedNova: closed forms of rounds and of fixed points."""

from __future__ import annotations

from fedopt.testing import reference
from fedopt.testing.check import Check, Measurement, compare, compare_rounds
from fedopt.testing.checks.populations import (
    CONVERGED,
    CONVERGENCE,
    EQUAL,
    EQUAL_LINE,
    ROUNDED,
    ROUNDING,
    START,
    UNEQUAL,
)
from fedopt.testing.subject import Subject
from fedopt.testing.task import Quadratics, Task

MU = 0.7


def plain(subject: Subject, task: Task) -> Task:
    """Return a task with the proximal term off, for subjects that claim one."""
    return task.with_options(mu=0.0) if "fedprox" in subject.claims else task


def weighted_mean(subject: Subject) -> Measurement:
    """Compare one round with the mean of closed-form local models, weighted by examples."""
    task = plain(subject, Task(UNEQUAL, start=START))
    moved = reference.moved(task)
    models = task.first + moved * (UNEQUAL.optimum - task.first)
    expected = UNEQUAL.shares @ models
    return compare(expected, subject.run(task).last, "sum n_i w_i / sum n_i")


def one_client(subject: Subject) -> Measurement:
    """Compare one round of a single client with its local steps."""
    alone = Quadratics(EQUAL.curvature[1:2], EQUAL.optimum[1:2], (3,))
    task = plain(subject, Task(alone, steps=7, start=START))
    expected = reference.local_steps(task, 0, task.first)
    return compare(expected, subject.run(task).last, "the model after local training")


def same_clients(subject: Subject) -> Measurement:
    """Compare one round of clients that are all the same with the local steps of one."""
    same = Quadratics(EQUAL.curvature[[1] * 5], EQUAL.optimum[[1] * 5], (1,) * 5)
    task = plain(subject, Task(same, start=START))
    expected = reference.local_steps(task, 0, task.first)
    return compare(expected, subject.run(task).last, "the model that all clients have")


def fedavg_fixed_point(subject: Subject) -> Measurement:
    """Compare the limit with the closed form of where local steps cancel."""
    task = Task(UNEQUAL, rounds=80, steps=8, start=START)
    expected = reference.fixed_point(task, UNEQUAL.shares)
    return compare(expected, subject.run(task).last, "the model after 80 rounds")


def fedprox_rounds(subject: Subject) -> Measurement:
    """Compare rounds with a proximal term with the paper's."""
    task = Task(UNEQUAL, rounds=5, start=START).with_options(mu=MU)
    return compare_rounds(reference.fedprox(task, MU), subject.run(task).models)


def fedprox_fixed_point(subject: Subject) -> Measurement:
    """Compare the limit under a proximal term with its closed form."""
    task = Task(UNEQUAL, rounds=80, steps=8, start=START).with_options(mu=MU)
    expected = reference.fixed_point(task, UNEQUAL.shares, MU)
    return compare(expected, subject.run(task).last, "the model after 80 rounds")


def fednova_rounds(subject: Subject) -> Measurement:
    """Compare rounds of clients with unequal numbers of steps with the paper's."""
    task = Task(UNEQUAL, rounds=5, per_example=True, start=START)
    return compare_rounds(reference.fednova(task), subject.run(task).models)


def centralised_descent(subject: Subject) -> Measurement:
    """Compare training on all data together with gradient descent on the mean loss."""
    task = Task(EQUAL_LINE, rounds=3, steps=6, start=START[:1]).with_options(steps=6)
    a, b = EQUAL_LINE.curvature.mean(0), EQUAL_LINE.best()
    models = [task.first]
    for _ in range(task.rounds):
        models.append(b + (1 - task.lr * a) ** task.steps * (models[-1] - b))
    return compare_rounds(models, subject.run(task).models)


CHECKS = (
    Check(
        "weighted_mean",
        "the new model is the mean of the clients' models, weighted by their examples",
        "x <- sum_i n_i w_i / sum_i n_i",
        "McMahan et al. 2017, algorithm 1",
        ("fedavg", "fedprox"),
        ROUNDING,
        ROUNDED,
        weighted_mean,
    ),
    Check(
        "one_client",
        "one round of a single client is plain local training",
        "x <- w_1, w_1 = K steps of w <- w - lr g_1(w) from x",
        "McMahan et al. 2017, algorithm 1",
        ("fedavg", "fedprox", "scaffold", "fednova"),
        ROUNDING,
        ROUNDED,
        one_client,
    ),
    Check(
        "same_clients",
        "one round of clients that are all the same is the local training of one of them",
        "any mean of equal models is that model",
        "McMahan et al. 2017, algorithm 1; Yin et al. 2018, definitions 1 and 2",
        ("fedavg", "fedprox", "scaffold", "fednova", "robust"),
        ROUNDING,
        ROUNDED,
        same_clients,
    ),
    Check(
        "fedavg_fixed_point",
        "federated averaging stands still where the clients' moves cancel, not at the optimum",
        "x* = sum_i p_i s_i b_i / sum_i p_i s_i,  s_i = 1 - (1 - lr a_i)^K",
        "McMahan et al. 2017, algorithm 1, on quadratics; cf. Karimireddy et al. 2020, section 3",
        ("fedavg",),
        CONVERGED,
        CONVERGENCE,
        fedavg_fixed_point,
    ),
    Check(
        "fedprox_rounds",
        "the proximal term enters each local gradient as mu (w - x)",
        "w <- w - lr (g_i(w) + mu (w - x));  x <- sum_i p_i w_i",
        "Li et al. 2020, algorithm 2",
        ("fedprox",),
        ROUNDING,
        ROUNDED,
        fedprox_rounds,
    ),
    Check(
        "fedprox_fixed_point",
        "FedProx stands still where the clients' pulls cancel",
        "x* = sum_i q_i b_i / sum_i q_i,  q_i = p_i (1 - (1 - lr (a_i + mu))^K) a_i / (a_i + mu)",
        "Li et al. 2020, algorithm 2, on quadratics",
        ("fedprox",),
        CONVERGED,
        CONVERGENCE,
        fedprox_fixed_point,
    ),
    Check(
        "fednova_rounds",
        "changes are divided by the steps in them, and their mean multiplied by the mean steps",
        "x <- x + tau_eff sum_i p_i (w_i - x) / tau_i,  tau_eff = sum_i p_i tau_i",
        "Wang et al. 2020, algorithm 1",
        ("fednova",),
        ROUNDING,
        ROUNDED,
        fednova_rounds,
    ),
    Check(
        "centralised_descent",
        "training on all data together is gradient descent on the mean loss",
        "x <- x* + (1 - lr a)^K (x - x*),  a and x* of the mean loss",
        "gradient descent on a quadratic",
        ("centralised",),
        ROUNDING,
        ROUNDED,
        centralised_descent,
    ),
)
