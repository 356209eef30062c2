from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedopt.analysis.intervals import mean_curve, mean_interval, running_mean
from fedopt.errors import DataError

FINITE = st.floats(-1e3, 1e3, allow_nan=False)


@given(st.lists(FINITE, min_size=2, max_size=12), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_the_interval_of_a_mean_is_scipys(values: list[float], level: float) -> None:
    found = mean_interval(values, level)
    error = stats.sem(values)
    assert found.n == len(values)
    if error == 0:
        assert found.low == found.mean == found.high
        return
    low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=error)
    # The mean is rounded otherwise: a few bits of the largest value.
    near = pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert (found.low, found.high) == near
    assert found.half == pytest.approx((high - low) / 2, rel=1e-9, abs=1e-9)


def test_known_data() -> None:
    # Heights of 10 plants; mean 5.5, s = 3.0277, t(0.975, 9) = 2.2622.
    found = mean_interval(list(range(1, 11)))
    assert found.mean == 5.5
    assert found.half == pytest.approx(2.2621571628 * 3.0276503541 / 10**0.5, rel=1e-9)


def test_one_value_has_no_interval_and_what_is_not_finite_is_refused() -> None:
    found = mean_interval([0.5])
    assert (found.mean, found.low, found.high, found.half) == (0.5, None, None, None)
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(DataError, match="finite numbers"):
            mean_interval(values)


def test_a_band_on_equal_grids_is_the_interval_at_every_point() -> None:
    rng = np.random.default_rng(0)
    x, rows = np.arange(1.0, 21.0), rng.normal(size=(5, 20))
    band = mean_curve([(x, row) for row in rows])
    assert band.n == 5
    assert band.low is not None
    assert band.high is not None
    assert np.array_equal(band.x, x)
    for place in range(20):
        found = mean_interval(rows[:, place].tolist())
        assert (band.mean[place], band.low[place], band.high[place]) == pytest.approx(
            (found.mean, found.low, found.high), rel=1e-12
        )


def test_unequal_grids_are_interpolated_where_all_curves_are() -> None:
    one = (np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0]))
    two = (np.array([1.0, 3.0, 9.0]), np.array([2.0, 6.0, 18.0]))
    band = mean_curve([one, two])
    assert band.x.tolist() == [1.0, 2.0, 3.0, 4.0]  # nothing before 1 or after 4
    assert band.mean.tolist() == [1.5, 3.0, 4.5, 6.0]  # of x and 2 x
    apart = (np.array([5.0, 6.0]), np.array([0.0, 0.0]))
    with pytest.raises(DataError, match="in common"):
        mean_curve([one, apart])


def test_a_common_grid_stays_small() -> None:
    curves = [(np.sort(np.random.default_rng(s).random(5000)), np.zeros(5000)) for s in (0, 1)]
    band = mean_curve(curves)
    assert len(band.x) == 1000
    assert (np.diff(band.x) > 0).all()


def test_one_curve_has_no_band() -> None:
    x = np.arange(3.0)
    band = mean_curve([(x, x)])
    assert band.low is None
    assert band.high is None


def test_a_running_mean_keeps_lines_and_ends() -> None:
    line = np.arange(10.0)
    assert running_mean(line, 5) == pytest.approx(line)
    spike = np.array([0.0, 0.0, 3.0, 0.0, 0.0])
    assert running_mean(spike, 3) == pytest.approx([0, 1, 1, 1, 0])
    assert running_mean(spike, 1) is spike
