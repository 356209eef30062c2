"""Following a run while it is written: its new rounds, what it does, and how long it may take.

Nothing of the run is touched: files are read as they grow, its lock is only looked at.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedopt.analysis.columns import CLIENT_COLUMNS, ROUND_COLUMNS, Column
from fedopt.analysis.store import CLIENTS_FILE, CONFIG_FILE, ROUNDS_FILE, SUMMARY_FILE, check_run
from fedopt.analysis.tables import Cell, parse_rows
from fedopt.run_lock import LOCK_FILE
from fedopt.run_status import run_status
from fedopt.warning_log import WARNINGS_FILE

Row = dict[str, Cell]

_RECENT = 20  # rounds whose pace tells how long the others take


class TableTail:
    """The rows of a table that were added since the last look.

    A table that was cut, as by a run that is resumed, begins anew.

    Args:
        path: the file; it need not exist yet.
        columns: its columns.
    """

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._path = path
        self._columns = columns
        self._header = b""
        self._offset = 0
        self._inode = -1

    def read(self) -> tuple[list[Row], bool]:
        """Return the new whole rows, and whether the table began anew before them.

        Raises:
            ConfigError: the table is damaged.
        """
        try:
            with self._path.open("rb") as file:
                stat = self._path.stat()
                is_new = stat.st_ino != self._inode or stat.st_size < self._offset
                if is_new:
                    self._header, self._offset, self._inode = file.readline(), 0, stat.st_ino
                    if not self._header.endswith(b"\n"):
                        self._inode = -1
                        return [], True
                    self._offset = len(self._header)
                file.seek(self._offset)
                chunk = file.read()
        except FileNotFoundError:
            return [], False
        chunk = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(chunk)
        return parse_rows(self._header + chunk, self._columns, self._path), is_new


@dataclass(frozen=True)
class Loss:
    """A client whose part was not used.

    Args:
        round: communication round.
        client: its id.
        status: `dropped` or `failed`.
        reason: why, where it is known.
    """

    round: int
    client: int
    status: str
    reason: str


class RunFollower:
    """A run as it grows.

    Attributes:
        rows: the rounds so far, a dictionary each.
        losses: the last clients that were not used, at most `MOST_LOSSES`.
        lost: how many there were, by status.
        warnings: what the run warned of so far.
        status: what the run does, as `fedopt.run_status` says it.
        config: its configuration, empty until it is written.
        summary: what `summary.json` holds, empty until it is written.

    Args:
        directory: the run's folder.
        with_clients: whether to follow its clients, too.

    Raises:
        ConfigError: the folder is not a run's.
    """

    MOST_LOSSES = 5

    def __init__(self, directory: Path, with_clients: bool = True) -> None:
        self.directory = check_run(directory)
        self.rows: list[Row] = []
        self.losses: list[Loss] = []
        self.lost: dict[str, int] = {}
        self.warnings: list[str] = []
        self.status = ""
        self.config: Mapping[str, Any] = {}
        self.summary: Mapping[str, Any] = {}
        self._rounds = TableTail(directory / ROUNDS_FILE, ROUND_COLUMNS)
        self._clients = TableTail(directory / CLIENTS_FILE, CLIENT_COLUMNS)
        self._with_clients = with_clients
        self._seen: tuple[object, ...] = ()

    def poll(self) -> bool:
        """Read what is new; return whether anything is.

        Raises:
            ConfigError: a table is damaged.
        """
        folder = self.directory
        # The status first: what a run writes before its end is then read after it.
        summary = _json(folder / SUMMARY_FILE)
        status = run_status(folder, summary)
        rows, is_new = self._rounds.read()
        if is_new:
            self.rows.clear()
        self.rows += rows
        if self._with_clients:
            self._follow_clients()
        if not self.config:
            self.config = _toml(folder / CONFIG_FILE)
        self.warnings = _messages(folder / WARNINGS_FILE)
        self.status, self.summary = status, summary
        seen = (status, len(self.rows), self.round, len(self.warnings), bool(self.config))
        changed, self._seen = seen != self._seen, seen
        return changed

    @property
    def round(self) -> int:
        """The last round; 0 before the first."""
        return int(self.rows[-1]["round"] or 0) if self.rows else 0

    @property
    def planned(self) -> int | None:
        """Rounds that the configuration asks for, where it is known."""
        value = self.config.get("rounds")
        return value if isinstance(value, int) else None

    @property
    def strategy(self) -> str:
        """Name of the strategy, empty where it is not known."""
        table = self.config.get("strategy")
        return str(table.get("name", "")) if isinstance(table, Mapping) else ""

    def column(self, name: str) -> list[float]:
        """Return the measured values of a column, in order."""
        return [float(v) for row in self.rows if isinstance(v := row[name], int | float)]

    def seconds_left(self) -> float | None:
        """Return how long the rounds that are left take at the pace of the last ones.

        Returns:
            Seconds; None where no pace or no number of rounds is known.
        """
        if self.planned is None or len(self.rows) < 2:
            return None
        recent = [row for row in self.rows[-_RECENT - 1 :] if row["wall_seconds"] is not None]
        paces = [
            (float(b["wall_seconds"]) - float(a["wall_seconds"]))  # type: ignore[arg-type]
            / max(1, int(b["round"]) - int(a["round"]))  # type: ignore[arg-type]
            for a, b in itertools.pairwise(recent)
        ]
        if not paces:
            return None
        return max(0.0, statistics.fmean(paces)) * max(0, self.planned - self.round)

    def _follow_clients(self) -> None:
        rows, is_new = self._clients.read()
        if is_new:
            self.losses, self.lost = [], {}
        for row in rows:
            status = str(row["status"])
            if status in ("dropped", "failed"):
                self.lost[status] = self.lost.get(status, 0) + 1
                loss = Loss(
                    int(row["round"] or 0),
                    int(row["client"] or 0),
                    status,
                    str(row["reason"] or ""),
                )
                self.losses = [*self.losses, loss][-self.MOST_LOSSES :]


def is_run(directory: Path) -> bool:
    """Return whether a folder is that of a run."""
    return (directory / ROUNDS_FILE).is_file()


def signature(directory: Path) -> tuple[object, ...]:
    """Return what changes when a run's folder does: sizes and times of its files that tell."""
    found: list[object] = []
    for name in (ROUNDS_FILE, SUMMARY_FILE, CONFIG_FILE, WARNINGS_FILE, LOCK_FILE):
        try:
            stat = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _messages(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(str(json.loads(line)["message"]))
        except (ValueError, KeyError, TypeError):  # a line that is being written
            continue
    return found
