"""Submitting a run to a SuperLink: the app that carries it, its progress, its true end."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w

from fedopt.config import Config
from fedopt.deployed import SUMMARY, deployable
from fedopt.deployment.flower import Flower
from fedopt.errors import ConfigError, RunError
from fedopt.server.deployment import check_deployable

POLL_SECONDS = 10.0
"""Pause between two looks at a run's status, which each start a process; its log tells sooner."""

FINISHED = "finished:"

_CHATTER = re.compile(r"(\x1b\[\d+m)?(INFO|DEBUG)\b")
"""Begins the lines of a run's log that Flower writes for its own developers."""


@dataclass(frozen=True)
class Submission:
    """A run that was submitted.

    Args:
        run_id: Flower's id of it.
        name: of its folder among the server's results.
    """

    run_id: int
    name: str


def prepared(config: Config, clients: int | None) -> Config:
    """Return a configuration as real clients run it, with a checkpoint after every round.

    Args:
        config: as the user wrote it.
        clients: of the deployment; all of them are waited for where the user says nothing else.

    Raises:
        ConfigError: it describes a simulated population, or objects of a program.
    """
    if config.has_objects:
        raise ConfigError("data, model and loss must be named: objects do not travel to clients")
    check_deployable(config)
    config = deployable(config)
    if "every" not in config.checkpoint.model_fields_set:  # rounds are long, checkpoints are not
        config = replace(config, checkpoint=config.checkpoint.model_copy(update={"every": 1}))
    wanted = config.deployment
    if clients and "min_clients" not in wanted.model_fields_set:
        config = replace(config, deployment=wanted.model_copy(update={"min_clients": clients}))
    return config


def submit(
    flwr: Flower,
    name: str,
    config: Config | None,
    include: Sequence[Path] = (),
) -> Submission:
    """Submit a run.

    Args:
        flwr: the SuperLink.
        name: of the run's folder on the server.
        config: what to run; None goes on with the run of that name.
        include: the user's own modules and packages, which travel with the app.

    Raises:
        ConfigError: a file to include cannot be.
        RunError: the SuperLink refuses.
    """
    if config is None:
        stop_others(flwr, name)
    with tempfile.TemporaryDirectory(prefix="fedopt-app-") as folder:
        write_app(Path(folder), name, config, include)
        return Submission(flwr.start(Path(folder)), name)


def write_app(folder: Path, name: str, config: Config | None, include: Sequence[Path]) -> None:
    """Write the Flower app of a run: the two apps of this package, its configuration, and no data.

    Raises:
        ConfigError: a file to include cannot be.
    """
    source = json.dumps(config.dump()) if config is not None else ""
    run = {"sites": True, "resume": config is None, "out": name, "config": source}
    pyproject = {
        "project": {"name": app_name(name), "version": "1.0.0", "license": {"text": "Apache-2.0"}},
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "fedopt",
                    "components": {
                        "serverapp": "fedopt_apps.server:app",
                        "clientapp": "fedopt_apps.client:app",
                    },
                    "config": run,
                }
            }
        },
    }
    (folder / "pyproject.toml").write_text(tomli_w.dumps(pyproject), encoding="utf-8")
    apps = folder / "fedopt_apps"
    apps.mkdir()
    (apps / "__init__.py").touch()
    for part, line in (
        ("server", "from fedopt.run import server_app\n\napp = server_app()\n"),
        ("client", "from fedopt.client.resident import resident_app\n\napp = resident_app()\n"),
    ):
        (apps / f"{part}.py").write_text(line, encoding="utf-8")
    for path in include:
        if path.is_dir():
            shutil.copytree(
                path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        elif path.suffix == ".py" and path.is_file():
            shutil.copy(path, folder / path.name)
        else:
            raise ConfigError(f"{path} is neither a module (.py) nor a package", key="--include")


def stop_others(flwr: Flower, name: str) -> int:
    """Stop what still counts as running of a run that is to go on.

    A killed ServerApp leaves its run `running` until Flower misses it, and two must not write into
    one folder.

    Returns:
        How many were stopped.
    """
    stopped = 0
    for run in flwr.runs():
        is_over = str(run["status"]).startswith(FINISHED)
        if not is_over and str(run.get("fab-id", "")).endswith(f"/{app_name(name)}"):
            flwr.stop(int(run["run-id"]))
            stopped += 1
    return stopped


def app_name(name: str) -> str:
    """Return the name of a run's app, by which Flower lists it: at most 32 letters and the like."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:18].strip("-") or "x"
    return f"run-{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def follow(flwr: Flower, submission: Submission, show: Callable[[str], None]) -> Mapping[str, Any]:
    """Show a run's progress until it ends, and return its summary.

    Args:
        flwr: the SuperLink.
        submission: the run.
        show: takes the lines of the run's log.

    Raises:
        RunError: the run failed or was stopped; with its last words.
    """
    reader = _LogReader(flwr, submission.run_id, show)
    status = "unknown"
    try:
        while not status.startswith(FINISHED):
            reader.wait(POLL_SECONDS)
            status = str(flwr.run(submission.run_id)["status"])
    finally:
        reader.close()
    lines = reader.lines
    if status != "finished:completed":
        raise RunError(_why(submission, status, lines))
    for line in reversed(lines):
        if SUMMARY in line:
            found: Mapping[str, Any] = json.loads(line.partition(SUMMARY)[2])
            return found
    raise RunError(f"run {submission.name} is completed, but its log has no summary")


class _LogReader:
    """Reads a run's log as it comes, in a thread; at the end, what is missing is read at once."""

    def __init__(self, flwr: Flower, run_id: int, show: Callable[[str], None]) -> None:
        self._flwr, self._run_id, self._show = flwr, run_id, show
        self.lines: list[str] = []
        self._process = flwr.log(run_id, stream=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._take(line.rstrip("\n"))

    def _take(self, line: str) -> None:
        self.lines.append(line)
        if SUMMARY not in line:
            self._show(line)

    def wait(self, seconds: float) -> None:
        """Wait until the log ends, which it does with the run; at most so many seconds."""
        self._thread.join(seconds)
        if not self._thread.is_alive():
            time.sleep(1.0)  # it may have ended before the run did

    def close(self) -> None:
        """Read to the end and stop."""
        self._thread.join(5)
        self._process.terminate()
        self._process.wait()
        self._thread.join(5)
        whole = self._flwr.log(self._run_id, stream=False)
        out, _ = whole.communicate()
        every = out.splitlines()
        for line in every[len(self.lines) :]:
            self._take(line)


def _why(submission: Submission, status: str, lines: Sequence[str]) -> str:
    """Return why a run ended without success, as far as its log says."""
    words = [line for line in lines if line.strip() and not _CHATTER.match(line)]
    errors = [
        place
        for place, line in enumerate(words)
        if line.startswith("fedopt.errors.") or "Error: " in line.partition(" ")[0] + " "
    ]
    told = words[errors[-1] :][:12] if errors else words[-3:]
    text = "\n".join(told).removeprefix("fedopt.errors.")
    return (
        f"run {submission.name} ended as {status.removeprefix(FINISHED)}: {text}\n"
        f"go on with it: fedopt deploy submit --resume {submission.name} (and its --include)"
    )


def show_line(line: str) -> None:
    """Print a line of a run's log on standard error, but for Flower's own chatter."""
    if line.strip() and not _CHATTER.match(line):
        print(line, file=sys.stderr, flush=True)


__all__ = ["Submission", "follow", "prepared", "show_line", "submit"]
