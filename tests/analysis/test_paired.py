"""Paired intervals: by hand, against scipy, by simulation, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.analysis import paired_interval
from fedopt.analysis.paired import student_t_quantile, student_t_tails
from fedopt.errors import DataError


def test_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1; with 2 degrees t = level sqrt(2 / (1 - level^2)).
    found = paired_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert found.mean == 2
    assert found.low == pytest.approx(2 - half, rel=1e-12)
    assert found.high == pytest.approx(2 + half, rel=1e-12)
    assert (found.pairs, found.level) == (3, 0.95)
    # With 2 degrees P(|T| > t) = 1 - t / sqrt(2 + t^2), here t = 2 sqrt(3).
    assert found.p_value == pytest.approx(1 - math.sqrt(12 / 14), rel=1e-12)
    assert not found.excludes_zero


def test_closed_forms_of_one_and_two_degrees():
    for level in (0.05, 0.5, 0.9, 0.95, 0.999):
        # One degree is the Cauchy distribution. Rounding of 1 - level is at most 1e-16 / 0.001.
        assert student_t_quantile(level, 1) == pytest.approx(
            math.tan(math.pi * level / 2), rel=1e-12
        )
        assert student_t_quantile(level, 2) == pytest.approx(
            level * math.sqrt(2 / (1 - level**2)), rel=1e-12
        )
    for t in (1e-8, 0.1, 3.0):
        expected = 1 - 2 / math.pi * math.atan(t)
        assert student_t_tails(t, 1) == pytest.approx(expected, rel=1e-14)
    assert student_t_tails(0, 3) == 1


def test_distribution_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 4, 5, 9, 29, 100, 1000, 100_000):
        for t in (0.01, 0.3, 1.0, 2.0, 2.776, 10.0, 60.0):
            expected = 2 * stats.t.sf(t, degrees)
            if expected > 1e-300:
                # lgamma of 50,000 has lost five digits by cancellation.
                assert student_t_tails(t, degrees) == pytest.approx(expected, rel=1e-10)
        for level in (0.1, 0.5, 0.9, 0.95, 0.99):
            assert student_t_quantile(level, degrees) == pytest.approx(
                stats.t.ppf((1 + level) / 2, degrees), rel=1e-10
            )


@given(
    st.lists(st.tuples(*[st.floats(-100, 100)] * 2), min_size=2, max_size=30),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_interval_and_p_value_are_those_of_scipy(pairs, level):
    stats = pytest.importorskip("scipy.stats")
    a, b = (np.array(part) for part in zip(*pairs, strict=True))
    if np.ptp(a - b) < 1e-6 * (1 + np.abs(a - b).max()):
        return  # equal up to rounding: scipy says NaN or warns; see the test below
    found = paired_interval(a, b, level)
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(level)
    # The differences are of size 100 and their rounding errors of size 1e-14.
    assert found.mean == pytest.approx(float(np.mean(a - b)), abs=1e-11)
    assert found.low == pytest.approx(float(interval.low), rel=1e-7, abs=1e-9)
    assert found.high == pytest.approx(float(interval.high), rel=1e-7, abs=1e-9)
    assert found.p_value == pytest.approx(float(expected.pvalue), rel=1e-5, abs=1e-12)
    # The test at 1 - level and the interval at level agree.
    if abs(found.p_value - (1 - level)) > 1e-9:
        assert found.excludes_zero == (found.p_value < 1 - level)


def test_swapping_the_two_turns_the_interval_round():
    a, b = [0.1, 0.4, 0.3], [0.2, 0.1, 0.6]
    one, two = paired_interval(a, b), paired_interval(b, a)
    assert (one.mean, one.low, one.high) == pytest.approx((-two.mean, -two.high, -two.low))
    assert one.p_value == pytest.approx(two.p_value)


def test_it_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials, pairs, truth = 1000, 5, 0.3
    shared = rng.normal(0, 10, (trials, pairs))  # what a seed does to both members of a pair
    a = shared + truth + rng.normal(0, 1, (trials, pairs))
    b = shared + rng.normal(0, 1, (trials, pairs))
    for level in (0.8, 0.95):
        found = [paired_interval(x, y, level) for x, y in zip(a, b, strict=True)]
        covered = sum(i.low <= truth <= i.high for i in found) / trials
        # Four standard deviations of a share of 1,000 trials.
        assert covered == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / trials))


@pytest.mark.parametrize(("shift", "p_value"), [(0.5, 0.0), (0.0, 1.0)])
def test_equal_differences_are_a_point(shift, p_value):
    found = paired_interval([1.0 + shift, 2.0 + shift, 4.0 + shift], [1.0, 2.0, 4.0])
    assert (found.mean, found.low, found.high) == (shift, shift, shift)
    assert found.p_value == p_value
    assert found.excludes_zero == (shift != 0)


@pytest.mark.parametrize(
    ("a", "b", "level", "says"),
    [
        ([1.0], [0.5], 0.95, "an interval needs at least 2 pairs, got 1"),
        ([], [], 0.95, "at least 2 pairs, got 0"),
        ([1.0, 2.0], [1.0], 0.95, "got 2 and 1 numbers"),
        ([1.0, math.nan], [1.0, 2.0], 0.95, "pair 1: a is nan"),
        ([1.0, 2.0], [math.inf, 2.0], 0.95, "pair 0: b is inf"),
        ([1.0, 2.0], [1.0, 3.0], 1.0, r"level: must be in \(0, 1\), got 1.0"),
    ],
)
def test_what_is_refused(a, b, level, says):
    with pytest.raises(DataError, match=says):
        paired_interval(a, b, level)
