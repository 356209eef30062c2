"""What each peer needs and how it is run: pinned packages, its own environment, its modes.

Environments are made once under a cache folder and found again by a stamp of what went in.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"

# A CPU build only: on Linux the plain version can mean one with CUDA libraries.
TORCH = "torch==2.13.0+cpu" if sys.platform == "linux" else "torch==2.13.0"
TORCHVISION = "torchvision==0.28.0"
NUMPY = "numpy==2.4.6"
INSTALL_SECONDS = 1800.0


@dataclass(frozen=True)
class Peer:
    """A framework to measure.

    Args:
        packages: requirements installed together.
        past_python_check: requirements installed after them, alone, whatever Python they declare.
        modes: ways of running it, by the names its runner knows.
        torchrun: the modes that are started by torchrun, with two processes.
    """

    name: str
    packages: tuple[str, ...]
    modes: tuple[str, ...]
    past_python_check: tuple[str, ...] = ()
    torchrun: frozenset[str] = frozenset()


PEERS: dict[str, Peer] = {
    p.name: p
    for p in (
        Peer(
            "pfl",
            (TORCH, NUMPY, "pfl==0.6.0"),
            ("one process", "two processes"),
            torchrun=frozenset({"two processes"}),
        ),
        Peer("fluke", (TORCH, TORCHVISION, NUMPY, "fluke-fl==0.8.1"), ("one process",)),
        Peer("fedlab", (TORCH, TORCHVISION, NUMPY, "fedlab==1.3.0"), ("one process",)),
        Peer("fedjax", (NUMPY, "fedjax==0.0.17", "jax==0.10.2", "jaxlib==0.10.2"), ("one core",)),
        Peer(
            "blazefl",
            (TORCH, NUMPY, "tqdm==4.70.1"),
            ("one process", "two processes", "two threads"),
            past_python_check=("blazefl==2.0.3",),
        ),
    )
}


class PeerError(Exception):
    """A peer that could not be installed or run, with the reason."""


def default_folder() -> Path:
    """Folder of the environments when none is given: in the user's cache directory."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fedopt" / "peers"


def python_of(peer: Peer, folder: Path) -> Path:
    """Name the Python of a peer's environment."""
    return folder / peer.name / "bin" / "python"


def make(peer: Peer, folder: Path) -> Path:
    """Make the peer's environment, or find it made before; returns its Python.

    Raises:
        PeerError: pip could not install it.
    """
    python = python_of(peer, folder)
    stamp = folder / peer.name / "installed.txt"
    wanted = "\n".join((platform.python_version(), *peer.packages, *peer.past_python_check))
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    stamp.unlink(missing_ok=True)
    _call(
        [sys.executable, "-m", "venv", "--clear", str(python.parents[1])],
        "make environment",
        INSTALL_SECONDS,
    )
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS)]
    _call([*pip, *peer.packages], "install", INSTALL_SECONDS)
    if peer.past_python_check:
        _call(
            [*pip, "--no-deps", "--ignore-requires-python", *peer.past_python_check],
            "install",
            INSTALL_SECONDS,
        )
    stamp.write_text(wanted)
    return python


def run(
    peer: Peer,
    python: Path,
    mode: str,
    workload: str,
    rounds: int,
    warmup: int,
    out: Path,
    timeout_seconds: float,
) -> None:
    """Run the peer's runner once in its environment; it writes its row to `out`.

    Raises:
        PeerError: the runner failed, wrote nothing or took too long.
    """
    module = f"benchmarks.peers.run_{peer.name}"
    command = [str(python), "-m", module]
    if mode in peer.torchrun:
        command = [str(python), "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", "-m", module]
    command += ["--workload", workload, "--mode", mode, "--out", str(out)]
    command += ["--rounds", str(rounds), "--warmup", str(warmup)]
    command += ["--reference-python", sys.executable]
    out.unlink(missing_ok=True)
    _call(command, "run", timeout_seconds)
    if not out.is_file():
        raise PeerError("run: the runner ended without a result")


def _call(command: list[str], what: str, timeout_seconds: float) -> None:
    """Run a command quietly; its last words become the reason when it fails."""
    environment = dict(os.environ)
    environment.update(
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TQDM_DISABLE="1",
        PYTHONWARNINGS="ignore",
        WANDB_MODE="disabled",
        PYTHONNOUSERSITE="1",
    )
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"{what}: stopped after {timeout_seconds:.0f} s") from error
    finally:
        if process.poll() is None:  # it and all that it started
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        raise PeerError(f"{what}: {_reason(errors or output)}")


def _reason(text: str) -> str:
    """Find the last line that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or line.startswith("ERROR")]
    return (telling or lines or ["no output"])[-1][:300]
