"""A run that is killed, interrupted or damaged goes on to the bits of an undisturbed one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from .command import COMMAND, contents, environment, execute, fedopt, summary

EXHAUSTIVE = pytest.mark.exhaustive

ROUNDS = 80
SETTINGS = [
    f"rounds={ROUNDS}",
    "clients_per_round=20",
    "partition.clients=40",
    "model.hidden=[32]",
    "local.epochs=3",
]
TIME_COLUMNS = {"wall_seconds"}


def start(folder, *arguments):
    """Start `fedopt run` as the leader of a process group, as a shell does."""
    return subprocess.Popen(
        [*COMMAND, "run", *SETTINGS, *arguments, "--quiet"],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, Ctrl-C is ignored, and that would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rows(folder):
    with open(folder / "rounds.csv", newline="") as file:
        return list(csv.DictReader(file))


def wait_for_round(process, folder, round):
    """Wait until a run has recorded a round; it must not be over by then."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        path = folder / "rounds.csv"
        if path.exists() and path.read_text().count("\n") > round:
            return
        time.sleep(0.005)
    pytest.fail(f"round {round} was not seen: {process.stderr.read() if process.poll() else ''}")


def interrupt(folder, *arguments, round=5, by=signal.SIGKILL):
    """Run into `folder / "broken"` and end the process after some rounds."""
    process = start(folder, *arguments, "--out", "broken")
    try:
        wait_for_round(process, folder / "broken", round)
    finally:
        process.send_signal(by)
        _, err = process.communicate(timeout=60)
    assert not (folder / "broken" / "model.safetensors").exists(), "it was over before the signal"
    return process.returncode, err


def without_times(found):
    return [{k: v for k, v in row.items() if k not in TIME_COLUMNS} for row in found]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the folder of the undisturbed run of a strategy."""
    made = {}

    def run(strategy):
        if strategy not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            words = [*SETTINGS, "engine=inline", f"strategy={strategy}"]
            result = fedopt(folder, "run", *words, "--out", "run", "--quiet")
            assert result.code == 0, result.err
            made[strategy] = folder / "run"
        return made[strategy]

    return run


@pytest.mark.parametrize(
    ("strategy", "every", "training"),
    [
        pytest.param("fedavg", 1, "auto", marks=EXHAUSTIVE),
        ("scaffold", 2, "auto"),
        pytest.param("scaffold", 1, "loop", marks=EXHAUSTIVE),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, undisturbed, strategy, every, training):
    words = ["engine=inline", f"strategy={strategy}", f"engine.training={training}"]
    code, _ = interrupt(tmp_path, *words, f"checkpoint.every={every}")
    assert code == -signal.SIGKILL
    result = fedopt(tmp_path, "resume", "broken", "--json")
    assert result.code == 0, result.err
    assert [int(row["round"]) for row in rows(tmp_path / "broken")] == list(range(1, ROUNDS + 1))
    with open(tmp_path / "broken" / "clients.csv", newline="") as file:
        pairs = [(row["round"], row["client"]) for row in csv.DictReader(file)]
    assert len(pairs) == len(set(pairs)) == 20 * ROUNDS
    if training == "auto":
        whole = undisturbed(strategy)
    else:
        again = [*SETTINGS, *words, "--out", "whole", "--quiet"]
        assert fedopt(tmp_path, "run", *again).code == 0
        whole = tmp_path / "whole"
    assert result.json["model_sha256"] == summary(whole)["model_sha256"]
    assert without_times(rows(tmp_path / "broken")) == without_times(rows(whole))
    for fact in ("initial", "population", "totals", "parameters", "status"):
        assert result.json[fact] == summary(whole)[fact], fact
    assert (tmp_path / "broken" / "convergence.png").exists()


@pytest.mark.parametrize(
    ("strategy", "damage"),
    [pytest.param("fedavg", "flipped", marks=EXHAUSTIVE), ("scaffold", "cut")],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, undisturbed, strategy, damage):
    interrupt(tmp_path, "engine=inline", f"strategy={strategy}", "checkpoint.every=2", round=6)
    # Two are kept; a kill may come before the third newest is removed.
    saved = sorted((tmp_path / "broken" / "checkpoints").glob("round_*.safetensors"))
    older, newest = saved[-2:]
    payload = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(payload[: len(payload) // 2])
    else:
        newest.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    result = fedopt(tmp_path, "resume", "broken", "--json")
    assert result.code == 0, result.err
    assert f"checkpoint skipped: {newest.name}" in result.err
    assert "Traceback" not in result.err
    assert older.name not in result.err
    assert result.json["model_sha256"] == summary(undisturbed(strategy))["model_sha256"]
    assert [int(row["round"]) for row in rows(tmp_path / "broken")] == list(range(1, ROUNDS + 1))


@pytest.mark.exhaustive
def test_a_run_killed_twice_goes_on(tmp_path, undisturbed):
    interrupt(tmp_path, "engine=inline", "strategy=scaffold", "checkpoint.every=1")
    process = subprocess.Popen(
        [*COMMAND, "resume", "broken", "--quiet"], cwd=tmp_path, env=environment()
    )
    try:
        recorded = len(rows(tmp_path / "broken"))
        wait_for_round(process, tmp_path / "broken", recorded + 5)
    finally:
        process.kill()
        process.wait()
    assert fedopt(tmp_path, "resume", "broken", "--quiet").code == 0
    found = summary(tmp_path / "broken")["model_sha256"]
    assert found == summary(undisturbed("scaffold"))["model_sha256"]


@pytest.mark.exhaustive
def test_a_run_without_checkpoints_begins_again(tmp_path, undisturbed):
    interrupt(tmp_path, "engine=inline", "checkpoint.every=0", "strategy=scaffold")
    assert fedopt(tmp_path, "resume", "broken", "--quiet").code == 0
    found = summary(tmp_path / "broken")
    assert found["model_sha256"] == summary(undisturbed("scaffold"))["model_sha256"]
    recorded = [int(row["round"]) for row in rows(tmp_path / "broken")]
    assert recorded == list(range(1, found["rounds"] + 1))


def test_ctrl_c_is_recorded_and_the_run_can_go_on(tmp_path, undisturbed):
    words = ["engine=inline", "strategy=scaffold", "checkpoint.every=1"]
    code, err = interrupt(tmp_path, *words, by=signal.SIGINT)
    assert code == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    found = summary(tmp_path / "broken")
    assert found["status"] == "interrupted"
    assert found["rounds"] == len(rows(tmp_path / "broken"))
    result = fedopt(tmp_path, "resume", "broken", "--json")
    assert result.json["model_sha256"] == summary(undisturbed("scaffold"))["model_sha256"]
    assert summary(tmp_path / "broken")["status"] == "completed"


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_of_ray_behind(tmp_path):
    words = ["engine=ray", "engine.workers=1", "rounds=100000", "checkpoint.every=0"]
    process = start(tmp_path, *words, "--out", "broken")
    try:
        wait_for_round(process, tmp_path / "broken", 2)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children, "Ray's processes were not seen"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert summary(tmp_path / "broken")["status"] == "interrupted"


def test_a_run_can_be_read_while_it_goes_on(tmp_path):
    process = start(tmp_path, "engine=inline", "rounds=100000", "--out", "broken")
    try:
        wait_for_round(process, tmp_path / "broken", 3)
        command = [sys.executable, "-m", "fedopt", "plot", "broken", "--out", "so-far.png"]
        result = execute(command, tmp_path)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert result.code == 0, result.err
    assert (tmp_path / "so-far.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_completed_run_is_left_alone(undisturbed, arguments):
    run = undisturbed("fedavg")
    before = contents(run)
    result = fedopt(run.parent, "resume", "run", *arguments)
    assert result.code == 0
    assert "completed" in result.err
    assert contents(run) == before
    if arguments:
        assert json.loads(result.out) == summary(run)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_what_is_no_run_cannot_be_resumed(tmp_path, name):
    result = fedopt(tmp_path, "resume", name)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert "error: " in result.err
    assert not list(tmp_path.iterdir())
