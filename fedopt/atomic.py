"""Writing a file so that a reader, or a crash, sees the old contents or the new, never a part."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def write_atomically(path: Path, payload: bytes, *, private: bool = False) -> None:
    """Replace the file at `path` by `payload`, in one step and durably.

    A temporary file in the same folder is written, synced and renamed over `path`; whatever
    fails before the rename leaves `path` as it was and no temporary file.

    Args:
        path: the file; its folder exists.
        payload: all of its new contents.
        private: whether its owner alone can read it, from the first moment on; else the umask says.

    Raises:
        OSError: the folder cannot be written to, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # Not tempfile: its files are private to their owner, results should follow the umask.
        mode = 0o600 if private else 0o666
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journaled
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def is_temporary(name: str) -> bool:
    """Return whether a file's name is one that `write_atomically` gives to what is not whole."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed in the midst of writing has left in a folder."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_temporary(path.name):
                path.unlink(missing_ok=True)
