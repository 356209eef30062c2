"""Figures of learning rates: a schedule over time, and the range test's curve."""

from __future__ import annotations

import textwrap

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedopt.analysis.style import COLOURS, DPI, FEW, HEIGHT, SMALL, TEXT, tidy
from fedopt.schedules.range_test import RangeSuggestion, smooth

Values = npt.NDArray[np.float64]

_WIDTH = 4.2  # inches
_LINE = 72  # characters of small text in that width
_BLUE, _RED, _GREEN = COLOURS[:3]
MOST_POINTS = 20_000
"""Points of a line; longer runs are thinned evenly."""


def schedule_figure(
    rates: Values,
    momenta: Values | None = None,
    *,
    title: str,
    steps_per_round: int = 1,
    x_label: str = "communication rounds done",
) -> Figure:
    """Draw learning rates, and momenta where they are cycled, over the rounds of a run.

    Args:
        rates: learning rate of each step, `[T]`, T >= 1.
        momenta: momentum of each step, `[T]`, or None.
        title: a line above the panel.
        steps_per_round: steps that make one round.
        x_label: what the horizontal axis counts.

    Returns:
        A figure 4.2 inches wide, 200 dpi.
    """
    rows = 1 if momenta is None else 2
    figure = Figure(figsize=(_WIDTH, HEIGHT * (1 if rows == 1 else 1.5)), dpi=DPI)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    thin = slice(None, None, max(1, len(rates) // MOST_POINTS))
    time = (np.arange(len(rates)) / steps_per_round)[thin]
    _line(panels[0], time, rates[thin], "learning rate", _BLUE)
    if momenta is not None:
        _line(panels[1], time, momenta[thin], "momentum", _RED)
    else:
        panels[0].set_ylim(bottom=0)
    panels[-1].set_xlabel(x_label, fontsize=TEXT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    figure.suptitle(title, fontsize=TEXT)
    return figure


def _line(axes: Axes, time: Values, values: Values, label: str, colour: str) -> None:
    tidy(axes)
    axes.plot(
        time,
        values,
        color=colour,
        linewidth=1.2,
        marker="o" if len(time) <= FEW else "",
        markersize=3.0,
    )
    axes.set_ylabel(label, fontsize=TEXT)


def range_figure(rates: Values, losses: Values, suggestion: RangeSuggestion) -> Figure:
    """Draw a range test: loss against learning rate, smoothed, with the proposed bounds.

    Args:
        rates: learning rates, rising, `[N]`.
        losses: loss at each, `[N]`; those that are not finite are left out.
        suggestion: what `fedopt.schedules.range_test.suggest` proposes.

    Returns:
        A figure of 4.2 by 2.8 inches, 200 dpi.
    """
    figure = Figure(figsize=(_WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    known = np.isfinite(losses)
    curve = smooth(losses)
    shown = np.isfinite(curve)
    axes.plot(rates[known], losses[known], ".", color="#BBBBBB", markersize=3, label="a round")
    axes.plot(rates[shown], curve[shown], color=_BLUE, linewidth=1.2, label="smoothed")
    axes.set_xscale("log")
    axes.set_xlim(rates[0], rates[-1] * (rates[-1] / rates[0]) ** 0.02)
    if known.any():
        # The rise at the end is cut off where it would hide the fall.
        fallen = losses[: int(curve.argmin()) + 1] if suggestion.max_lr is not None else losses
        low = float(losses[known].min())
        high = float(np.quantile(fallen[np.isfinite(fallen)], 0.95))
        height = max(high - low, 0.1 * abs(high))
        axes.set_ylim(low - 0.1 * height, high + 0.5 * height)
    bounds = (
        ("base_lr", suggestion.base_lr, _GREEN, ":"),
        ("max_lr", suggestion.max_lr, _RED, "--"),
    )
    for name, rate, colour, style in bounds:
        if rate is not None:
            label = f"{name} = {rate:.2g}"
            axes.axvline(rate, color=colour, linestyle=style, linewidth=1.0, label=label)
    if suggestion.diverged_at is not None:
        label = f"diverged at {suggestion.diverged_at:.2g}"
        axes.axvspan(suggestion.diverged_at, rates[-1] * 10, color="#E6E6E6", label=label)
    if suggestion.reason:
        title = textwrap.fill(f"no bounds: {suggestion.reason}", _LINE)
        axes.set_title(title, fontsize=SMALL)
    axes.set_xlabel("learning rate", fontsize=TEXT)
    axes.set_ylabel("training loss of a round", fontsize=TEXT)
    axes.legend(fontsize=SMALL, frameon=False)
    return figure
