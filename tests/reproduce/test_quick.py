"""The quick form of every study runs, and what is claimed robustly holds in it."""

from __future__ import annotations

import pandas as pd
import pytest

from fedopt.errors import ConfigError
from fedopt.studies.catalogue import MODULES, study_of
from fedopt.studies.command import reproduce
from fedopt.studies.runner import perform

pytestmark = pytest.mark.slow


def needs_of(study):
    """Return the checks that what the quick form needs is there."""
    kept = [c for c in study.conditions if c.name in study.quick.conditions]
    checks = [study.needs, *(c.needs for c in kept or study.conditions)]
    return [check for check in checks if check is not None]


def run_here(form, source, store, jobs, ended):
    """Run all runs of a source in this process: test_command.py has those with processes."""
    while (task := source.next()) is not None:
        record, history = perform(form, task)
        store.put(task, record, history)
        ended(task, record, False)
        source.ended(task)


@pytest.mark.parametrize("name", MODULES)
def test_the_quick_form_shows_what_is_robust(name, tmp_path, monkeypatch):
    monkeypatch.setattr("fedopt.studies.command.run_tasks", run_here)
    for check in needs_of(study_of(name)):
        try:
            check()
        except ConfigError as error:
            pytest.skip(f"data are missing: {error}")
    made = reproduce(name, tmp_path / "out", is_quick=True)
    assert made.failed == {}
    robust = [(claim.text, found) for claim, found in made.checked if claim.is_robust]
    assert [(text, found) for text, found in robust if found.verdict != "holds"] == []
    assert (tmp_path / "out" / f"{name}.md").stat().st_size > 1000
    rows = pd.read_csv(tmp_path / "out" / "results.csv")
    assert len(rows) == len(made.results.outcomes) > 0
