"""The quick form of every study runs, and what is claimed robustly holds in it."""

from __future__ import annotations

import pandas as pd
import pytest

from fedopt.errors import ConfigError
from fedopt.studies.catalogue import MODULES, study_of
from fedopt.studies.command import reproduce

pytestmark = pytest.mark.slow


ALWAYS = ("fedprox-synthetic", "scaffold-quadratics")
"""Studies that every run of the tests tries; `make test-all` tries all."""


def needs_of(study):
    """Return the checks that what the quick form needs is there."""
    kept = [c for c in study.conditions if c.name in study.quick.conditions]
    checks = [study.needs, *(c.needs for c in kept or study.conditions)]
    return [check for check in checks if check is not None]


@pytest.mark.parametrize(
    "name",
    [
        name if name in ALWAYS else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in MODULES
    ],
)
def test_the_quick_form_shows_what_is_robust(name, tmp_path):
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
