"""Convergence figures: loss and accuracy against rounds, bytes, seconds or steps.

Figures are built with matplotlib's object interface: no pyplot, no global state, no window.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.style import (
    COLOURS,
    DASHES,
    DPI,
    FEW,
    HEIGHT,
    MARKERS,
    SMALL,
    TEXT,
    WIDTH,
    tidy,
)
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError, RunError, unknown_name

Floats = npt.NDArray[np.float64]
Run = tuple[str, pd.DataFrame]


@dataclass(frozen=True)
class _Axis:
    label: str
    columns: tuple[str, ...]  # their sum is drawn
    scale: float
    missing: str  # why a run may not have it, and what to do


_AXES = {
    "rounds": _Axis("communication rounds", ("round",), 1.0, "has no rounds"),
    "bytes": _Axis(
        "MB sent up and down",
        ("bytes_up", "bytes_down"),
        1e-6,
        "did not count its bytes; use --x rounds",
    ),
    "seconds": _Axis(
        "simulated seconds",
        ("sim_seconds",),
        1.0,
        "has no virtual clock (it ran without a system profile); use --x wall for real time",
    ),
    "wall": _Axis(
        "wall-clock seconds", ("wall_seconds",), 1.0, "did not measure time; use --x rounds"
    ),
    "steps": _Axis(
        "local steps, summed over clients",
        ("client_steps",),
        1.0,
        "did not count its steps; use --x rounds",
    ),
}

_Style = str | tuple[float, tuple[float, ...]]
# What a single run's lines measure: colour, line style, marker.
_PARTS: dict[str, tuple[str, _Style, str]] = {
    "train": ("#56B4E9", (0.0, (3.0, 1.0)), "o"),
    "validation": ("#009E73", (0.0, (1.0, 1.0)), "s"),
    "test": ("#0072B2", "-", "^"),
    "swa_test": ("#D55E00", "-", "v"),
}
_LABELS = {"swa_test": "test, averaged model"}

_LEGEND_ROW = 0.17  # inches
_DECADES = 100.0  # ratio of largest to smallest loss from which on the axis is logarithmic
_FORMATS = ("png", "svg", "pdf")


def convergence_figure(
    runs: Sequence[Run],
    x: str = "rounds",
    title: str | None = None,
    metrics: Sequence[str] = (),
) -> Figure:
    """Draw how one run or several converge: loss on the left, accuracy on the right.

    A single run shows its train, validation and test losses; several runs show the test loss
    (the train loss where a run has no test). Cells that were not measured are skipped. A loss
    axis that spans more than two decades is logarithmic. Without accuracies there is one panel.

    Args:
        runs: label and history (as by `read_history`) of each run, at least one.
        x: `"rounds"`, `"bytes"` (up and down, in MB), `"seconds"` (virtual clock), `"wall"`
            (real seconds) or `"steps"` (local steps of all clients).
        title: a line above the panels.
        metrics: real columns of `rounds.csv` to draw instead, a panel each, two in a row.

    Returns:
        A figure of 7.0 inches by 2.8 or more (many runs need a taller legend), 200 dpi.

    Raises:
        ConfigError: no run, a run without rounds, an unknown `x` or metric, or one that was not
            measured.
    """
    if x not in _AXES:
        raise unknown_name("--x", x, _AXES)
    if not runs:
        raise ConfigError("there is no run to plot.")
    axis = _AXES[x]
    places = [_places(run, axis, x) for run in runs]
    if metrics:
        panels = [_metric(name, runs, places) for name in dict.fromkeys(metrics)]
    else:
        panels = _one_run(runs[0][1], places[0]) if len(runs) == 1 else _many_runs(runs, places)
    rows, columns = -(-len(panels) // 2), min(2, len(panels))
    size = (WIDTH, HEIGHT * rows)
    figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07))
    drawn = []
    for index, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, index)
        drawn.append(_draw(axes, panel))
        axes.set_xlabel(axis.label, fontsize=TEXT)
        if x == "rounds":
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
        elif x == "steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if any(len(panel.lines) > 1 for panel in panels):  # else the axes' labels say it all
        _add_legend(figure, panels, drawn)
    if title:
        figure.suptitle(title, fontsize=TEXT + 1)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure in one step, in the format of the path's suffix.

    Args:
        figure: the figure; the same figure gives the same bytes.
        path: a file ending in .png, .svg or .pdf.

    Returns:
        The path.

    Raises:
        ConfigError: another suffix.
        RunError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in _FORMATS:
        raise ConfigError(
            f'a figure cannot be written as "{path.name}": its name must end in '
            f"{', '.join('.' + name for name in _FORMATS)}."
        )
    stamp = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[suffix]
    smaller: dict[str, Any] = {"pil_kwargs": {"optimize": True}} if suffix == "png" else {}
    buffer = io.BytesIO()
    # Publishers refuse PDFs with Type 3 fonts; 42 embeds TrueType.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fedopt"}):
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=stamp, **smaller)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


@dataclass(frozen=True)
class _Line:
    """Measured points and how to draw them; the best of a `ranked` line is marked."""

    x: Floats
    y: Floats
    label: str
    colour: str
    style: _Style
    marker: str
    ranked: bool


@dataclass(frozen=True)
class _Panel:
    label: str  # of the y axis
    lines: tuple[_Line, ...]
    accuracy: bool


def _places(run: Run, axis: _Axis, x: str) -> Floats:
    """Return where each of the run's rounds lies on the horizontal axis, `[rounds]`."""
    label, frame = run
    if frame.empty:
        raise ConfigError(f'run "{label}" has no finished round yet.')
    total = sum(frame[column].to_numpy(np.float64) for column in axis.columns) * axis.scale
    places = np.asarray(total, dtype=np.float64)
    if not np.isfinite(places).any():
        raise ConfigError(f'run "{label}" {axis.missing}.', key=f"--x {x}")
    return places


def _one_run(frame: pd.DataFrame, places: Floats) -> list[_Panel]:
    panels = []
    for metric in ("loss", "accuracy"):
        accuracy = metric == "accuracy"
        found = {part: _measured(frame, f"{part}_{metric}", places) for part in _PARTS}
        measured = {part: points for part, points in found.items() if points is not None}
        lines = []
        for part, points in measured.items():
            colour, style, marker = _PARTS[part]
            alone, last = len(measured) == 1, part == list(measured)[-1]
            style = "-" if alone else style
            text = _LABELS.get(part, part)
            lines.append(_Line(*points, text, colour, style, marker, ranked=accuracy and last))
        if lines:
            label = f"{lines[0].label} {metric}" if len(lines) == 1 else metric
            panels.append(_Panel(label, tuple(lines), accuracy))
    if not panels:
        raise ConfigError("the run has neither a loss nor an accuracy to plot.")
    return panels


def _many_runs(runs: Sequence[Run], places: Sequence[Floats]) -> list[_Panel]:
    """Return one panel a metric; only what all runs measured shares an axis."""
    accuracies = _common(runs, places, "test_accuracy")
    labels = [label for label, _ in runs]
    if accuracies:
        labels = [
            f"{label} (best {values.max():.3f})"
            for label, (_, values) in zip(labels, accuracies, strict=True)
        ]
    panels: list[_Panel] = []
    for name in ("test_loss", "train_loss", "test_accuracy"):
        points = _common(runs, places, name)
        if not points or (name == "train_loss" and panels):
            continue
        accuracy = name == "test_accuracy"
        # Among many runs the marks would be clutter; the legend gives their values.
        ranked = accuracy and len(runs) <= len(COLOURS)
        lines = (
            _Line(*pair, label, *_look(index, len(runs)), ranked=ranked)
            for index, (label, pair) in enumerate(zip(labels, points, strict=True))
        )
        panels.append(_Panel(name.replace("_", " "), tuple(lines), accuracy))
    if not panels:
        raise ConfigError(
            "the runs have neither test loss, train loss nor test accuracy in common; plot them "
            "one by one."
        )
    return panels


def _metric(name: str, runs: Sequence[Run], places: Sequence[Floats]) -> _Panel:
    """Return the panel of one column of `rounds.csv`."""
    known = {column.name: column for column in ROUND_COLUMNS if column.kind == "real"}
    if name not in known:
        raise unknown_name("--metric", name, known)
    lines = []
    for index, ((label, frame), place) in enumerate(zip(runs, places, strict=True)):
        points = _measured(frame, name, place)
        if points is None:
            raise ConfigError(f'run "{label}" did not measure it.', key=f"--metric {name}")
        lines.append(_Line(*points, label, *_look(index, len(runs)), ranked=len(runs) == 1))
    column = known[name]
    accuracy = column.unit == "fraction" and column.better == "higher"
    unit = f" [{column.unit}]" if column.unit == "s" else ""
    return _Panel(name.replace("_", " ") + unit, tuple(lines), accuracy)


def _common(
    runs: Sequence[Run], places: Sequence[Floats], column: str
) -> list[tuple[Floats, Floats]]:
    """Return the measured points of every run, or none at all if one run has none."""
    points = [
        _measured(frame, column, place) for (_, frame), place in zip(runs, places, strict=True)
    ]
    return [pair for pair in points if pair is not None] if None not in points else []


def _measured(frame: pd.DataFrame, column: str, places: Floats) -> tuple[Floats, Floats] | None:
    """Return the points that were measured and are finite, None if there are none."""
    if column not in frame:
        return None
    values = frame[column].to_numpy(np.float64)
    known = np.isfinite(values) & np.isfinite(places)
    return (places[known], values[known]) if known.any() else None


def _look(index: int, runs: int) -> tuple[str, str, str]:
    """Return colour, line style and marker of the run at `index` among so many `runs`."""
    turn = index // len(COLOURS)
    # Curves that coincide stay visible: each is dashed otherwise than the one drawn before it.
    dash = DASHES[(turn if runs > len(COLOURS) else index) % len(DASHES)]
    return COLOURS[index % len(COLOURS)], dash, MARKERS[(index + turn) % len(MARKERS)]


def _draw(axes: Axes, panel: _Panel) -> list[Line2D]:
    """Draw a panel and return the handles of its lines, in order."""
    handles = []
    crowded = len(panel.lines) > len(COLOURS)
    for line in panel.lines:
        few = len(line.x) <= FEW
        handles += axes.plot(
            line.x,
            line.y,
            color=line.colour,
            linestyle=line.style,
            linewidth=1.2,
            label=line.label,
            marker=line.marker if few or crowded else "",
            markersize=3.0,
            markevery=1 if few else max(1, len(line.x) // 8),
            solid_joinstyle="round",
        )
    axes.set_ylabel(panel.label, fontsize=TEXT)
    tidy(axes)
    values = np.concatenate([line.y for line in panel.lines])
    if panel.accuracy:
        _frame_accuracy(axes, values)
        _mark_best(axes, panel)
    elif values.min() > 0 and values.max() / values.min() > _DECADES:
        axes.set_yscale("log")
        axes.minorticks_off()
    return handles


def _frame_accuracy(axes: Axes, values: Floats) -> None:
    """Leave room above the curves for the best value, and no tick above 1."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.02)
    bottom, top = max(low - 0.06 * span, -0.02), high + 0.16 * span
    axes.set_ylim(bottom, top)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom, top)
    axes.set_yticks([tick for tick in ticks if bottom <= tick <= min(top, 1 + 1e-9)])


def _mark_best(axes: Axes, panel: _Panel) -> None:
    """Ring each line's best accuracy; the value is written where there is one line only."""
    ranked = [line for line in panel.lines if line.ranked]
    for line in ranked:
        best = int(line.y.argmax())
        place, value = float(line.x[best]), float(line.y[best])
        axes.plot(
            [place],
            [value],
            linestyle="",
            marker="o",
            markersize=4.5,
            markerfacecolor="white",
            markeredgecolor=line.colour,
            markeredgewidth=1.0,
            label="_best",
            zorder=5,
        )
        if len(ranked) > 1:
            continue
        left, right = axes.get_xlim()
        where = (place - left) / (right - left)
        axes.annotate(
            f"best {value:.3f}",
            (place, value),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right" if where > 0.8 else "left" if where < 0.2 else "center",
            va="bottom",
            fontsize=SMALL,
            color="#404040",
        )


def _add_legend(figure: Figure, panels: Sequence[_Panel], drawn: Sequence[list[Line2D]]) -> None:
    """Put one legend for all panels below them, where it covers no data."""
    handles: list[Line2D] = []
    texts: list[str] = []
    for panel, lines in zip(panels, drawn, strict=True):
        # Further panels repeat the first one's labels; two runs may share theirs within one.
        known = set(texts)
        for line, handle in zip(panel.lines, lines, strict=True):
            if line.label not in known:
                handles.append(handle)
                texts.append(line.label)
    # A character of 7 point text is about 0.058 inches wide, a handle with its gaps 0.5.
    widest = max(len(text) for text in texts) * 0.058 + 0.5
    columns = max(1, min(len(texts), int(WIDTH / widest)))
    rows = -(-len(texts) // columns)
    figure.set_figheight(figure.get_figheight() + max(0, rows - 1) * _LEGEND_ROW)
    legend = figure.legend(
        handles,
        texts,
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a run's name is a dollar sign
