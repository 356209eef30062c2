"""What a curve of loss against learning rate proposes, and when it proposes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.analysis.schedule_plots import range_figure, schedule_figure
from fedopt.errors import ConfigError
from fedopt.schedules import momenta, values
from fedopt.schedules.range_test import range_rates, smooth, suggest

RATES = range_rates(1e-4, 10, 81)


def curve(falls: float, rises: float) -> np.ndarray:
    """A loss that falls from one rate on and rises steeply from another on."""
    x = np.log10(RATES)
    fall = np.clip((x - np.log10(falls)) / (np.log10(rises) - np.log10(falls)), 0, 1)
    return 2.3 - 1.5 * fall + 5 * np.clip(x - np.log10(rises), 0, None)


def test_a_typical_curve_gives_its_bounds() -> None:
    found = suggest(RATES, curve(1e-3, 1.0))
    assert found.base_lr is not None
    assert found.max_lr is not None
    assert found.steepest_lr is not None
    assert 1e-3 <= found.base_lr <= 5e-3
    assert found.best_lr is not None
    assert 0.5 <= found.max_lr <= found.best_lr <= 2.0
    assert found.base_lr <= found.steepest_lr <= found.max_lr
    assert (found.diverged_at, found.reason) == (None, "")


def test_divergence_is_an_upper_bound() -> None:
    losses = curve(1e-3, 100.0)
    losses[60:] = np.nan
    found = suggest(RATES, losses)
    assert found.diverged_at == RATES[60]
    assert found.best_lr == RATES[59]
    assert found.max_lr is not None
    assert RATES[50] < found.max_lr < RATES[60]


def test_bounds_are_those_of_the_fall_and_not_of_a_flat_bottom() -> None:
    """The least of a flat bottom is anywhere in it; where the fall ends is not."""
    x = np.log10(RATES)
    losses = 2.0 - np.clip(x + 3, 0, 1) + 1e-3 * np.abs(x - 0.5)
    found = suggest(RATES, losses)
    assert found.max_lr is not None
    assert found.best_lr is not None
    assert 0.007 <= found.max_lr <= 0.03 < 0.2 < found.best_lr


@pytest.mark.parametrize("ends", ["flat", "diverging", "rising"])
@pytest.mark.parametrize("count", [20, 60])
def test_noise_is_no_fall(ends: str, count: int) -> None:
    rng = np.random.default_rng(0)
    proposed = 0
    for _ in range(200):
        losses = 2.3 + 0.05 * rng.normal(size=count)
        if ends == "diverging":
            losses[-3:] = np.inf
        elif ends == "rising":
            losses[count // 2 :] += np.geomspace(0.01, 100, count - count // 2)
        proposed += not suggest(range_rates(1e-4, 10, count), losses).reason
    # Four standard deviations of an estimated noise: about one curve in a hundred.
    assert proposed <= 6


@given(
    st.lists(
        st.floats(-1e3, 1e3) | st.sampled_from([np.inf, -np.inf, np.nan, 2.0]),
        max_size=30,
    )
)
def test_any_curve_gives_ordered_bounds_or_a_reason(losses: list[float]) -> None:
    rates = np.geomspace(1e-4, 10, len(losses)) if losses else np.array([])
    found = suggest(rates, np.array(losses))
    bounds = [found.base_lr, found.steepest_lr, found.max_lr, found.best_lr]
    if found.reason:
        assert bounds == [None] * 4
    else:
        assert [b for b in bounds if b is not None] == sorted(bounds, key=lambda b: b or 0)
        assert set(bounds) <= set(rates.tolist())
    broken = [r for r, loss in zip(rates, losses, strict=True) if not np.isfinite(loss)]
    assert found.diverged_at == (broken[0] if broken else None)


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (np.full(81, 2.3), "never falls"),
        (np.linspace(1, 9, 81), "never falls"),
        (np.linspace(9, 1, 81), "still falls at the highest"),
        (np.full(81, np.inf), "fewer than three"),
    ],
)
def test_a_curve_without_bounds_proposes_none(losses: np.ndarray, words: str) -> None:
    found = suggest(RATES, losses)
    assert (found.base_lr, found.max_lr, found.steepest_lr) == (None, None, None)
    assert words in found.reason


def test_smoothing_is_a_mean_and_ends_where_the_loss_does() -> None:
    assert smooth(np.full(5, 3.0)) == pytest.approx(np.full(5, 3.0))
    assert np.isinf(smooth(np.array([1.0, np.nan, 1.0]))).tolist() == [False, True, True]
    # (0.25 * 2 + 0.5 * 4) / 0.75
    assert smooth(np.array([2.0, 4.0]), 0.5) == pytest.approx([2.0, 10 / 3])
    with pytest.raises(ConfigError, match=r"beta.*1\.0.*\[0, 1\)"):
        smooth(np.ones(3), 1.0)


@pytest.mark.parametrize(
    ("rates", "losses", "words"),
    [
        ([1.0, 2.0], [1.0], r"shapes \(2,\) and \(1,\)"),
        ([1.0, 1.0, 2.0], [1.0] * 3, "rise"),
        ([0.0, 1.0, 2.0], [1.0] * 3, "> 0"),
    ],
)
def test_bad_curves_are_refused(rates: list[float], losses: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suggest(np.array(rates), np.array(losses))


@pytest.mark.parametrize(
    "losses",
    [
        curve(1e-3, 1.0),
        np.where(RATES < 3, curve(1e-3, 1.0), np.inf),
        np.full(81, 2.3),
        np.full(81, np.nan),
    ],
)
def test_the_figure_shows_the_bounds_that_there_are(losses: np.ndarray) -> None:
    found = suggest(RATES, losses)
    (axes,) = range_figure(RATES, losses, found).axes
    legend = axes.get_legend()
    assert legend is not None
    words = " ".join(text.get_text() for text in legend.get_texts())
    for name, rate in (
        ("base_lr", found.base_lr),
        ("max_lr", found.max_lr),
        ("diverged", found.diverged_at),
    ):
        assert (name in words) == (rate is not None)
    assert axes.get_xscale() == "log"
    assert ("no bounds" in axes.get_title()) == bool(found.reason)


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_the_figure_of_a_schedule_has_a_panel_of_momentum_where_it_is_cycled(name: str) -> None:
    rates, cycled = values(name, 40), momenta(name, 40)
    figure = schedule_figure(rates, cycled, title=name, steps_per_round=10)
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning rate", "momentum"][
        : 1 if cycled is None else 2
    ]
    time, drawn = figure.axes[0].lines[0].get_data()
    assert np.array_equal(drawn, rates)
    assert np.asarray(time)[-1] == 3.9


@pytest.mark.parametrize(("low", "high", "count"), [(0, 1, 5), (1, 1, 5), (1, 0.1, 5), (0.1, 1, 1)])
def test_bad_ranges_are_refused(low: float, high: float, count: int) -> None:
    with pytest.raises(ConfigError, match="range needs"):
        range_rates(low, high, count)
