"""The study of drift prints its table, and shows a fall and a recovery."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd

import fedopt

FOLDER = Path(__file__).parents[2] / "simulations"


def test_the_study_prints_its_table(tmp_path: Path) -> None:
    ran = subprocess.run(
        [
            sys.executable,
            str(FOLDER / "drift.py"),
            "--seeds",
            "1",
            "--quick",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 3 * results["arm"].nunique()
    assert all(arm in ran.stdout for arm in results["arm"].unique())
    assert "…" not in ran.stdout


def test_accuracy_falls_and_recovers_where_all_drift() -> None:
    run = fedopt.simulate(str(FOLDER / "drift.toml"), rounds=60, drift={"share": 1.0})
    history = run.history.set_index("round")
    now, old = history["drift_test_accuracy"], history["test_accuracy"]
    assert now[30] > 0.8  # ten classes
    assert now[31] < now[30] - 0.3
    assert now[60] > 0.8
    assert old[60] < 0.1  # swapped labels: what was right is wrong
