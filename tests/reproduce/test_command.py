"""`fedopt reproduce` as a user calls it: tables, pages, going on, bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from fedopt.studies.catalogue import MODULES

OWN = '''
from fedopt.studies.results import better_on_every_seed
from fedopt.studies.study import *

ACCURACY = final("test_accuracy")
STUDY = Study(
    name="own",
    title="Steps",
    source="this file",
    question="Do more steps help?",
    differs=("Nothing.",),
    base="""
rounds = 6
clients_per_round = 4
partition.clients = 8
model.hidden = [8]
checkpoint.every = 0
""",
    conditions=(Condition("digits"),),
    arms=(
        Arm("one step", ("local.steps=1",), (("local.optimizer.lr=0.01",), ())),
        Arm("ten steps", ("local.steps=10",)),
        Arm("diverges", ("local.steps=10", "local.optimizer.lr=1e30")),
    ),
    measures=(ACCURACY,),
    seeds=(0, 1),
    claims=(
        Claim(
            "ten beat one",
            lambda r: better_on_every_seed(r, "digits", "ten steps", "one step", ACCURACY.name),
        ),
    ),
    tuning=Tuning(ACCURACY),
    drawings=(Drawing("accuracy", "test_accuracy", "Accuracy"),),
    quick=Quick(("rounds=2",), seeds=(0,)),
)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a study of the user's own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(OWN)
    return folder


def call(folder, *words, check=True, **options):
    done = subprocess.run(
        [sys.executable, "-m", "fedopt", "reproduce", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def made(folder):
    """That study, run."""
    return call(folder, "mine:STUDY", "--out", "whole", "--pages", "pages", "--json")


def test_json_alone_goes_to_standard_output(made):
    told = json.loads(made.stdout)
    assert told["status"] == "completed"
    assert told["claims"][0]["verdict"] == "holds"
    assert "8 runs" in made.stderr  # 2 alternatives on a seed, 3 arms on two
    assert "left" in made.stderr


def test_tables_page_and_figure_are_written(folder, made):
    where = folder / "whole"
    rows = pd.read_csv(where / "results.csv")
    assert rows.groupby("arm").size().to_dict() == {"diverges": 2, "one step": 2, "ten steps": 2}
    assert set(rows[rows["arm"] == "diverges"]["status"]) == {"diverged"}
    tried = pd.read_csv(where / "tuning.csv")
    assert tried["chosen"].sum() == 1
    page = (where / "mine-STUDY.md").read_text()
    assert "| ten beat one | - | better on 2 of 2 seeds" in page
    assert "2 of 2 diverged" in page
    assert (where / "accuracy.png").stat().st_size > 10_000
    assert set(pd.read_csv(where / "accuracy.csv")["series"]) == {"one step", "ten steps"}
    there = folder / "pages" / "mine-STUDY"
    for file in ("results.csv", "claims.csv", "accuracy.png", "accuracy.csv"):
        assert (there / file).read_bytes() == (where / file).read_bytes()
    told = (folder / "pages" / "mine-STUDY.md").read_text()
    assert told == re.sub(r"\]\((?=accuracy|\w+\.csv)", "](mine-STUDY/", page)


def test_the_same_call_runs_nothing_again(folder, made):
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "whole" / "runs").iterdir()}
    again = call(folder, "mine:STUDY", "--out", "whole", "--jobs", "1", "--json")
    assert json.loads(again.stdout) == json.loads(made.stdout)
    assert before == {p.name: p.stat().st_mtime_ns for p in (folder / "whole" / "runs").iterdir()}


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive)]
)
def test_a_killed_study_goes_on_to_the_same_numbers(folder, made, number):
    name = f"ended-{number.name}"
    process = subprocess.Popen(
        [sys.executable, "-m", "fedopt", "reproduce", "mine:STUDY", "--out", name, "--jobs", "1"],
        cwd=folder,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    runs = folder / name / "runs"
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    call(folder, "mine:STUDY", "--out", name)
    columns = ["condition", "arm", "seed", "chosen", "final test accuracy", "model_sha256"]
    ours, theirs = (pd.read_csv(folder / n / "results.csv")[columns] for n in (name, "whole"))
    pd.testing.assert_frame_equal(ours, theirs)


def test_a_run_that_fails_is_named_and_the_rest_goes_on(folder):
    text = OWN.replace('"local.optimizer.lr=1e30"', '"local.loss=mse"')
    (folder / "broken.py").write_text(text)
    done = call(folder, "broken:STUDY", "--quick", "--out", "broken", "--json", check=False)
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["status"] == "failed"
    assert len(told["failed"]) == 1
    assert "failed: digits diverges, seed 0" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fedprox-syntetic"], 'Did you mean "fedprox-synthetic"?'),
        ([], "--list"),
        (["mine:NONE"], "cannot be imported"),
        (["fedprox-synthetic", "--seeds", "1"], "at least 2"),
        (["fedprox-synthetic", "--quick", "--seeds", "3"], "has its own"),
        (["fedprox-synthetic", "--jobs", "999"], "--jobs"),
    ],
)
def test_bad_input_is_refused(words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["reproduce", *words])
    assert done.exit_code == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(app, ["reproduce", "fedprox-synthetic", "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert "not the folder of a study" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_the_list_names_all():
    told = json.loads(CliRunner().invoke(app, ["reproduce", "--list", "--json"]).stdout)
    assert [row["name"] for row in told] == list(MODULES)
    shown = CliRunner().invoke(app, ["reproduce", "--list"]).stdout
    assert all(name in shown for name in MODULES)
