"""Every configuration in `simulations/` is valid, and the demo's is the one beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from fedopt.config import load
from fedopt.data.fashion_mnist import find_folder
from fedopt.demo import STRATEGIES, TASK
from fedopt.errors import DataError

from .pages import ROOT

CONFIGURATIONS = sorted((ROOT / "simulations").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_configuration_passes_a_dry_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load(path).data.name == "fashion_mnist":
        try:
            find_folder(None)
        except DataError as error:
            pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)
    shutil.copy(path, tmp_path)
    rng = np.random.default_rng(0)
    np.savez(
        "my_data.npz",
        x=rng.normal(size=(90, 4)).astype("float32"),
        y=rng.integers(0, 2, size=90),
        client=np.arange(90) % 6,
    )
    result = CliRunner().invoke(app, ["run", path.name, "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["clients a round"] >= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["my_data.npz", path.name])


def test_demo_has_the_task_of_digits_toml() -> None:
    written = load(ROOT / "simulations" / "digits.toml").dump()
    assert load(None, **TASK, rounds=200, strategy={"name": "fedavg"}).dump() == written


def test_demo_writes_runs_and_figures_and_prints_json(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    words = ["demo", "--rounds", "2", "--engine", "inline", "--out", str(out), "--json", "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert tuple(facts["runs"]) == STRATEGIES
    for strategy, run in facts["runs"].items():
        assert (out / strategy / "summary.json").exists()
        assert run["rounds_to"] == {"0.9": None, "0.95": None}
    assert all(Path(figure).stat().st_size > 10_000 for figure in facts["figures"])
    sent = {strategy: run["bytes_sent"] for strategy, run in facts["runs"].items()}
    assert sent["scaffold"] == 2 * sent["fedavg"] == 2 * sent["fedprox"]


def test_demo_refuses_bad_input(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    for words in (["--rounds", "0"], ["--engine", "none"], ["--out", str(tmp_path)]):
        assert CliRunner().invoke(app, ["demo", *words]).exit_code == 2
