"""Charts: where values lie, which ticks are shown, which points are drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.analysis.report.svg import (
    MOST_POINTS,
    Line,
    line_chart,
    linear_axis,
    log_axis,
    thinned,
    tick_labels,
)

numbers = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(low=numbers, span=st.floats(1e-3, 1e6))
def test_a_linear_axis_has_few_ticks_at_round_numbers_in_order(low, span):
    axis = linear_axis(low, low + span, 40, 400)
    assert 1 <= len(axis.ticks) <= 12
    assert all(low - 1e-6 * span <= t <= low + span + 1e-6 * span for t in axis.ticks)
    gaps = np.diff(axis.ticks)
    if len(gaps):
        step = gaps[0]
        # Relative to the numbers themselves: a gap is the difference of two rounded ones.
        assert np.allclose(gaps, step, atol=1e-9 * max(map(abs, axis.ticks)))
    places = [axis.place(t) for t in axis.ticks]
    assert places == sorted(places)
    assert axis.place(axis.low) == 40
    assert axis.place(axis.high) == pytest.approx(400)  # one division by the span


@given(low=st.floats(1e-8, 1e3), ratio=st.floats(1.5, 1e9))
def test_a_logarithmic_axis_has_ticks_inside_and_equal_ratios_at_equal_distances(low, ratio):
    axis = log_axis(low, low * ratio, 0, 100)
    assert all(low * 0.999 <= t <= low * ratio * 1.001 for t in axis.ticks)
    assert len(axis.ticks) <= 10
    middle = low * ratio**0.5
    assert axis.place(middle) == pytest.approx(50)  # logarithms round


def test_whole_ticks_are_whole_even_of_one_round():
    assert linear_axis(1, 1, 0, 1, 6, whole=True).ticks == (1.0,)
    assert all(t == int(t) for t in linear_axis(1, 4, 0, 1, 6, whole=True).ticks)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ((0.0, 0.25, 0.5), ["0.00", "0.25", "0.50"]),
        ((0.0, 50_000.0, 100_000.0), ["0", "50k", "100k"]),
        ((0.0, 2.5e6), ["0", "2.5M"]),
        ((1e-7, 1e-6), ["1e-7", "1e-6"]),
        ((-1.0, 0.0, 1.0), ["-1", "0", "1"]),
        ((), []),
    ],
)
def test_labels_of_ticks(values, texts):
    assert tick_labels(values) == texts


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_the_lowest_and_the_highest(values):
    y = np.array(values)
    kept = thinned(np.arange(len(y), dtype=np.float64), y)
    assert len(kept) <= max(MOST_POINTS, 4)
    assert (np.diff(kept) > 0).all()
    assert {0, len(y) - 1} <= set(kept.tolist())
    assert y[kept].min() == y.min()
    assert y[kept].max() == y.max()


values = st.one_of(st.floats(-1e12, 1e12), st.just(float("nan")), st.just(float("inf")))


@given(y=st.lists(values, min_size=1, max_size=40), hostile=st.text(max_size=20), data=st.data())
def test_any_line_gives_well_formed_svg_inside_its_frame(y, hostile, data):
    finite = [v for v in y if np.isfinite(v)]
    if not finite:
        y, finite = [*y, 0.5], [0.5]
    # Control characters cannot be in XML at all; HTML, where charts live, takes them.
    hostile = "".join(c for c in hostile if c.isprintable())
    x = np.arange(len(y), dtype=np.float64)
    ends = (np.array(y) - 1, np.array(y) + 1) if data.draw(st.booleans()) else None
    chart = line_chart(
        [Line("a", x, np.array(y), band=ends)], hostile, hostile, name=hostile, text=hostile
    )
    root = ElementTree.fromstring(chart)
    assert root.get("aria-label") == f"{hostile}. {hostile}"
    for shape in root.iter("circle"):
        assert -1 <= float(shape.get("cx")) <= 441
        assert -1 <= float(shape.get("cy")) <= 261
    for path in root.iter("path"):
        assert set(path.get("d")) <= set("MLHVZ0123456789.- ")
