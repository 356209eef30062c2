"""What runs came to: means, differences, verdicts; diverged runs are the worst there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedopt.studies.results import (
    all_of,
    better_by_interval,
    better_on_every_seed,
    ratio_to_target,
)
from fedopt.studies.study import Finding, Target, best, deviation_over, mean_over, to_target
from fedopt.studies.tasks import whole

from .made_up import ACCURACY, history, results, study

NAME = ACCURACY.name


def of(table, **changes):
    """Return results whose final accuracies a table (arm, seed) says."""
    return results(
        whole(study(**changes)),
        lambda condition, arm, seed: (
            None if table[arm][seed] is None else history(table[arm][seed])
        ),
    )


def test_means_and_differences_are_scipys():
    table = {"plain": [0.5, 0.6, 0.7], "prox": [0.6, 0.65, 0.85]}
    found = of(table)
    mean = found.mean("few", "plain", NAME)
    low, high = stats.t.interval(0.95, 2, np.mean(table["plain"]), stats.sem(table["plain"]))
    assert (mean.low, mean.high) == pytest.approx((low, high))
    pair = found.pairs("few", "prox", "plain", NAME)
    test = stats.ttest_rel(table["prox"], table["plain"])
    ends = test.confidence_interval()
    assert (pair.low, pair.high) == pytest.approx((ends.low, ends.high))
    assert pair.p_value == pytest.approx(test.pvalue)
    assert found.cell("few", "plain", ACCURACY) == f"0.6000 ± {high - 0.6:.4f}"


@pytest.mark.parametrize(
    ("prox", "verdict"),
    [
        ([0.7, 0.8, 0.9], "holds"),
        ([0.7, 0.6, 0.9], "does not hold"),
        ([0.7, 0.8, None], "does not hold"),
    ],
)
def test_better_on_every_seed(prox, verdict):
    found = of({"plain": [0.5, 0.6, 0.7], "prox": prox})
    assert better_on_every_seed(found, "few", "prox", "plain", NAME).verdict == verdict


def test_better_than_what_diverged():
    found = of({"plain": [0.5, None, None], "prox": [0.7, 0.8, 0.9]})
    told = better_on_every_seed(found, "few", "prox", "plain", NAME)
    assert told.verdict == "holds"
    assert "diverged" in told.here
    assert found.value("few", "plain", NAME, 1) == -math.inf
    assert found.cell("few", "plain", ACCURACY) == "2 of 3 diverged"
    assert found.mean("few", "plain", NAME) is None
    assert better_by_interval(found, "few", "prox", "plain", NAME).verdict == "not shown"


@pytest.mark.parametrize(
    ("prox", "verdict"),
    [
        ([0.7, 0.8, 0.9], "holds"),
        ([0.4, 0.5, 0.6], "does not hold"),
        ([0.5, 0.7, 0.6], "not shown"),
    ],
)
def test_better_by_the_interval(prox, verdict):
    found = of({"plain": [0.5, 0.61, 0.7], "prox": prox})
    assert better_by_interval(found, "few", "prox", "plain", NAME).verdict == verdict


def test_what_was_not_run_is_not_shown():
    found = of({"plain": [0.5, 0.6, 0.7], "prox": [0.5, 0.6, 0.7]})
    assert better_by_interval(found, "few", "scaffold", "plain", NAME).verdict == "not shown"
    assert better_on_every_seed(found, "none", "prox", "plain", NAME).verdict == "not shown"


def test_ratios_of_rounds_are_lower_bounds_where_a_run_does_not_arrive():
    reach = to_target(Target("test_accuracy", 0.5))
    table = {"plain": [0.4, 1.0, 1.0], "prox": [1.0, 1.0, 1.0]}
    found = of(table, measures=(ACCURACY, reach))
    # All who arrive do so after one of two rounds; who does not counts with the two it had.
    ratio = ratio_to_target(found, "few", "prox", "plain", reach.name)
    assert ratio.value == pytest.approx((2 + 1 + 1) / 3)
    assert ratio.is_bound
    assert str(ratio) == "at least 1.33x"
    assert ratio_to_target(found, "few", "plain", "prox", reach.name) is None
    assert found.cell("few", "plain", reach) == "1 of 3 not reached; best 1.0"


def test_all_of_holds_where_each_does():
    yes, no, open_ = Finding("holds", "a"), Finding("does not hold", "b"), Finding("not shown", "c")
    assert all_of([("x", yes), ("y", yes)]).verdict == "holds"
    assert all_of([("x", yes), ("y", open_)]).verdict == "not shown"
    assert all_of([("x", no), ("y", open_)]).verdict == "does not hold"
    assert all_of([]).verdict == "not shown"
    assert all_of([("x", yes), ("y", no)]).here == "x: a; y: b"


def test_measures_of_parts_of_the_rounds():
    arm, frame = study().arms[0], history(1.0, rounds=10)  # 0.1, 0.2, ..., 1.0
    assert mean_over("test_accuracy", 0.5).of(frame, arm) == pytest.approx(0.8)
    assert mean_over("test_accuracy", 2, 4).of(frame, arm) == pytest.approx(0.35)
    assert mean_over("test_accuracy", 20, 30).of(frame, arm) is None
    assert best("test_accuracy").of(frame, arm) == 1.0
    assert best("test_loss").of(frame, arm) is None
    assert deviation_over("test_accuracy", 0.5, "d").of(frame, arm) == pytest.approx(
        np.std([0.6, 0.7, 0.8, 0.9, 1.0], ddof=1)
    )
