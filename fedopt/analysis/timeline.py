"""Who did what when, on the virtual clock: a Gantt chart of some rounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedopt.analysis.style import COLOURS, DPI, SMALL, TEXT, WIDTH, tidy
from fedopt.errors import ConfigError

MOST_CLIENTS = 60
"""Clients that are drawn at most: those that take part most often, of equals the first."""

STAGES = (
    ("download_seconds", "download", COLOURS[5]),
    ("compute_seconds", "local steps", COLOURS[0]),
    ("upload_seconds", "upload", COLOURS[2]),
)
UNUSED = "#BDBDBD"
ROW = 0.16  # inches


def timeline_figure(
    clients: pd.DataFrame,
    history: pd.DataFrame,
    first: int,
    last: int,
    title: str | None = None,
) -> Figure:
    """Draw what clients did in some rounds: a line a client, a bar a part.

    The stages of parts that were used are coloured, the others grey. Vertical lines are the moments
    at which the server had its new models. Times are in the unit that suits them.

    Args:
        clients: a run's `clients.csv`, as `Run.clients` or `read_clients`.
        history: its `rounds.csv`.
        first: the first round whose clients are drawn, >= 1.
        last: the last one, >= first.
        title: a line above the chart.

    Returns:
        A figure of 7 inches width, as high as its clients need, 200 dpi.

    Raises:
        ConfigError: the run has no virtual clock, or no such rounds.
    """
    if "sim_start" not in clients or clients["sim_start"].isna().all():
        raise ConfigError(
            "the run has no virtual clock; set system.devices, system.availability or policy"
        )
    rows = clients[(clients["round"] >= first) & (clients["round"] <= last)]
    if rows.empty or not 1 <= first <= last:
        there = f"1..{int(history['round'].max())}" if len(history) else "none"
        raise ConfigError(f"got {first}-{last}, but the run has rounds {there}", key="--rounds")
    counts = rows["client"].value_counts()
    shown = sorted(counts.sort_index().sort_values(ascending=False, kind="stable").index)
    if len(counts) > MOST_CLIENTS:
        most = counts.sort_index().sort_values(ascending=False, kind="stable")
        shown = sorted(most.index[:MOST_CLIENTS])
    place = {client: position for position, client in enumerate(shown)}
    rows = rows[rows["client"].isin(place)]
    ends = history.set_index("round")["sim_seconds"]
    begin = float(rows["sim_start"].min())
    finish = float(max(_ends(rows).max(), ends.get(last, begin)))
    scale, unit = _unit(finish - begin)

    height = 1.1 + ROW * len(shown)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    tidy(axes)
    axes.grid(False, axis="y")
    starts = rows["sim_start"].to_numpy(np.float64)
    used = rows["staleness"].to_numpy() >= 0
    lines = np.array([place[client] for client in rows["client"]])
    for name, _, colour in STAGES:
        widths = rows[name].to_numpy(np.float64)
        colours = np.where(used, colour, UNUSED)
        axes.barh(lines, widths / scale, 0.72, starts / scale, color=colours.tolist(), linewidth=0)
        starts = starts + widths
    for number in range(first, last + 1):
        if number in ends.index and np.isfinite(ends[number]):
            axes.axvline(ends[number] / scale, color="black", linewidth=0.6)
    margin = 0.01 * (finish - begin) / scale or 0.5
    axes.set_xlim(begin / scale - margin, finish / scale + margin)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(range(len(shown)), [str(client) for client in shown])
    axes.set_xlabel(f"virtual time, {unit}", fontsize=TEXT)
    axes.set_ylabel("client", fontsize=TEXT)
    if len(counts) > len(shown):
        says = f"the {len(shown)} of {len(counts)} clients that took part most often"
        title = f"{title}, {says}" if title else says
    if title:
        axes.set_title(title, fontsize=TEXT, loc="left")
    patches = [Patch(color=colour, label=label) for _, label, colour in STAGES]
    if not used.all():
        patches.append(Patch(color=UNUSED, label="not used"))
    figure.legend(
        handles=patches,
        loc="outside lower center",
        ncols=len(patches),
        fontsize=SMALL,
        frameon=False,
    )
    return figure


def _ends(rows: pd.DataFrame) -> pd.Series[float]:
    """Return when each part ended."""
    total = rows["sim_start"].copy()
    for name, _, _ in STAGES:
        total = total + rows[name]
    return total


def _unit(span: float) -> tuple[float, str]:
    """Return seconds of a unit that suits a span, and its name."""
    for seconds, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if span >= 3 * seconds:
            return seconds, name
    return (1.0, "s") if span >= 0.1 else (1e-3, "ms")
