"""The report of one run: what it came to, how it was set up, and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.report.clock import timeline_figure
from fedopt.analysis.report.configuration import config_tables
from fedopt.analysis.report.figures import Section, Table, axes_of, number
from fedopt.analysis.report.page import Page, render
from fedopt.analysis.report.population import picture, population_figures
from fedopt.analysis.report.record import RunRecord
from fedopt.analysis.report.reliability import reliability_figure
from fedopt.analysis.report.run_figures import (
    bytes_figures,
    client_figures,
    curve_figures,
    failure_figure,
    failure_table,
)
from fedopt.analysis.summary import summarise
from fedopt.analysis.targets import COSTS, Target, cost_to_target
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

LADDER = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Accuracies that a report looks for by itself: the highest ones reached, and the next."""

_NOT_MEASURED = "Not measured in this run."
_UNITS = {column.name: column.unit for column in ROUND_COLUMNS}


def run_report(record: RunRecord, targets: Sequence[Target] = ()) -> str:
    """Return the report of a run as the text of a page.

    Args:
        record: the run, finished or not.
        targets: values whose cost is told; none: steps of the test accuracy.

    Raises:
        ConfigError: a target's metric was not measured.
    """
    axes = axes_of(record.history) if len(record.history) else []
    reliability, timeline = reliability_figure(record), timeline_figure(record)
    failure = failure_figure(record)
    gone = failure_table(record)
    population = population_figures(record)
    sections = [
        _summary(record, targets),
        _curves(record, axes),
        Section(
            "clients",
            "Clients",
            client_figures(record),
            note=_clients_note(record),
        ),
        Section(
            "population",
            "Population",
            population,
            note=_population_note(record),
            picture=_old_picture(record),
        ),
        Section(
            "reliability",
            "Calibration",
            [reliability] if reliability else [],
            note="" if reliability else _reliability_note(record),
        ),
        Section(
            "timeline", "Virtual clock", [timeline] if timeline else [], note=_clock_note(record)
        ),
        Section("bytes", "Communication", bytes_figures(record)),
        Section(
            "failures",
            "Failures",
            [failure] if failure else [],
            [("Who, when, why", gone, False)] if gone else [],
            note="" if gone or failure else "No client failed or was dropped.",
        ),
        _warnings(record),
        Section("config", "Configuration", tables=config_tables(record.config)),
        _environment(record),
    ]
    words = [record.strategy, _named(record.config, "data"), _named(record.config, "model")]
    subtitle = ", ".join(word for word in words if word)
    return render(Page(record.name, subtitle, record.status, sections, _error(record)))


def _summary(record: RunRecord, targets: Sequence[Target]) -> Section:
    rows: list[Any] = record.history.to_dict("records")
    found = record.summary if record.summary.get("final") else summarise(rows)
    final, best = _mapping(found, "final"), _mapping(found, "best")
    initial = _mapping(record.summary, "initial")
    table_rows = []
    for column in ROUND_COLUMNS:
        value = final.get(column.name)
        if value is None or column.name == "round" or column.cumulative:
            continue
        top = _mapping(best, column.name)
        table_rows.append(
            (
                column.name,
                number(initial.get(column.name)),
                number(value),
                number(top.get("value")),
                number(top.get("round")),
            )
        )
    tables: list[tuple[str, Table, bool]] = [
        ("Metrics", Table(("metric", "before", "final", "best", "in round"), table_rows), False)
    ]
    costs = _target_table(record, targets)
    if costs is not None:
        tables.append(("Cost to reach a target", costs, False))
    return Section("summary", "Summary", tables=tables, cards=_cards(record, final, best))


def _cards(
    record: RunRecord, final: Mapping[str, Any], best: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Return label, value and remark of the numbers at the top."""
    cards: list[tuple[str, str, str]] = []
    for name, title in (
        ("test_accuracy", "test accuracy"),
        ("validation_accuracy", "validation accuracy"),
        ("test_loss", "test loss"),
        ("train_loss", "training loss"),
        ("test_ece", "calibration error"),
        ("validation_accuracy_worst10", "worst tenth of clients"),
    ):
        value = final.get(name)
        if isinstance(value, int | float):
            top = _mapping(best, name)
            remark = ""
            if top:
                remark = f"best {human_metric(float(top['value']))} in round {top['round']}"
            cards.append((title, human_metric(float(value)), remark))
    planned = record.planned_rounds
    of = f"of {planned:,}" if planned and planned != record.rounds else ""
    cards.append(("rounds", f"{record.rounds:,}", of))
    up, down = final.get("bytes_up"), final.get("bytes_down")
    if isinstance(up, int | float) and isinstance(down, int | float):
        remark = f"{human_bytes(up)} up, {human_bytes(down)} down"
        cards.append(("sent", human_bytes(up + down), remark))
    for name, title in (("sim_seconds", "virtual time"), ("wall_seconds", "real time")):
        if isinstance(final.get(name), int | float):
            cards.append((title, _seconds(float(final[name])), ""))
    if isinstance(final.get("client_steps"), int):
        cards.append(("local steps", f"{final['client_steps']:,}", "of all clients"))
    part = _mapping(record.summary, "participation")
    if part:
        cards.append(("took part", f"{part['took_part']:,}", f"of {part['clients']:,} clients"))
    if isinstance(final.get("epsilon"), int | float):
        cards.append(("privacy", f"{final['epsilon']:.3g}", "epsilon"))
    return cards


def _target_table(record: RunRecord, targets: Sequence[Target]) -> Table | None:
    chosen = list(targets) or _ladder(record)
    if not chosen:
        return None
    costs = [cost_to_target(record.history, t) or {} for t in chosen]
    shown = [c for c in COSTS if any(np.isfinite(cost.get(c.name, np.nan)) for cost in costs)]
    rows = []
    for target, cost in zip(chosen, costs, strict=True):
        cells = [_amount(cost[c.name] * c.factor) if cost else "not reached" for c in shown]
        rows.append((str(target), *(cells or ["not reached"])))
    headings = ("target", *(c.heading for c in shown)) if shown else ("target", "rounds")
    note = "By the running best; between two measurements, interpolated linearly."
    return Table(headings, rows, note=note)


def _ladder(record: RunRecord) -> list[Target]:
    """Return the two highest steps of accuracy that were reached, and the next one."""
    for metric in ("test_accuracy", "validation_accuracy"):
        values = record.history[metric].dropna() if metric in record.history else ()
        if len(values):
            reached = sum(max(values) >= step for step in LADDER)
            steps = LADDER[max(0, reached - 2) : reached + 1]
            return [Target(metric, step) for step in steps]
    return []


def _curves(record: RunRecord, axes: Sequence[Any]) -> Section:
    if not len(record.history):
        return Section("curves", "Curves", note="No round is finished yet.")
    return Section("curves", "Curves", curve_figures(record, axes), axes=tuple(axes))


def _warnings(record: RunRecord) -> Section:
    if not record.warnings:
        return Section("warnings", "Warnings", note="The run gave no warning.")
    table = Table(("time", "warning"), list(record.warnings), numeric=False)
    return Section("warnings", "Warnings", tables=[("", table, False)])


def _environment(record: RunRecord) -> Section:
    rows: list[tuple[object, ...]] = [(k, str(v)) for k, v in record.environment.items()]
    engine = _mapping(record.summary, "engine")
    rows += [(f"engine: {key}", str(value)) for key, value in engine.items()]
    for key in ("parameters", "seed", "model_sha256", "run_dir"):
        if record.summary.get(key) is not None:
            value = record.summary[key]
            rows.append((key, number(value) if key == "parameters" else str(value)))
    table = Table(("what", "value"), rows, numeric=False)
    return Section("environment", "Environment", tables=[("", table, False)] if rows else [])


def _population_note(record: RunRecord) -> str:
    population = record.population
    if not population:
        return "The run did not get as far as its population."
    skew = population.get("label_skew")
    parts = [
        f"{number(population.get('clients'))} clients, "
        f"{number(population.get('examples'))} training examples."
    ]
    if isinstance(skew, Mapping) and skew.get("total_variation") is not None:
        words = f"Label skew (mean total variation to all data): {skew['total_variation']:.2f}"
        chance = skew.get("iid_total_variation")
        parts.append(words + (f"; chance alone gives {chance:.2f}." if chance is not None else "."))
    return " ".join(parts)


def _old_picture(record: RunRecord) -> str:
    if record.population_picture is None:
        return ""
    return picture(record.population_picture, "Labels and sizes of the clients, as the run drew it")


def _clients_note(record: RunRecord) -> str:
    if len(record.evaluations):
        return ""
    return (
        "The accuracy of single clients was not measured; evaluation.validation_clients or "
        "evaluation.unseen_clients does."
    )


def _reliability_note(record: RunRecord) -> str:
    if record.status == "running":
        return "Measured at the end of the run."
    return _NOT_MEASURED


def _clock_note(record: RunRecord) -> str:
    if "sim_seconds" in record.history and record.history["sim_seconds"].notna().any():
        return ""
    return "The run had no virtual clock: no system profile was set."


def _error(record: RunRecord) -> str:
    error = record.summary.get("error")
    return str(error) if error else ""


def _named(config: Mapping[str, Any], key: str) -> str:
    table = config.get(key)
    return str(table["name"]) if isinstance(table, Mapping) and "name" in table else ""


def _mapping(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    child = parent.get(name)
    return child if isinstance(child, Mapping) else {}


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else human_seconds(seconds)


def _amount(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
