"""The runs inside a folder, kept up to date by looking at their files: no database, no daemon."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.follow import RunFollower, is_run, signature
from fedopt.errors import ConfigError

log = logging.getLogger("fedopt")

MOST_RUNS = 5000
DEPTH = 5
"""How deep below the folder runs are looked for: runs of a sweep in a folder of sweeps are 3."""

X_COLUMNS: dict[str, tuple[tuple[str, ...], float]] = {
    "rounds": (("round",), 1.0),
    "MB": (("bytes_up", "bytes_down"), 1e-6),
    "virtual seconds": (("sim_seconds",), 1.0),
    "local steps": (("client_steps",), 1.0),
    "real seconds": (("wall_seconds",), 1.0),
}
"""Horizontal axes: columns whose sum they are, and its factor."""

_SKIPPED = ("checkpoints", "clients")
_BETTER = {column.name: column.better for column in ROUND_COLUMNS}
_METRICS = tuple(
    column.name
    for column in ROUND_COLUMNS
    if column.kind == "real" and not column.cumulative and column.name != "round"
)

Entry = dict[str, object]


class RunIndex:
    """The runs below a folder. Safe to use from several threads.

    Args:
        root: the folder.
        interval: seconds for which what was found counts as fresh.
        clock: a monotonic clock in seconds.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(
        self, root: Path, interval: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not root.is_dir():
            raise ConfigError(f"{root} is not a folder; runs are kept in one, such as runs/")
        self.root = root.resolve()
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._followed: dict[str, RunFollower] = {}
        self._signatures: dict[str, tuple[object, ...]] = {}
        self._versions: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}
        self._looked = -math.inf
        self._counter = 0

    def entries(self) -> dict[str, Entry]:
        """Return what is known of each run, by its path below the root; `version` grows."""
        with self._lock:
            if self._clock() - self._looked >= self._interval:
                self._look()
                self._looked = self._clock()
            return dict(self._entries)

    def folder(self, run: str) -> Path:
        """Return the folder of a run.

        Args:
            run: its path below the root, `/` between its parts.

        Raises:
            ConfigError: there is no such run below the root: links out of it do not count.
        """
        path = self.root if "\0" in run else (self.root / run).resolve()
        if path == self.root or not path.is_relative_to(self.root) or not is_run(path):
            raise ConfigError(f'there is no run "{run}"')
        return path

    def curves(self, run: str, most: int = 600) -> dict[str, object]:
        """Return the rounds of a run by columns, at most so many, evenly spaced.

        Returns:
            `version`; `x`, a list for each of `X_COLUMNS`; and `metrics`, a list for each column
            that was measured. None is "not measured".

        Raises:
            ConfigError: there is no such run.
        """
        self.folder(run)
        self.entries()
        with self._lock:
            followed = self._followed.get(run)
            if followed is None:
                raise ConfigError(f'there is no run "{run}"')
            rows, version = list(followed.rows), self._versions[run]
        count = len(rows)
        if count > most:
            kept = np.unique(np.linspace(0, count - 1, most).round().astype(int)).tolist()
            rows = [rows[index] for index in kept]
        x = {
            axis: [_sum(row, parts, factor) for row in rows]
            for axis, (parts, factor) in X_COLUMNS.items()
        }
        columns = {name: [_number(row.get(name)) for row in rows] for name in _METRICS}
        metrics = {n: values for n, values in columns.items() if any(v is not None for v in values)}
        return {"version": version, "rounds": count, "x": x, "metrics": metrics}

    def _look(self) -> None:
        found = self._search()
        for gone in self._entries.keys() - found.keys():
            for table in (self._followed, self._signatures, self._versions, self._entries):
                table.pop(gone, None)
        for run, folder in found.items():
            now = signature(folder)
            known = self._followed.get(run)
            # A running run's process may die without touching a file.
            if now == self._signatures.get(run) and (known is None or known.status != "running"):
                continue
            self._signatures[run] = now
            try:
                followed = known or RunFollower(folder, with_clients=False)
                changed = followed.poll()
            except ConfigError as error:
                log.info("%s", error)
                self._followed.pop(run, None)
                self._put(run, {"id": run, "status": "damaged", "error": str(error)})
                continue
            self._followed[run] = followed
            if changed or run not in self._entries:
                self._put(run, _entry(run, followed))

    def _put(self, run: str, entry: Entry) -> None:
        self._counter += 1
        self._versions[run] = self._counter
        self._entries[run] = entry | {"version": self._counter}

    def _search(self) -> dict[str, Path]:
        """Return the runs below the root by their paths; links are not followed."""
        found: dict[str, Path] = {}
        for place, folders, files in os.walk(self.root):
            folder = Path(place)
            if "rounds.csv" in files and folder != self.root:
                found[folder.relative_to(self.root).as_posix()] = folder
                folders.clear()
                if len(found) >= MOST_RUNS:
                    break
                continue
            depth = len(folder.relative_to(self.root).parts)
            folders[:] = (
                []
                if depth >= DEPTH
                else sorted(f for f in folders if not f.startswith(".") and f not in _SKIPPED)
            )
        return found


def _entry(run: str, followed: RunFollower) -> Entry:
    """Return what the table shows of a run."""
    config, last = followed.config, followed.rows[-1] if followed.rows else {}
    values: dict[str, object] = {}
    for name in ("test_accuracy", "test_loss", "train_loss", "validation_accuracy", "test_ece"):
        column = followed.column(name)
        if column:
            better = _BETTER[name]
            pick = max if better == "higher" else min
            values[name] = _number(column[-1])
            if better:
                values[f"best_{name}"] = _number(pick(column))
    error = followed.summary.get("error")
    return {
        "id": run,
        "status": followed.status,
        "strategy": followed.strategy,
        "data": _name(config, "data"),
        "model": _name(config, "model"),
        "seed": config.get("seed"),
        "round": followed.round,
        "rounds": followed.planned,
        "seconds_left": followed.seconds_left() if followed.status == "running" else None,
        "MB": _sum(last, ("bytes_up", "bytes_down"), 1e-6),
        "sim_seconds": _number(last.get("sim_seconds")),
        "wall_seconds": _number(last.get("wall_seconds")),
        "failed_clients": sum(followed.column("failed_clients")),
        "dropped_clients": sum(followed.column("dropped_clients")),
        "warnings": len(followed.warnings),
        "error": str(error)[:500] if error and followed.status != "running" else None,
        "began": _modified(followed.directory / "config.toml"),
        **values,
    }


def _name(config: Mapping[str, object], key: str) -> str:
    table = config.get(key)
    return str(table.get("name", "")) if isinstance(table, Mapping) else ""


def _sum(row: Mapping[str, object], columns: tuple[str, ...], factor: float) -> float | None:
    values = [_number(row.get(column)) for column in columns]
    if any(value is None for value in values):
        return None
    return sum(v for v in values if v is not None) * factor


def _number(value: object) -> float | None:
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
