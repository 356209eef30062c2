"""The studies of second-order training, curricula and search run, and show what they are for."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fedopt import simulate
from fedopt.config import load

FOLDER = Path(__file__).parents[1] / "simulations"
STUDIES = {
    "scales": "second_order",
    "digits": "second_order",
    "curriculum": "curriculum",
    "self_paced": "curriculum",
}
INTERVAL = re.compile(r"[+-]\d+\.\d{4} to [+-]\d+\.\d{4}")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", STUDIES)
def test_a_quick_study_prints_intervals(name: str, tmp_path: Path) -> None:
    script, out = FOLDER / STUDIES[name] / "run.py", tmp_path / "out"
    ran = subprocess.run(
        [sys.executable, str(script), name, "--quick", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    intervals = pd.read_csv(out / "intervals.csv")
    assert len(INTERVAL.findall(ran.stdout)) == len(intervals) > 0
    assert "…" not in ran.stdout
    assert (out / f"study_{name}.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_the_study_of_search_goes_from_search_to_comparison(tmp_path: Path) -> None:
    words = [
        "rounds=1",
        "search.retrain_rounds=1",
        "search.random_samples=2",
        "local.batch_size=64",
    ]
    script = FOLDER / "search" / "run.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--seeds", "1", "--out", str(tmp_path), *words],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"above the median of random search on [01] of 1 seeds", ran.stdout)
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1


@pytest.mark.exhaustive
def test_curvature_needs_fewer_rounds_where_scales_are_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the rates that the study chooses from one grid for all, on its first seed."""
    folder = FOLDER / "second_order"
    for path in (FOLDER, folder):
        monkeypatch.syspath_prepend(str(path))
    known = set(sys.modules)
    studies = importlib.import_module("studies")
    try:
        rates = {"SGD, momentum 0.9": 0.001, "Adam": 0.3, "K-FAC": 0.03, "K-FAC, averaged": 1.0}
        rounds = {}
        for arm in studies.SCALES.arms:
            if arm.name in rates:
                words = [*arm.overrides, f"local.optimizer.lr={rates[arm.name]}"]
                config = load(folder / "scales.toml", words)
                run = simulate(config, **studies.ill_conditioned(0))
                rounds[arm.name] = studies.TARGET.measure(run.history, arm)
    finally:
        for module in {"studies", "study"} - known:
            sys.modules.pop(module, None)
    assert (
        rounds["K-FAC, averaged"] < rounds["K-FAC"] < rounds["Adam"] < rounds["SGD, momentum 0.9"]
    )


@pytest.mark.parametrize("name", ["hostile", "synthetic"])
def test_a_study_of_strategies_prints_its_table(name: str, tmp_path: Path) -> None:
    script = FOLDER / "strategies" / f"{name}.py"
    ran = subprocess.run(
        [sys.executable, str(script), "--seeds", "1", "--quick", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    results = pd.read_csv(tmp_path / "results.csv")
    for strategy in results["strategy"].unique():
        assert re.search(rf"^ *{re.escape(strategy)} ", ran.stdout, re.MULTILINE)
    assert "…" not in ran.stdout
