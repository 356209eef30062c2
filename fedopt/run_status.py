"""What a run does, or came to, as its folder tells."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from fedopt.run_lock import LOCK_FILE

STATUSES = ("running", "completed", "failed", "interrupted", "stopped")
"""What can be said of a run; `stopped`: its process ended without a word."""


def run_status(directory: Path, summary: Mapping[str, object]) -> str:
    """Return what a run does, or came to: one of `STATUSES`.

    Args:
        directory: the run's folder.
        summary: what its `summary.json` holds, empty without one.
    """
    status = summary.get("status")
    if status != "completed" and _is_written(directory):
        return "running"
    return str(status) if status in STATUSES else "stopped"


def _is_written(directory: Path) -> bool:
    """Return whether a process of this machine has the folder's lock.

    The lock itself is not touched: trying it could keep a run from starting.
    """
    path = directory / LOCK_FILE
    try:
        holder = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return False
    if not holder.isdigit():
        return path.exists()  # the moment between making and filling it
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
