"""The report of several runs: mean curves of those that differ in the seed alone, and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.groups import Group, group_runs, stored
from fedopt.analysis.intervals import Curve, have_common_place, mean_curve, mean_interval
from fedopt.analysis.report.figures import (
    AXES,
    Axis,
    Figure,
    Key,
    Section,
    Table,
    number,
    spaced,
)
from fedopt.analysis.report.page import Page, render
from fedopt.analysis.report.record import RunRecord, read_run
from fedopt.analysis.report.svg import Line, line_chart
from fedopt.analysis.targets import COSTS, Target, cost_to_target
from fedopt.analysis.units import human_metric
from fedopt.errors import ConfigError

METRICS = (
    ("test_accuracy", "Test accuracy", True),
    ("test_loss", "Test loss", False),
    ("train_loss", "Training loss", False),
    ("test_ece", "Calibration error (ECE)", True),
    ("validation_accuracy", "Validation accuracy", True),
    ("validation_accuracy_worst10", "Accuracy of the worst tenth of clients", True),
)
"""Columns that are drawn where a run has them: name, title, whether they are shares."""

MOST_BANDS = 4
"""Groups up to which bands are drawn: more of them would cover each other."""

MOST_LINES = 16
"""Groups that are drawn; of more the best by the first metric, and it is said."""


@dataclass(frozen=True)
class ExtraTable:
    """A table that the caller adds: what a sweep or an ablation knows besides its runs.

    Args:
        title: its heading.
        headings: of the columns.
        rows: a value a column; numbers are written as elsewhere in the report.
        note: a sentence below it.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def comparison_report(
    run_dirs: Sequence[str | Path],
    title: str,
    extra_tables: Sequence[ExtraTable] = (),
    targets: Sequence[Target] = (),
) -> str:
    """Return the report of several runs as the text of a page.

    Runs that differ in the seed alone are drawn as their mean with a band: the 95 % interval of
    Student's t; a single run has none.

    Args:
        run_dirs: their folders, finished or not, at least one with a round.
        title: heading.
        extra_tables: shown after the summary.
        targets: values whose cost is told for each group.

    Raises:
        ConfigError: a folder is not a run's, or none has a finished round.
    """
    records = [read_run(directory, with_clients=False) for directory in run_dirs]
    counted = [record for record in records if len(record.history)]
    if not counted:
        raise ConfigError("none of the runs has a finished round yet.")
    groups = group_runs([stored(r.name, r.history, r.config) for r in counted])
    drawn, note = _drawn(groups)
    tables: list[tuple[str, Table, bool]] = [("Final and best", _results(groups), False)]
    tables += [(f"Cost to reach {t}", _costs(groups, t), False) for t in targets]
    sections = [
        Section("summary", "Summary", tables=tables, note=_counts(records, groups)),
        *(
            Section(f"extra-{index}", table.title, tables=[("", _extra(table), False)])
            for index, table in enumerate(extra_tables)
        ),
        _curves(drawn, note),
        Section("runs", "Runs", tables=[("", _runs(records), False)]),
    ]
    return render(Page(title, f"{len(records)} runs", "", sections))


def _curves(groups: Sequence[Group], note: str) -> Section:
    known = [axis for axis in AXES if all(_has(axis, group) for group in groups)]
    # Seeds of unequal pace may share no second at all: such an axis is left out for all, and told.
    apart = {axis: label for axis in known[1:] if (label := _apart(axis, groups)) is not None}
    axes = [axis for axis in known if axis not in apart]
    figures = [
        figure
        for name, title, share in METRICS
        if (figure := _figure(name, title, share, groups, axes)) is not None
    ]
    says = "Lines are means over seeds with their 95 % t interval; n is the number of seeds."
    if len(groups) > MOST_BANDS:
        says = (
            "Lines are means over seeds; n is the number of seeds. The 95 % t intervals are in the "
            f"tables alone: bands are drawn for up to {MOST_BANDS} groups."
        )
    for axis, label in apart.items():
        says += f" Not drawn by {axis.label}: the runs of {label} have no such place in common."
    return Section("curves", "Curves", figures, note=f"{says} {note}".strip(), axes=tuple(axes))


def _apart(axis: Axis, groups: Sequence[Group]) -> str | None:
    """Return the first group whose runs cannot be averaged along an axis; None: all can."""
    for group in groups:
        for name, _, _ in METRICS:
            if _is_measured(name, group) and not have_common_place(_curves_of(name, axis, group)):
                return group.label
    return None


def _is_measured(name: str, group: Group) -> bool:
    """Return whether all runs of a group have a metric, with a round in common."""
    curves = _curves_of(name, AXES[0], group)
    return len(curves) == group.n and have_common_place(curves)


def _curves_of(name: str, axis: Axis, group: Group) -> list[Curve]:
    found = (_points(name, axis, run) for run in group.histories)
    return [points for points in found if points is not None]


def _figure(
    name: str, title: str, share: bool, groups: Sequence[Group], axes: Sequence[Axis]
) -> Figure | None:
    measured = [(index, group) for index, group in enumerate(groups) if _is_measured(name, group)]
    if not measured:
        return None
    keys = [
        Key(f"{g.label} (n = {g.n})", *_look(i), turn, g.n > 1 and len(measured) <= MOST_BANDS)
        for turn, (i, g) in enumerate(measured)
    ]
    charts, by_rounds = [], []
    for axis in axes:
        lines = []
        for index, group in measured:
            band = mean_curve(_curves_of(name, axis, group))
            ends = None
            if len(measured) <= MOST_BANDS and band.low is not None and band.high is not None:
                ends = band.low, band.high
            lines.append(Line(group.label, band.x, band.mean, *_look(index), ends))
        if axis.key == "rounds":
            by_rounds = lines
        last = "; ".join(f"{ln.label}: {human_metric(float(ln.y[-1]))}" for ln in lines)
        chart = line_chart(
            lines,
            axis.label,
            "mean over seeds",
            name=f"{title} by {axis.label}",
            text=f"At the end {last}.",
            whole_x=axis.key == "rounds",
            fraction=share,
            attributes=f'data-axis="{axis.key}"' if axis.key == "rounds" else "",
        )
        charts.append((axis.key, chart))
    return Figure(title, charts, keys, _table(by_rounds))


def _table(lines: Sequence[Line]) -> Table:
    """Return the means by rounds; nothing in rounds in which a group was not measured."""
    rounds = np.unique(np.concatenate([line.x for line in lines]))
    kept = rounds[spaced(len(rounds), 60)]
    columns = []
    for line in lines:
        known = dict(zip(line.x.tolist(), line.y.tolist(), strict=True))
        columns.append([human_metric(known[r]) if r in known else "" for r in kept.tolist()])
    return Table(
        ["communication rounds", *(line.label for line in lines)],
        list(zip([number(r) for r in kept.tolist()], *columns, strict=True)),
        series=[None, *range(len(lines))],
        axes=["rounds", *[None] * len(lines)],
        note="" if len(kept) == len(rounds) else f"{len(kept)} of {len(rounds):,} rounds.",
    )


def _results(groups: Sequence[Group]) -> Table:
    names = [
        name
        for name, _, _ in METRICS
        if any(_final(name, run) is not None for g in groups for run in g.histories)
    ]
    better = {column.name: column.better for column in ROUND_COLUMNS}
    headings, rows = ["runs", "n"], []
    for name in names:
        headings.append(f"{name}, final")
        if better[name]:
            headings.append(f"{name}, best")
    for group in groups:
        cells = [group.label, number(group.n)]
        for name in names:
            cells.append(_mean([_final(name, run) for run in group.histories]))
            if better[name]:
                pick = max if better[name] == "higher" else min
                bests = [
                    float(pick(values)) if len(values := run[name].dropna()) else None
                    for run in group.histories
                ]
                cells.append(_mean(bests))
        rows.append(cells)
    return Table(
        headings, rows, note="Mean over seeds, with half the width of its 95 % t interval."
    )


def _costs(groups: Sequence[Group], target: Target) -> Table:
    found = [[cost_to_target(run, target) for run in group.histories] for group in groups]
    shown = [
        cost
        for cost in COSTS
        if any(c and math.isfinite(c[cost.name]) for costs in found for c in costs)
    ]
    rows = []
    for group, costs in zip(groups, found, strict=True):
        reached = [c for c in costs if c]
        cells = [group.label, f"{len(reached)} of {group.n}"]
        for cost in shown:
            values: list[float | None] = [c[cost.name] * cost.factor for c in reached]
            cells.append(_mean(values) if reached else "not reached")
        rows.append(cells)
    note = (
        "Means over the runs that reached it, with half the width of their 95 % t interval; by the "
        "running best, interpolated linearly."
    )
    return Table(("runs", "reached", *(cost.heading for cost in shown)), rows, note=note)


def _runs(records: Sequence[RunRecord]) -> Table:
    rows = []
    for record in records:
        planned = record.planned_rounds
        accuracy = _final("test_accuracy", record.history)
        loss = _final("test_loss", record.history)
        rows.append(
            (
                record.name,
                record.status,
                record.strategy,
                number(record.seed),
                f"{record.rounds} of {planned}" if planned else number(record.rounds),
                "" if accuracy is None else human_metric(accuracy),
                "" if loss is None else human_metric(loss),
                str(record.summary.get("error", "")).strip().partition("\n")[0],
            )
        )
    headings = (
        "run",
        "status",
        "strategy",
        "seed",
        "rounds",
        "test accuracy",
        "test loss",
        "error",
    )
    return Table(headings, rows, numeric=False)


def _extra(table: ExtraTable) -> Table:
    rows = [[number(cell) for cell in row] for row in table.rows]
    return Table(table.headings, rows, note=table.note)


def _counts(records: Sequence[RunRecord], groups: Sequence[Group]) -> str:
    states: dict[str, int] = {}
    for record in records:
        states[record.status] = states.get(record.status, 0) + 1
    told = ", ".join(f"{count} {status}" for status, count in states.items())
    return f"{len(records)} runs ({told}) in {len(groups)} groups that differ in the seed alone."


def _drawn(groups: Sequence[Group]) -> tuple[list[Group], str]:
    """Return the groups to draw, and what is said about the others."""
    if len(groups) <= MOST_LINES:
        return list(groups), ""
    better = {column.name: column.better for column in ROUND_COLUMNS}
    name = next(
        (
            n
            for n, _, _ in METRICS
            if all(_final(n, h) is not None for g in groups for h in g.histories)
        ),
        None,
    )
    if name is None:
        return list(groups[:MOST_LINES]), f"The first {MOST_LINES} of {len(groups)} groups."

    def rank(group: Group) -> float:
        finals = [f for run in group.histories if (f := _final(name, run)) is not None]
        mean = sum(finals) / len(finals)
        return -mean if better[name] == "higher" else mean

    return (
        sorted(groups, key=rank)[:MOST_LINES],
        f"The best {MOST_LINES} of {len(groups)} groups by {name.replace('_', ' ')} are drawn.",
    )


def _look(index: int) -> tuple[int, int]:
    return index % 8, (index + index // 8) % 4


def _has(axis: Axis, group: Group) -> bool:
    return all(
        set(axis.columns) <= set(run) and np.isfinite(axis.places(run)).any()
        for run in group.histories
    )


def _points(name: str, axis: Axis, history: Any) -> Curve | None:
    if name not in history:
        return None
    values, places = history[name].to_numpy(np.float64), axis.places(history)
    known = np.isfinite(values) & np.isfinite(places)
    return (places[known], values[known]) if known.any() else None


def _final(name: str, history: Any) -> float | None:
    values = history[name].dropna().tolist() if name in history else []
    return float(values[-1]) if values else None


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    found = mean_interval(known)
    if found.half is None:
        return human_metric(found.mean)
    return f"{human_metric(found.mean)} ± {human_metric(found.half)}"
