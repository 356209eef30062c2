"""`fedopt watch` ends with the run, and writes no control codes into a pipe."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from fedopt.cli import app
from tests.analysis.growing import GrowingRun


def test_a_running_run_is_followed_to_its_end_as_plain_lines(tmp_path):
    run = GrowingRun(tmp_path / "run", rounds=4)
    run.grow(0.1)
    done = threading.Event()

    def train() -> None:
        for accuracy in (0.2, 0.3, 0.4):
            done.wait(0.15)
            run.grow(accuracy, reason="late")
        done.wait(0.15)
        run.end()

    trainer = threading.Thread(target=train)
    trainer.start()
    result = CliRunner().invoke(app, ["watch", str(run.directory), "--interval", "0.05"])
    trainer.join()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    rounds = [int(line[6]) for line in lines if line.startswith("round ")]
    assert rounds == sorted(set(rounds))
    assert rounds[-1] == 4
    assert lines[-2].startswith("round 4/4, test accuracy 0.4000")
    assert lines[-1] == "completed: 4 of 4 rounds"
    assert result.output.isprintable() or all(c.isprintable() or c == "\n" for c in result.output)


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("interrupted", 1)])
def test_an_ended_run_gives_its_exit_code_at_once(tmp_path, status, code):
    run = GrowingRun(tmp_path / "run")
    run.grow(0.5)
    run.end(status, error="why")
    result = CliRunner().invoke(app, ["watch", str(run.directory)])
    assert result.exit_code == code
    assert result.output.splitlines()[-1].startswith(f"{status}: 1 of 10 rounds")


def test_no_run_is_bad_input(tmp_path):
    result = CliRunner().invoke(app, ["watch", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "does not exist" in result.output


def test_a_terminal_gets_a_live_view(tmp_path):
    run = GrowingRun(tmp_path / "run")
    for round in range(1, 6):
        run.grow(0.1 * round)
    run.end()
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "fedopt", "watch", str(run.directory)]
    process = subprocess.Popen(command, stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 0
    text = seen.decode()
    assert "\x1b[" in text
    assert "test_accuracy" in text
    assert "completed: 5 of 10 rounds" in text
