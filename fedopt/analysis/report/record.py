"""What a run's folder says, whether the run has finished, goes on, failed, or is an old one."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fedopt.analysis.columns import CLIENT_COLUMNS, EVALUATION_COLUMNS, names
from fedopt.analysis.store import (
    CLIENTS_FILE,
    CONFIG_FILE,
    ROUNDS_FILE,
    SUMMARY_FILE,
    read_clients,
    read_evaluations,
    read_history,
)
from fedopt.errors import ConfigError
from fedopt.run_status import run_status
from fedopt.warning_log import WARNINGS_FILE


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Args:
        name: of its folder, or words for it.
        status: as `fedopt.run_status` says it.
        history: its rounds, as by `read_history`.
        clients: its clients, as by `read_clients`.
        evaluations: evaluated clients, as by `read_evaluations`.
        summary: what `summary.json` holds; empty while the run goes on.
        config: the resolved configuration as tables; empty where it is not known.
        environment: versions and machine by name.
        population: what `population.json` holds.
        reliability: what `reliability.json` holds, if anything.
        warnings: time (empty where it is not known) and message of each.
        population_picture: `population.png` of a run that did not record its labels.
        directory: the folder, where there is one.
    """

    name: str
    status: str
    history: pd.DataFrame
    clients: pd.DataFrame
    evaluations: pd.DataFrame
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    population: Mapping[str, Any] = field(default_factory=dict)
    reliability: Mapping[str, Any] | None = None
    warnings: Sequence[tuple[str, str]] = ()
    population_picture: bytes | None = None
    directory: Path | None = None

    @property
    def rounds(self) -> int:
        """The last round that is recorded; 0 where there is none."""
        return int(self.history["round"].max()) if len(self.history) else 0

    @property
    def planned_rounds(self) -> int | None:
        """The rounds that the configuration asks for, where it is known."""
        planned = self.config.get("rounds")
        return planned if isinstance(planned, int) and not isinstance(planned, bool) else None

    @property
    def strategy(self) -> str:
        """The name of the strategy, empty where it is not known."""
        table = self.config.get("strategy")
        if isinstance(table, Mapping) and "name" in table:
            return str(table["name"])
        return str(self.summary.get("strategy", ""))

    @property
    def seed(self) -> int | None:
        """The run's seed, where it is known."""
        seed = self.config.get("seed", self.summary.get("seed"))
        return seed if isinstance(seed, int) else None


def read_run(
    directory: str | Path,
    *,
    history: pd.DataFrame | None = None,
    clients: pd.DataFrame | None = None,
    summary: Mapping[str, object] | None = None,
    with_clients: bool = True,
) -> RunRecord:
    """Read a run's folder.

    Args:
        directory: the folder.
        history: its rounds, where they are at hand.
        clients: its clients, where they are at hand.
        summary: its summary, where it is at hand; None reads it, if the run has one.
        with_clients: whether to read the tables of clients, which may be large.

    Raises:
        ConfigError: the folder is not a run's, or a table is damaged.
    """
    folder = Path(directory)
    history = read_history(folder) if history is None else history
    if clients is None:
        there = with_clients and (folder / CLIENTS_FILE).is_file()
        clients = read_clients(folder) if there else pd.DataFrame(columns=names(CLIENT_COLUMNS))
    evaluations = pd.DataFrame(columns=names(EVALUATION_COLUMNS))
    if with_clients:
        evaluations = read_evaluations(folder)
    text = _text(folder / CONFIG_FILE)
    found = _json(folder / SUMMARY_FILE) if summary is None else summary
    status = run_status(folder, found) if summary is None else str(summary.get("status", "stopped"))
    population = _json(folder / "population.json")
    picture = folder / "population.png"
    is_drawn = "labels" in population or "size_histogram" in population
    environment = found.get("environment")
    return RunRecord(
        name=folder.resolve().name,
        status=status,
        history=history,
        clients=clients,
        evaluations=evaluations,
        summary=found,
        config=_config(text),
        environment=environment if isinstance(environment, Mapping) else _versions(text),
        population=population,
        reliability=_json(folder / "reliability.json") or None,
        warnings=_warnings(_text(folder / WARNINGS_FILE)),
        population_picture=picture.read_bytes() if not is_drawn and picture.is_file() else None,
        directory=folder,
    )


def find_runs(places: Sequence[str | Path]) -> list[Path]:
    """Return the runs that places name: a run's folder itself, or the runs inside a folder.

    A folder's runs are the folders of runs in it, or in its folder `runs` (as of a sweep), by name.

    Raises:
        ConfigError: a place is neither, with what is there instead.
    """
    found: list[Path] = []
    for place in map(Path, places):
        if (place / ROUNDS_FILE).is_file() or not place.is_dir():
            read_history(place)  # says what is wrong with it
            found.append(place)
            continue
        inside = _runs_in(place / "runs") or _runs_in(place)
        if not inside:
            raise ConfigError(
                f"{place} is neither the folder of a run (it has no {ROUNDS_FILE}) nor a folder "
                "with runs in it."
            )
        found += inside
    return list(dict.fromkeys(found))


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if (path / ROUNDS_FILE).is_file())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    """Return a table from a file, empty where there is none.

    Raises:
        ConfigError: the file is damaged.
    """
    text = _text(path)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error
    return value if isinstance(value, dict) else {}


def _config(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{CONFIG_FILE} is damaged: {error}.") from error


def _versions(text: str) -> dict[str, str]:
    """Return the versions that the comments at the top of `config.toml` name."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        name, _, value = line[2:].partition(" ")
        found[name] = value
    return found


def _warnings(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # a line that a killed process cut short
            continue
        if isinstance(entry, dict):
            found.append((str(entry.get("time", "")), str(entry.get("message", ""))))
    return tuple(found)
