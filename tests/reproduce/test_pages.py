"""The full forms that are in docs/studies: pages of the studies as they are now."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from fedopt.studies.catalogue import MODULES, every_study, study_of

PAGES = Path(__file__).parents[2] / "docs" / "studies"
NAMES = sorted(page.stem for page in PAGES.glob("*.md"))


def test_the_full_forms_that_matter_most_are_there():
    assert {"fedprox-synthetic", "scaffold-similarity", "combination"} <= set(NAMES) <= set(MODULES)
    assert {folder.name for folder in PAGES.iterdir() if folder.is_dir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_its_study_says(name):
    study, page = study_of(name), (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert "quick form" not in page
    assert study.reading.strip() in page
    assert study.reading
    assert study.base.strip() in page
    claims = pd.read_csv(PAGES / name / "claims.csv")
    assert claims["claim"].tolist() == [claim.text for claim in study.claims]
    for text, verdict in zip(claims["claim"], claims["verdict"], strict=True):
        assert any(
            line.startswith(f"| {text} |") and line.endswith(f"| {verdict} |")
            for line in page.splitlines()
        ), text
    for point in study.differs:
        assert f"- {point}\n" in page


@pytest.mark.parametrize("name", NAMES)
def test_its_table_holds_every_run_on_every_seed(name):
    study, rows = study_of(name), pd.read_csv(PAGES / name / "results.csv")
    shown = set(rows["condition"])
    expected = {
        (condition.name, arm.name, seed)
        for condition in study.conditions
        if condition.name in shown
        for arm in study.arms_of(condition)
        for seed in study.seeds
    }
    assert set(rows[["condition", "arm", "seed"]].itertuples(index=False, name=None)) == expected
    assert set(rows["status"]) <= {"completed", "diverged"}
    for drawing in study.drawings:
        for suffix in (".png", ".csv"):
            assert (PAGES / name / f"{drawing.name}{suffix}").stat().st_size > 1000


def test_every_study_says_how_long_it_takes():
    for study in every_study():
        full, quick = study.seconds
        assert math.isfinite(full), study.name
        assert 0 < quick <= 2 * 180, f"{study.name}: a quick form has 3 minutes on 2 cores"
