"""A run that is followed, on a terminal: progress, curves in text, last values, failures.

Drawing alone: what is known of the run comes from `follow.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.follow import RunFollower
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

METRICS = (
    "test_accuracy",
    "test_loss",
    "train_loss",
    "validation_accuracy",
    "validation_accuracy_worst10",
    "test_ece",
    "swa_test_accuracy",
    "unseen_accuracy",
    "epsilon",
)
"""Columns that are shown where a run has them."""

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-=+*#@"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character
_COLOURS = {
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "interrupted": "yellow",
    "stopped": "yellow",
}
_BETTER = {column.name: column.better for column in ROUND_COLUMNS}


def sparkline(values: Sequence[float], width: int, bars: str = _BARS) -> str:
    """Return values as a line of bars, the lowest to the highest of `bars`.

    Args:
        values: in order; those that are not finite are left out.
        width: characters at most, >= 1; of more values, the means of equal spans.
        bars: characters from low to high.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    if len(known) > width:
        ends = [round(i * len(known) / width) for i in range(width + 1)]
        known = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(ends)]
    low, high = min(known), max(known)
    if low == high:
        return bars[len(bars) // 2] * len(known)
    return "".join(
        bars[min(len(bars) - 1, int((value - low) / (high - low) * len(bars)))] for value in known
    )


def braille_curve(values: Sequence[float], width: int, height: int) -> list[str]:
    """Return a curve as lines of braille characters, two dots wide and four high each.

    Args:
        values: in order; those that are not finite are left out.
        width: characters of a line, >= 1.
        height: lines, >= 1.
    """
    cells = [[0] * width for _ in range(height)]
    known = [value for value in values if math.isfinite(value)]
    if known:
        low, high = min(known), max(known)
        span = (high - low) or 1.0
        before: int | None = None
        for x in range(2 * width):
            index = x * (len(known) - 1) / max(1, 2 * width - 1)
            below = int(index)
            above = min(below + 1, len(known) - 1)
            value = known[below] + (index - below) * (known[above] - known[below])
            y = round((high - value) / span * (4 * height - 1))
            steps = range(min(y, before), max(y, before) + 1) if before is not None else (y,)
            for dot in steps:  # a steep part has no gaps
                cells[dot // 4][x // 2] |= _DOTS[dot % 4][x % 2]
            before = y
    return ["".join(chr(0x2800 + cell) for cell in line) for line in cells]


def live_view(run: RunFollower, width: int, unicode: bool = True) -> RenderableType:
    """Return what a terminal shows of a run.

    Args:
        run: the run, polled.
        width: characters of the terminal.
        unicode: whether it can show more than ASCII.
    """
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [_progress(run, width)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    for heading in ("last", "best", "in round"):
        table.add_column(heading, justify="right")
    table.add_column("from the first round to the last")
    room = max(8, width - 66)
    for name in METRICS:
        values = run.column(name)
        if values:
            best, round_ = _best(run, name)
            line = sparkline(values, room, _BARS if unicode else _ASCII_BARS)
            table.add_row(name, human_metric(values[-1]), best, round_, Text(line, style="cyan"))
    parts.append(table)
    if unicode and width >= 60:
        parts += _curve(run, width)
    parts += _losses(run)
    parts += [Text(f"warning: {_plain(text)}", style="yellow") for text in run.warnings[-3:]]
    error = run.summary.get("error")
    if error and run.status != "running":
        parts.append(Text(f"error: {_plain(str(error))}", style="red"))
    colour = _COLOURS.get(run.status, "white")
    title = Text.assemble(
        _plain(run.directory.resolve().name), "  ", (run.status, f"bold {colour}")
    )
    return Panel(Group(*parts), title=title, title_align="left", border_style=colour)


def plain_line(run: RunFollower) -> str:
    """Return the last round as one line without control codes."""
    words = [_round(run)]
    for name in METRICS:
        values = run.column(name)
        if values:
            words.append(f"{name.replace('_', ' ')} {human_metric(values[-1])}")
    words += _times(run)
    if run.lost:
        words += [f"{count} {status}" for status, count in sorted(run.lost.items())]
    return ", ".join(words)


def closing_line(run: RunFollower) -> str:
    """Return what became of a run."""
    words = f"{run.status}: {run.round} of {run.planned or run.round} rounds"
    error = run.summary.get("error")
    if error:
        words += f"; {_plain(str(error))}"
    if run.status in ("stopped", "interrupted"):
        words += f"; go on with: fedopt resume {run.directory}"
    return words


def _progress(run: RunFollower, width: int) -> Text:
    from rich.text import Text

    room = max(10, min(40, width - 60))
    share = min(1.0, run.round / run.planned) if run.planned else 0.0
    done = round(share * room)
    words = "  ".join([_round(run), *_times(run)])
    return Text.assemble(("━" * done, "green"), ("─" * (room - done), "dim"), "  ", words)


def _round(run: RunFollower) -> str:
    return f"round {run.round}" + (f"/{run.planned}" if run.planned else "")


def _times(run: RunFollower) -> list[str]:
    words = []
    last: Mapping[str, object] = run.rows[-1] if run.rows else {}
    sent = [v for n in ("bytes_up", "bytes_down") if isinstance(v := last.get(n), int | float)]
    if sent:
        words.append(human_bytes(sum(sent)))
    for name, text in (("sim_seconds", "virtual {}"), ("wall_seconds", "{}")):
        value = last.get(name)
        if isinstance(value, int | float):
            words.append(text.format(human_seconds(value)))
    left = run.seconds_left()
    if left is not None and run.status == "running" and left > 0:
        words.append(f"{human_seconds(left)} left")
    return words


def _best(run: RunFollower, name: str) -> tuple[str, str]:
    if not _BETTER.get(name):
        return "", ""
    pick = max if _BETTER[name] == "higher" else min
    measured = [
        (float(v), int(row["round"] or 0))
        for row in run.rows
        if isinstance(v := row[name], int | float)
    ]
    value, round_ = pick(measured, key=lambda pair: pair[0])
    return human_metric(value), str(round_)


def _curve(run: RunFollower, width: int) -> list[RenderableType]:
    from rich.text import Text

    name = next((n for n in ("test_accuracy", "test_loss", "train_loss") if run.column(n)), None)
    if name is None or len(values := run.column(name)) < 3:
        return []
    lines = braille_curve(values, min(width - 24, 80), 6)
    labels = [human_metric(max(values)), *[""] * (len(lines) - 2), human_metric(min(values))]
    drawn = [
        Text.assemble((f"{label:>10} ", "dim"), (line, "cyan"))
        for label, line in zip(labels, lines, strict=True)
    ]
    return [Text(name.replace("_", " "), style="dim"), *drawn]


def _losses(run: RunFollower) -> list[RenderableType]:
    from rich.text import Text

    if not run.lost:
        return []
    total = ", ".join(f"{count} {status}" for status, count in sorted(run.lost.items()))
    lines = [Text(f"clients not used: {total}", style="yellow")]
    for loss in run.losses:
        why = f": {loss.reason}" if loss.reason else ""
        lines.append(Text(f"  round {loss.round}, client {loss.client} {loss.status}{why}"))
    return list(lines)


def _plain(text: str) -> str:
    """Return a text on one line without control codes: it may quote what others wrote."""
    first = text.strip().partition("\n")[0]
    return "".join(c if c.isprintable() else "?" for c in first)
