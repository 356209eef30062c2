"""`fedopt verify` and `fedopt replay`: a run is computed again, and nothing of it is touched."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import fedopt as package
from fedopt.cli import app

from .command import COMMAND, TINY, Result, contents, environment
from .command import fedopt as process

WORDS = [*TINY, "rounds=6", "checkpoint.every=2", "model.name=mlp", "model.hidden=[16]"]
VARIANTS = {
    "fedavg": ["strategy=fedavg"],
    "scaffold": ["strategy=scaffold"],
    "adam on the server": ["server.optimizer=adam"],
    "state and validation": [
        "strategy=scaffold",
        "local.optimizer.momentum=0.9",
        "strategy.option=I",
        "local.optimizer_state=keep",
        "local.schedule=plateau",
        "local.schedule.metric=validation_loss",
        "evaluation.validation_clients=4",
        "data.validation_fraction=0.2",
        "server.curriculum=curriculum",
        "downlink.compression=qsgd",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folder of the finished run of a variant."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("runs")
            result = fedopt(folder, "run", *WORDS, *VARIANTS[name], "--out", "run", "--quiet")
            assert result.code == 0, result.err
            made[name] = folder / "run"
        return made[name]

    return run


def fedopt(folder, *arguments):
    """Run `fedopt` in this process: another one would take longer to start than this takes."""
    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, list(arguments))
    return Result(result.exit_code, result.stdout, result.stderr)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def with_row(run, target, round, digest):
    """Copy a run with another digest in the row of a round."""
    shutil.copytree(run, target)
    lines = (target / "rounds.csv").read_text().splitlines()
    cells = lines[round].split(",")
    cells[-1] = digest
    lines[round] = ",".join(cells)
    (target / "rounds.csv").write_text("\n".join(lines) + "\n")
    return target


def test_every_round_has_the_digest_of_its_model(runs):
    run = runs("fedavg")
    recorded = [row["model_sha256"] for row in rows(run / "rounds.csv")]
    assert len(set(recorded)) == 6
    assert recorded[-1] == json.loads((run / "summary.json").read_text())["model_sha256"]
    again = package.simulate(package.config.load(None, [*WORDS, "rounds=3"]))
    assert list(again.history["model_sha256"]) == recorded[:3]


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_is_verified_and_left_alone(runs, name):
    run = runs(name)
    before = contents(run)
    for options, says in (
        ([], "rounds 1 to 6: the same bits (6 compared, computed from the start)"),
        (["--rounds", "5-6"], "rounds 5 to 6: the same bits (2 compared, computed from the check"),
        (["--rounds", "2"], "round 2: the same bits (1 compared, computed from the start)"),
        (["--from-round", "6"], "computed from the checkpoint of round 4)"),
    ):
        result = fedopt(run.parent, "verify", "run", *options)
        assert result.code == 0, result.err
        assert says in result.out
    assert contents(run) == before


def test_a_run_is_verified_by_workers(runs):
    run = runs("scaffold")
    result = process(run.parent, "verify", "run", "--engine", "ray", "--json")
    assert result.code == 0, result.err
    assert result.json["is_equal"]
    assert (result.json["first"], result.json["last"]) == (1, 6)


def test_the_first_round_that_differs_is_said(runs, tmp_path):
    other = "0" * 64
    broken = with_row(runs("scaffold"), tmp_path / "run", 5, other)
    result = fedopt(tmp_path, "verify", "run")
    assert result.code == 1
    assert "round 5 is the first that differs" in result.out
    assert f"recorded {other}" in result.out
    assert "Traceback" not in result.err
    assert fedopt(tmp_path, "verify", "run", "--rounds", "1-4").code == 0
    assert fedopt(tmp_path, "verify", "run", "--from-round", "6").code == 0
    assert contents(broken).keys() == contents(runs("scaffold")).keys()


def test_other_versions_are_named_where_bits_differ(runs, tmp_path):
    broken = with_row(runs("fedavg"), tmp_path / "run", 1, "0" * 64)
    text = (broken / "config.toml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("# torch "))
    (broken / "config.toml").write_text(text.replace(line, "# torch 1.0"))
    result = fedopt(tmp_path, "verify", "run")
    assert result.code == 1
    assert "torch: 1.0, now" in result.out


def test_another_model_in_a_file_is_found(runs, tmp_path):
    shutil.copytree(runs("fedavg"), tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    arrays = load_file(path)
    name = next(iter(arrays))
    arrays[name][(0,) * arrays[name].dim()] += 1
    save_file(arrays, path)
    result = fedopt(tmp_path, "verify", "run", "--from-round", "5")
    assert result.code == 1
    assert "round 6" in result.out
    assert "model.safetensors" in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["nothing"], "nothing does not exist"),
        (["run", "--rounds", "3-9"], "rounds 1 to 6"),
        (["run", "--rounds", "4-2"], "rounds 1 to 6"),
        (["run", "--rounds", "x"], "A-B"),
        (["run", "--from-round", "0"], "rounds 1 to 6"),
        (["run", "--from-round", "7"], "rounds 1 to 6"),
        (["run", "--rounds", "1", "--from-round", "1"], "not both"),
        (["run", "--engine", "rya"], 'Did you mean "ray"?'),
    ],
)
def test_what_cannot_be_verified_is_refused(runs, options, says):
    result = fedopt(runs("fedavg").parent, "verify", *options)
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("round", [1, 4, 6])
def test_a_client_alone_does_what_it_did_among_others(runs, name, round):
    run = runs(name)
    before = contents(run)
    trained = [row for row in rows(run / "clients.csv") if int(row["round"]) == round]
    client = trained[1]["client"]
    result = fedopt(
        run.parent, "replay", "run", "--round", str(round), "--client", client, "--json"
    )
    assert result.code == 0, result.err
    found = result.json
    assert found["agreement"] == "equal"
    assert found["report"]["train_loss"] == float(trained[1]["train_loss"])
    assert found["report"]["update_norm"] == float(trained[1]["update_norm"])
    assert contents(run) == before


def test_a_replay_is_shown_for_people(runs):
    run = runs("fedavg")
    client = rows(run / "clients.csv")[0]["client"]
    result = fedopt(run.parent, "replay", "run", "--round", "1", "--client", client)
    assert result.code == 0
    assert f"client {client} in round 1: trained" in result.out
    assert "equal to the row in clients.csv, to the bit" in result.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--round", "1", "--client", "99"], "does not train in round 1; these do:"),
        (["--round", "0", "--client", "1"], "rounds 1 to 6"),
        (["--round", "8", "--client", "1"], "rounds 1 to 6"),
    ],
)
def test_what_cannot_be_replayed_is_refused(runs, options, says):
    result = fedopt(runs("fedavg").parent, "replay", "run", *options)
    assert result.code == 2
    assert says in result.err
    assert "Traceback" not in result.err


LOSS = """
import torch

def loss(output, target):
    if output.requires_grad and len(target) and LIMIT < float(output.detach().abs().max()):
        raise ValueError("the sensor is broken")
    return torch.nn.functional.cross_entropy(output, target)
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Return a folder with a run that a client's error has ended, and what it said."""
    folder = tmp_path_factory.mktemp("failed")
    (folder / "broken.py").write_text(LOSS.replace("LIMIT", "6.0"))
    words = [*WORDS, "rounds=60", "local.loss=broken:loss", "local.optimizer.lr=0.5"]
    result = process(folder, "run", *words, "--out", "run", "--quiet")
    assert result.code == 1, result.err
    return folder, result.err


def test_a_failed_run_gives_the_command_that_reruns_its_client(failed):
    folder, err = failed
    (line,) = [line for line in err.splitlines() if "fedopt replay" in line]
    words = line.partition("fedopt replay ")[2].split()
    assert words[0] == "run"
    assert words[-1] == "--pdb"
    done = subprocess.run(
        [*COMMAND, "replay", *words],
        cwd=folder,
        env=environment(),
        input="p target\nq\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "the sensor is broken" in done.stderr
    assert "(Pdb)" in done.stdout
    assert "tensor(" in done.stdout, "post mortem is where the loss is"
    plain = process(folder, "replay", *words[:-1])
    assert plain.code == 1
    assert "failed" in plain.out
    assert "the sensor is broken" in plain.out
    assert "recorded no row" in plain.out


def test_a_client_that_does_not_fail_is_debugged_from_its_first_line(runs):
    run = runs("fedavg")
    client = rows(run / "clients.csv")[0]["client"]
    done = subprocess.run(
        [*COMMAND, "replay", "run", "--round", "1", "--client", client, "--pdb"],
        cwd=run.parent,
        env=environment(),
        input="p self.client\nc\n",
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"(Pdb) {client}" in done.stdout


def test_a_run_of_objects_cannot_be_computed_again(tmp_path):
    clients = [(torch.ones(4, 1), torch.zeros(4, 1)) for _ in range(3)]
    package.simulate(
        model=lambda: torch.nn.Linear(1, 1),
        loss=lambda output, target: (output - target).square().mean(),
        clients=clients,
        rounds=2,
        clients_per_round=None,
        local={"steps": 1},
        engine={"name": "inline"},
        out=tmp_path / "run",
    )
    result = fedopt(tmp_path, "verify", "run")
    assert result.code == 2
    assert "was an object of the program" in result.err
