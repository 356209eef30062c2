"""The reliability diagram: accuracy against confidence, and where the predictions lie."""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator
from torch import Tensor

from fedopt.analysis.calibration import Calibration, measure_calibration
from fedopt.analysis.metrics import ReliabilityBins, reliability
from fedopt.analysis.style import COLOURS, DPI, SMALL, TEXT, tidy

_WIDTH, _HEIGHT = 3.6, 4.6  # inches: a column of a page
_LINE = 50  # characters of a title that fit
_BLUE, _RED, _GREEN = COLOURS[:3]
_SKY = COLOURS[5]
_GREY = COLOURS[-1]


def reliability_figure(
    logits: Tensor,
    targets: Tensor,
    calibration: Calibration | None = None,
    title: str | None = None,
) -> Figure:
    """Draw how often a classifier is right, by its confidence in 15 bins.

    Above, a bar a bin is the accuracy; the hatched part between it and the bin's mean confidence
    is the gap, and on the dashed diagonal there would be none. A line shows the same predictions
    after temperature scaling, where there is a temperature. Below is the share of the examples
    in each bin, with the overall accuracy and mean confidence as vertical lines. ECE, MCE and
    NLL are printed above the diagram.

    Args:
        logits: `[N, C]` on the test set, N >= 1 and C >= 2.
        targets: `[N]` class ids in 0..C-1.
        calibration: what `measure_calibration` returned for the same outputs; None measures it,
            without a temperature.
        title: lines above everything; long ones are wrapped.

    Returns:
        A figure of 3.6 by 4.6 inches, 200 dpi.

    Raises:
        DataError: the shapes do not fit, or a target is not a class.
        RunError: a logit is NaN or plus infinity.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, figures 1 and 4.
    """
    measured = calibration or measure_calibration(logits, targets)
    bins = reliability(logits.double().softmax(dim=1), targets)
    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    handles = _draw_accuracy(top, bins)
    if measured.temperature is not None:
        scaled = (logits.double() / measured.temperature).softmax(dim=1)
        handles.append(_draw_scaled(top, reliability(scaled, targets), measured.temperature))
    handles += _draw_histogram(bottom, bins)
    top.set_title(_numbers(measured), fontsize=SMALL, loc="left", linespacing=1.4)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=SMALL,
        frameon=False,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    if title:
        lines = [textwrap.fill(line, _LINE) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), fontsize=TEXT).set_parse_math(False)
    return figure


def _draw_accuracy(axes: Axes, bins: ReliabilityBins) -> list[Line2D | Patch]:
    """Draw accuracies, gaps and the diagonal; return their handles."""
    tidy(axes)
    middles, width = _bars(bins)
    gap = bins.confidence - bins.accuracy
    axes.bar(middles, bins.accuracy, width, color=_SKY, edgecolor="white", linewidth=0.4)
    axes.bar(
        middles,
        gap,
        width,
        bottom=bins.accuracy,
        facecolor=(*_rgb(_RED), 0.25),
        edgecolor=(*_rgb(_RED), 0.9),
        hatch="/////",
        linewidth=0.6,
    )
    (diagonal,) = axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=0.9)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("accuracy", fontsize=TEXT)
    ticks = FixedLocator(list(np.linspace(0, 1, 6)))
    axes.xaxis.set_major_locator(ticks)
    axes.yaxis.set_major_locator(ticks)
    diagonal.set_label("perfectly calibrated")
    return [
        Patch(facecolor=_SKY, label="accuracy in the bin"),
        Patch(
            facecolor=(*_rgb(_RED), 0.25),
            edgecolor=(*_rgb(_RED), 0.9),
            hatch="/////",
            linewidth=0.6,
            label="gap to the confidence",
        ),
        diagonal,
    ]


def _draw_scaled(axes: Axes, bins: ReliabilityBins, temperature: float) -> Line2D:
    filled = bins.counts > 0
    (line,) = axes.plot(
        bins.confidence[filled],
        bins.accuracy[filled],
        color=_GREEN,
        marker="o",
        markersize=3.0,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=1.2,
        label=f"after scaling, T = {temperature:.3g}",
        clip_on=False,
        zorder=5,
    )
    return line


def _draw_histogram(axes: Axes, bins: ReliabilityBins) -> list[Line2D]:
    """Draw the share of examples in each bin; return the handles of the two means."""
    tidy(axes)
    middles, width = _bars(bins)
    counts = bins.counts
    share = counts / counts.sum()
    axes.bar(middles, share, width, color="#B8B8B8", edgecolor="white", linewidth=0.4)
    axes.set_xlabel("confidence (highest probability)", fontsize=TEXT)
    axes.set_ylabel("share of\nexamples", fontsize=TEXT)
    filled = counts > 0
    means = (
        ("mean accuracy", bins.accuracy, _BLUE, "-"),
        ("mean confidence", bins.confidence, _RED, (0.0, (3.0, 1.0))),
    )
    return [
        axes.axvline(
            float((values[filled] * share[filled]).sum()),
            color=colour,
            linestyle=style,
            linewidth=1.2,
            label=label,
        )
        for label, values, colour, style in means
    ]


def _numbers(measured: Calibration) -> str:
    """Return the two lines above the diagram."""
    values = (("ECE", measured.ece), ("MCE", measured.mce), ("NLL", measured.loss))
    first = "   ".join(f"{name} {_text(value)}" for name, value in values)
    examples = f"{measured.temperature_fitted_on:,} validation examples"
    if measured.temperature is not None:
        scaled = f"scaled: ECE {_text(measured.ece_scaled)}   NLL {_text(measured.loss_scaled)}"
        return f"{first}\n{scaled}\nT = {measured.temperature:.3g} fitted on {examples}"
    if measured.temperature_fitted_on:
        return f"{first}\nno temperature: no minimum of the loss on\n{examples}"
    return f"{first}\nno temperature: there are no validation examples"


def _text(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _bars(bins: ReliabilityBins) -> tuple[np.ndarray, float]:
    """Return the middles of the bins and their width."""
    return (bins.edges[1:] + bins.edges[:-1]) / 2, float(bins.edges[1])


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
