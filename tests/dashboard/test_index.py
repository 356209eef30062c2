"""The runs of a folder: found at any depth, kept up to date, and none outside of it."""

from __future__ import annotations

import math

import pytest

from fedopt.dashboard.index import RunIndex
from fedopt.errors import ConfigError
from tests.analysis.growing import GrowingRun


@pytest.fixture
def index(tmp_path):
    (tmp_path / "runs").mkdir()
    return RunIndex(tmp_path / "runs", interval=0)


def test_runs_are_found_below_and_their_entries_grow_with_them(index):
    one = GrowingRun(index.root / "one")
    two = GrowingRun(index.root / "sweep" / "runs" / "two", strategy="scaffold")
    (index.root / "sweep" / "notes").mkdir()
    found = index.entries()
    assert sorted(found) == ["one", "sweep/runs/two"]
    assert found["sweep/runs/two"]["strategy"] == "scaffold"
    versions = {run: entry["version"] for run, entry in found.items()}
    one.grow(0.5)
    one.grow(0.25)
    entry = index.entries()["one"]
    assert entry["version"] > versions["one"]
    assert (entry["round"], entry["rounds"], entry["status"]) == (2, 10, "running")
    assert (entry["test_accuracy"], entry["best_test_accuracy"]) == (0.25, 0.5)
    assert entry["MB"] == pytest.approx(0.004)
    assert entry["seconds_left"] == pytest.approx(16.0)
    assert index.entries()["sweep/runs/two"]["version"] == versions["sweep/runs/two"]
    one.end("failed", error="why")
    assert index.entries()["one"]["status"] == "failed"
    assert index.entries()["one"]["error"] == "why"
    two.end()
    for path in sorted(two.directory.rglob("*"), reverse=True):
        path.unlink()
    two.directory.rmdir()
    assert sorted(index.entries()) == ["one"]


def test_a_run_that_is_killed_becomes_stopped_without_touching_a_file(index, monkeypatch):
    run = GrowingRun(index.root / "run")
    assert index.entries()["run"]["status"] == "running"

    def dead(_pid, _signal):
        raise ProcessLookupError

    monkeypatch.setattr("os.kill", dead)
    assert index.entries()["run"]["status"] == "stopped"
    run.writer.close()


def test_curves_are_the_measured_columns_and_long_ones_are_thinned(index):
    run = GrowingRun(index.root / "run", rounds=50)
    for round in range(50):
        run.grow(round / 50)
    curves = index.curves("run")
    assert curves["x"]["rounds"] == list(range(1, 51))
    assert curves["x"]["virtual seconds"] == [None] * 50
    assert set(curves["metrics"]) == {"train_loss", "test_accuracy"}
    thin = index.curves("run", most=10)
    assert len(thin["x"]["rounds"]) == len(thin["metrics"]["test_accuracy"]) == 10
    assert (thin["x"]["rounds"][0], thin["x"]["rounds"][-1], thin["rounds"]) == (1, 50, 50)


def test_numbers_that_json_has_not_are_not_measured(index):
    run = GrowingRun(index.root / "run")
    run.grow(math.inf)
    assert index.entries()["run"]["test_accuracy"] is None
    assert "test_accuracy" not in index.curves("run")["metrics"]


def test_a_damaged_run_is_told_and_the_others_shown(index):
    GrowingRun(index.root / "good").grow(0.5)
    (index.root / "bad").mkdir()
    (index.root / "bad" / "rounds.csv").write_text("round\n1\n")
    found = index.entries()
    assert found["bad"]["status"] == "damaged"
    assert "columns" in found["bad"]["error"]
    assert found["good"]["round"] == 1


def test_nothing_outside_of_the_folder_is_a_run(index, tmp_path):
    outside = GrowingRun(tmp_path / "outside")
    (index.root / "link").symlink_to(outside.directory)
    (index.root / "loop").symlink_to(index.root)
    inside = GrowingRun(index.root / "inside")
    assert sorted(index.entries()) == ["inside"]
    assert index.folder("inside") == inside.directory
    for name in ("../outside", str(outside.directory), "link", "", ".", "inside/..", "a\0b"):
        with pytest.raises(ConfigError, match="there is no run"):
            index.folder(name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a folder"):
        RunIndex(tmp_path / "none")
