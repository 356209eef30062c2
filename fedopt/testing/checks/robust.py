"""Robust means: what they are, and that one arbitrarily bad client cannot move them far."""

from __future__ import annotations

import numpy as np

from fedopt.testing import reference
from fedopt.testing.check import Check, Measurement, compare, shown
from fedopt.testing.checks.populations import (
    EQUAL,
    ROUNDED,
    ROUNDING,
    START,
    UNEQUAL,
    with_hostile,
)
from fedopt.testing.subject import Subject
from fedopt.testing.task import NotApplicableError, Task, Trajectory

FAR = (1e2, 1e4, 1e6)
"""Distances of the bad client's optimum."""


def _run(subject: Subject, task: Task) -> Trajectory:
    """Run with one bad client assumed, where the subject can be told how many there are."""
    try:
        return subject.run(task.with_options(hostile=1))
    except NotApplicableError:
        return subject.run(task)


def hostile_client(subject: Subject) -> Measurement:
    """Measure how far outside the proven bound a bad client moves the model."""
    worst = Measurement(0.0, "", "")
    for distance in FAR:
        population = with_hostile(distance)
        task = Task(population, start=START)
        honest = reference.client_models(task)[:-1]
        centre = honest.mean(0)
        share = 1 / population.clients
        radius = float(np.linalg.norm(honest - centre, axis=1).max())
        bound = 2 * (1 - share) / (1 - 2 * share) * radius
        got = _run(subject, task).last
        away = float(np.linalg.norm(got - centre)) if np.isfinite(got).all() else float("inf")
        found = Measurement(
            max(0.0, away - bound),
            f"at most {bound:.4g} from the honest mean {shown(centre)}, "
            f"with a client at {distance:g}",
            f"{shown(got)}, which is {away:.4g} away",
        )
        worst = max(worst, found, key=lambda m: (m.error, m.expected != ""))
    return worst


def hostile_distance(subject: Subject) -> Measurement:
    """Compare models with a bad client far away and much farther away."""
    near, far = (
        _run(subject, Task(with_hostile(distance), start=START)).last for distance in (1e3, 1e9)
    )
    return compare(near, far, "the model, whether a client is 1e3 or 1e9 away")


def median_round(subject: Subject) -> Measurement:
    """Compare one round of five, and of six clients with the medians of their models."""
    found = []
    for population in (EQUAL, with_hostile(50.0)):
        task = Task(population, start=START)
        expected = np.median(reference.client_models(task), axis=0)
        what = f"the median of {population.clients} models"
        found.append(compare(expected, subject.run(task).last, what))
    return max(found, key=lambda m: m.error)


def trimmed_mean_round(subject: Subject) -> Measurement:
    """Compare one round with the trimmed means of the clients' models."""
    found = []
    for population, beta in ((EQUAL, 0.2), (with_hostile(50.0), 0.2), (with_hostile(50.0), 0.4)):
        task = Task(population, start=START).with_options(beta=beta)
        expected = reference.trimmed_mean(reference.client_models(task), beta)
        what = f"the mean of {population.clients} models, beta = {beta}"
        found.append(compare(expected, subject.run(task).last, what))
    return max(found, key=lambda m: m.error)


def krum_round(subject: Subject) -> Measurement:
    """Compare one round with the client's model that has the smallest score."""
    found = []
    for population in (EQUAL, with_hostile(50.0)):
        task = Task(population, start=START).with_options(hostile=1)
        expected = reference.krum(reference.client_models(task), 1)
        what = f"the model closest to most others of {population.clients}"
        found.append(compare(expected, subject.run(task).last, what))
    return max(found, key=lambda m: m.error)


def rfa_round(subject: Subject) -> Measurement:
    """Compare one round with the geometric median, weighted by examples."""
    task = Task(UNEQUAL, start=START)
    expected = reference.geometric_median(reference.client_models(task), UNEQUAL.shares)
    try:
        run = subject.run(task.with_options(iterations=200))
    except NotApplicableError:
        run = subject.run(task)
    return compare(expected, run.last, "the geometric median")


CHECKS = (
    Check(
        "hostile_client",
        "one bad client of six, wherever it is, moves the model by a bounded distance",
        "|x - m| <= 2 (1 - e) / (1 - 2 e) max_i |w_i - m|,  m the honest mean, e = 1/6",
        "Minsker 2015, lemma 2.1; Pillutla et al. 2022; Yin et al. 2018",
        ("robust",),
        1e-9,
        "roundings of numbers around 1e6",
        hostile_client,
    ),
    Check(
        "hostile_distance",
        "how far away the bad client is does not matter once it is left out",
        "order statistics and nearest neighbours do not see the size of an extreme",
        "Yin et al. 2018, definitions 1 and 2; Blanchard et al. 2017, section 4",
        ("median", "trimmed_mean", "krum"),
        ROUNDING,
        ROUNDED,
        hostile_distance,
    ),
    Check(
        "median_round",
        "each coordinate of the model is the median of the clients'",
        "x_p <- med_i w_ip, of an even number the mean of the middle two",
        "Yin et al. 2018, definition 1",
        ("median",),
        ROUNDING,
        ROUNDED,
        median_round,
    ),
    Check(
        "trimmed_mean_round",
        "each coordinate is the mean without floor(beta N) values at each end",
        "x_p <- mean of w_(c+1)p .. w_(N-c)p,  c = floor(beta N)",
        "Yin et al. 2018, definition 2",
        ("trimmed_mean",),
        ROUNDING,
        ROUNDED,
        trimmed_mean_round,
    ),
    Check(
        "krum_round",
        "the model is that of the client with the smallest score",
        "s(i) = sum of |w_i - w_j|^2 over the N - f - 2 nearest j;  x <- w_argmin s",
        "Blanchard et al. 2017, section 4",
        ("krum",),
        ROUNDING,
        ROUNDED,
        krum_round,
    ),
    Check(
        "rfa_round",
        "the model is the geometric median of the clients'",
        "x <- argmin_v sum_i p_i |v - w_i|",
        "Pillutla et al. 2022, algorithm 2",
        ("rfa",),
        1e-4,
        "Weiszfeld's steps end before the limit",
        rfa_round,
    ),
)
