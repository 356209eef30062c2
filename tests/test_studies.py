"""The studies in `simulations/first_order` run, compare in pairs, and vary what they claim to."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedopt.analysis import paired_interval
from fedopt.config import load
from fedopt.experiment import Experiment

FOLDER = Path(__file__).parents[1] / "simulations" / "first_order"
NAMES = ("sam", "swa", "schedules")
INTERVAL = re.compile(r"[+-]\d+\.\d{4} to [+-]\d+\.\d{4}")
MAY_DIFFER = {
    "sam": {"local.sam.rho", "local.sam.adaptive", "local.epochs"},
    "swa": set(),
    "schedules": set(),
}
"""What arms may change, besides the learning rate and all of `local.schedule`."""


@pytest.fixture(scope="module")
def modules() -> Iterator[SimpleNamespace]:
    """The scripts as modules; they are found beside each other, as when `run.py` is executed."""
    known = set(sys.modules)
    added = [str(FOLDER), str(FOLDER.parent)]
    sys.path[:0] = added
    try:
        studies = importlib.import_module("studies")
        run: ModuleType = importlib.import_module("study")
        yield SimpleNamespace(studies=studies, run=run)
    finally:
        for folder in added:
            sys.path.remove(folder)
        for module in {"studies", "study"} - known:
            sys.modules.pop(module, None)


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else key
        found |= flat(value, dotted) if isinstance(value, dict) else {dotted: value}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_study_prints_intervals(
    name: str, modules: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert (
        modules.run.main(modules.studies.STUDIES, FOLDER, [name, "--quick", "--out", str(out)]) == 0
    )
    study = modules.studies.STUDIES[name]
    printed = capsys.readouterr().out
    assert len(INTERVAL.findall(printed)) == (len(study.arms) - 1) * len(study.measures)
    assert max(len(line) for line in printed.splitlines()) <= modules.run.WIDTH_OF_TABLES
    assert "…" not in printed
    figure = f"study_{name}.png"
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(["results.csv", "intervals.csv", "tuning.csv", figure])
    assert (out / figure).stat().st_size > 10_000

    results = pd.read_csv(out / "results.csv")
    assert results["arm"].tolist() == [arm.name for arm in study.arms for _ in range(2)]
    assert results.notna().all(axis=None)
    by_arm = results.set_index("arm")
    for row in pd.read_csv(out / "intervals.csv").itertuples():
        arm, reference = (by_arm.loc[key, row.measure] for key in (row.arm, study.arms[0].name))
        expected = paired_interval(list(arm), list(reference))
        assert (row.low, row.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
        assert f"{row.low:+.4f} to {row.high:+.4f}" in printed


@pytest.mark.parametrize("name", NAMES)
def test_arms_differ_only_in_what_they_claim_to(name: str, modules: SimpleNamespace) -> None:
    study = modules.studies.STUDIES[name]
    plan = modules.run.plan_of(study, FOLDER, 5, quick=False)
    assert not set(plan.seeds) & set(plan.tuning_seeds)
    trees = [flat(plan.config(arm.overrides, 0.1, 0).dump()) for arm in study.arms]
    for tree in trees[1:]:
        keys = trees[0].keys() | tree.keys()
        changed = {key for key in keys if trees[0].get(key) != tree.get(key)}
        schedule = {key for key in changed if key.startswith("local.schedule.")}
        assert changed - schedule <= MAY_DIFFER[name]
        assert not schedule or name != "sam"
    assert len({(arm.overrides, arm.model) for arm in study.arms}) == len(study.arms)
    assert len({arm.name for arm in study.arms}) == len(study.arms)


def test_two_models_of_one_run_are_paired(modules: SimpleNamespace) -> None:
    arms = modules.studies.SWA.arms
    runs = {
        overrides: {a.model for a in arms if a.overrides == overrides}
        for overrides in {a.overrides for a in arms}
    }
    assert all(models == {"last", "averaged"} for models in runs.values())
    history = pd.DataFrame(
        {
            "round": [1, 2, 3, 4],
            "test_accuracy": [0.1, 0.2, 0.3, 0.4],
            "swa_test_accuracy": [np.nan, np.nan, np.nan, 0.6],
        }
    )
    final = modules.studies.FINAL_ACCURACY
    assert [final.measure(history, arm) for arm in arms[:2]] == [0.4, 0.6]


def test_the_cyclic_rate_is_lowest_where_models_are_averaged(modules: SimpleNamespace) -> None:
    plan = modules.run.plan_of(modules.studies.SWA, FOLDER, 5, quick=False)
    config = plan.config(modules.studies.CYCLIC, 0.1, 0)
    rates = Experiment.from_config(config).rates()
    swa = config.server_swa
    averaged = range(swa.first_round(config.rounds), config.rounds + 1, swa.every)
    assert len(averaged) == 8
    assert averaged[-1] == config.rounds
    # lr / 100, up to the rounding of 1 - share.
    assert [float(rates.at(round, 1, 1)[0][0]) for round in averaged] == pytest.approx([0.001] * 8)


def test_every_client_takes_the_same_steps_in_the_schedules() -> None:
    config = load(FOLDER / "schedules.toml")
    assert (config.local.steps, config.local.nominal_steps) == (10, 10)


def test_the_one_shard_split_has_at_least_90_clients_of_one_class() -> None:
    population = Experiment.from_config(load(FOLDER / "swa.toml")).population
    classes = (population.label_counts(np.arange(100)) > 0).sum(axis=1)
    assert (classes == 1).sum() >= 90
    assert classes.max() == 2


def test_a_rate_that_diverges_is_not_chosen(
    modules: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(
        modules.studies.SCHEDULES,
        arms=modules.studies.SCHEDULES.arms[:2],
        rates=(0.1, 1e30),
        quick=("rounds=2",),
    )
    plan = modules.run.Plan(study, FOLDER, (0, 1), (1000,), study.quick)
    outcome = modules.run.run_study(plan, modules.run.Console(stderr=True))
    assert set(outcome.rates.values()) == {0.1}
    assert "diverged" in modules.run.report(outcome)


def test_what_an_interval_says(modules: SimpleNamespace) -> None:
    higher, lower = modules.studies.FINAL_ACCURACY, modules.studies.FINAL_NLL
    up = paired_interval([1.0, 1.1, 1.2], [0.0, 0.0, 0.0])
    assert modules.run.verdict(up, higher) == "better"
    assert modules.run.verdict(up, lower) == "worse"
    unclear = paired_interval([1.0, -1.0], [0.0, 0.0])
    assert modules.run.verdict(unclear, higher) == "no difference shown"


def test_one_seed_is_refused() -> None:
    command = [sys.executable, str(FOLDER / "run.py"), "sam", "--seeds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "an interval needs at least 2 seeds, got 1" in result.stderr
