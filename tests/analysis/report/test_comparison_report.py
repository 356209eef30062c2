"""The report of several runs: means over seeds, their intervals, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import fedopt
from fedopt.analysis import read_history
from fedopt.analysis.intervals import mean_interval
from fedopt.analysis.report import ExtraTable, comparison_report, find_runs, folder_report
from fedopt.analysis.targets import Target, cost_to_target
from fedopt.errors import ConfigError

from .pages import by_id, parse, tables
from .test_run_report import HOSTILE, clients, elements_are_safe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two strategies over three seeds, as a sweep leaves them."""
    folder = tmp_path_factory.mktemp("sweep")
    for strategy in ("fedavg", "scaffold"):
        for seed in range(3):
            fedopt.simulate(
                out=folder / "runs" / f"{strategy}{seed}",
                rounds=4,
                seed=seed,
                clients_per_round=6,
                strategy={"name": strategy},
                **clients(),
            )
    return folder


def test_means_and_intervals_are_those_of_the_runs(runs):
    page = parse(comparison_report(find_runs([runs]), "A sweep"))
    results = tables(by_id(page, "summary"))["Final and best"]
    assert [row[:2] for row in results[1:]] == [["fedavg", "3"], ["scaffold", "3"]]
    histories = [read_history(runs / "runs" / f"fedavg{seed}") for seed in range(3)]
    found = mean_interval([float(h["test_loss"].iloc[-1]) for h in histories])
    mean, half = results[1][results[0].index("test_loss, final")].split(" ± ")
    assert float(mean) == pytest.approx(found.mean, abs=5e-5)
    assert float(half) == pytest.approx(found.half, abs=5e-5)
    curve = tables(by_id(page, "curves"))["Test loss"]
    expected = np.mean([h["test_loss"] for h in histories], axis=0)
    assert [float(row[1]) for row in curve[1:]] == pytest.approx(expected.tolist(), abs=5e-5)
    bands = [p for p in by_id(page, "curves").all("path") if p.has("band")]
    assert bands
    assert "n = 3" in by_id(page, "curves").text


def test_a_single_run_has_no_band(runs):
    page = parse(comparison_report([runs / "runs" / "fedavg0", runs / "runs" / "scaffold0"], "Two"))
    assert not [p for p in page.all("path") if p.has("band")]
    assert "±" not in "".join(map(str, tables(by_id(page, "summary"))["Final and best"][1:]))


def test_the_cost_of_a_target_and_the_tables_of_the_caller(runs):
    folders = find_runs([runs])
    extra = ExtraTable(HOSTILE, ("what", HOSTILE), [(HOSTILE, 0.25), ("b", None)], HOSTILE)
    text = comparison_report(folders, HOSTILE, [extra], [Target("test_loss", 0.5)])
    page = parse(text)
    elements_are_safe(page)
    costs = tables(by_id(page, "summary"))["Cost to reach test_loss=0.5"]
    reached = [
        cost_to_target(read_history(f), Target("test_loss", 0.5))
        for f in folders
        if "scaf" in f.name
    ]
    assert costs[2][1] == f"{sum(c is not None for c in reached)} of 3"
    assert tables(by_id(page, "extra-0"))[""] == [
        ["what", HOSTILE],
        [HOSTILE, "0.2500"],
        ["b", ""],
    ]


def test_runs_that_failed_are_listed_and_the_others_drawn(runs, tmp_path):
    shutil.copytree(runs / "runs" / "fedavg0", tmp_path / "good")
    shutil.copytree(runs / "runs" / "fedavg1", tmp_path / "bad")
    header = (tmp_path / "bad" / "rounds.csv").read_text().splitlines()[0]
    (tmp_path / "bad" / "rounds.csv").write_text(header + "\n")
    facts = {"status": "failed", "error": "client 3 failed\nlong trace"}
    (tmp_path / "bad" / "summary.json").write_text(json.dumps(facts))
    page = parse(comparison_report(find_runs([tmp_path]), "x"))
    listed = {row[0]: row for row in tables(by_id(page, "runs"))[""]}
    assert listed["bad"][1] == "failed"
    assert listed["bad"][-1] == "client 3 failed"
    assert "1 completed" in by_id(page, "summary").text
    with pytest.raises(ConfigError, match="finished round"):
        comparison_report([tmp_path / "bad"], "x")


def test_many_groups_are_drawn_in_part_and_it_is_said(runs, tmp_path):
    for index in range(20):
        shutil.copytree(runs / "runs" / "fedavg0", tmp_path / f"run{index:02d}")
        config = tmp_path / f"run{index:02d}" / "config.toml"
        config.write_text(config.read_text().replace("lr = 0.1", f"lr = 0.{index + 10}"))
    page = parse(comparison_report(find_runs([tmp_path]), "x"))
    assert "The best 16 of 20 groups" in by_id(page, "curves").text
    assert len(tables(by_id(page, "summary"))["Final and best"]) == 21


def test_seeds_without_a_second_in_common_are_drawn_along_the_other_axes(runs, tmp_path):
    for seed in range(2):
        folder = shutil.copytree(runs / "runs" / f"fedavg{seed}", tmp_path / f"run{seed}")
        history = read_history(folder)
        history["wall_seconds"] = history["round"] / 1e3 + seed
        history.to_csv(folder / "rounds.csv", index=False)
    curves = by_id(parse(comparison_report(find_runs([tmp_path]), "x")), "curves")
    assert "Not drawn by real seconds: the runs of" in curves.text
    assert [p for p in curves.all("path") if p.has("band")]
    assert len(tables(curves)["Test loss"]) > 4


def test_places_without_runs_are_refused_with_what_is_there(runs, tmp_path):
    assert find_runs([runs, runs / "runs" / "fedavg0"]) == sorted((runs / "runs").iterdir())
    with pytest.raises(ConfigError, match="nor a folder with runs"):
        find_runs([tmp_path])
    with pytest.raises(ConfigError, match=r'Did you mean "fedavg0"'):
        find_runs([runs / "runs" / "fedavg_0"])


def test_the_tables_of_a_sweep_are_part_of_its_page(runs):
    (runs / "results.csv").write_text("run,lr,final,empty\nfedavg0,0.1,0.25,\nb<i>,0.2,,\n")
    page = parse(folder_report(runs))
    assert tables(by_id(page, "extra-0"))[""] == [
        ["run", "lr", "final"],
        ["fedavg0", "0.1000", "0.2500"],
        ["b<i>", "0.2000", ""],
    ]
    (runs / "results.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"results\.csv is damaged"):
        folder_report(runs)
    (runs / "results.csv").unlink()
