"""Runs as processes: how many cores each takes, how it is started, watched and stopped."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

from fedopt.config import Config
from fedopt.errors import ConfigError

_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_LAST_LINES = 12


def available_cores() -> int:
    """Return the cores that this process may use, by its affinity and its control group."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, math.floor(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or one of another kind
        pass
    return cores


def cores_of(config: Config, cores: int) -> int:
    """Return how many of `cores` a run takes.

    A run in the calling process takes one; Ray takes its workers, or all; a GPU is not shared.
    """
    engine = config.engine
    if engine.device != "cpu":
        return cores
    if engine.name == "inline":
        return 1
    return min(cores, engine.workers or cores)


def check_jobs(jobs: int | None, cores: int) -> int:
    """Return how many runs may go on at once.

    Raises:
        ConfigError: more than there are cores.
    """
    if jobs is None:
        return cores
    if not 1 <= jobs <= cores:
        raise ConfigError(
            f"got {jobs}; this machine gives {cores} cores, and a run takes at least one: use "
            f"1..{cores}",
            key="--jobs",
        )
    return jobs


class Child:
    """The process of a run.

    Args:
        words: of the command line, behind `fedopt`.
        log: file that gets what it says.
    """

    def __init__(self, words: list[str], log: Path) -> None:
        self._log = log
        self._from = log.stat().st_size if log.exists() else 0
        environment = dict(os.environ) | dict.fromkeys(_ONE_THREAD, "1")
        environment["COLUMNS"] = "200"
        with open(log, "ab") as file:
            # A group of its own, so that Ctrl-C reaches it once, from us; and it does not outlive
            # us, however we end.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedopt", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def poll(self) -> int | None:
        """Return the exit code, or None while it goes on."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to end: it drops its round and writes a checkpoint."""
        if self.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, and what it started, at once."""
        if self.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> bool:
        """Return whether it ended within so many seconds."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def error(self) -> str:
        """Return what it said last, or which signal ended it."""
        text = self._log.read_bytes()[self._from :].decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        said = lines[starts[-1] :] if starts else lines[-_LAST_LINES:]
        words = "\n".join(said).removeprefix("error: ")
        code = self.poll() or 0
        if code < 0:
            name = signal.Signals(-code).name
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            return f"ended by {name}{memory}" + (f": {words}" if words else "")
        return words or f"exit code {code}"


_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started this one ends."""
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGTERM)
