"""Bad input: exit code 2, a message that helps, nothing written. A run that fails: exit code 1."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from .command import TINY, fedopt, summary

MODELS = """
import torch

def few_outputs():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

def wrong_inputs():
    return torch.nn.Linear(7, 10)

def no_module():
    return 3

def broken():
    raise ValueError("no such size")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the cases name."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "mymodel.py").write_text(MODELS)
    (folder / "crashes.py").write_text("raise ValueError('at the top')\n")
    (folder / "bad.toml").write_text("rounds = 3\nnot [toml\n")
    (folder / "good.toml").write_text("rounds = 3\n")
    x = np.ones((60, 4), dtype="float32")
    y = np.arange(60) % 3
    x[3, 2] = np.nan
    np.savez(folder / "nan.npz", x=x, y=y)
    np.savez(folder / "short.npz", x=np.ones((60, 4)), y=y[:50])
    return folder


CASES = {
    "unknown key": (["roundz=3"], ["roundz", 'Did you mean "rounds"?', "clients_per_round"]),
    "unknown table": (["strategi.mu=1"], ["strategi", 'Did you mean "strategy"?', "partition"]),
    "unknown option": (
        ["strategy=fedprox", "strategy.server_rl=1"],
        ["strategy.server_rl", 'Did you mean "server_lr"?', "weighting"],
    ),
    "wrong type": (["rounds=abc"], ["rounds", "'abc'", "integer", ">= 1"]),
    "not a number": (["local.optimizer.lr=nan"], ["local.optimizer.lr", "nan", "finite"]),
    "below the range": (["partition.alpha=0"], ["partition.alpha", "got 0", "> 0"]),
    "fraction above one": (["clients_per_round=1.5"], ["clients_per_round", "1.5", "(0, 1]"]),
    "drift after the end": (
        ["drift=label", "rounds=3", "drift.start=4"],
        ["drift.start", "got 4", "1..3"],
    ),
    "nobody left to train": (
        ["evaluation.unseen_clients=5000"],
        ["evaluation.unseen_clients", "got 5000", "at most"],
    ),
    "no rounds": (["rounds=0"], ["rounds", "got 0", ">= 1"]),
    "two amounts": (["local.steps=3"], ["local.steps", "epochs", "exclude"]),
    "not key=value": (["rounds"], ["rounds"]),
    "value as table": (["rounds.x=1"], ["rounds", "not a table"]),
    "two problems": (["rounds=0", "sead=1"], ["rounds: got 0", 'Did you mean "seed"?']),
    "cohort above population": (
        ["clients_per_round=50"],
        ["clients_per_round", "50", "at most 10"],
    ),
    "missing data": (["data=files", "data.path=nope.npz"], ["data.path", "nope.npz", "not exist"]),
    "data without path": (["data=files"], ["data.path", "required"]),
    "NaN in data": (["data=files", "data.path=nan.npz"], ["nan.npz", "x has 1", "NaN", "row 3"]),
    "unequal lengths": (["data=files", "data.path=short.npz"], ["short.npz", "60", "50"]),
    "unknown strategy": (
        ["strategy=scafold"],
        [
            "strategy.name",
            "scafold",
            'Did you mean "scaffold"?',
            "fedavg, fedavgm, fedbn, feddyn, fednova, fedper, fedpm, fedprox, fedrep",
        ],
    ),
    "too few outputs": (["model=mymodel:few_outputs"], ["model", "(2, 3)", "10 classes"]),
    "wrong inputs": (["model=mymodel:wrong_inputs"], ["model", "(2, 1, 8, 8)"]),
    "no module": (["model=mymodel:no_module"], ["model.name", "int", "torch.nn.Module"]),
    "broken factory": (["model=mymodel:broken"], ["model", "ValueError", "no such size"]),
    "model not importable": (
        ["model=mymodl:few_outputs"],
        ["model.name", "mymodl", 'Did you mean "mymodel"?', "current folder"],
    ),
    "no such function": (
        ["model=mymodel:few_output"],
        ["model.name", "few_output", 'Did you mean "few_outputs"?'],
    ),
    "module with an error": (["model=crashes:x"], ["model.name", "crashes", "at the top"]),
    "loss not importable": (["local.loss=nowhere:loss"], ["local.loss", "nowhere"]),
    "not TOML": (["bad.toml"], ["bad.toml", "not TOML", "line 2"]),
    "missing config": (["god.toml"], ["god.toml", "not exist", 'Did you mean "good.toml"?']),
    "unknown device": (["engine.device=gpuu"], ["engine.device", "gpuu"]),
    "synthetic data elsewhere": (
        ["data=synthetic", "partition=dirichlet"],
        ["partition.name", "synthetic", "dirichlet"],
    ),
    "scaffold by examples": (
        ["strategy=scaffold", "strategy.weighting=examples"],
        ["strategy.weighting", "examples", "uniform", "force"],
    ),
    "scaffold with adam": (
        ["strategy=scaffold", "local.optimizer=adam"],
        ["strategy.option", "Adam", "sgd"],
    ),
    "radius below zero": (["local.sam.rho=-0.1"], ["local.sam.rho", "got -0.1", ">= 0", "0.05"]),
    "share of the rise": (
        ["local.schedule=one_cycle", "local.schedule.pct_start=1"],
        ["local.schedule.pct_start", "got 1", "(0, 1)"],
    ),
    "unknown schedule": (
        ["local.schedule=onecycle"],
        ["local.schedule.name", '"onecycle"', 'Did you mean "one_cycle"?', "swa_cyclic"],
    ),
    "lower rate above the optimizer's": (
        ["local.schedule=cyclical", "local.schedule.base_lr=0.2"],
        ["local.schedule.base_lr", "got 0.2", "<= max_lr = 0.1"],
    ),
    "averaging after the end": (
        ["server.swa.start=4"],
        ["server.swa.start: got 4", "round 4", "1..3", "smaller share"],
    ),
    "nothing to keep": (
        ["local.optimizer_state=keep"],
        ["local.optimizer_state", '"keep"', "sgd without momentum", '"reset"'],
    ),
    "mofedsam without sam": (["strategy=mofedsam"], ["local.sam.rho", "got 0", "> 0", "0.05"]),
    "plateau without validation": (
        ["local.schedule=plateau"],
        ["evaluation.validation_clients", "got 0", "validation_loss", "> 0", "train_loss"],
    ),
    "optimizer that evaluates the loss": (
        ["local.optimizer=torch.optim:LBFGS"],
        ["local.optimizer.name", "LBFGS", "closure"],
    ),
}


def run(folder, arguments):
    files = [text for text in arguments if text.endswith(".toml")]
    words = [text for text in arguments if not text.endswith(".toml")]
    return fedopt(folder, "run", *files, *TINY, *words, "--out", "out")


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_anything_is_written(folder, case):
    arguments, says = CASES[case]
    result = run(folder, arguments)
    assert result.code == 2
    missing = [word for word in says if word not in result.err]
    assert not missing, result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert result.out == ""
    assert not (folder / "out").exists()
    assert not (folder / "runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_missing_gpu_is_refused(folder, engine):
    result = run(folder, [f"engine={engine}", "engine.device=cuda"])
    assert result.code == 2
    assert 'engine.device: "cuda" cannot be used' in result.err
    assert not (folder / "out").exists()


def test_a_missing_cluster_is_refused(folder):
    result = run(folder, ["engine=ray", "engine.address=127.0.0.1:1"])
    assert result.code == 2
    assert "engine.address" in result.err
    assert "127.0.0.1:1" in result.err
    assert "Traceback" not in result.err
    assert not (folder / "out").exists()


def test_debug_shows_the_traceback(folder):
    result = fedopt(folder, "run", "roundz=3", "--debug")
    assert result.code != 0
    assert "Traceback" in result.err


def test_a_loss_that_diverges_fails_the_run_and_keeps_its_files(tmp_path):
    # On a quadratic loss each step multiplies the parameters by about lr: three to twenty rounds
    # of one step reach float32's 3.4e38.
    (tmp_path / "square.py").write_text(
        "import torch\n"
        "def loss(output, target):\n"
        "    return (output - torch.nn.functional.one_hot(target, 10)).square().mean()\n"
    )
    words = ["local.loss=square:loss", "local.optimizer.lr=1e4", "local.steps=1", "rounds=50"]
    settings = [text for text in TINY if text != "local.epochs=1"]
    result = fedopt(tmp_path, "run", *settings, *words, "--out", "out")
    assert result.code == 1, result.out
    assert "Traceback" not in result.err
    found = summary(tmp_path / "out")
    assert found["status"] == "failed"
    with open(tmp_path / "out" / "rounds.csv", newline="") as file:
        rounds = [int(row["round"]) for row in csv.DictReader(file)]
    assert rounds == list(range(1, len(rounds) + 1))
    assert rounds, "the rounds before the divergence are kept"
    assert f"in round {len(rounds) + 1}" in result.err
    assert "client " in result.err
    assert "diverged" in result.err
    assert found["rounds"] == len(rounds)
    assert found["error"] in result.err
