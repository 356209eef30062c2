"""The folder of a sweep: what it asks, which of its runs stand how, and where each lies.

sweep.json        the definition and the state of every run
configs/NAME.toml the whole configuration of a run, as its process reads it
runs/NAME/        the run's folder
logs/NAME.log     what its process said
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedopt.analysis.groups import flattened
from fedopt.analysis.store import CONFIG_FILE, ROUNDS_FILE, SUMMARY_FILE, to_json
from fedopt.atomic import remove_temporary, write_atomically
from fedopt.config import Config
from fedopt.errors import ConfigError, unwritable
from fedopt.run_lock import LOCK_FILE, RunLock

BOOK_FILE = "sweep.json"
DONE = ("completed", "failed", "stopped")
"""States in which a run stays: it finished, ended in an error, or was stopped early as hopeless."""

_MAY_GROW = "count"  # of points: a search may be called again for more


@dataclass(frozen=True)
class Task:
    """A run of a sweep.

    Args:
        name: of its folder.
        label: for people: what is varied, without the seed.
        values: what is varied, by dotted key, with the seed.
        config: its whole configuration.
        trial: number of its point, from 0: repetitions over seeds share it.
    """

    name: str
    label: str
    values: Mapping[str, Any]
    config: Config
    trial: int

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.seed


@dataclass(frozen=True)
class State:
    """How a run stands.

    Args:
        label: as in `Task`.
        trial: as in `Task`.
        seed: the run's.
        values: as in `Task`.
        status: `running`, `interrupted`, or one of `DONE`.
        error: what ended it, empty if nothing did.
    """

    label: str
    trial: int
    seed: int
    values: dict[str, Any] = field(default_factory=dict)
    status: str = "running"
    error: str = ""

    @property
    def is_done(self) -> bool:
        """Whether it stays as it is."""
        return self.status in DONE


class Book:
    """The folder of a sweep, locked against a second writer. Use as a context manager.

    Args:
        directory: the folder: new, empty, or that of the same sweep.
        definition: what the sweep asks, as plain values that JSON keeps as they are. `count` may
            grow from one call to the next.
        arguments: words of the command line that gave it, for a later call without any.

    Raises:
        ConfigError: the folder holds something else, or another sweep: what differs is named.
    """

    def __init__(
        self, directory: Path, definition: Mapping[str, Any], arguments: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.arguments = list(arguments)
        self.definition = json.loads(json.dumps(definition))
        self.states: dict[str, State] = {}
        path = directory / BOOK_FILE
        is_there = path.is_file()
        if is_there:
            held = read_book(directory)
            _check_same(directory, held["definition"], self.definition)
            self.states = {name: State(**state) for name, state in held["runs"].items()}
        elif directory.exists():
            _check_empty(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the folder {directory}: {error}", key="out") from error
        self._lock = RunLock(directory)
        try:
            remove_temporary(directory)
            self._save()
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()

    def run_folder(self, name: str) -> Path:
        """Return where a run lies."""
        return self.directory / "runs" / name

    def log_file(self, name: str) -> Path:
        """Return where what its process says is kept."""
        return self.directory / "logs" / f"{name}.log"

    def begin(self, task: Task) -> Path:
        """Note that a run begins or goes on, and return the file of its configuration."""
        path = self.directory / "configs" / f"{task.name}.toml"
        try:
            for folder in (path.parent, self.directory / "runs", self.directory / "logs"):
                folder.mkdir(exist_ok=True)
            write_atomically(path, task.config.to_toml().encode())
        except OSError as error:
            raise unwritable(path, error) from error
        self.states[task.name] = State(task.label, task.trial, task.seed, dict(task.values))
        self._save()
        return path

    def note(self, name: str, status: str, error: str = "") -> State:
        """Note how a run stands now."""
        self.states[name] = replace(self.states[name], status=status, error=error)
        self._save()
        return self.states[name]

    def write(self, name: str, text: str) -> Path:
        """Write a file of the sweep in one step.

        Raises:
            RunError: it cannot be written.
        """
        path = self.directory / name
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            raise unwritable(path, error) from error
        return path

    def summary(self, name: str) -> dict[str, Any]:
        """Return a run's `summary.json`; empty where there is none, or none that can be read."""
        try:
            found = json.loads((self.run_folder(name) / SUMMARY_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def can_resume(self, name: str) -> bool:
        """Return whether a run's folder has what `fedopt resume` goes on from."""
        folder = self.run_folder(name)
        return (folder / ROUNDS_FILE).is_file() and (folder / CONFIG_FILE).is_file()

    def _save(self) -> None:
        runs = {name: asdict(state) for name, state in self.states.items()}
        held = {"definition": self.definition, "arguments": self.arguments, "runs": runs}
        self.write(BOOK_FILE, to_json(held))


def read_book(directory: Path) -> dict[str, Any]:
    """Return the `sweep.json` of a folder.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    path = directory / BOOK_FILE
    try:
        held = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{directory} is not the folder of a sweep: it has no {BOOK_FILE}."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    if not isinstance(held, dict) or not {"definition", "runs"} <= set(held):
        raise ConfigError(f"{path} is damaged: it holds no sweep.")
    return held


def _check_same(directory: Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    grows = held.get(_MAY_GROW), asked.get(_MAY_GROW)
    if all(isinstance(count, int) for count in grows) and grows[1] >= grows[0]:  # type: ignore[operator]
        held = {**held, _MAY_GROW: grows[1]}
    differences = list(_differences(dict(flattened(held)), dict(flattened(asked))))
    if differences:
        raise ConfigError(
            f"{directory} holds another sweep. It differs in {'; '.join(differences[:6])}. Use "
            "another folder, or the same words to go on.",
            key="--out",
        )


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*held, *asked]):
        there, here = held.get(key), asked.get(key)
        if there != here:
            name = key.removeprefix("space.").removeprefix("config.")
            yield f"{name}: {_words(there)} there, {_words(here)} here"


def _words(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "nothing"
    return str(value)


def _check_empty(directory: Path) -> None:
    if not directory.is_dir():
        raise ConfigError(f"{directory} is a file, not a folder.", key="--out")
    if any(path.name != LOCK_FILE for path in directory.iterdir()):
        raise ConfigError(
            f"{directory} is not empty and holds no sweep. Give a folder that is empty or does "
            "not exist.",
            key="--out",
        )
