"""What a run came to: the contents of `summary.json`, and its table for people.

Pure functions of the rows of `rounds.csv`; writing the file is in `store.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedopt.analysis.columns import ROUND_COLUMNS, names
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, object]
Number = int | float

_APART = ("test_sharpness", "test_ball_increase")  # measured in rounds of their own
_GROUPS = {
    **{
        prefix: tuple(n for n in names(ROUND_COLUMNS) if n.startswith(prefix) and n not in _APART)
        for prefix in ("train_", "test_", "validation_", "drift_", "unseen_", "swa_")
    },
    "objective": ("objective", "gradient_variance", "gradient_dissimilarity"),
    "sharpness": _APART,
}
_TOTALS = ("clients", "dropped_clients", "failed_clients")
_INTEGERS = frozenset(column.name for column in ROUND_COLUMNS if column.kind == "integer")


def summarise(rows: Sequence[Row], facts: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return the summary of a run.

    Metrics measured together are reported together: all `test_*` values of `final` come from
    the last round in which any of them was measured, so that a loss that became NaN is
    reported as missing, never by an older, better value. Sharpness, which has rounds of its
    own, is such a group too.

    Args:
        rows: the run's rounds in ascending order, with the names of `ROUND_COLUMNS`; a missing
            key, None and NaN all mean "not measured".
        facts: what else to put at the top level, such as `model_sha256` and `run_dir`.

    Returns:
        `rounds` (last round, 0 if none), `final` (metrics where last measured, the round of the
        test in `test_round`, cumulative totals), `best` (per metric with a better direction that
        was measured: `value` and the first `round` that had it), `totals` (clients used,
        dropped and failed over all rounds), and `facts`.

    Raises:
        ValueError: a fact has a name that the summary itself uses.
    """
    last = _number(rows[-1], "round") if rows else None
    summary: dict[str, object] = {
        "rounds": int(last or 0),
        "final": _final(rows),
        "best": _best(rows),
        "totals": {name: int(sum(_number(row, name) or 0 for row in rows)) for name in _TOTALS},
    }
    taken = sorted(summary.keys() & (facts or {}).keys())
    if taken:
        raise ValueError(f"facts may not replace parts of the summary: {', '.join(taken)}")
    return {**summary, **(facts or {})}


def final_table(summary: Mapping[str, object]) -> Table:
    """Return a table of a run's final and best values.

    Args:
        summary: as returned by `summarise`, or read back from `summary.json`.

    Returns:
        A rich table with the columns metric, final, best and the best's round.
    """
    from rich.table import Table

    final, best = _mapping(summary, "final"), _mapping(summary, "best")
    rounds = summary["rounds"]
    title = f"after {rounds} round{'' if rounds == 1 else 's'}"
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    for heading in ("final", "best", "in round"):
        table.add_column(heading, justify="right")
    for column in ROUND_COLUMNS:
        value = _number(final, column.name)
        if value is None or column.name == "round":
            continue
        record = _mapping(best, column.name)
        top = _number(record, "value")
        table.add_row(
            column.name,
            _text(value, column.unit),
            "" if top is None else _text(top, column.unit),
            str(record.get("round", "")),
        )
    return table


def _final(rows: Sequence[Row]) -> dict[str, object]:
    final: dict[str, object] = {}
    for group, metrics in _GROUPS.items():
        for row in reversed(rows):
            values = {name: _number(row, name) for name in metrics}
            if any(value is not None for value in values.values()):
                final.update(values)
                if group == "test_":
                    final["test_round"] = _number(row, "round")
                break
    if rows:
        totals = (column.name for column in ROUND_COLUMNS if column.cumulative)
        final.update({name: _number(rows[-1], name) for name in totals})
        epsilon = _number(rows[-1], "epsilon")
        final |= {} if epsilon is None else {"epsilon": epsilon}
    return final


def _best(rows: Sequence[Row]) -> dict[str, object]:
    best: dict[str, object] = {}
    for column in (column for column in ROUND_COLUMNS if column.better):
        measured = [(_number(row, column.name), _number(row, "round")) for row in rows]
        values = [(value, round_) for value, round_ in measured if value is not None]
        if values:
            pick = max if column.better == "higher" else min
            value, round_ = pick(values, key=lambda pair: pair[0])  # the first of equals
            best[column.name] = {"value": value, "round": round_}
    return best


def _number(row: Mapping[str, object], name: str) -> Number | None:
    """Return the cell as a Python number, None where it was not measured."""
    value = row.get(name)
    if value is None or value != value:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return int(value) if name in _INTEGERS else value


def _mapping(parent: Mapping[str, object], name: str) -> Mapping[str, object]:
    child = parent.get(name, {})
    return child if isinstance(child, Mapping) else {}


def _text(value: Number, unit: str) -> str:
    if unit == "bytes":
        return human_bytes(value)
    if unit == "s":
        return human_seconds(value)
    return f"{value:,}" if isinstance(value, int) else human_metric(value)
