"""How evenly a model serves the clients, by rounds: mean, worst tenth and spread."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedopt.analysis.style import COLOURS, DPI, FEW, HEIGHT, SMALL, TEXT, tidy
from fedopt.errors import ConfigError

_WIDTH = 4.2  # inches
_BLUE, _RED = COLOURS[:2]


def client_figure(history: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the clients' validation accuracies by rounds, as a distribution.

    One line is the mean over the evaluated clients, in a band of one standard deviation (the
    root of `validation_accuracy_variance`) cut at 0 and 1; another is the mean of the worst
    tenth. Rounds without an evaluation are skipped.

    Args:
        history: a run's rounds, as `Run.history` or `read_history`.
        title: a line above the panel.

    Returns:
        A figure of 4.2 by 2.8 inches, 200 dpi.

    Raises:
        ConfigError: the clients' validation accuracies were not measured.

    Source: Li et al., "Fair resource allocation in federated learning", ICLR 2020.
    """
    columns = [f"validation_accuracy_{name}" for name in ("mean", "worst10", "variance")]
    rows = history[["round", *columns]].dropna() if set(columns) <= set(history) else history[:0]
    if rows.empty:
        raise ConfigError(
            "the run did not measure the accuracy of its clients. Set "
            "evaluation.validation_clients, and data.validation_fraction where the data have no "
            "validation splits."
        )
    rounds, mean, worst, variance = (
        rows[name].to_numpy(np.float64) for name in ("round", *columns)
    )
    spread = np.sqrt(variance)
    figure = Figure(figsize=(_WIDTH, HEIGHT), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    few = len(rounds) <= FEW
    low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
    if len(rounds) > 1:
        axes.fill_between(
            rounds, low, high, color=_BLUE, alpha=0.18, linewidth=0, label="± 1 std. deviation"
        )
    else:  # a band of no width would not be seen
        error = np.stack([mean - low, high - mean])
        axes.errorbar(
            rounds, mean, error, color=_BLUE, linestyle="", capsize=3, label="± 1 std. deviation"
        )
    for label, values, colour, style, marker in (
        ("mean", mean, _BLUE, "-", "o"),
        ("worst 10 %", worst, _RED, "--", "s"),
    ):
        axes.plot(
            rounds,
            values,
            color=colour,
            linestyle=style,
            linewidth=1.2,
            marker=marker if few else "",
            markersize=3.0,
            label=label,
        )
    axes.set_ylim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.set_xlabel("communication rounds", fontsize=TEXT)
    axes.set_ylabel("validation accuracy of clients", fontsize=TEXT)
    figure.legend(
        loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False, borderaxespad=0.2
    )
    if title:
        figure.suptitle(title, fontsize=TEXT + 1).set_parse_math(False)
    return figure
