"""Figures of a report: a chart for each horizontal axis, its legend, and the table behind it.

Which figures a page has is decided in `run_page.py` and `comparison.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from fedopt.analysis.report.svg import Floats, Line, line_chart
from fedopt.analysis.units import human_metric

MOST_ROWS = 150
"""Rows of a table behind a chart; of longer ones evenly spaced ones are shown, and it is said."""


@dataclass(frozen=True)
class Axis:
    """What rounds can be laid out by.

    Args:
        key: short name.
        label: for people, with the unit.
        columns: of `rounds.csv`, whose sum it is.
        factor: of that sum.
    """

    key: str
    label: str
    columns: tuple[str, ...]
    factor: float = 1.0

    def places(self, history: pd.DataFrame) -> Floats:
        """Return where each round lies, `[rounds]`; NaN where it is not known."""
        total = sum(history[column].to_numpy(np.float64) for column in self.columns)
        return np.asarray(total, dtype=np.float64) * self.factor


AXES = (
    Axis("rounds", "communication rounds", ("round",)),
    Axis("bytes", "MB sent up and down", ("bytes_up", "bytes_down"), 1e-6),
    Axis("seconds", "simulated seconds", ("sim_seconds",)),
    Axis("steps", "local steps of all clients", ("client_steps",)),
    Axis("wall", "real seconds", ("wall_seconds",)),
)


@dataclass(frozen=True)
class Table:
    """A table: headings, rows of texts, and what is said about it.

    Args:
        headings: of the columns.
        rows: a text a column.
        series: for each column the line of the chart that it is, or None.
        axes: for each column the axis that it is, or None.
        note: a sentence below it.
        numeric: whether the columns hold numbers, but the first.
        marked: indices of rows that stand out.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    series: Sequence[int | None] = ()
    axes: Sequence[str | None] = ()
    note: str = ""
    numeric: bool = True
    marked: frozenset[int] = frozenset()

    def columns(self) -> list[tuple[str, int | None, str | None]]:
        """Return heading, line and axis of each column."""
        blank: list[None] = [None] * len(self.headings)
        series, axes = self.series or blank, self.axes or blank
        return list(zip(self.headings, series, axes, strict=True))


@dataclass(frozen=True)
class Key:
    """An entry of a legend; `index` is the line that it switches, None for none."""

    label: str
    colour: int
    dash: int = 0
    index: int | None = None
    band: bool = False
    patch: str = ""  # classes of a filled patch in place of a line
    fill: str = ""  # its colour, where no class has it


@dataclass(frozen=True)
class Figure:
    """A figure of a page.

    Args:
        title: what it shows.
        charts: a chart for each axis, by its key; one, for "", where there is nothing to switch.
        keys: the legend.
        table: the data behind it.
        note: a sentence below the chart.
        is_wide: whether it takes the page's whole width.
    """

    title: str
    charts: Sequence[tuple[str, Markup]]
    keys: Sequence[Key] = ()
    table: Table | None = None
    note: str = ""
    is_wide: bool = False


@dataclass(frozen=True)
class Curve:
    """A column of a run's rounds, as a line.

    Args:
        label: its name in the legend.
        values: `[rounds]`; NaN is "not measured".
        colour: 0..7.
        dash: 0..3.
        best: "higher" or "lower", to ring the best value; empty: none is.
        band: lower and upper ends, each `[rounds]`.
    """

    label: str
    values: Floats
    colour: int = 0
    dash: int = 0
    best: str = ""
    band: tuple[Floats, Floats] | None = None


def axes_of(history: pd.DataFrame) -> list[Axis]:
    """Return the axes along which a run was measured; rounds are the first."""
    return [
        axis
        for axis in AXES
        if set(axis.columns) <= set(history)
        and np.isfinite(places := axis.places(history)).any()
        and (axis.key == "rounds" or np.nanmax(places) > np.nanmin(places))
    ]


def curves_figure(
    title: str,
    curves: Sequence[Curve],
    history: pd.DataFrame,
    axes: Sequence[Axis],
    *,
    unit: str = "",
    fraction: bool = False,
    from_zero: bool = False,
    note: str = "",
) -> Figure | None:
    """Return a figure of columns of one run's rounds, with a chart for each axis.

    Args:
        title: what it shows.
        curves: what to draw; those that were never measured are left out.
        history: the rounds.
        axes: horizontal axes.
        unit: unit of the values, above the vertical axis.
        fraction: whether values lie in [0, 1].
        from_zero: whether the vertical axis begins at 0.
        note: a sentence below the chart.

    Returns:
        The figure, None where nothing was measured.
    """
    measured = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not measured:
        return None
    text = description([(curve.label, curve.values) for curve in measured], history)
    charts = []
    for axis in axes:
        places = axis.places(history)
        lines = [
            Line(c.label, places, c.values, c.colour, c.dash, c.band, _best(c)) for c in measured
        ]
        if not any((np.isfinite(line.x) & np.isfinite(line.y)).any() for line in lines):
            continue
        chart = line_chart(
            lines,
            axis.label,
            unit,
            name=f"{title} by {axis.label}",
            text=text,
            whole_x=axis.key == "rounds",
            fraction=fraction,
            from_zero=from_zero,
            attributes=f'data-axis="{axis.key}"',
        )
        charts.append((axis.key, chart))
    keys = [
        Key(c.label, c.colour, c.dash, index, c.band is not None)
        for index, c in enumerate(measured)
    ]
    return Figure(title, charts, keys, _table(measured, history, axes), note)


def description(values: Sequence[tuple[str, Floats]], history: pd.DataFrame) -> str:
    """Return the first and the last measured value of lines, in words."""
    parts = []
    rounds = history["round"].to_numpy()
    for label, column in values:
        known = np.flatnonzero(np.isfinite(column))
        first, last = known[0], known[-1]
        parts.append(
            f"{label}: {human_metric(float(column[first]))} in round {rounds[first]}, "
            f"{human_metric(float(column[last]))} in round {rounds[last]}"
        )
    return "; ".join(parts) + "."


def spaced(count: int, most: int = MOST_ROWS) -> list[int]:
    """Return all indices below a count, or evenly spaced ones with the first and the last."""
    if count <= most:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, most).round().astype(int).tolist()))


def left_out(shown: int, count: int, where: str) -> str:
    """Return the sentence about rows that are not shown; empty where all are."""
    return "" if shown == count else f"{shown:,} of {count:,} rows; all are in {where}."


def number(value: object) -> str:
    """Return a number as people read it; nothing where it was not measured."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{int(value):,}"
    if isinstance(value, float | np.floating):
        plain = float(value)
        if plain.is_integer() and abs(plain) < 1e15:
            return f"{plain:,.0f}" if abs(plain) >= 1 else f"{plain:g}"
        return f"{plain:.4g}" if 1e-4 <= abs(plain) < 0.1 else human_metric(plain)
    return str(value)


def bins_table(edges: Floats, bars: Floats) -> Table:
    """Return the bars of a histogram of clients as a table.

    Args:
        edges: `[M + 1]`.
        bars: `[M]`, clients in each.
    """
    rows = [
        (f"{number(float(low))} to {number(float(high))}", number(int(count)))
        for low, high, count in zip(edges, edges[1:], bars, strict=False)
        if count
    ]
    return Table(("from", "clients"), rows)


def _best(curve: Curve) -> int | None:
    if not curve.best or not np.isfinite(curve.values).any():
        return None
    pick = np.nanargmax if curve.best == "higher" else np.nanargmin
    return int(pick(np.where(np.isfinite(curve.values), curve.values, math.nan)))


def _table(curves: Sequence[Curve], history: pd.DataFrame, axes: Sequence[Axis]) -> Table:
    known = np.flatnonzero(np.any([np.isfinite(c.values) for c in curves], axis=0))
    kept = known[spaced(len(known))]
    columns = [[number(v) for v in axis.places(history)[kept].tolist()] for axis in axes]
    columns += [
        ["" if not math.isfinite(v) else human_metric(v) for v in c.values[kept].tolist()]
        for c in curves
    ]
    unseen: list[None] = [None] * len(axes)
    return Table(
        [axis.label for axis in axes] + [curve.label for curve in curves],
        list(zip(*columns, strict=True)),
        series=[*unseen, *range(len(curves))],
        axes=[*(axis.key for axis in axes), *[None] * len(curves)],
        note=left_out(len(kept), len(known), "rounds.csv"),
    )


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Args:
        key: anchor.
        title: heading.
        figures: shown side by side.
        tables: title, table and whether it is folded of those below.
        note: a sentence below the heading.
        axes: horizontal axes between which the figures can be switched.
        picture: further content, already safe.
        cards: label, value and remark of numbers in large type.
    """

    key: str
    title: str
    figures: Sequence[Figure] = ()
    tables: Sequence[tuple[str, Table, bool]] = ()
    note: str = ""
    axes: Sequence[Axis] = ()
    picture: str = ""
    cards: Sequence[tuple[str, str, str]] = ()
