"""The `fedopt` command as a user types it, and what is in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import zygote

FEDOPT = [sys.executable, "-m", "fedopt"]


def execute(folder: Path, *words: object, check: bool = True, timeout: float = 420):
    """Run a command in a folder to its end; with `check` it must succeed."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def fedopt(folder: Path, *words: object, check: bool = True):
    """Run `fedopt` with some arguments in a folder to its end."""
    done = zygote.fedopt(folder, list(map(str, words)))
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
