"""What a curve of loss against learning rate proposes, and when it proposes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fedopt.errors import ConfigError
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
    assert 0.5 <= found.max_lr <= 2.0
    assert found.base_lr <= found.steepest_lr <= found.max_lr
    assert (found.diverged_at, found.reason) == (None, "")


def test_divergence_is_an_upper_bound() -> None:
    losses = curve(1e-3, 100.0)
    losses[60:] = np.nan
    found = suggest(RATES, losses)
    assert found.diverged_at == RATES[60]
    assert found.max_lr == RATES[59]


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


@pytest.mark.parametrize(("low", "high", "count"), [(0, 1, 5), (1, 1, 5), (1, 0.1, 5), (0.1, 1, 1)])
def test_bad_ranges_are_refused(low: float, high: float, count: int) -> None:
    with pytest.raises(ConfigError, match="range needs"):
        range_rates(low, high, count)
