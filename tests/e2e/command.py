"""The `fedopt` command as a user types it: a process of its own, its two streams, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import zygote

COMMAND = [sys.executable, "-m", "fedopt"]

TINY = [
    "engine=inline",
    "rounds=3",
    "clients_per_round=5",
    "partition.clients=10",
    "model=logistic",
    "local.epochs=1",
]
"""A run that takes no longer than the imports."""


@dataclass(frozen=True)
class Result:
    """What a process left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def environment() -> dict[str, str]:
    """The environment without what would change what is printed or read."""
    unwanted = ("FORCE_COLOR", "PYTHONWARNINGS", "COVERAGE_PROCESS_START", "PYTEST_CURRENT_TEST")
    kept = {key: value for key, value in os.environ.items() if key not in unwanted}
    return {**kept, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def execute(command: list[str], folder: Path, **environ: str) -> Result:
    """Run a command in a folder to its end."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment(), **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def fedopt(folder: Path, *arguments: str) -> Result:
    """Run `fedopt` with some arguments in a folder to its end."""
    return Result(*zygote.fedopt(folder, arguments, environment()))


def python(folder: Path, program: str) -> Result:
    """Run a program in a fresh interpreter in a folder."""
    return execute([sys.executable, "-c", program], folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def summary(folder: Path) -> dict[str, Any]:
    """Return a run's `summary.json`."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found
