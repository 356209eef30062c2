"""A sweep from words to files, its runs in this process; and the refusals of its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.sweep import children, drive
from fedopt.sweep.book import Book, read_book
from fedopt.sweep.children import check_jobs, cores_of
from fedopt.sweep.command import Search, run_sweep

from .in_process import TASK, InProcess, Pretended, in_process


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[InProcess]:
    kind = in_process()
    monkeypatch.setattr(drive, "Child", kind)
    monkeypatch.setattr(drive, "_POLL", 0.0)
    monkeypatch.chdir(tmp_path)
    return kind


@pytest.fixture
def pretended(here: type[InProcess], monkeypatch: pytest.MonkeyPatch) -> type[InProcess]:
    kind = in_process(Pretended)
    monkeypatch.setattr(drive, "Child", kind)
    return kind


def invoke(*words: str):
    return CliRunner().invoke(app, list(words))


def test_a_grid_is_run_once_ranked_by_nothing_and_told(here: type[InProcess]) -> None:
    words = ["sweep", *TASK, "strategy=fedavg,scaffold", "seed=0,1", "--out", "out", "--json"]
    result = invoke(*words, "--target", "test_accuracy=0.01")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert [point["group"] for point in summary["points"]] == ["fedavg", "scaffold"]
    assert summary["runs"] == {"completed": 4}
    table = pd.read_csv("out/results.csv")
    assert table["strategy"].tolist() == ["fedavg", "fedavg", "scaffold", "scaffold"]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    # The bill is what all runs sent, SCAFFOLD twice as much.
    bill = summary["bill"]
    assert bill["bytes"] == table["bytes_up"].sum() + table["bytes_down"].sum()
    assert bill["client_steps"] == table["client_steps"].sum()
    assert (bill["runs"], bill["rounds"]) == (4, 12)
    assert table["bytes_up"][2] == 2 * table["bytes_up"][0]
    for name in ("convergence.png", "convergence.csv", "points.csv", "results.md", "sweep.json"):
        assert (Path("out") / name).stat().st_size
    assert not Path("out/parameters.png").exists(), "nothing was varied by number"
    # Every run is one of the command line.
    assert load("out/runs/000_strategy-fedavg_seed-1/config.toml").seed == 1
    # A second call keeps what is done.
    assert len(here.calls) == 4
    again = invoke(*words)
    assert again.exit_code == 0
    assert len(here.calls) == 4
    assert "completed before" in again.stderr
    by_folder = invoke("sweep", "--out", "out", "--json", "--quiet")
    assert json.loads(by_folder.stdout)["points"] == json.loads(again.stdout)["points"]
    compared = invoke("compare", "out", "--json", "--target", "test_accuracy=0.01")
    assert len(json.loads(compared.stdout)["runs"]) == 4
    drawn = invoke("plot", "out", "--x", "bytes", "--out", "figure.svg", "--width", "column")
    assert drawn.stdout.split() == ["figure.svg", "figure.csv"]


def test_a_run_that_fails_is_noted_and_the_rest_goes_on(here: type[InProcess]) -> None:
    # Found when the run begins: not with this strategy.
    words = ["sweep", *TASK, "local.optimizer=adam,sgd", "strategy=scaffold", "--out", "out"]
    result = invoke(*words)
    assert result.exit_code == 1
    assert "1 of 2 runs failed" in result.stderr
    states = read_book(Path("out"))["runs"]
    assert [state["status"] for state in states.values()] == ["failed", "completed"]
    table = pd.read_csv("out/results.csv")
    assert "option" in table["error"][0]
    assert table["rounds"].tolist() == [0, 3]
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["status"] == "failed"
    assert summary["bill"]["runs"] == 1
    invoke(*words)
    assert len(here.calls) == 2, "what failed is not run again"
    assert invoke(*words, "--retry-failed").exit_code == 1
    assert len(here.calls) == 3


def test_what_was_interrupted_goes_on_to_the_same_bits(
    here: type[InProcess], tmp_path: Path
) -> None:
    words = [*TASK, "checkpoint.every=1", "seed=0,1"]
    whole = run_sweep(words, tmp_path / "whole", Search())
    half = tmp_path / "half"
    run_sweep(words, half, Search())
    # As after a kill between two rounds: no summary, a checkpoint, a state that says "running".
    book = json.loads((half / "sweep.json").read_text())
    name = next(iter(book["runs"]))
    book["runs"][name]["status"] = "running"
    (half / "sweep.json").write_text(json.dumps(book))
    folder = half / "runs" / name
    (folder / "summary.json").unlink()
    newest = max((folder / "checkpoints").iterdir())
    newest.unlink()
    outcome = run_sweep(words, half, Search())
    assert here.calls[-1][:2] == ["resume", str(folder)]
    assert len(here.calls) == 5
    assert outcome.bill.rounds == 6

    def digests(where: Path) -> list[str]:
        return [
            json.loads((where / "runs" / run / "summary.json").read_text())["model_sha256"]
            for run in whole.states
        ]

    assert digests(half) == digests(tmp_path / "whole")


def test_a_folder_of_another_sweep_is_refused_with_what_differs(pretended: type[InProcess]) -> None:
    words = ["sweep", *TASK, "seed=0", "--out", "out", "--quiet"]
    assert invoke(*words, "local.batch_size=5").exit_code == 0
    other = invoke(*words, "local.batch_size=5,10")
    assert other.exit_code == 2
    assert "It differs in" in other.stderr
    assert "local.batch_size" in other.stderr
    assert invoke(*words, "local.batch_size=5", "--metric", "test_loss").exit_code == 2
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    full = invoke("sweep", *TASK, "--out", "full")
    assert full.exit_code == 2
    assert "is not empty and holds no sweep" in full.stderr
    assert len(pretended.calls) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lr=0.1,1"], 'Did you mean "local.optimizer.lr"'),
        (["strategy=fedavg,scafold"], 'Did you mean "scaffold"'),
        (["strategy=fedavg,fedprox", "strategy.mu=0.1,1"], "2 of 4 combinations are not allowed"),
        (["local.epochs=-1,0"], "every combination is not allowed"),
        (["local.optimizer.lr=log(0.1,1)"], "give a count"),
        (["seed=0,1", "--jobs", "999"], "--jobs: got 999"),
        (["seed=0,1", "--search", "tpee", "--trials", "3"], 'Did you mean "tpe"'),
        (["seed=0,1", "--search", "tpe", "--trials", "3"], "nothing is varied"),
        (["seed=0,1", "--search", "tpe"], "needs --trials N"),
        (["seed=0,1", "--trials", "3"], "a grid has no trials"),
        (["a.toml", "seed=0,1"], '"a.toml" does not exist'),
        (["seed=0,1", "--metric", "lr"], "neither more nor less"),
        (["seed=0,1", "--target", "0.9"], "expected METRIC=VALUE"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(
    pretended: type[InProcess], tmp_path: Path, words: list[str], says: str
) -> None:
    result = invoke("sweep", *words)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert not pretended.calls
    assert not list(tmp_path.iterdir())


def test_random_points_are_ranked(pretended: type[InProcess]) -> None:
    words = [*TASK, "local.optimizer.lr=log(0.001, 1)", "partition.alpha=0.1,1.0"]
    result = invoke("sweep", *words, "--random", "3", "--out", "out", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    means = [point["best_test_accuracy"] for point in summary["points"]]
    assert means == sorted(means, reverse=True)
    assert summary["best"]["mean"] == means[0]
    assert Path("out/parameters.png").stat().st_size
    # More points go on where fewer ended.
    assert means[0] > means[-1]
    assert invoke("sweep", *words, "--random", "4", "--out", "out").exit_code == 0
    assert len(pretended.calls) == 4
    assert invoke("sweep", *words, "--random", "2", "--out", "out").exit_code == 2


def test_tpe_runs_and_goes_on(pretended: type[InProcess]) -> None:
    pytest.importorskip("optuna")
    words = [*TASK, "local.optimizer.lr=log(0.001, 1)", "local.batch_size=5..20", "seed=0,1"]
    options = ["--search", "tpe", "--out", "out", "--json", "--jobs", "1"]
    result = invoke("sweep", *words, "--trials", "6", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert sum(summary["runs"].values()) == len(pretended.calls)
    first = read_book(Path("out"))["runs"]
    assert invoke("sweep", *words, "--trials", "9", *options).exit_code == 0
    both = read_book(Path("out"))["runs"]
    assert {name: both[name] for name in first} == first
    # What is proposed depends on the trials so far alone, not on the number of calls.
    options[3] = "other"
    assert invoke("sweep", *words, "--trials", "9", *options).exit_code == 0
    other = read_book(Path("other"))["runs"]
    assert {n: s["values"] for n, s in other.items()} == {n: s["values"] for n, s in both.items()}


def test_runs_take_cores() -> None:
    assert cores_of(load(None, ["engine=inline"]), 8) == 1
    assert cores_of(load(None, ["engine=ray"]), 8) == 8
    assert cores_of(load(None, ["engine=ray", "engine.workers=3"]), 8) == 3
    assert cores_of(load(None, ["engine=inline", "engine.device=cuda"]), 8) == 8
    assert check_jobs(None, 4) == 4
    for jobs in (0, 5):
        with pytest.raises(ConfigError, match=r"use 1\.\.4"):
            check_jobs(jobs, 4)
    assert children.available_cores() >= 1


def test_a_sweep_computes_inline_unless_told(pretended: type[InProcess], tmp_path: Path) -> None:
    run_sweep([*TASK], tmp_path / "a", Search())
    assert load(next((tmp_path / "a" / "configs").iterdir())).engine.name == "inline"
    toml = tmp_path / "with=sign.toml"
    toml.write_text('engine = {name = "inline", workers = 3}\nrounds = 1\n')
    run_sweep([str(toml), *TASK[:3]], tmp_path / "b", Search())
    assert load(next((tmp_path / "b" / "configs").iterdir())).engine.workers == 3


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        Book(tmp_path / "a", {"kind": "sweep"}),
        pytest.raises(ConfigError, match="is being written by process"),
    ):
        Book(tmp_path / "a", {"kind": "sweep"})
    with pytest.raises(ConfigError, match="is not the folder of a sweep"):
        read_book(tmp_path)


@pytest.mark.parametrize("command", ["sweep", "ablate", "plot", "compare"])
def test_help_shows_an_example_and_loads_nothing_heavy(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: fedopt {command}" in " ".join(result.output.split())
