"""What a sweep came to: rows of runs, the ranking of its points, the bill, files and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedopt.analysis.comparison import Comparison, comparison
from fedopt.analysis.comparison_tables import (
    amount,
    differences_section,
    group_records,
    groups_section,
    runs_section,
)
from fedopt.analysis.groups import Group, StoredRun, read_stored
from fedopt.analysis.plots import convergence_plot
from fedopt.analysis.report import folder_report, write_report
from fedopt.analysis.sections import Section
from fedopt.analysis.store import ROUNDS_FILE, SUMMARY_FILE, to_json
from fedopt.analysis.targets import Target, is_higher_better
from fedopt.analysis.units import human_bytes, human_seconds
from fedopt.errors import ConfigError
from fedopt.sweep.book import Book, State
from fedopt.sweep.parameter_plots import parameter_plot

MOST_CURVES = 8
"""Points whose curves are drawn."""


@dataclass(frozen=True)
class Bill:
    """What all runs of a sweep cost together, those that failed or were stopped included.

    Args:
        runs: that did at least one round.
        rounds: done.
        bytes_up: sent by clients.
        bytes_down: sent to clients.
        client_steps: local steps.
        client_gradients: minibatch gradients.
        sim_seconds: virtual seconds one after another; None where no run has a virtual clock.
        wall_seconds: real seconds, added up over processes.
    """

    runs: int
    rounds: int
    bytes_up: int
    bytes_down: int
    client_steps: int
    client_gradients: int
    sim_seconds: float | None
    wall_seconds: float

    def facts(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**vars(self), "bytes": self.bytes_up + self.bytes_down}

    def text(self) -> str:
        """Return it as a line for people."""
        sent = f"{human_bytes(self.bytes_up)} up, {human_bytes(self.bytes_down)} down"
        virtual = "" if self.sim_seconds is None else f", {amount(self.sim_seconds)} virtual s"
        plural = "" if self.runs == 1 else "s"
        return (
            f"{self.runs} run{plural}, {self.rounds:,} rounds, {sent}, {self.client_steps:,} "
            f"client steps{virtual}, {human_seconds(self.wall_seconds)} of computing"
        )


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Args:
        directory: its folder.
        comparison: its points, best first; None where no run was completed.
        bill: of all runs.
        states: of all runs, by name.
        summary: the contents of `summary.json`.
    """

    directory: Path
    comparison: Comparison | None
    bill: Bill
    states: Mapping[str, State]
    summary: Mapping[str, Any]

    @property
    def tables(self) -> list[Section]:
        """The tables for people."""
        return sections(self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What has to be said besides."""
        return ()

    @property
    def failures(self) -> dict[str, State]:
        """The runs that failed."""
        return {name: state for name, state in self.states.items() if state.status == "failed"}


def write_results(
    book: Book, metric: str, target: Target | None, is_ranked: bool, status: str
) -> Outcome:
    """Write what a sweep came to so far: tables, figures, `summary.json`.

    Args:
        book: the sweep.
        metric: that points are ranked by.
        target: a value to be reached, or None.
        is_ranked: whether tables have the best point first, rather than the order of the grid.
        status: `completed`, `failed` (some run did) or `interrupted`.
    """
    histories = histories_of(book)
    rows = [
        run_record(name, state, histories.get(name), metric) for name, state in book.states.items()
    ]
    book.write("results.csv", pd.DataFrame(rows).to_csv(index=False))
    groups = point_groups(book)
    found = None
    if groups:
        found = (
            ranked(comparison(groups, [metric], target), metric)
            if is_ranked
            else comparison(groups, [metric], target)
        )
    bill = add_up(list(histories.values()))
    summary = _summary(book, found, metric, bill, status)
    if found is not None:
        book.write("points.csv", pd.DataFrame(group_records(found)).to_csv(index=False))
        _draw(book, found, metric, target, rows)
    outcome = Outcome(book.directory, found, bill, dict(book.states), summary)
    book.write("results.md", markdown(outcome, metric))
    book.write(SUMMARY_FILE, to_json(summary))
    if found is not None:
        write_page(book, target)
    return outcome


def failures_of(book: Book) -> list[dict[str, str]]:
    """Return the runs that failed, and why."""
    return [
        {"run": name, "error": state.error}
        for name, state in book.states.items()
        if state.status == "failed"
    ]


def write_page(book: Book, target: Target | None) -> None:
    """Write `report.html` of all runs."""
    targets = [] if target is None else [target]
    write_report(book.directory / "report.html", folder_report(book.directory, None, targets))


def point_groups(book: Book) -> list[Group]:
    """Return the completed runs of each point, in order."""
    groups: dict[int, list[StoredRun]] = {}
    labels: dict[int, str] = {}
    for name, state in book.states.items():
        if state.status == "completed":
            groups.setdefault(state.trial, []).append(read_stored(book.run_folder(name)))
            labels[state.trial] = state.label
    return [Group(labels[trial], tuple(groups[trial])) for trial in sorted(groups)]


def ranked(found: Comparison, metric: str) -> Comparison:
    """Return a comparison with the best group first, which is what others are compared with.

    The mean over seeds of the best value decides; groups of fewer seeds than others come last.
    """
    sign = -1.0 if is_higher_better(metric) else 1.0
    most = max(group.n for group in found.groups)

    def key(index: int) -> tuple[bool, float]:
        mean = found.mean_of(index, f"best {metric}")
        return found.groups[index].n < most, np.inf if mean is None else sign * mean.mean

    order = sorted(range(len(found.groups)), key=key)
    return comparison([found.groups[i] for i in order], found.metrics, found.target)


def add_up(histories: Sequence[pd.DataFrame]) -> Bill:
    """Return what runs cost together, from the last row of each."""
    last = [frame.iloc[-1] for frame in histories if len(frame)]

    def total(column: str) -> float:
        values = [float(row[column]) for row in last]
        return float(np.nansum(values)) if values else 0.0

    virtual = [float(row["sim_seconds"]) for row in last]
    has_clock = any(np.isfinite(value) for value in virtual)
    return Bill(
        len(last),
        int(total("round")),
        int(total("bytes_up")),
        int(total("bytes_down")),
        int(total("client_steps")),
        int(total("client_gradients")),
        total("sim_seconds") if has_clock else None,
        total("wall_seconds"),
    )


def run_record(
    name: str, state: State, history: pd.DataFrame | None, metric: str
) -> dict[str, Any]:
    """Return a run's row of `results.csv`."""
    record: dict[str, Any] = {
        "run": name,
        "trial": state.trial,
        "status": state.status,
        **{key: _cell(value) for key, value in state.values.items()},
        "seed": state.seed,
    }
    columns = ("bytes_up", "bytes_down", "client_steps", "client_gradients", "sim_seconds")
    if history is not None and len(history):
        last = history.iloc[-1]
        known = history[metric].dropna() if metric in history else history[:0]
        record["rounds"] = int(last["round"])
        if len(known):
            best = known.max() if is_higher_better(metric) else known.min()
            record |= {f"final_{metric}": known.iloc[-1], f"best_{metric}": best}
        record |= {column: last[column] for column in (*columns, "wall_seconds")}
    else:
        record |= {"rounds": 0}
    record["error"] = state.error.partition("\n")[0]
    return record


def sections(outcome: Outcome) -> list[Section]:
    """Return the tables of a sweep."""
    found = outcome.comparison
    if found is None:
        return []
    made: list[Section | None] = [groups_section(found) or _points_section(found)]
    if 1 < len(found.groups) <= MOST_CURVES:
        made.append(differences_section(found))
    return [section for section in made if section is not None]


def markdown(outcome: Outcome, metric: str) -> str:
    """Return `results.md`."""
    summary = outcome.summary
    lines = [f"# {outcome.directory.resolve().name}\n"]
    counts = ", ".join(f"{count} {status}" for status, count in summary["runs"].items())
    lines.append(f"{summary['method']} over {summary['keys'] or 'seeds'}; runs: {counts}.\n")
    lines += [section.markdown() for section in sections(outcome)]
    best = summary["best"]
    if best is not None:
        lines.append(f"Best by {metric}: {best['label']}\n\n```\n{best['command']}\n```\n")
    lines.append(f"The bill of all runs: {outcome.bill.text()}.\n")
    if outcome.failures:
        lines.append("Failed:\n")
        for name, state in outcome.failures.items():
            lines.append(f"- `{name}`: {state.error.splitlines()[0] if state.error else '?'}")
        lines.append("")
    return "\n".join(lines)


def _summary(
    book: Book, found: Comparison | None, metric: str, bill: Bill, status: str
) -> dict[str, Any]:
    definition = book.definition
    counts: dict[str, int] = {}
    for state in book.states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    best = None
    if found is not None:
        top = ranked(found, metric)
        label = top.groups[0].label
        state = next(s for s in book.states.values() if s.label == label)
        mean = top.mean_of(0, f"best {metric}")
        best = {
            "label": label,
            "values": {k: v for k, v in state.values.items() if k != "seed"},
            "mean": None if mean is None else mean.mean,
            "n": top.groups[0].n,
            "command": definition.get("commands", {}).get(label) or _command(book, state),
        }
    return {
        "kind": definition["kind"],
        "status": status,
        "sweep_dir": str(book.directory),
        "method": definition.get("method", ""),
        "keys": ", ".join(definition.get("space", {})),
        "metric": metric,
        "runs": counts,
        "best": best,
        "points": group_records(found) if found is not None else [],
        "failed": failures_of(book),
        "bill": bill.facts(),
    }


def _command(book: Book, state: State) -> str:
    """Return the command that does a run again."""
    name = next(n for n, s in book.states.items() if s == state)
    return f"fedopt run {book.directory / 'configs' / f'{name}.toml'}"


def _points_section(found: Comparison) -> Section:
    """Return the table of points that were run once each."""
    plain = runs_section(found)
    cells = [[group.label, *row[1:]] for group, row in zip(found.groups, plain.cells, strict=True)]
    headings = ["point", *plain.headings[1:]]
    return Section("groups", plain.title, headings, cells, plain.data, plain.notes, ("point",))


def _draw(
    book: Book,
    found: Comparison,
    metric: str,
    target: Target | None,
    rows: Sequence[Mapping[str, Any]],
) -> None:
    """Draw the curves of the best points, and the metric against what is varied."""
    best = ranked(found, metric).groups[:MOST_CURVES]
    shown = [group for group in found.groups if group in best]
    title = None
    if len(shown) < len(found.groups):
        title = f"the best {len(shown)} of {len(found.groups)} points by {metric.replace('_', ' ')}"
    metrics = [] if metric in ("test_accuracy", "test_loss") else [metric]
    try:
        plot = convergence_plot(shown, title=title, metrics=metrics, target=target)
    except ConfigError:  # no loss or accuracy in common: what they were ranked by is
        plot = convergence_plot(shown, title=title, metrics=[metric], target=target)
    plot.save(book.directory / "convergence.png")
    keys = list(book.definition.get("space", {}))
    parameters = parameter_plot(pd.DataFrame(rows), keys, metric)
    if parameters is not None:
        parameters.save(book.directory / "parameters.png")


def histories_of(book: Book) -> dict[str, pd.DataFrame]:
    """Return the rounds of every run that has any file of them."""
    found = {}
    for name in book.states:
        folder = book.run_folder(name)
        if (folder / ROUNDS_FILE).is_file():
            found[name] = read_stored(folder).history
    return found


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else str(value)
