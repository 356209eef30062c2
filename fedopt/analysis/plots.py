"""Convergence figures: loss and accuracy against rounds, bytes, seconds or steps.

Figures are built with matplotlib's object interface: no pyplot, no global state, no window. What
they show is decided in `curves.py`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator

from fedopt.analysis.curves import X_AXES, Line, Panel, Settings, panel_data, panels_of
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.style import COLOURS as _COLOURS
from fedopt.analysis.style import DPI, FEW, HEIGHT, SMALL, TEXT, WIDTH, WIDTHS, tidy
from fedopt.analysis.targets import Target
from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError, RunError
from fedopt.layout import laid_out

Run = tuple[str, pd.DataFrame]

_LEGEND_ROW = 0.17  # inches
_NARROW = 5.0  # inches: below, panels stand above each other
_NARROW_HEIGHT = 2.1
_DECADES = 100.0  # ratio of largest to smallest loss from which on the axis is logarithmic
_FORMATS = ("png", "svg", "pdf")
_TARGET_COLOUR = "#404040"
_OPACITY = 0.16  # of a band
_BANDS = 3  # more of them are fainter


@dataclass(frozen=True)
class Plot:
    """A figure and the numbers in it.

    Args:
        figure: the figure.
        data: what it shows, a row a point (`fedopt.analysis.curves.panel_data`).
    """

    figure: Figure
    data: pd.DataFrame

    def save(self, path: str | Path, with_data: bool = True) -> list[Path]:
        """Write the figure, and its numbers as CSV beside it; return the files.

        Raises:
            ConfigError: the path ends in neither .png, .svg nor .pdf.
            RunError: a file cannot be written.
        """
        files = [save_figure(self.figure, path)]
        if with_data:
            table = Path(path).with_suffix(".csv")
            try:
                write_atomically(table, self.data.to_csv(index=False).encode())
            except OSError as error:
                raise RunError(f"cannot write {table}: {error.strerror or error}.") from error
            files.append(table)
        return files


def convergence_figure(
    runs: Sequence[Run],
    x: str = "rounds",
    title: str | None = None,
    metrics: Sequence[str] = (),
    **options: Any,
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
        metrics: real columns of `rounds.csv` to draw instead, a panel each, two in a row; or
            `loss`, `accuracy`, `calibration`, `distribution`, which stand for several.
        options: as of `convergence_plot`.

    Returns:
        A figure of 7.0 inches by 2.8 or more (many runs need a taller legend), 200 dpi.

    Raises:
        ConfigError: no run, a run without rounds, an unknown `x` or metric, or one that was not
            measured.
    """
    groups = [
        Group(label, (StoredRun(label, frame, {}, None),), is_counted=False)
        for label, frame in runs
    ]
    return convergence_plot(groups, x, title, metrics, **options).figure


def convergence_plot(
    groups: Sequence[Group],
    x: str = "rounds",
    title: str | None = None,
    metrics: Sequence[str] = (),
    *,
    target: Target | None = None,
    smooth: int = 1,
    log: str = "auto",
    width: float | str = WIDTH,
) -> Plot:
    """Draw groups of runs over each other, each as its mean over the seeds with a 95 % band.

    Args:
        groups: from `fedopt.analysis.groups.group_runs`, at least one.
        x: as in `convergence_figure`.
        title: a line above the panels.
        metrics: as in `convergence_figure`.
        target: a value of a metric, drawn as a line; where a curve crosses it is marked.
        smooth: window of a centred running mean over evaluations, odd; 1: none. The figure says it.
        log: axes that are logarithmic: `"x"`, `"y"`, `"xy"`, `"none"`, or `"auto"`: that of a
            loss that spans two decades.
        width: inches, or `"column"` (3.3), `"text"` (7.0).

    Raises:
        ConfigError: as in `convergence_figure`; or a value on a logarithmic axis is not positive.
    """
    panels = panels_of(groups, Settings(x, smooth, target), metrics)
    return panel_plot(panels, x, title, notes=_notes(panels, smooth), log=log, width=width)


def panel_plot(
    panels: Sequence[Panel],
    x: str = "rounds",
    title: str | None = None,
    *,
    notes: str = "",
    log: str = "auto",
    width: float | str = WIDTH,
) -> Plot:
    """Draw panels beside each other, with one legend below them.

    Args:
        panels: from `fedopt.analysis.curves`, at least one.
        x: what they are drawn against.
        title: a line above the panels.
        notes: a line below them.
        log: as in `convergence_plot`.
        width: as in `convergence_plot`.

    Raises:
        ConfigError: the width or the axis is not known, or a value on a logarithmic axis is not
            positive.
    """
    inches = figure_width(width)
    if log not in ("auto", "none", "x", "y", "xy"):
        raise ConfigError(f'got "{log}"; use x, y, xy, none or auto', key="--log")
    _check_log(panels, x, log)
    across = 1 if inches < _NARROW else min(2, len(panels))
    down = -(-len(panels) // across)
    height = HEIGHT if inches >= _NARROW else _NARROW_HEIGHT
    figure = Figure(
        figsize=(inches, height * down), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07)
    )
    drawn = []
    for index, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(down, across, index)
        drawn.append(_draw(axes, panel, log))
        axes.set_xlabel(X_AXES[x].label, fontsize=TEXT)
        if ("x" in log and log != "xy") or log == "xy":
            axes.set_xscale("log")
        elif x == "rounds":
            steps = [1, 2, 5, 10]
            locator = MaxNLocator(nbins=7, steps=steps, integer=True, min_n_ticks=1)
            axes.xaxis.set_major_locator(locator)
        elif x == "steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    # Axes' labels say it all where there is one line, unless it has a number of seeds to tell.
    is_told = any(len(panel.lines) > 1 or panel.lines[0].n > 1 for panel in panels)
    if is_told or any(panel.target is not None for panel in panels):
        _add_legend(figure, panels, drawn, notes)
    elif notes:
        figure.supxlabel(notes, fontsize=SMALL, color=_TARGET_COLOUR)
    if title:
        figure.suptitle(title, fontsize=TEXT + 1).set_parse_math(False)
    return Plot(figure, panel_data(panels, x))


def figure_width(width: float | str) -> float:
    """Return the inches of a width.

    Raises:
        ConfigError: it is neither a word of `WIDTHS` nor a number of inches in [2, 20].
    """
    inches = WIDTHS.get(str(width))
    if inches is not None:
        return inches
    try:
        inches = float(width)
    except ValueError:
        inches = 0.0
    if not 2 <= inches <= 20:
        raise ConfigError(
            f'got "{width}"; use column ({WIDTHS["column"]} inches), text ({WIDTHS["text"]} '
            "inches) or a number of inches in 2..20",
            key="--width",
        )
    return inches


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
    once = laid_out(figure) if suffix == "png" else nullcontext()
    with once, matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fedopt"}):
        figure.savefig(buffer, format=suffix, dpi=DPI, metadata=stamp, **smaller)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def _check_log(panels: Sequence[Panel], x: str, log: str) -> None:
    """Refuse logarithmic axes for what has no logarithm.

    Raises:
        ConfigError: naming the curve, the value and what to do.
    """
    for panel in panels:
        for line in panel.lines:
            if log in ("x", "xy") and len(line.x) and line.x.min() <= 0:
                raise ConfigError(
                    f'"{line.label}" has {line.x.min():g} {X_AXES[x].label}, which a logarithmic '
                    "axis cannot show; use --log y or none, or another --x such as rounds",
                    key=f"--log {log}",
                )
            if log in ("y", "xy") and line.y.min() <= 0:
                raise ConfigError(
                    f'"{line.label}" has a {panel.label} of {line.y.min():g}, which a logarithmic '
                    "axis cannot show; use --log x or none, or draw other metrics (--metric loss)",
                    key=f"--log {log}",
                )


def _draw(axes: Axes, panel: Panel, log: str) -> list[Artist]:
    """Draw a panel and return the handles of its lines, in order."""
    curves = [line for line in panel.lines if not line.is_reference]
    crowded = len(curves) > len(_COLOURS)
    opacity = _OPACITY if len(curves) <= _BANDS else _OPACITY / 2
    bands = _bands(curves, panel.is_share)
    for line, low, high in bands:
        axes.fill_between(line.x, low, high, color=line.look.colour, alpha=opacity, linewidth=0)
    handles = [
        _draw_reference(axes, line)
        if line.is_reference
        else _draw_curve(axes, line, crowded, index / len(panel.lines))
        for index, line in enumerate(panel.lines)
    ]
    axes.set_ylabel(panel.label, fontsize=TEXT)
    if panel.title:
        axes.set_title(panel.title, fontsize=TEXT).set_parse_math(False)
    tidy(axes)
    values = np.concatenate([line.y for line in panel.lines])
    if panel.target is not None:
        values = np.append(values, panel.target)
    is_wide = log == "auto" and not panel.is_share and values.min() > 0
    if log in ("y", "xy") or (is_wide and values.max() / values.min() > _DECADES):
        axes.set_yscale("log", nonpositive="clip")
        axes.minorticks_off()
        axes.set_ylim(values.min() / 1.2, values.max() * 1.2)
    elif panel.is_share:
        has_best = any(line.ranked for line in panel.lines)
        ends = [end for _, *both in bands for end in both]
        _frame_share(axes, np.concatenate([values, *ends]), has_best)
    if panel.is_share and log not in ("y", "xy"):
        _mark_best(axes, panel)
    if panel.target is not None:
        _draw_target(axes, panel)
    return handles


def _bands(curves: Sequence[Line], is_share: bool) -> list[tuple[Line, Any, Any]]:
    """Return the curves that have a band with its ends, cut to what a share or a loss can be."""
    least = 0.0 if is_share or all((line.y >= 0).all() for line in curves) else -np.inf
    most = 1.0 if is_share else np.inf
    return [
        (line, np.clip(line.low, least, most), np.clip(line.high, least, most))
        for line in curves
        if line.low is not None and line.high is not None
    ]


def _draw_curve(axes: Axes, line: Line, crowded: bool, share: float) -> Artist:
    """Draw a curve; its markers begin at a share of their distance, so that none hide others."""
    few = len(line.x) <= FEW
    is_mean = line.n > 1
    apart = max(1, len(line.x) // 8)
    return axes.plot(
        line.x,
        line.y,
        color=line.look.colour,
        linestyle=line.look.style,
        linewidth=1.2,
        label=line.label,
        marker=line.look.marker if few or crowded or is_mean else "",
        markersize=3.0,
        markevery=1 if few else (int(share * apart), apart),
        solid_joinstyle="round",
    )[0]


def _draw_reference(axes: Axes, line: Line) -> Artist:
    if line.low is not None and line.high is not None:
        axes.axhspan(
            float(line.low[0]), float(line.high[0]), color=line.look.colour, alpha=0.1, linewidth=0
        )
    return axes.axhline(
        float(line.y[0]),
        color=line.look.colour,
        linestyle=line.look.style,
        linewidth=1.0,
        label=line.label,
    )


def _draw_target(axes: Axes, panel: Panel) -> None:
    """Draw the target, and where curves cross it: a mark a run, a filled one at the mean."""
    value = panel.target
    assert value is not None
    axes.axhline(value, color=_TARGET_COLOUR, linewidth=0.7, linestyle=(0, (2, 2)), label="_target")
    for line in panel.lines:
        colour = line.look.colour
        if line.n > 1:
            axes.plot(
                line.reached,
                [value] * len(line.reached),
                linestyle="",
                marker="|",
                markersize=6,
                color=colour,
                label="_reached",
            )
        if len(line.reached) == line.n:
            mean = float(np.mean(line.reached))
            axes.plot(
                [mean],
                [value],
                linestyle="",
                marker=line.look.marker,
                markersize=4.5,
                color=colour,
                markeredgecolor="white",
                markeredgewidth=0.5,
                label="_mean_reached",
                zorder=6,
            )
            bottom = axes.get_ylim()[0]
            axes.vlines(mean, bottom, value, color=colour, linewidth=0.7, linestyle=(0, (1, 2)))
            axes.set_ylim(bottom=bottom)


def _notes(panels: Sequence[Panel], smooth: int) -> str:
    """Return what has to be said below a figure."""
    notes = []
    if any(line.low is not None for panel in panels for line in panel.lines):
        notes.append("mean over n seeds, band: 95 % t interval")
    if smooth > 1:
        notes.append(f"curves smoothed: running mean over {smooth} evaluations")
    return "; ".join(notes)


def _frame_share(axes: Axes, values: Any, has_best: bool) -> None:
    """Leave room above the curves, more for the best value, and no tick above 1."""
    low, high = float(values.min()), float(values.max())
    span = max(high - low, 0.02)
    bottom, top = max(low - 0.06 * span, -0.02), high + (0.16 if has_best else 0.06) * span
    axes.set_ylim(bottom, top)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(bottom, top)
    axes.set_yticks([tick for tick in ticks if bottom <= tick <= min(top, 1 + 1e-9)])


def _mark_best(axes: Axes, panel: Panel) -> None:
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
            markeredgecolor=line.look.colour,
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


def _add_legend(
    figure: Figure, panels: Sequence[Panel], drawn: Sequence[list[Artist]], notes: str
) -> None:
    """Put one legend for all panels below them, where it covers no data."""
    handles: dict[tuple[str, int], Artist] = {}
    notes_of: dict[tuple[str, int], str] = {}
    for panel, lines in zip(panels, drawn, strict=True):
        # Further panels repeat the first one's labels; two runs may share theirs within one.
        turns: dict[str, int] = {}
        for line, handle in zip(panel.lines, lines, strict=True):
            turn = turns[line.label] = turns.get(line.label, 0) + 1
            handles.setdefault((line.label, turn), handle)
            if line.note:
                notes_of[line.label, turn] = line.note
    texts = [label + notes_of.get((label, turn), "") for label, turn in handles]
    # A character of 7 point text is about 0.05 inches wide, a handle with its gaps 0.5.
    widest = max(len(text) for text in texts) * 0.05 + 0.5
    width = figure.get_figwidth()
    columns = max(1, min(len(texts), int(width / widest)))
    rows = -(-len(texts) // columns)
    lines_of_notes = 1 if notes else 0
    figure.set_figheight(figure.get_figheight() + max(0, rows - 1 + lines_of_notes) * _LEGEND_ROW)
    legend = figure.legend(
        list(handles.values()),
        texts,
        loc="outside lower center",
        ncols=columns,
        fontsize=SMALL,
        frameon=False,
        handlelength=2.2,
        columnspacing=1.4,
        borderaxespad=0.2,
        title=notes or None,
        title_fontproperties={"size": SMALL},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a "$" in a run's name is a dollar sign
