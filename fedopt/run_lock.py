"""A lock on a run's folder: two processes never write into the same one.

The lock is the kernel's (`flock`), held by an open file, so that it ends with its process however
that ends. The file is there while the folder is written, and names the process.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

from fedopt.errors import ConfigError

log = logging.getLogger("fedopt")

LOCK_FILE = ".lock"
"""Name of the file in the run's folder."""

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """The right to write into a folder, until it is released or the process ends.

    Args:
        directory: the folder; it exists.

    Raises:
        ConfigError: another process has it, whose id is named; or the folder cannot be written to.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_FILE
        self._fd: int | None = None
        while self._fd is None:
            self._fd = self._opened()

    def release(self) -> None:
        """Give the lock back and remove its file; idempotent."""
        if self._fd is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def _opened(self) -> int | None:
        """Return the locked file, or None where it was removed meanwhile."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            says = error.strerror or error
            raise ConfigError(
                f"cannot write into {self._path.parent}: {says}.", key="out"
            ) from None
        try:
            self._lock(fd)
            # Whoever held it may have removed the file between our opening and our locking it.
            if not _is_at(fd, self._path):
                os.close(fd)
                return None
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int) -> None:
        import fcntl

        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise ConfigError(
                f"{self._path.parent} is being written by {who}. Wait for it, or end it, or give "
                "another folder.",
                key="out",
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            log.warning(
                "%s is on a file system without locks: see to it that only one process writes it",
                self._path.parent,
            )


def _is_at(fd: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
