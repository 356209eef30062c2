"""`fedopt dashboard` from the shell: it says where it is, and ends by Ctrl-C without a word."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request

from typer.testing import CliRunner

from fedopt.cli import app
from tests.analysis.growing import GrowingRun


def test_it_serves_until_it_is_interrupted(tmp_path):
    GrowingRun(tmp_path / "run").grow(0.5)
    command = [sys.executable, "-m", "fedopt", "dashboard", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        line = process.stdout.readline()
        address = line.split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}api/runs", timeout=60) as answer:
            assert b'"run"' in answer.read()
        stream = urllib.request.urlopen(f"{address}api/events", timeout=60)
        assert stream.readline() == b"event: runs\n"
        process.send_signal(signal.SIGINT)  # with a page still open
        assert process.wait(timeout=60) == 0
        stream.close()
        assert process.stderr.read() == ""
    finally:
        process.kill()


def test_a_taken_port_and_a_missing_folder_are_bad_input(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--port", port])
    assert result.exit_code == 2
    assert f"port {port}" in result.output
    result = CliRunner().invoke(app, ["dashboard", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert "not a folder" in result.output
    result = CliRunner().invoke(app, ["dashboard", str(tmp_path), "--host", "no such host"])
    assert result.exit_code == 2
    assert "--host" in result.output
