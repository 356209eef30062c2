"""What `fedopt compare` tells, section by section.

A further section is a function from a `Comparison` to a `Section`, or None where it has nothing to
say, and an entry in `SECTIONS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedopt.analysis.comparison import Comparison, Difference, RunRow, value_of
from fedopt.analysis.intervals import MeanInterval
from fedopt.analysis.sections import Section
from fedopt.analysis.targets import COSTS

NOT_REACHED = "not reached"


def runs_section(found: Comparison) -> Section:
    """Return the table of runs, one by one."""
    has_labels = len(found.groups) > 1 and found.has_repetitions
    headings = ["run", *(["group"] if has_labels else [])]
    for metric in found.metrics:
        name = metric.replace("_", " ") if len(found.metrics) > 1 else ""
        headings += [f"final {name}".strip(), f"best {name}".strip(), "in round"]
    costs = _shown_costs(found)
    goal = f" to {found.target.value:g}" if found.target else ""
    headings += [f"{cost.heading}{goal}" for cost in costs]
    cells, data = [], []
    for row in (row for some in found.rows for row in some):
        line = [row.name, *([row.label] if has_labels else [])]
        for metric in found.metrics:
            line += [f"{row.final[metric]:.4f}", f"{row.best[metric]:.4f}"]
            line.append(str(row.best_round[metric]))
        for cost in costs:
            value = value_of(row, cost.name)
            if row.costs is None:
                line.append(NOT_REACHED)
            else:
                line.append("-" if value is None else amount(value * cost.factor))
        cells.append(line)
        data.append(_run_data(row, found))
    left = ("run", "group")
    title = f"runs: {', '.join(found.metrics)}"
    return Section("runs", title, headings, cells, data, left=left)


def groups_section(found: Comparison, only: Sequence[str] = ()) -> Section | None:
    """Return the table of means over seeds; None where no group has several.

    Args:
        found: the comparison.
        only: names of the costs that are shown; none: all that were measured.
    """
    if not found.has_repetitions:
        return None
    headings = ["group", "n"]
    costs = [cost for cost in _shown_costs(found) if not only or cost.name in only]
    for metric in found.metrics:
        name = metric.replace("_", " ")
        headings += [f"final {name}", f"best {name}"]
    if found.target:
        headings += [f"{cost.heading} to {found.target.value:g}" for cost in costs]
    cells, data = [], []
    for index, group in enumerate(found.groups):
        line: list[str] = [group.label, str(group.n)]
        plain: dict[str, Any] = {"group": group.label, "n": group.n}
        for metric in found.metrics:
            for kind in ("final", "best"):
                mean = found.mean_of(index, f"{kind} {metric}")
                line.append(mean_text(mean, "{:.4f}"))
                plain |= _interval_data(f"{kind}_{metric}", mean)
        if found.target is not None:
            rows = found.rows[index]
            reached = sum(row.costs is not None for row in rows)
            plain["reached"] = reached
            for cost in COSTS:
                mean = found.mean_of(index, cost.name)
                plain |= _interval_data(f"{cost.name}_to_target", mean)
                if cost not in costs:
                    continue
                if reached == 0:
                    line.append(NOT_REACHED)
                elif reached < len(rows):
                    line.append(f"reached by {reached} of {len(rows)}")
                else:
                    line.append(mean_text(mean, None, cost.factor))
        cells.append(line)
        data.append(plain)
    note = "mean ± half of the 95 % t interval over seeds"
    if found.target:
        note += "; a mean to the target is given where all seeds reach it"
    return Section("groups", "means over seeds", headings, cells, data, [note], left=("group",))


def differences_section(found: Comparison) -> Section | None:
    """Return the table of paired differences; None where there are none in several pairs."""
    if not any(d.pairs > 1 or d.left_out for d in found.differences):
        return None
    cost_of = {cost.name: cost for cost in COSTS}
    shown = {cost.name for cost in _shown_costs(found)}
    headings = ["group", "quantity", "difference", "95 % interval", "p", "pairs", "verdict"]
    cells, data = [], []
    for d in found.differences:
        data.append(_difference_data(d))
        cost = cost_of.get(d.quantity)
        if cost is not None and cost.name not in shown:
            continue
        factor = cost.factor if cost else 1.0
        signed = _signed_amount if cost else _signed
        quantity = d.quantity.replace("_", " ")
        if cost and found.target:
            quantity = f"{cost.heading} to {found.target.value:g}"
        interval = d.interval
        cells.append(
            [
                d.label,
                quantity,
                "-" if d.mean is None else signed(d.mean * factor),
                f"{signed(interval.low * factor)} to {signed(interval.high * factor)}"
                if interval
                else "-",
                f"{interval.p_value:.3f}" if interval else "-",
                f"{d.pairs}" + (f" of {d.pairs + d.left_out}" if d.left_out else ""),
                d.verdict,
            ]
        )
    notes = [
        "differences are taken seed by seed; 95 % t intervals, not adjusted for their number",
        *(
            ["pairs of which one or both did not reach the target are left out"]
            if any(d.left_out for d in found.differences)
            else []
        ),
    ]
    title = f"paired differences to {found.reference.label}"
    left = ("group", "quantity", "verdict")
    return Section("differences", title, headings, cells, data, notes, left=left)


SECTIONS: tuple[Callable[[Comparison], Section | None], ...] = (
    runs_section,
    groups_section,
    differences_section,
)
"""What `fedopt compare` tells, in order."""


def sections_of(found: Comparison) -> list[Section]:
    """Return all sections that have something to say."""
    return [section for make in SECTIONS if (section := make(found)) is not None]


def group_records(found: Comparison) -> list[dict[str, Any]]:
    """Return a flat row a group, with its differences to the reference: what a CSV file holds."""
    records = []
    for index, group in enumerate(found.groups):
        record: dict[str, Any] = {"group": group.label, "n": group.n}
        record["seeds"] = " ".join(str(run.seed) for run in group.runs if run.seed is not None)
        quantities = [f"{kind} {name}" for name in found.metrics for kind in ("final", "best")]
        costs = [cost.name for cost in COSTS] if found.target else []
        by_group = [d for d in found.differences if d.label == group.label]
        for quantity in (*quantities, *costs):
            name = quantity.replace(" ", "_") + ("_to_target" if quantity in costs else "")
            record |= _interval_data(name, found.mean_of(index, quantity))
            d = next((d for d in by_group if d.quantity == quantity), None)
            interval = d.interval if d else None
            record[f"{name}_difference"] = d.mean if d else None
            record[f"{name}_difference_low"] = interval.low if interval else None
            record[f"{name}_difference_high"] = interval.high if interval else None
            record[f"{name}_difference_p"] = interval.p_value if interval else None
        if found.target:
            record["target"] = str(found.target)
            record["reached"] = sum(row.costs is not None for row in found.rows[index])
        records.append(record)
    return records


def mean_text(mean: MeanInterval | None, form: str | None, factor: float = 1.0) -> str:
    """Return a mean and half of its interval as text."""
    if mean is None:
        return "-"
    show = form.format if form else amount
    half = mean.half
    return show(mean.mean * factor) + ("" if half is None else f" ± {show(half * factor)}")


def amount(value: float, sign: bool = False) -> str:
    """Return a count or a size as people read it, to three digits or more."""
    plus = "+" if sign else ""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 100:
        return f"{value:{plus},.0f}"
    return f"{value:{plus}.1f}" if size >= 10 else f"{value:{plus}.3g}"


def _shown_costs(found: Comparison) -> list[Any]:
    """Return the costs that are told: of a target, those that a run measured."""
    if found.target is None:
        return []
    rows = [row for some in found.rows for row in some]
    shown = [cost for cost in COSTS if any(value_of(row, cost.name) is not None for row in rows)]
    if all(_has_a_gradient_a_step(row) for row in rows):
        shown = [cost for cost in shown if cost.name != "client_gradients"]
    return shown or [COSTS[0]]


def _has_a_gradient_a_step(row: RunRow) -> bool:
    return value_of(row, "client_gradients") == value_of(row, "client_steps")


def _run_data(row: RunRow, found: Comparison) -> dict[str, Any]:
    first = found.metrics[0]
    plain: dict[str, Any] = {
        "run": row.name,
        "group": row.label,
        "seed": row.seed,
        "final": row.final[first],
        "best": row.best[first],
        "best_round": row.best_round[first],
        "metrics": {
            name: {
                "final": row.final[name],
                "best": row.best[name],
                "best_round": row.best_round[name],
            }
            for name in found.metrics
        },
    }
    if found.target is not None:
        plain["reached"] = row.costs is not None
        plain |= {cost.name: value_of(row, cost.name) for cost in COSTS}
    return plain


def _interval_data(name: str, mean: MeanInterval | None) -> dict[str, Any]:
    return {
        name: mean.mean if mean else None,
        f"{name}_low": mean.low if mean else None,
        f"{name}_high": mean.high if mean else None,
    }


def _difference_data(d: Difference) -> dict[str, Any]:
    interval = d.interval
    return {
        "group": d.label,
        "quantity": d.quantity,
        "mean": d.mean,
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "p_value": interval.p_value if interval else None,
        "pairs": d.pairs,
        "left_out": d.left_out,
        "verdict": d.verdict,
    }


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _signed_amount(value: float) -> str:
    return amount(value, sign=True)
