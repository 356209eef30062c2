"""A run in a notebook: a piece of HTML that is whole, says the values, and lets nothing through."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import fedopt
from fedopt.analysis.report.notebook import run_html

from .pages import parse, rows
from .test_run_report import HOSTILE, clients


def test_a_run_shows_its_values_and_one_chart():
    run = fedopt.simulate(rounds=3, clients_per_round=None, **clients(4))
    page = parse(run._repr_html_())
    table = {row[0]: row[1:] for row in rows(next(page.all("table")))}
    assert float(table["test accuracy"][0]) == pytest.approx(
        run.summary["final"]["test_accuracy"], abs=5e-5
    )
    best = run.summary["best"]["test_loss"]
    assert table["test loss"][1].endswith(f"({best['round']})")
    charts = [svg for svg in page.all("svg") if svg.has("chart")]
    assert len(charts) == 1
    assert charts[0].attributes["aria-label"].startswith("accuracy by rounds")
    assert len(page.text) < 5000


def test_regression_shows_the_loss_and_nothing_measured_shows_no_chart():
    x = np.ones((3, 4, 1), dtype="float32")
    run = fedopt.simulate(
        rounds=2,
        clients_per_round=None,
        clients=list(zip(x, 2 * x, strict=True)),
        model=lambda: torch.nn.Linear(1, 1),
        loss=torch.nn.functional.mse_loss,
        engine={"name": "inline"},
    )
    assert "loss by rounds" in run._repr_html_()
    empty = pd.DataFrame({"round": [1], "test_loss": [np.nan]})
    assert 'class="chart"' not in run_html("x", {}, empty, None)


def test_hostile_names_are_only_words():
    page = parse(run_html(HOSTILE, {"rounds": 1}, pd.DataFrame({"round": [1]}), HOSTILE))
    assert not list(page.all("script", "img"))
    assert HOSTILE in page.text
