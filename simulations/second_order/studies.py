"""Two studies of second-order training as data: arms, measures and grids. See ../study.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from study import FINAL_ACCURACY, FINAL_NLL, Arm, Measure, Study

FEATURES, CLASSES, CLIENTS = 20, 4, 10
SPREAD = 1e3
"""Ratio of the largest to the smallest scale of a feature."""


def ill_conditioned(seed: int) -> dict[str, Any]:
    """Return clients whose features have scales spread over a factor of 1000, and a test set.

    Labels are drawn from a softmax of the features before they are scaled; each client's
    features have a mean of their own.
    """
    rng = np.random.default_rng([seed, 20])
    scales = rng.permutation(np.geomspace(SPREAD**-0.5, SPREAD**0.5, FEATURES))
    weights = rng.normal(size=(FEATURES, CLASSES)) * 2

    def part(examples: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = mean + rng.normal(size=(examples, FEATURES))
        labels = (x @ weights + rng.gumbel(size=(examples, CLASSES))).argmax(1)
        return (x * scales).astype(np.float32), labels

    means = rng.normal(size=(CLIENTS, FEATURES)) * 0.5
    clients = [part(int(rng.integers(40, 160)), mean) for mean in means]
    tests = [part(100, mean) for mean in means]
    test = tuple(np.concatenate(column) for column in zip(*tests, strict=True))
    return {"clients": clients, "test": test}


def rounds_to(target: float) -> Measure:
    """Return the rounds until the test accuracy is at a target; one more than all if never."""

    def first(values: pd.Series[float]) -> float:
        reached = values[values >= target]
        return float(reached.index[0] if len(reached) else values.index.max() + 1)

    return Measure(f"rounds to {target:.0%}", "test_accuracy", "lower", first)


def optimizer(name: str, *options: str) -> tuple[str, ...]:
    """Return the words of an optimizer."""
    return tuple(f"local.optimizer.{word}" for word in (f"name={name}", *options))


def arms(damping: float) -> tuple[Arm, ...]:
    """Return the arms, the second-order ones with a damping."""
    damped = f"damping={damping}"
    kfac = optimizer("kfac", "damping_style=exact", damped)
    return (
        Arm("SGD, momentum 0.9", optimizer("sgd", "momentum=0.9")),
        Arm("Adam", optimizer("adam")),
        Arm("K-FAC", kfac),
        Arm("EKFAC", optimizer("ekfac", damped)),
        Arm("K-FAC, averaged", (*kfac, "local.optimizer_state=average")),
        Arm("K-FAC in FedPM", (*kfac, "strategy.name=fedpm")),
    )


RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

SECONDS = Measure("seconds", "wall_seconds", "lower", lambda v: float(v.iloc[-1]))
TARGET = rounds_to(0.8)
SCALES = Study(
    name="scales",
    title="features whose scales are spread over 1e3: softmax regression on 10 clients",
    arms=arms(1e-5),
    measures=(TARGET, FINAL_ACCURACY, FINAL_NLL, SECONDS),
    rates=RATES,
    tuned_by=TARGET,
    tuned_arms="each",
    quick=("rounds=4",),
    population=ill_conditioned,
)

DIGITS_TARGET = rounds_to(0.9)
DIGITS = Study(
    name="digits",
    title="non-IID digits, whose pixels have one scale: an MLP on 20 clients",
    arms=arms(1e-2),
    measures=(DIGITS_TARGET, FINAL_ACCURACY, FINAL_NLL, SECONDS),
    rates=RATES,
    tuned_by=DIGITS_TARGET,
    tuned_arms="each",
    quick=("rounds=4",),
)

STUDIES = {study.name: study for study in (SCALES, DIGITS)}
