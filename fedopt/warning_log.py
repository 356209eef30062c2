"""What a run warned of, kept for its report: the logger's warnings as lines of JSON.

Warnings go to standard error as before; here they are listened to. Warnings of Ray workers stay in
Ray's logs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from fedopt.errors import unwritable

WARNINGS_FILE = "warnings.jsonl"
"""Name of the file in the run's folder: a line a warning, `time` and `message`."""

MOST = 1000
"""Warnings that are kept at most; one more line says that there were more."""

_LOGGER = logging.getLogger("fedopt")


class WarningLog(logging.Handler):
    """Writes the warnings of fedopt's logger to a run's folder, from `start` to `stop`.

    The file is made by the first warning: a run without any has none.

    Args:
        directory: the run's folder; None keeps the warnings in `messages` alone.
        before: warnings that were given before the folder was there.
    """

    def __init__(self, directory: Path | None, before: Sequence[str] = ()) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._path = None if directory is None else directory / WARNINGS_FILE
        self._before = tuple(before)

    def start(self) -> None:
        """Listen, after having written the earlier warnings."""
        for message in self._before:
            self._keep(message)
        _LOGGER.addHandler(self)

    def stop(self) -> None:
        """Stop listening; idempotent."""
        _LOGGER.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._keep(record.getMessage())

    def _keep(self, message: str) -> None:
        if len(self.messages) > MOST:
            return
        if len(self.messages) == MOST:
            message = f"there were more than {MOST:,} warnings; the others are not kept"
        self.messages.append(message)
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "message": message}, ensure_ascii=False)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:  # the tables' own writes end the run where the disk is full
            self._path = None
            self.messages.append(str(unwritable(WARNINGS_FILE, error)))


@contextmanager
def heard(messages: list[str]) -> Iterator[None]:
    """Add the warnings that are given meanwhile to a list."""
    listener = WarningLog(None)
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        messages += listener.messages
