"""The metric of a sweep against the numbers that it varied: which of them matters, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fedopt.analysis.groups import short_keys
from fedopt.analysis.plots import Plot
from fedopt.analysis.style import COLOURS, DPI, SMALL, TEXT, WIDTH, tidy

_HEIGHT = 2.4  # inches of a row
_ACROSS = 3  # panels in a row
_DECADE = 10.0  # ratio from which on the axis is logarithmic


def parameter_plot(runs: pd.DataFrame, keys: Sequence[str], metric: str) -> Plot | None:
    """Draw the best value of a metric, a point a run, against each key that was varied by number.

    Runs that were stopped early are hollow: their value is that of fewer rounds.

    Args:
        runs: a row a run, as `results.csv`.
        keys: dotted keys that were varied.
        metric: what is drawn.

    Returns:
        None where no key has three different numbers, or nothing was measured.
    """
    column = f"best_{metric}"
    if column not in runs:
        return None
    measured = runs[runs[column].notna()]
    numeric = [
        key
        for key in keys
        if key in measured
        and pd.api.types.is_numeric_dtype(measured[key])
        and not pd.api.types.is_bool_dtype(measured[key])
        and measured[key].nunique() > 2
    ]
    if not numeric:
        return None
    across = min(_ACROSS, len(numeric))
    down = -(-len(numeric) // across)
    width = WIDTH if across > 1 else WIDTH / 2
    figure = Figure(
        figsize=(width, _HEIGHT * down), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07)
    )
    names = short_keys(numeric)
    for index, key in enumerate(numeric, start=1):
        axes = figure.add_subplot(down, across, index)
        _scatter(axes, measured, key, column)
        axes.set_xlabel(names[key], fontsize=TEXT)
        if index % across == 1 or across == 1:
            axes.set_ylabel(f"best {metric.replace('_', ' ')}", fontsize=TEXT)
    if (measured["status"] == "stopped").any():
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            fontsize=SMALL,
            frameon=False,
        )
    return Plot(figure, measured[["run", "status", "seed", *numeric, column]])


def _scatter(axes: Axes, runs: pd.DataFrame, key: str, column: str) -> None:
    for is_stopped, label, face in (
        (False, "whole run", COLOURS[0]),
        (True, "stopped early", "none"),
    ):
        some = runs[(runs["status"] == "stopped") == is_stopped]
        if len(some):
            axes.plot(
                some[key].to_numpy(np.float64),
                some[column].to_numpy(np.float64),
                linestyle="",
                marker="o",
                markersize=4.0,
                markerfacecolor=face,
                markeredgecolor=COLOURS[0],
                markeredgewidth=0.8,
                label=label,
            )
    values = runs[key].to_numpy(np.float64)
    if values.min() > 0 and values.max() / values.min() >= _DECADE:
        axes.set_xscale("log")
    tidy(axes)
