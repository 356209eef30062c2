"""What a convergence figure shows, as data: panels of lines, with bands, references and targets.

Nothing is drawn here: `plots.py` draws panels, and `panel_data` is the table beside a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.groups import Group
from fedopt.analysis.intervals import Curve, mean_curve, mean_interval, running_mean
from fedopt.analysis.style import COLOURS, DASHES, MARKERS
from fedopt.analysis.targets import Target, crossing, is_higher_better
from fedopt.errors import ConfigError, unknown_name

Floats = npt.NDArray[np.float64]
LineStyle = str | tuple[float, tuple[float, ...]]


@dataclass(frozen=True)
class XAxis:
    """What runs are drawn against.

    Args:
        label: of the axis.
        columns: of `rounds.csv`, whose sum is drawn.
        scale: from their unit to that of the label.
        missing: why a run may not have it, and what to do.
        unit: behind a number, in the legend.
    """

    label: str
    columns: tuple[str, ...]
    scale: float
    missing: str
    unit: str


X_AXES = {
    "rounds": XAxis("communication rounds", ("round",), 1.0, "has no rounds", "rounds"),
    "bytes": XAxis(
        "MB sent up and down",
        ("bytes_up", "bytes_down"),
        1e-6,
        "did not count its bytes; use --x rounds",
        "MB",
    ),
    "seconds": XAxis(
        "simulated seconds",
        ("sim_seconds",),
        1.0,
        "has no virtual clock (it ran without a system profile); use --x wall for real time",
        "s",
    ),
    "wall": XAxis(
        "wall-clock seconds", ("wall_seconds",), 1.0, "did not measure time; use --x rounds", "s"
    ),
    "steps": XAxis(
        "local steps, summed over clients",
        ("client_steps",),
        1.0,
        "did not count its steps; use --x rounds",
        "steps",
    ),
}

BUNDLES: dict[str, tuple[tuple[str, ...], ...]] = {
    "loss": (("test_loss",), ("train_loss",)),
    "accuracy": (("test_accuracy",), ("validation_accuracy",)),
    "calibration": (("test_ece", "test_mce", "test_brier"),),
    "imbalance": (("test_balanced_accuracy", "test_auroc"),),
    "distribution": (
        (
            "validation_accuracy_mean",
            "validation_accuracy_worst10",
            "validation_accuracy_variance",
        ),
        ("unseen_accuracy_mean", "unseen_accuracy_worst10", "unseen_accuracy_variance"),
    ),
}
"""Word -> alternatives of columns, of which the first that all runs measured is drawn."""

# What a single run's lines measure: colour, line style, marker.
_PARTS: dict[str, tuple[str, LineStyle, str]] = {
    "train": ("#56B4E9", (0.0, (3.0, 1.0)), "o"),
    "validation": ("#009E73", (0.0, (1.0, 1.0)), "s"),
    "test": ("#0072B2", "-", "^"),
    "swa_test": ("#D55E00", "-", "v"),
}
_LABELS = {"swa_test": "test, averaged model"}
_REFERENCE_STYLES: tuple[LineStyle, ...] = ((0.0, (4.0, 1.5, 1.0, 1.5)), (0.0, (1.0, 1.2)))
_REFERENCE_COLOUR = "#4D4D4D"


@dataclass(frozen=True)
class Look:
    """How a line is drawn."""

    colour: str
    style: LineStyle
    marker: str


@dataclass(frozen=True)
class Line:
    """A curve and how to draw it.

    Args:
        x: places, `[T]`; empty for a reference, which is a horizontal line.
        y: values, `[T]`; a reference's one value.
        label: in the legend.
        look: colour, style, marker.
        n: runs that it is the mean of.
        low: lower ends of its band, `[T]`; None without one.
        high: upper ends of its band, `[T]`.
        ranked: whether its best value is marked.
        reached: where the runs' curves cross the target, of those that do.
        is_reference: whether it is a horizontal line.
        note: what the legend says besides, in the panel of the target.
    """

    x: Floats
    y: Floats
    label: str
    look: Look
    n: int = 1
    low: Floats | None = None
    high: Floats | None = None
    ranked: bool = False
    reached: tuple[float, ...] = ()
    is_reference: bool = False
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        metric: the column, or the word, that is drawn.
        label: of the vertical axis.
        lines: in the order of the legend.
        is_share: whether values lie in [0, 1] and more is better.
        target: value to be reached, or None.
        title: a line above it; empty: none.
    """

    metric: str
    label: str
    lines: tuple[Line, ...]
    is_share: bool
    target: float | None = None
    title: str = ""


class Settings(NamedTuple):
    """What is asked of the curves.

    Args:
        x: one of `X_AXES`.
        smooth: window of a running mean, odd; 1: as measured.
        target: a value to be reached, or None.
    """

    x: str = "rounds"
    smooth: int = 1
    target: Target | None = None


def panels_of(
    groups: Sequence[Group], settings: Settings, metrics: Sequence[str] = ()
) -> list[Panel]:
    """Return the panels of a figure.

    Args:
        groups: at least one.
        settings: what is asked of the curves.
        metrics: columns of `rounds.csv` or words of `BUNDLES`, a panel a column; none: loss and
            accuracy.

    Raises:
        ConfigError: no run, a run without rounds, an unknown axis or metric, or one that was not
            measured.
    """
    if settings.x not in X_AXES:
        raise unknown_name("--x", settings.x, X_AXES)
    if settings.smooth < 1 or settings.smooth % 2 == 0:
        raise ConfigError(f"got {settings.smooth}; use an odd number >= 1", key="--smooth")
    if not groups:
        raise ConfigError("there is no run to plot.")
    target = settings.target
    if metrics:
        names = expanded(metrics, groups)
        if target is not None and target.metric not in names:
            names.append(target.metric)
        return [column_panel(name, groups, settings) for name in names]
    if len(groups) == 1 and groups[0].n == 1:
        panels = _one_run(groups[0], settings)
    else:
        panels = _many_runs(groups, settings)
    if target is not None and target.metric not in {panel.metric for panel in panels}:
        panels.append(column_panel(target.metric, groups, settings))
    return panels


def expanded(metrics: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Return columns, each once, where words of `BUNDLES` stand for several.

    Raises:
        ConfigError: a word is neither a column of real numbers nor of `BUNDLES`.
    """
    known = [column.name for column in ROUND_COLUMNS if column.kind == "real"]
    names: list[str] = []
    for word in metrics:
        if word in known:
            names.append(word)
        elif word in BUNDLES:
            choices = BUNDLES[word]
            fitting = [names for names in choices if _all_measured(groups, names)]
            names += fitting[0] if fitting else choices[0]
        else:
            raise unknown_name("--metric", word, [*known, *BUNDLES])
    return list(dict.fromkeys(names))


def panel_data(panels: Sequence[Panel], x: str) -> pd.DataFrame:
    """Return what panels show as a table, a row a point.

    Args:
        panels: of a figure.
        x: name of the horizontal axis, as the column is called.

    Returns:
        Columns `metric`, `series`, `kind` (`curve`, `reference`, `target` or `reached`: where a
        run's curve crosses the target), `runs`, the horizontal axis, `value`, `low`, `high` (the
        band; empty without one).
    """
    rows: list[tuple[object, ...]] = []
    for panel in panels:
        for line in panel.lines:
            kind = "reference" if line.is_reference else "curve"
            places = [None] if line.is_reference else line.x.tolist()
            count = len(line.y)
            lows = [None] * count if line.low is None else line.low.tolist()
            highs = [None] * count if line.high is None else line.high.tolist()
            rows += [
                (panel.metric, line.label, kind, line.n, place, value, low, high)
                for place, value, low, high in zip(
                    places, line.y.tolist(), lows, highs, strict=True
                )
            ]
            rows += [
                (panel.metric, line.label, "reached", 1, place, panel.target, None, None)
                for place in line.reached
            ]
        if panel.target is not None:
            rows.append((panel.metric, "target", "target", 0, None, panel.target, None, None))
    columns = ["metric", "series", "kind", "runs", x, "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def places_of(name: str, frame: pd.DataFrame, x: str) -> Floats:
    """Return where each of a run's rounds lies on the horizontal axis, `[rounds]`.

    Raises:
        ConfigError: the run has no round, or did not measure it.
    """
    axis = X_AXES[x]
    if frame.empty:
        raise ConfigError(f'run "{name}" has no finished round yet.')
    total = sum(frame[column].to_numpy(np.float64) for column in axis.columns) * axis.scale
    places = np.asarray(total, dtype=np.float64)
    if not np.isfinite(places).any():
        raise ConfigError(f'run "{name}" {axis.missing}.', key=f"--x {x}")
    return places


def look_of(index: int, count: int) -> Look:
    """Return the look of the curve at `index` among `count`."""
    turn = index // len(COLOURS)
    # Curves that coincide stay visible: each is dashed otherwise than the one drawn before it.
    dash = DASHES[(turn if count > len(COLOURS) else index) % len(DASHES)]
    return Look(COLOURS[index % len(COLOURS)], dash, MARKERS[(index + turn) % len(MARKERS)])


def _one_run(group: Group, settings: Settings) -> list[Panel]:
    """Return train, validation and test beside each other."""
    run = group.runs[0]
    frame, places = run.history, places_of(run.name, run.history, settings.x)
    panels = []
    for metric in ("loss", "accuracy"):
        is_share = metric == "accuracy"
        found = {part: _measured(frame, f"{part}_{metric}", places) for part in _PARTS}
        measured = {part: points for part, points in found.items() if points is not None}
        lines, columns = [], []
        for part, (x, y) in measured.items():
            colour, style, marker = _PARTS[part]
            alone, last = len(measured) == 1, part == list(measured)[-1]
            look = Look(colour, "-" if alone else style, marker)
            reached = _reached_places([(x, y)], f"{part}_{metric}", settings.target)
            text = _LABELS.get(part, part)
            note = _told(reached, 1, f"{part}_{metric}", settings)
            y = running_mean(y, settings.smooth)
            ranked = is_share and last and settings.smooth == 1
            lines.append(Line(x, y, text, look, ranked=ranked, reached=reached, note=note))
            columns.append(f"{part}_{metric}")
        if lines:
            label = f"{lines[0].label} {metric}" if len(lines) == 1 else metric
            target = settings.target
            name = columns[0] if len(columns) == 1 else metric
            value = None
            if target is not None and target.metric in columns:
                name, value = target.metric, target.value
            panels.append(Panel(name, label, tuple(lines), is_share, value))
    if not panels:
        raise ConfigError("the run has neither a loss nor an accuracy to plot.")
    return panels


def _many_runs(groups: Sequence[Group], settings: Settings) -> list[Panel]:
    """Return one panel a metric; only what all runs measured shares an axis."""
    panels: list[Panel] = []
    shows_accuracy = _all_measured(groups, ("test_accuracy",))
    for name in ("test_loss", "train_loss", "test_accuracy"):
        if not _all_measured(groups, (name,)) or (name == "train_loss" and panels):
            continue
        panels.append(column_panel(name, groups, settings, says_best=shows_accuracy))
    if not panels:
        raise ConfigError(
            "the runs have neither test loss, train loss nor test accuracy in common; plot them "
            "one by one."
        )
    return panels


def column_panel(
    name: str,
    groups: Sequence[Group],
    settings: Settings,
    says_best: bool = False,
    looks: Mapping[str, Look] | None = None,
) -> Panel:
    """Return the panel of one column of `rounds.csv`.

    Args:
        name: of the column.
        groups: at least one.
        settings: what is asked of the curves.
        says_best: whether labels say the best accuracy of runs that are given by name.
        looks: label of a group -> its look; None: by its place.

    Raises:
        ConfigError: there is no such column, or a run did not measure it.
    """
    known = {column.name: column for column in ROUND_COLUMNS if column.kind == "real"}
    if name not in known:
        raise unknown_name("--metric", name, known)
    references = [group for group in groups if group.is_reference]
    if len(references) == len(groups):  # nothing would be left to compare them with
        references = []
    curves = [group for group in groups if group not in references]
    lines = []
    for index, group in enumerate(curves):
        look = look_of(index, len(curves)) if looks is None else looks[group.label]
        line = _line(group, name, settings, look)
        # Among many runs the marks would be clutter; the legend gives their values.
        is_few = len(groups) == 1 or (says_best and len(groups) <= len(COLOURS))
        ranked = is_few and group.n == 1 and settings.smooth == 1
        label = line.label
        if says_best and not group.is_counted:
            label += f" (best {_best_accuracy(group):.3f})"
        lines.append(replace(line, label=label, ranked=ranked))
    lines += [_reference(group, name, turn) for turn, group in enumerate(references)]
    column = known[name]
    is_share = column.unit == "fraction" and column.better == "higher"
    unit = f" [{column.unit}]" if column.unit == "s" else ""
    target = settings.target
    value = target.value if target is not None and target.metric == name else None
    return Panel(name, name.replace("_", " ") + unit, tuple(lines), is_share, value)


def _line(group: Group, name: str, settings: Settings, look: Look) -> Line:
    """Return the mean of a group's curves with its band."""
    curves: list[Curve] = []
    for run in group.runs:
        points = _measured(run.history, name, places_of(run.name, run.history, settings.x))
        if points is None:
            raise ConfigError(f'run "{run.name}" did not measure it.', key=f"--metric {name}")
        curves.append(points)
    reached = _reached_places(curves, name, settings.target)
    band = mean_curve([(x, running_mean(y, settings.smooth)) for x, y in curves])
    label = f"{group.label} (n = {group.n})" if group.is_counted else group.label
    note = _told(reached, group.n, name, settings)
    ends = (band.low, band.high)
    return Line(band.x, band.mean, label, look, band.n, *ends, reached=reached, note=note)


def _reference(group: Group, name: str, turn: int) -> Line:
    """Return the value of a group's runs after their last round, as a horizontal line."""
    if group.runs[0].strategy == "local_only" and not name.startswith(("validation", "train")):
        raise ConfigError(
            f'"{group.label}" has no common model, so that its {name} is that of the first model; '
            "draw what is measured on clients' own models, such as --metric validation_accuracy, "
            "or leave it out",
            key=f"--metric {name}",
        )
    finals, rounds = [], set()
    for run in group.runs:
        known = run.history[["round", name]].dropna()
        if known.empty:
            raise ConfigError(f'run "{run.name}" did not measure it.', key=f"--metric {name}")
        finals.append(float(known[name].iloc[-1]))
        rounds.add(int(known["round"].iloc[-1]))
    found = mean_interval(finals)
    after = f"after {max(rounds)} rounds"
    label = f"{group.label}, {after} (n = {group.n})"
    look = Look(_REFERENCE_COLOUR, _REFERENCE_STYLES[turn % len(_REFERENCE_STYLES)], "")
    ends = [None if end is None else np.array([end]) for end in (found.low, found.high)]
    empty = np.array([], dtype=np.float64)
    return Line(
        empty, np.array([found.mean]), label, look, group.n, ends[0], ends[1], is_reference=True
    )


def _reached_places(curves: Sequence[Curve], name: str, target: Target | None) -> tuple[float, ...]:
    """Return where curves cross the target, of those that do."""
    if target is None or target.metric != name:
        return ()
    is_higher = is_higher_better(name, "--target")
    found = []
    for x, y in curves:
        place = crossing(y.tolist(), target.value, is_higher)
        if place is not None:
            index, fraction = place
            before = x[index - 1] if index else x[0]
            found.append(float(before + fraction * (x[index] - before)))
    return tuple(found)


def _told(reached: Sequence[float], n: int, name: str, settings: Settings) -> str:
    """Return what the legend says of the target."""
    target = settings.target
    if target is None or target.metric != name:
        return ""
    if not reached:
        return f", {target.value:g} not reached"
    if len(reached) < n:
        return f", {target.value:g} reached by {len(reached)} of {n}"
    place = _place_text(float(np.mean(reached)))
    return f", {target.value:g} at {place} {X_AXES[settings.x].unit}"


def _place_text(value: float) -> str:
    """Return a place on the horizontal axis to three digits, or whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _best_accuracy(group: Group) -> float:
    return max(float(frame["test_accuracy"].max()) for frame in group.histories)


def _all_measured(groups: Sequence[Group], names: Sequence[str]) -> bool:
    """Return whether every run measured all columns at least once."""
    return all(
        name in frame and np.isfinite(frame[name].to_numpy(np.float64)).any()
        for group in groups
        for frame in group.histories
        for name in names
    )


def _measured(frame: pd.DataFrame, column: str, places: Floats) -> Curve | None:
    """Return the points that were measured and are finite, None if there are none."""
    if column not in frame:
        return None
    values = frame[column].to_numpy(np.float64)
    known = np.isfinite(values) & np.isfinite(places)
    return (places[known], values[known]) if known.any() else None
