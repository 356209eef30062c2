"""The timeline of a run on the virtual clock: who did what when, in its first rounds."""

from __future__ import annotations

import pandas as pd

from fedopt.analysis.report.figures import Figure, Key, Table, left_out, number
from fedopt.analysis.report.record import RunRecord
from fedopt.analysis.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    frame,
    label,
    linear_axis,
    plot_frame,
    rect,
)

_MOST_BARS = 400
_MOST_TIMELINE_CLIENTS = 40
_ROW = 11.0
_WIDE = 820
_STAGES = (
    ("download_seconds", "download", "c5"),
    ("compute_seconds", "local steps", "c0"),
    ("upload_seconds", "upload", "c2"),
)


def timeline_figure(record: RunRecord) -> Figure | None:
    """Return who did what when on the virtual clock, in the first rounds; None without one."""
    clients, history = record.clients, record.history
    if not len(clients) or clients["sim_start"].isna().all():
        return None
    timed = clients[clients["sim_start"].notna()]
    rounds = _first_rounds(timed)
    rows = timed[timed["round"] <= rounds]
    often = rows["client"].value_counts()
    shown = sorted(often.sort_index().sort_values(ascending=False, kind="stable").index)
    if len(often) > _MOST_TIMELINE_CLIENTS:
        most = often.sort_index().sort_values(ascending=False, kind="stable")
        shown = sorted(most.index[:_MOST_TIMELINE_CLIENTS])
    rows = rows[rows["client"].isin(shown)]
    place = {client: TOP + _ROW * turn for turn, client in enumerate(shown)}
    stages = rows[[name for name, _, _ in _STAGES]].fillna(0.0)
    ends = rows["sim_start"] + stages.sum(axis=1)
    axis = linear_axis(float(rows["sim_start"].min()), float(ends.max()), LEFT, _WIDE - RIGHT, 8)
    bottom = TOP + _ROW * len(shown) + 4
    bare = Axis(0.0, 1.0, bottom, TOP, False, ())
    parts = [plot_frame(axis, bare, "virtual seconds", "client")]
    every = max(1, len(shown) // 20)
    for turn, client in enumerate(shown):
        if turn % every == 0:
            parts.append(label(LEFT - 6, place[client] + 8, client, "end tiny"))
    is_used = rows["staleness"].fillna(0).to_numpy() >= 0
    for client, start, used, *spans in zip(
        rows["client"],
        rows["sim_start"],
        is_used,
        *(stages[name] for name, _, _ in _STAGES),
        strict=True,
    ):
        top = place[client] + 1
        for seconds, (_, _, colour) in zip(spans, _STAGES, strict=True):
            if seconds > 0:
                left, right = axis.place(start), axis.place(start + seconds)
                classes = f"bar {colour}" if used else "bar unused"
                parts.append(rect(left, top, right, top + _ROW - 2, classes))
            start += seconds
    finished = history[history["round"] <= rounds]
    parts += [
        f'<path class="moment" d="M{axis.place(moment):.1f} {TOP}V{bottom}"/>'
        for moment in finished["sim_seconds"].dropna().tolist()
        if axis.low <= moment <= axis.high
    ]
    text = (
        f"The {'first' if rounds == 1 else f'first {rounds}'} round{'s' if rounds > 1 else ''}: "
        f"{len(shown)} of {len(often)} clients, {len(rows)} parts, {int((~is_used).sum())} of them "
        "not used. Vertical lines: the server has its new model."
    )
    chart = frame("".join(parts), "Timeline of the virtual clock", text, bottom + BOTTOM, _WIDE)
    keys = [Key(words, 0, patch=f"bar {colour}") for _, words, colour in _STAGES]
    if not is_used.all():
        keys.append(Key("not used", 0, patch="bar unused"))
    return Figure(
        "Timeline of the virtual clock", [("", chart)], keys, _timeline_table(rows), text, True
    )


def _first_rounds(timed: pd.DataFrame) -> int:
    """Return the last of the first rounds whose bars are few enough to tell apart."""
    counts = timed.groupby("round").size().cumsum() * len(_STAGES)
    fitting = counts[counts <= _MOST_BARS]
    return int(fitting.index.max()) if len(fitting) else int(counts.index.min())


def _timeline_table(rows: pd.DataFrame, most: int = 100) -> Table:
    shown = rows.head(most)
    columns = ["round", "client", "sim_start", *(name for name, _, _ in _STAGES)]
    cells = [
        (*(number(v) for v in values), "no" if stale < 0 else "yes", "" if why != why else str(why))
        for *values, stale, why in zip(
            *(shown[name].tolist() for name in columns),
            shown["staleness"].fillna(0).tolist(),
            shown["reason"].tolist(),
            strict=True,
        )
    ]
    headings = (
        "round",
        "client",
        "begins (s)",
        "download (s)",
        "steps (s)",
        "upload (s)",
        "used",
        "why not",
    )
    return Table(headings, cells, note=left_out(len(shown), len(rows), "clients.csv"))
