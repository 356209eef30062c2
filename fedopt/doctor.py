"""Checks of the machine and the installation, for `fedopt doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """What one check found: `level` is ok, warn or fail."""

    name: str
    level: str
    detail: str


def diagnose() -> list[Finding]:
    """Run all checks; none of them changes anything."""
    checks: list[Callable[[], Finding]] = [
        _python,
        *(lambda package=package: _package(package) for package in ("flwr", "ray", "numpy")),
        _torch,
        _cuda,
        _cores,
        _memory,
        _disk,
        _telemetry,
        _fashion_mnist,
        _training,
    ]
    return [check() for check in checks]


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok" if good else "fail", f"{version} (3.11 and 3.12 are supported)")


def _package(package: str) -> Finding:
    wanted = {"flwr": "1.42.0", "ray": "2.55.1"}.get(package)
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "fail", "not installed")
    if wanted and version != wanted:
        return Finding(package, "fail", f"{version}; fedopt needs {wanted}")
    return Finding(package, "ok", version)


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", "fail", f"cannot be imported: {error}")
    return Finding("torch", "ok", f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("cuda", "ok", "no CUDA device; engine.device=cpu")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("cuda", "ok", f"{', '.join(names)}; use engine.device=cuda")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    level = "warn" if load > cores else "ok"
    return Finding("cores", level, f"{cores} usable, load {load:.1f}")


def _memory() -> Finding:
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    shared = shutil.disk_usage("/dev/shm").free / 2**30 if Path("/dev/shm").is_dir() else 0.0
    level = "warn" if pages < 2 or shared < 0.5 else "ok"
    return Finding("memory", level, f"{pages:.1f} GiB free, {shared:.1f} GiB shared for Ray")


def _disk() -> Finding:
    free = {
        "here": shutil.disk_usage(Path.cwd()).free / 2**30,
        "temporary": shutil.disk_usage(tempfile.gettempdir()).free / 2**30,
    }
    level = "warn" if min(free.values()) < 1 else "ok"
    return Finding("disk", level, ", ".join(f"{v:.1f} GiB free {k}" for k, v in free.items()))


def _telemetry() -> Finding:
    flower = os.environ.get("FLWR_TELEMETRY_ENABLED") == "0"
    said = "off" if flower else "on in Flower; the fedopt command turns it off for its runs"
    return Finding("telemetry", "ok", said)


def _fashion_mnist() -> Finding:
    from fedopt.data.fashion_mnist import find_folder
    from fedopt.errors import DataError

    try:
        return Finding("fashion_mnist", "ok", str(find_folder(None)))
    except DataError:
        return Finding(
            "fashion_mnist", "ok", "not found; digits, synthetic and breast_cancer need no files"
        )


def _training() -> Finding:
    """Train for two rounds, inline."""
    import fedopt

    try:
        run = fedopt.simulate(
            rounds=2, clients_per_round=5, local={"epochs": 1}, engine={"name": "inline"}
        )
    except Exception as error:  # whatever is wrong with the installation, say it
        return Finding("training", "fail", f"{type(error).__name__}: {error}")
    return Finding("training", "ok", f"2 rounds inline, model {run.summary['model_sha256'][:12]}")
