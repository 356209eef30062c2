"""Charts as inline SVG: scales, ticks, lines with bands, bars. No styling, no colours.

Every shape carries classes (`c0`..`c7` for a colour, `d0`..`d3` for a dash) that the page's style
sheet gives their looks, in light and in dark mode. Texts are escaped. What a chart means, and
which data it shows, is decided elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT = 440, 260  # user units, about CSS pixels
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 40
MOST_POINTS = 400
"""Points of a line that are drawn at most: the lowest and highest of equal spans of longer ones."""
FEW = 15
"""Points up to which each gets a dot."""
_DECADES = 100.0
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        label: its name in the legend.
        x: `[N]`, ascending.
        y: `[N]`; NaN is "not measured".
        colour: 0..7, of the palette.
        dash: 0..3, of the dash styles.
        band: lower and upper ends around the line, each `[N]`, if there is a band.
        mark: index of a point that is ringed, if any.
    """

    label: str
    x: Floats
    y: Floats
    colour: int = 0
    dash: int = 0
    band: tuple[Floats, Floats] | None = None
    mark: int | None = None


@dataclass(frozen=True)
class Axis:
    """A numeric axis: where values lie between two ends, and its ticks.

    Args:
        low: value at the beginning.
        high: value at the end, > low.
        start: user units at the beginning.
        stop: user units at the end.
        is_log: logarithmic; low > 0.
        ticks: values that are labelled.
    """

    low: float
    high: float
    start: float
    stop: float
    is_log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value lies, in user units."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def places(self, values: Floats) -> Floats:
        """Return where values lie, in user units."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, values = math.log(low), math.log(high), np.log(values)
        return self.start + (values - low) / (high - low) * (self.stop - self.start)

    def labels(self) -> list[str]:
        """Return the texts of the ticks, all with as many decimals as they need together."""
        if self.is_log:
            return [tick_labels([tick])[0] for tick in self.ticks]
        return tick_labels(self.ticks)


def linear_axis(
    low: float, high: float, start: float, stop: float, ticks: int = 5, whole: bool = False
) -> Axis:
    """Return an axis with ticks at 1, 2, 2.5 or 5 times a power of ten.

    Args:
        low: smallest value.
        high: largest value; where it equals the smallest one, room is made around them.
        start: user units at the beginning.
        stop: user units at the end.
        ticks: about how many.
        whole: whether ticks are whole numbers.
    """
    if not high > low:
        room = abs(low) * 0.05 or 0.5
        if whole:
            room = 0.5
        low, high = low - room, high + room
    step = nice_step((high - low) / ticks)
    if whole:
        step = max(1.0, step if step == int(step) else math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    places = tuple(float(number * step) for number in range(first, last + 1))
    return Axis(low, high, start, stop, False, places)


def log_axis(low: float, high: float, start: float, stop: float) -> Axis:
    """Return a logarithmic axis with ticks at powers of ten; at 1, 2 and 5 where few fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // 6))
    marks: list[float] = [10.0**e for e in range(first, last + 1, every)]
    if high / low <= _DECADES * 1.5:
        marks = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    inside = tuple(m for m in marks if low * (1 - 1e-9) <= m <= high * (1 + 1e-9))
    return Axis(low, high, start, stop, True, inside)


def nice_step(rough: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5, 10 times a power of ten that is not below a step."""
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 2.5, 5.0):
        if rough <= factor * power * (1 + 1e-9):
            return factor * power
    return 10.0 * power


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return numbers as short texts: common decimals, thousands as k, M, G, T."""
    if not values:
        return []
    largest = max(abs(v) for v in values)
    for size, unit in _UNITS:
        if largest >= size and largest >= 10_000:
            return ["0" if v == 0 else f"{_trim(v / size, values, size)}{unit}" for v in values]
    small = min((abs(v) for v in values if v), default=0.0)
    if 0 < small < 1e-4 or (small and largest / small > 1e4):
        return [f"{v:.0e}".replace("e-0", "e-").replace("e+0", "e") if v else "0" for v in values]
    return [_trim(v, values, 1.0) for v in values]


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    name: str,
    text: str,
    whole_x: bool = False,
    fraction: bool = False,
    target: float | None = None,
    from_zero: bool = False,
    attributes: str = "",
) -> Markup:
    """Return lines over a common horizontal axis.

    A vertical axis whose positive values span more than two decades is logarithmic.

    Args:
        lines: at least one, with at least one finite point in all.
        x_label: below the horizontal axis.
        y_label: above the vertical axis.
        name: accessible name.
        text: accessible description: what can be read off.
        whole_x: whether horizontal ticks are whole numbers.
        fraction: whether values lie in [0, 1].
        target: a value drawn as a horizontal line.
        from_zero: whether the vertical axis begins at 0: for amounts.
        attributes: further attributes of the element, already safe.
    """
    kept = [_finite(line) for line in lines]
    xs = np.concatenate([line.x for line in kept])
    ys = np.concatenate(
        [line.y for line in kept]
        + [end for line in kept if line.band is not None for end in line.band]
        + ([np.array([target])] if target is not None else [])
    )
    ys = ys[np.isfinite(ys)]
    low, high = float(ys.min()), float(ys.max())
    if from_zero:
        low = min(low, 0.0)
    is_log = not fraction and low > 0 and high / low > _DECADES
    x_axis = linear_axis(float(xs.min()), float(xs.max()), LEFT, WIDTH - RIGHT, 6, whole_x)
    bottom = HEIGHT - BOTTOM
    if is_log:
        y_axis = log_axis(low / 1.1, high * 1.1, bottom, TOP)
    else:
        room = 0.06 * (high - low)
        low, high = low - (0.0 if from_zero else room), high + room
        if fraction:
            low, high = max(low, -0.02), min(high, 1.02)
        y_axis = linear_axis(low, high, bottom, TOP)
    parts = [_grid(x_axis, y_axis, x_label, y_label)]
    if target is not None:
        place = f"{y_axis.place(target):.1f}"
        parts.append(
            f'<line class="target" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>'
        )
    parts += [_line(line, index, x_axis, y_axis) for index, line in enumerate(kept)]
    scale = (
        f'data-x="{x_axis.low!r},{x_axis.high!r}" data-y="{y_axis.low!r},{y_axis.high!r}" '
        f'data-log="{int(is_log)}" data-box="{LEFT},{TOP},{WIDTH - RIGHT},{bottom}" {attributes}'
    )
    return frame("".join(parts), name, text, attributes=scale)


def bar_chart(
    edges: Floats,
    heights: Floats,
    x_label: str,
    y_label: str,
    *,
    name: str,
    text: str,
    colour: int = 0,
    is_log: bool = False,
    top: float | None = None,
) -> Markup:
    """Return a histogram.

    Args:
        edges: `[M + 1]`, ascending.
        heights: `[M]`, >= 0.
        x_label: below the horizontal axis.
        y_label: above the vertical axis.
        name: accessible name.
        text: accessible description.
        colour: 0..7.
        is_log: logarithmic horizontal axis; edges > 0.
        top: upper end of the vertical axis; None: a little above the highest bar.
    """
    low, high = float(edges[0]), float(edges[-1])
    make = log_axis if is_log else linear_axis
    x_axis = make(low, high, LEFT, WIDTH - RIGHT)
    y_axis = linear_axis(0.0, top or float(heights.max()) * 1.05 or 1.0, HEIGHT - BOTTOM, TOP)
    parts = [_grid(x_axis, y_axis, x_label, y_label, upright=False)]
    places, floor = x_axis.places(edges), y_axis.place(0.0)
    for left, right, height in zip(places, places[1:], heights, strict=False):
        if height > 0:
            parts.append(
                rect(left + 0.4, y_axis.place(height), right - 0.4, floor, f"bar c{colour}")
            )
    return frame("".join(parts), name, text)


def rect(left: float, top: float, right: float, bottom: float, classes: str) -> str:
    """Return a rectangle, at least 0.5 units wide and high."""
    width, height = max(right - left, 0.5), max(bottom - top, 0.5)
    return (
        f'<rect class="{classes}" x="{left:.1f}" y="{top:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}"/>'
    )


def label(x: float, y: float, text: object, classes: str = "") -> str:
    """Return a text at a place, escaped."""
    kind = f' class="{classes}"' if classes else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def frame(
    inside: str,
    name: str,
    text: str,
    height: float = HEIGHT,
    width: float = WIDTH,
    attributes: str = "",
) -> Markup:
    """Return an image of shapes with an accessible name and description.

    Args:
        inside: shapes, already safe.
        name: accessible name.
        text: accessible description.
        height: user units.
        width: user units.
        attributes: further attributes, already safe.
    """
    return Markup(
        f'<svg class="chart" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'aria-label="{escape(name)}. {escape(text)}" {attributes}>{inside}</svg>'
    )


def plot_frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, upright: bool = True) -> str:
    """Return grid, ticks and labels of two axes."""
    return _grid(x_axis, y_axis, x_label, y_label, upright)


def swatch(colour: int, dash: int, with_band: bool = False) -> Markup:
    """Return a small sample of a line for a legend."""
    band = f'<rect class="band c{colour}" x="0" y="1" width="26" height="10"/>' if with_band else ""
    return Markup(
        f'<svg class="swatch" viewBox="0 0 26 12" aria-hidden="true">{band}'
        f'<path class="line c{colour} d{dash}" d="M1 6H25"/></svg>'
    )


def thinned(x: Floats, y: Floats, most: int = MOST_POINTS) -> npt.NDArray[np.int64]:
    """Return the indices of the points to draw: of each span its lowest and its highest.

    Args:
        x: `[N]`.
        y: `[N]`, finite.
        most: points at most, >= 4; the first and the last are among them.
    """
    count = len(x)
    if count <= most:
        return np.arange(count)
    ends = np.linspace(0, count, (most - 2) // 2 + 1).astype(np.int64)
    kept = {0, count - 1}
    for first, stop in itertools.pairwise(ends):
        part = y[first:stop]
        kept |= {int(first + part.argmin()), int(first + part.argmax())}
    return np.array(sorted(kept), dtype=np.int64)


def _finite(line: Line) -> Line:
    known = np.isfinite(line.x) & np.isfinite(line.y)
    band, mark = line.band, line.mark
    if band is not None:
        band = (band[0][known], band[1][known])
    if mark is not None:
        mark = int(known[:mark].sum()) if known[mark] else None
    return Line(line.label, line.x[known], line.y[known], line.colour, line.dash, band, mark)


def _line(line: Line, index: int, x_axis: Axis, y_axis: Axis) -> str:
    if not len(line.x):
        return ""
    kept = thinned(line.x, line.y)
    xs, ys = x_axis.places(line.x), y_axis.places(line.y)
    parts = []
    if line.band is not None:
        low, high = (np.clip(end, y_axis.low, y_axis.high) for end in line.band)
        there = kept[np.isfinite(low[kept]) & np.isfinite(high[kept])]
        if len(there) > 1:
            upper = _path(xs[there], y_axis.places(high[there]))
            lower = _path(xs[there][::-1], y_axis.places(low[there])[::-1])
            parts.append(f'<path class="band c{line.colour}" d="{upper}L{lower[1:]}Z"/>')
    looks = f"c{line.colour} d{line.dash}"
    if len(kept) > 1:
        parts.append(f'<path class="line {looks}" d="{_path(xs[kept], ys[kept])}"/>')
    if len(kept) <= FEW:
        parts += [
            f'<circle class="dot c{line.colour}" cx="{xs[i]:.1f}" cy="{ys[i]:.1f}" r="2.6"/>'
            for i in kept
        ]
    if line.mark is not None:
        x, y = xs[line.mark], ys[line.mark]
        parts.append(f'<circle class="ring c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
    return f'<g class="s{index}">{"".join(parts)}</g>'


def _path(xs: Floats, ys: Floats) -> str:
    points = [f"{x:.1f} {y:.1f}" for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    return "M" + "L".join(points)


def _grid(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str, upright: bool = True) -> str:
    left, right = min(x_axis.start, x_axis.stop), max(x_axis.start, x_axis.stop)
    top, bottom = min(y_axis.start, y_axis.stop), max(y_axis.start, y_axis.stop)
    marks = "".join(f"M{left} {y_axis.place(tick):.1f}H{right}" for tick in y_axis.ticks)
    if upright:
        marks += "".join(f"M{x_axis.place(tick):.1f} {top}V{bottom}" for tick in x_axis.ticks)
    parts = [
        f'<path class="grid" d="{marks}"/>',
        f'<path class="axis" d="M{left} {bottom}H{right}"/>',
    ]
    for tick, text in zip(x_axis.ticks, x_axis.labels(), strict=True):
        parts.append(label(x_axis.place(tick), bottom + 15, text, "mid"))
    for tick, text in zip(y_axis.ticks, y_axis.labels(), strict=True):
        parts.append(label(left - 6, y_axis.place(tick) + 4, text, "end"))
    parts.append(label((left + right) / 2, bottom + 33, x_label, "mid name"))
    if y_label:
        parts.append(label(2, 13, y_label, "name"))
    return "".join(parts)


def _trim(value: float, values: Sequence[float], size: float) -> str:
    """Return a number with the fewest decimals that tell all of `values` apart exactly."""
    for decimals in range(7):
        if all(
            abs(round(v / size, decimals) - v / size) <= 1e-9 * max(1.0, abs(v / size))
            for v in values
        ):
            return f"{value:.{decimals}f}"
    return f"{value:.3g}"
