"""Flower's command line, as this package uses it: admit keys, submit, follow and stop runs.

Its exit codes say nothing of a run (`flwr run --stream` ends with 0 where the run failed), so that
a run's end is read from its status.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedopt.atomic import write_atomically
from fedopt.errors import RunError

CONNECTION = "fedopt"
"""Name of the connection in Flower's configuration."""

FLWR = [sys.executable, "-c", "from flwr.cli.app import app; app()"]

SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Without it Flower installs the app's dependencies anew for each run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "COLUMNS": "200",
}
"""Environment of every process of Flower's."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process of Flower's.

    Args:
        home: Flower's own folder, writable.
        more: further variables.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **SWITCHES, "PATH": path, "FLWR_HOME": str(home.absolute()), **more}


@dataclass(frozen=True)
class Flower:
    """Flower's command line against one SuperLink.

    Args:
        home: Flower's own folder, made if need be.
        address: host:port of the SuperLink, where its Control API is reached.
        authority: certificate of the authority that signed the SuperLink's.
    """

    home: Path
    address: str
    authority: Path

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        text = (
            f"[superlink.{CONNECTION}]\n"
            f"address = {json.dumps(self.address)}\n"
            f"root-certificates = {json.dumps(str(self.authority.absolute()))}\n"
        )
        write_atomically(self.home / "config.toml", text.encode())

    def __call__(self, *words: str, folder: Path | None = None) -> Any:
        """Run a command that prints JSON, and return that.

        Raises:
            RunError: it fails; with what it said.
        """
        done = subprocess.run(
            [*FLWR, *words, "--format", "json"],
            env=environment(self.home),
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            found = json.loads(done.stdout)
        except ValueError:
            raise RunError(f"flwr {' '.join(words[:2])}: {_said(done)}") from None
        if done.returncode or found.get("success") is False:
            raise RunError(f"flwr {' '.join(words[:2])}: {_said(done)}")
        return found

    def register(self, public_key: Path) -> bool:
        """Admit a client's key; return whether it was not yet.

        Raises:
            RunError: it is refused.
        """
        try:
            self("supernode", "register", str(public_key), CONNECTION)
        except RunError as error:
            if "already" in str(error):
                return False
            raise
        return True

    def nodes(self) -> list[dict[str, Any]]:
        """Return the SuperNodes that are registered, as Flower lists them."""
        found: list[dict[str, Any]] = self("supernode", "list", CONNECTION).get("nodes", [])
        return found

    def unregister(self, node_id: int) -> None:
        """Withdraw a key."""
        self("supernode", "unregister", str(node_id), CONNECTION)

    def start(self, app: Path) -> int:
        """Submit an app; return the run's id."""
        return int(self("run", ".", CONNECTION, folder=app)["run-id"])

    def run(self, run_id: int) -> Mapping[str, Any]:
        """Return what Flower lists of a run: `status` such as `running` or `finished:failed`."""
        found: Mapping[str, Any] = self("ls", CONNECTION, "--run-id", str(run_id))["runs"][0]
        return found

    def runs(self) -> list[Mapping[str, Any]]:
        """Return all runs."""
        found: list[Mapping[str, Any]] = self("ls", CONNECTION).get("runs", [])
        return found

    def stop(self, run_id: int) -> None:
        """Stop a run."""
        self("stop", str(run_id), CONNECTION)

    def log(self, run_id: int, *, stream: bool) -> subprocess.Popen[str]:
        """Return a process that prints a run's log: what there is, or all that comes."""
        words = ["log", str(run_id), CONNECTION, "--stream" if stream else "--show"]
        return subprocess.Popen(
            [*FLWR, *words],
            env=environment(self.home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said when it failed."""
    try:
        told = json.loads(done.stdout)
        message = (
            told.get("error-message") or told.get("message") if isinstance(told, dict) else None
        )
    except ValueError:
        message = None
    text = message or "\n".join([done.stdout.strip(), done.stderr.strip()]).strip()
    return str(text) or f"exit code {done.returncode}"


def exec_program(program: str, words: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become another program of this Python's environment."""
    path = Path(sys.executable).parent / program
    os.execve(path, [str(path), *words], dict(environ))
