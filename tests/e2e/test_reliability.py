"""What a run survives, and how it ends where it does not: writers, signals, full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

import fedopt as package
from fedopt.analysis.store import RunWriter
from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.server.checkpoint import saved_rounds

from .command import COMMAND, TINY, environment, execute, fedopt, summary
from .test_resume import rows, start, wait_for_round

EXHAUSTIVE = pytest.mark.exhaustive

ENDLESS = ["engine=inline", "strategy=scaffold", "rounds=100000", "checkpoint.every=1000"]


def ended(process, seconds=60):
    """Wait for a process; return what it said on standard error."""
    try:
        _, err = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return err


# Two writers ------------------------------------------------------------------------------------


def test_a_folder_has_one_writer_who_is_named(tmp_path):
    process = start(tmp_path, *ENDLESS, "--out", "run")
    try:
        wait_for_round(process, tmp_path / "run", 2)
        for arguments in (["resume", "run"], ["run", *TINY, "--out", "run"]):
            result = fedopt(tmp_path, *arguments)
            assert result.code == 2
            assert "Traceback" not in result.err
            if arguments[0] == "resume":
                assert f"is being written by process {process.pid}" in result.err
        assert process.poll() is None
    finally:
        process.kill()
        ended(process)
    # The kernel has given the lock back.
    resumed = subprocess.Popen([*COMMAND, "resume", "run"], cwd=tmp_path, env=environment())
    time.sleep(4)
    assert resumed.poll() is None
    resumed.kill()
    resumed.wait()


def test_a_lock_is_not_left_behind_and_not_stolen(tmp_path):
    writer = RunWriter(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        RunWriter(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
        RunWriter.resume(tmp_path / "run", 0)
    writer.add_round({"round": 1})
    writer.close()
    assert not list((tmp_path / "run").glob(".*"))
    RunWriter.resume(tmp_path / "run", 1).close()


def test_a_begun_folder_is_taken_over_and_a_foreign_one_is_not(tmp_path):
    begun = tmp_path / "begun"
    RunWriter(begun).close()  # killed before its configuration was written
    (begun / ".config.toml.0123abcd.tmp").write_text("rou")
    result = fedopt(tmp_path, "resume", "begun")
    assert result.code == 2
    assert "ended before its configuration was written" in result.err
    assert fedopt(tmp_path, "run", *TINY, "--out", "begun", "--quiet").code == 0
    assert not list(begun.glob(".*"))
    for name, text in (("notes.txt", "mine"), ("rounds.csv", "mine\n1\n")):
        foreign = tmp_path / f"foreign-{name}"
        foreign.mkdir()
        (foreign / name).write_text(text)
        result = fedopt(tmp_path, "run", *TINY, "--out", foreign.name)
        assert result.code == 2
        assert [(p.name, p.read_text()) for p in foreign.iterdir()] == [(name, text)]


def test_a_run_without_its_configuration_is_said(tmp_path):
    assert fedopt(tmp_path, "run", *TINY, "--out", "run", "--quiet").code == 0
    (tmp_path / "run" / "config.toml").unlink()
    for command in ("resume", "verify"):
        result = fedopt(tmp_path, command, "run")
        assert result.code == 2
        assert "has rounds but no config.toml" in result.err


# Checkpoints ------------------------------------------------------------------------------------


def test_checkpoints_by_the_clock_do_not_change_bits(tmp_path):
    words = [*TINY, "rounds=8", "strategy=scaffold"]
    plain = package.simulate(load(None, words))
    timed = package.simulate(
        load(None, [*words, "checkpoint.every=0", "checkpoint.minutes=1e-9", "checkpoint.keep=3"]),
        out=tmp_path / "run",
    )
    assert timed.summary["model_sha256"] == plain.summary["model_sha256"]
    assert list(saved_rounds(tmp_path / "run" / "checkpoints")) == [6, 7, 8]
    none = package.simulate(
        load(None, [*words, "checkpoint.every=0", "checkpoint.minutes=60"]), out=tmp_path / "none"
    )
    assert none.summary["model_sha256"] == plain.summary["model_sha256"]
    assert not (tmp_path / "none" / "checkpoints").exists()


def test_a_checkpoint_ahead_of_its_rows_is_passed_over(tmp_path):
    """A machine that goes down may keep a checkpoint and lose the last rows."""
    words = [*TINY, "rounds=8", "strategy=scaffold", "checkpoint.every=3"]
    assert fedopt(tmp_path, "run", *words, "--out", "whole", "--quiet").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    table = tmp_path / "run" / "rounds.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:6]))  # to round 5
    result = fedopt(tmp_path, "resume", "run", "--json")
    assert result.code == 0, result.err
    assert result.json["model_sha256"] == summary(tmp_path / "whole")["model_sha256"]
    assert [int(row["round"]) for row in rows(tmp_path / "run")] == list(range(1, 9))


# Signals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=EXHAUSTIVE), (signal.SIGTERM, 143)],
)
def test_a_signal_leaves_a_checkpoint_of_the_last_round(tmp_path, number, code):
    process = start(tmp_path, *ENDLESS, "--out", "run")
    wait_for_round(process, tmp_path / "run", 5)
    process.send_signal(number)
    err = ended(process)
    assert process.returncode == code
    assert "Traceback" not in err
    found = summary(tmp_path / "run")
    assert found["status"] == "interrupted"
    last = len(rows(tmp_path / "run"))
    assert list(saved_rounds(tmp_path / "run" / "checkpoints")) == [last]
    assert not list((tmp_path / "run").rglob(".*"))
    result = fedopt(tmp_path, "verify", "run", "--from-round", str(last))
    assert result.code == 0, result.out


SLOW = """
import time, torch

def loss(output, target):
    if output.requires_grad:
        time.sleep(0.3)
    return torch.nn.functional.cross_entropy(output, target)
"""


def test_a_long_round_is_dropped_at_once(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    words = [
        "local.loss=slow:loss",
        "local.steps=2",
        "clients_per_round=40",
        "partition.clients=40",
    ]
    words += ["engine=inline", "engine.training=loop", "rounds=9", "model.hidden=[8]"]
    process = subprocess.Popen(
        [*COMMAND, "run", *words, "--out", "run", "--quiet"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "population.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    err = ended(process)
    assert process.returncode == 130, err
    assert time.monotonic() - sent < 5, "a round takes 24 seconds"
    assert summary(tmp_path / "run")["rounds"] == 0


STUBBORN = """
import os, signal, sys, time
from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.run import execute

class Twice(SilentProgress):
    def update(self, row):
        if row["round"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
            print("once", flush=True)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
experiment = Experiment.from_config(load(None, sys.argv[1:]))
execute(experiment, __import__("pathlib").Path("run"), Twice())
"""


def test_a_second_signal_ends_at_once_and_the_run_goes_on_all_the_same(tmp_path):
    words = [*TINY, "rounds=5", "strategy=scaffold", "checkpoint.every=2"]
    result = execute([sys.executable, "-c", STUBBORN, *words], tmp_path)
    assert result.code == 130
    assert result.out == "once\n"
    assert "ended at once" in result.err
    assert not (tmp_path / "run" / "summary.json").exists()
    assert fedopt(tmp_path, "resume", "run", "--quiet").code == 0
    expected = package.simulate(load(None, words)).summary["model_sha256"]
    assert summary(tmp_path / "run")["model_sha256"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=EXHAUSTIVE)])
def test_a_signal_to_the_whole_group_leaves_no_process_of_ray(tmp_path, number):
    """A terminal sends Ctrl-C to every process of the group, Ray's too."""
    words = ["engine=ray", "engine.workers=2", "rounds=100000", "strategy=scaffold"]
    process = start(tmp_path, *words, "--out", "run")
    try:
        wait_for_round(process, tmp_path / "run", 5)
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        os.killpg(process.pid, number)
    finally:
        err = ended(process)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert not psutil.wait_procs(children, timeout=30)[1]
    last = len(rows(tmp_path / "run"))
    assert last in saved_rounds(tmp_path / "run" / "checkpoints")


# A full disk ------------------------------------------------------------------------------------

ON_A_SMALL_DISK = """
mkdir disk && mount -t tmpfs -o size=1600k tmpfs disk && cd disk || exit 99
head -c 1510000 /dev/zero > ballast
"$@" run {words} --out run --quiet
echo "code $?"
rm -f ballast
"$@" resume run --quiet
echo "resumed $?"
cp -r run ../kept
"""


@pytest.mark.parametrize("strategy", [pytest.param("fedavg", marks=EXHAUSTIVE), "scaffold"])
def test_a_full_disk_ends_the_run_and_leaves_what_is_whole(tmp_path, strategy):
    """In a mount namespace of our own, on a disk of some hundred kilobytes."""
    words = [*TINY, f"strategy={strategy}", "rounds=60", "checkpoint.every=5", "model.name=mlp"]
    script = ON_A_SMALL_DISK.replace("{words}", " ".join(words))
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *COMMAND]
    if shutil.which("unshare") is None or execute(["unshare", "-rm", "true"], tmp_path).code:
        pytest.skip("needs a mount namespace")
    result = execute(command, tmp_path)
    if "code" not in result.out:
        pytest.skip(f"no small disk here: {result.err}")
    assert "code 1" in result.out, result.err
    assert "Traceback" not in result.err
    assert "No space left on device" in result.err
    assert "make room, then: fedopt resume run" in result.err
    assert "resumed 0" in result.out
    expected = package.simulate(load(None, words)).summary["model_sha256"]
    assert summary(tmp_path / "kept")["model_sha256"] == expected


def test_a_disk_that_is_full_in_a_checkpoint_keeps_the_last_one(tmp_path, monkeypatch):
    import errno

    from fedopt import atomic
    from fedopt.errors import DiskFullError

    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if "round_000006" in name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(atomic.os, "fsync", full)
    words = [*TINY, "rounds=9", "strategy=scaffold", "checkpoint.every=3"]
    with pytest.raises(DiskFullError, match=r"checkpoint of round 6.*No space left") as caught:
        package.simulate(load(None, words), out=tmp_path / "run")
    (note,) = caught.value.__notes__
    assert "the checkpoint of round 3 is whole" in note
    assert list(saved_rounds(tmp_path / "run" / "checkpoints")) == [3]
    assert summary(tmp_path / "run")["status"] == "failed"
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    monkeypatch.undo()
    assert fedopt(tmp_path, "resume", "run", "--quiet").code == 0
    expected = package.simulate(load(None, words)).summary["model_sha256"]
    assert summary(tmp_path / "run")["model_sha256"] == expected
