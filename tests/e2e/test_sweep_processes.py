"""A sweep of real processes: interrupted, killed, and gone on with to the same bits."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

TASK = ["partition.clients=6", "clients_per_round=2", "local.epochs=1", "engine.name=inline"]
PATIENCE = 120.0  # seconds, on a machine that is busy with other things


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fedopt", *words]


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(folder: Path) -> int:
    path = folder / "rounds.csv"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def is_locked(folder: Path) -> bool:
    """Return whether a process holds a folder's lock; a killed one leaves the file alone."""
    try:
        with open(folder / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def summary(folder: Path) -> dict[str, object]:
    return json.loads((folder / "summary.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.exhaustive), signal.SIGKILL],
    ids=lambda n: n.name,
)
def test_a_sweep_that_is_ended_leaves_no_process_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "sweep"
    words = ["sweep", *TASK, "rounds=150", "seed=0,1", "--out", str(out), "--json"]
    process = subprocess.Popen(
        command(*words), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    runs = out / "runs"
    until(lambda: any(rows(folder) > 1 for folder in runs.glob("*")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    if number == signal.SIGINT:
        assert process.returncode == 130, said
        assert "interrupted by SIGINT" in said
        assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    # What it had started ends too: every run's folder can be locked again.
    end = time.monotonic() + PATIENCE
    while any(is_locked(folder) for folder in runs.glob("*")):
        assert time.monotonic() < end
        time.sleep(0.05)
    begun = [folder for folder in runs.glob("*") if rows(folder) > 0]
    assert begun
    again = subprocess.run(command(*words), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    told = json.loads(again.stdout)
    assert told["runs"] == {"completed": 2}
    assert "\x1b" not in again.stdout + again.stderr
    alone = tmp_path / "alone"
    config = next((out / "configs").glob("*seed-0.toml"))
    subprocess.run(
        command("run", str(config), "--out", str(alone), "--quiet"),
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folder = next(runs.glob("*seed-0"))
    assert summary(folder)["model_sha256"] == summary(alone)["model_sha256"]
