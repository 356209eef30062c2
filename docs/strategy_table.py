"""The table of strategies in docs/strategies.md, from the code and the checks that pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedopt.client.algorithm import collected, state_scalars
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.recorder import make_strategy
from fedopt.registry import Entry, entries
from fedopt.testing import passed_checks
from fedopt.testing.registered import TABLES

START, END = "<!-- strategies -->", "<!-- end -->"

HEADINGS = ("strategy", "paper", "down", "up", "kept by a client", "weighting", "checks passed")


def with_table(page: str) -> str:
    """Return a page with the table between its two marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}{END}{after}"


def table(passed: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return a line a strategy, and one on the checks that all pass.

    Args:
        passed: strategy -> its checks that pass; None runs them.
    """
    passed = passed_checks() if passed is None else passed
    common = [name for name in passed["fedavg"] if all(name in names for names in passed.values())]
    rows = [
        line(entry, [name for name in passed[entry.name] if name not in common])
        for entry in entries("strategies")
    ]
    lines = [cells(HEADINGS), cells(["---"] * len(HEADINGS)), *rows]
    return "\n".join(lines) + f"\n\nAll pass {', '.join(common)} as well.\n"


def cells(words: Iterable[str]) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(words)} |"


def line(entry: Entry, passed: Sequence[str]) -> str:
    """Return the line of a strategy."""
    strategy = make_strategy(Experiment.from_config(load(None, **tables(entry.name))), None)
    algorithm = strategy.algorithm
    down = up = "nothing"
    if strategy.exchanges:
        down = words(["model", *strategy.broadcasts])
        up = words([*(["change"] if collected(algorithm) else []), *algorithm.terms])
        if strategy.federation.personal is not None and not strategy.sends_personal:
            down += " without what is kept"
    kept = words([*algorithm.state_fields, *state_scalars(algorithm)]) or "-"
    weighting = strategy.options.weighting if strategy.exchanges else "-"
    source = entry.source if entry.source != "-" else "a reference"
    return cells([f"`{entry.name}`", source, down, up, kept, weighting, ", ".join(passed) or "-"])


def words(names: Sequence[str]) -> str:
    """Return names in a row."""
    return ", ".join(f"`{name}`" for name in names)


def tables(name: str) -> dict[str, Any]:
    """Return the configuration of a strategy, on a model that has what it needs."""
    own = {k: v for k, v in TABLES.get(name, {}).items() if k not in ("data", "evaluation")}
    given: dict[str, Any] = {
        "strategy": name,
        "data": {"name": "digits", "validation_fraction": 0.2},
        "evaluation": {"validation_clients": 1},
        **own,
    }
    given.get("local", {}).pop("loss", None)
    if name == "fedbn":
        given["model"] = {"name": "cnn", "norm": "group"}
    return given
