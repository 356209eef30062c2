"""The folder of a run: written while it goes on, read by everything afterwards.

A run without a folder is recorded in memory by the same code. The format of a table is in
`tables.py`, its columns in `columns.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedopt.analysis.columns import CLIENT_COLUMNS, EVALUATION_COLUMNS, ROUND_COLUMNS
from fedopt.analysis.tables import Cell, Table, last_whole_round, parse_frame, parse_rows
from fedopt.atomic import is_temporary, remove_temporary, write_atomically
from fedopt.errors import ConfigError, did_you_mean, unwritable
from fedopt.run_lock import LOCK_FILE, RunLock

if TYPE_CHECKING:
    from pandas import DataFrame

CONFIG_FILE = "config.toml"
ROUNDS_FILE = "rounds.csv"
CLIENTS_FILE = "clients.csv"
EVALUATIONS_FILE = "evaluations.csv"
SUMMARY_FILE = "summary.json"


class RunWriter:
    """Records a run, round by round.

    Every line is flushed as it is written, so that a run can be watched, and loses no finished
    round when its process is killed. The folder is locked against other writers. Use as a context
    manager, or `close()` it.

    Args:
        directory: the run's folder, made if need be; None writes nothing at all and keeps the
            record in memory.

    Raises:
        ConfigError: the folder holds something already, cannot be made, or is being written by
            another process.
        RunError: the tables cannot be written.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._evaluations: Table | None = None
        self._lock = None if directory is None else _create(directory)
        try:
            self._rounds = Table(ROUND_COLUMNS, self._path(ROUNDS_FILE))
            self._clients = Table(CLIENT_COLUMNS, self._path(CLIENTS_FILE))
        except FileExistsError as error:  # of a program that does not ask for the lock
            self._release()
            raise _not_empty(directory or Path()) from error
        except BaseException:
            self._release()
            raise

    @classmethod
    def resume(cls, directory: Path, after_round: int, lock: RunLock | None = None) -> Self:
        """Go on recording a run that was interrupted.

        Args:
            directory: the run's folder.
            after_round: the last round to keep, that of the checkpoint; rows of later rounds
                are dropped, as is a line that was cut short.
            lock: that of the folder, which is given back when the writer is closed, or at once
                where it cannot be made; None takes it.

        Raises:
            ConfigError: the folder is not a run's, is being written by another process, a table
                is damaged, or rounds up to `after_round` are missing from it.
        """
        check_run(directory)
        writer = cls.__new__(cls)
        writer.directory = directory
        writer._evaluations = None
        writer._lock = lock or RunLock(directory)
        try:
            remove_temporary(directory)
            writer._rounds = Table(ROUND_COLUMNS, directory / ROUNDS_FILE, reopen=True)
            clients = directory / CLIENTS_FILE
            writer._clients = Table(CLIENT_COLUMNS, clients, reopen=clients.exists())
            evaluations = directory / EVALUATIONS_FILE
            if evaluations.exists():
                writer._evaluations = Table(EVALUATION_COLUMNS, evaluations, reopen=True)
        except BaseException:
            writer._release()
            raise
        try:
            writer.truncate(after_round)
            last = writer._rounds.last_round or 0
            if last != after_round:
                raise ConfigError(
                    f"{directory / ROUNDS_FILE} ends with round {last}, the run cannot go on "
                    f"after round {after_round}."
                )
        except BaseException:
            writer.close()
            raise
        return writer

    @property
    def rows(self) -> list[dict[str, Cell]]:
        """The rounds so far, one dictionary of all columns each; None is "not measured".

        They are read from the table: a run of any length keeps none of them in memory.
        """
        return parse_rows(self._rounds.payload(), ROUND_COLUMNS, self._rounds.path)

    def history(self) -> DataFrame:
        """Return the rounds so far, a row a round, typed as by `read_history`."""
        return parse_frame(self._rounds.payload(), ROUND_COLUMNS, self._rounds.path)

    def clients(self) -> DataFrame:
        """Return the clients so far, a row per client and round, typed as by `read_clients`."""
        return parse_frame(self._clients.payload(), CLIENT_COLUMNS, self._clients.path)

    def write_config(self, text: str) -> Path | None:
        """Write the resolved configuration as `config.toml`."""
        return self.write_text(CONFIG_FILE, text)

    def add_round(self, row: Mapping[str, object]) -> None:
        """Append one round to `rounds.csv`, as one write of the whole line.

        Args:
            row: values by column name; what is left out, None or NaN was not measured.

        Raises:
            ValueError: an unknown column, a value not of its column's kind, or a round that is
                not after the last one.
            RunError: the file cannot be written.
        """
        number = row.get("round")
        if number is not None and number == self._rounds.last_round:
            raise ValueError(f"round {number} is recorded already")
        self._rounds.add({name: [value] for name, value in row.items()})

    def add_clients(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Append the clients of a round, or of a part of its cohort, to `clients.csv`.

        Args:
            columns: for each column its values, one a client: lists, arrays or tensors of equal
                length; a column left out is empty, and so is a cell that is None or NaN.

        Raises:
            ValueError: an unknown column, unequal lengths, a value not of its column's kind, or
                a round before the last one.
            RunError: the file cannot be written.
        """
        self._clients.add(columns)

    def evaluations(self) -> DataFrame:
        """Return the evaluated clients so far, typed as by `read_evaluations`."""
        table = self._evaluations
        payload = b"" if table is None else table.payload()
        return _evaluations(payload, None if table is None else table.path)

    def add_evaluations(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Append what clients' data came to after a round to `evaluations.csv`.

        The file is made by the first of them: a run that evaluates no client has none.

        Args:
            columns: as for `add_clients`.

        Raises:
            ValueError: as for `add_clients`.
            RunError: the file cannot be written.
        """
        if self._evaluations is None:
            self._evaluations = Table(EVALUATION_COLUMNS, self._path(EVALUATIONS_FILE))
        self._evaluations.add(columns)

    def truncate(self, after_round: int) -> None:
        """Drop later rounds than `after_round` from all tables, and lines cut short.

        Each file is replaced in one step; doing it twice changes nothing.

        Args:
            after_round: the last round to keep; 0 keeps none but an evaluation before training.

        Raises:
            ConfigError: a line other than the last is damaged.
        """
        for table in self._tables():
            table.truncate(after_round)
        # What the end of the run reads is looked at now, not after hours of training.
        for table in self._tables():
            parse_rows(table.payload(), table.columns, table.path)

    def write_bytes(self, name: str, payload: bytes) -> Path | None:
        """Write a file of the run's folder in one step.

        Args:
            name: path inside the folder, `/` between its parts; folders are made if need be.
            payload: the contents.

        Returns:
            The file's path, None where the run has no folder.

        Raises:
            ValueError: the name leads out of the folder.
            RunError: the file cannot be written.
        """
        parts = PurePosixPath(name)
        if not parts.parts or parts.is_absolute() or ".." in parts.parts:
            raise ValueError(f"{name!r} is not a path inside the run's folder")
        path = self._path(name)
        if path is None:
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, payload)
        except OSError as error:
            raise unwritable(path, error) from error
        return path

    def write_text(self, name: str, text: str) -> Path | None:
        """Write text as UTF-8 with its line ends as they are; see `write_bytes`."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: object) -> Path | None:
        """Write a value as strict JSON, numbers that are not finite as null; see `write_bytes`.

        Args:
            name: path inside the folder.
            value: mappings with text keys, sequences, numbers (numpy and torch scalars too),
                text, paths, booleans and None.

        Raises:
            TypeError: a value of another type.
        """
        return self.write_text(name, to_json(value))

    def close(self) -> None:
        """Close the files and unlock the folder; a record in memory stays readable."""
        for table in self._tables():
            table.close()
        self._release()

    def sync(self) -> None:
        """Have the rows so far written to the disk itself, as a checkpoint after them is.

        Raises:
            RunError: they cannot be.
        """
        for table in self._tables():
            table.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _tables(self) -> list[Table]:
        tables = (self._rounds, self._clients, self._evaluations)
        return [table for table in tables if table is not None]

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _path(self, name: str) -> Path | None:
        return None if self.directory is None else self.directory / name


def to_json(value: object) -> str:
    """Return a value as strict, indented JSON; see `RunWriter.write_json`."""
    return json.dumps(_strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_history(directory: str | Path) -> DataFrame:
    """Return `rounds.csv` of a run, finished or not.

    Args:
        directory: the run's folder.

    Returns:
        A frame with a row a round and the columns of `ROUND_COLUMNS`; NaN is "not measured".
        Floats are bit for bit those that were recorded.

    Raises:
        ConfigError: the folder is not a run's, or the file is damaged.
    """
    path = check_run(Path(directory)) / ROUNDS_FILE
    return parse_frame(path.read_bytes(), ROUND_COLUMNS, path)


def read_clients(directory: str | Path) -> DataFrame:
    """Return `clients.csv` of a run, finished or not.

    Args:
        directory: the run's folder.

    Returns:
        A frame with a row per client and round and the columns of `CLIENT_COLUMNS`.

    Raises:
        ConfigError: the folder is not a run's, or the file is missing or damaged.
    """
    path = check_run(Path(directory)) / CLIENTS_FILE
    if not path.is_file():
        raise ConfigError(f"{directory} has no {CLIENTS_FILE}.")
    return parse_frame(path.read_bytes(), CLIENT_COLUMNS, path)


def read_evaluations(directory: str | Path) -> DataFrame:
    """Return `evaluations.csv` of a run, finished or not: a row per evaluated client and round.

    Args:
        directory: the run's folder.

    Returns:
        A frame with the columns of `EVALUATION_COLUMNS`; empty where no client was evaluated.

    Raises:
        ConfigError: the folder is not a run's, or the file is damaged.
    """
    path = check_run(Path(directory)) / EVALUATIONS_FILE
    return _evaluations(path.read_bytes() if path.is_file() else b"", path)


def read_summary(directory: str | Path) -> dict[str, object]:
    """Return `summary.json` of a finished run.

    Args:
        directory: the run's folder.

    Raises:
        ConfigError: the folder is not a run's, the run has not finished, or the file is damaged.
    """
    path = check_run(Path(directory)) / SUMMARY_FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} has no {SUMMARY_FILE}: the run has not finished. Wait for it, or "
            f"continue it with: fedopt resume {directory}"
        )
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: {error}.") from error
    if not isinstance(summary, dict):
        raise ConfigError(f"{path} is damaged: it holds no table of values.")
    return summary


def stamped_name(words: Sequence[str]) -> str:
    """Return a folder's name from now and some words; characters unfit for it become `-`."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    clean = (re.sub(r"[^A-Za-z0-9.+=-]+", "-", word).strip("-.")[:40] for word in words)
    return "_".join([stamp, *(word for word in clean if word)])


def default_directory(root: str | Path, words: Sequence[str]) -> Path:
    """Make and return a new, empty folder such as `runs/2026-01-31_12-00-00_scaffold_digits_s0`.

    The folder is made here, so that runs started in the same second never share one.

    Args:
        root: the folder that holds runs, made if need be.
        words: what tells the run from others; characters unfit for file names become `-`.

    Raises:
        ConfigError: the folder cannot be made.
    """
    name = stamped_name(words)
    attempt = 1
    while True:
        directory = Path(root) / (name if attempt == 1 else f"{name}_{attempt}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if Path(root).is_file():
                raise ConfigError(f"{root} is a file, not a folder.", key="out") from None
            attempt += 1
        except OSError as error:
            raise _unmakeable(directory, error) from error
        else:
            return directory


def last_recorded_round(directory: Path) -> int:
    """Return the last round that the tables of a run's folder have; 0 where there is none.

    Raises:
        ConfigError: the folder is not a run's.
    """
    return last_whole_round((check_run(directory) / ROUNDS_FILE).read_bytes())


def check_free(directory: Path) -> None:
    """Check that a run may begin in a folder: it does not exist, or holds nothing of anybody's.

    What a run left that was ended before it had a configuration counts as nothing.

    Raises:
        ConfigError: it is a file, or holds something.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ConfigError(
            f"{directory} is a file. Give a folder that is empty or does not exist.", key="out"
        )
    if not _is_free(directory):
        raise _not_empty(directory)


def check_resumable(directory: Path) -> None:
    """Check that a folder is a run's, and one that got as far as its configuration.

    Raises:
        ConfigError: it is not.
    """
    if directory.is_dir() and not (directory / CONFIG_FILE).exists():
        names = {path.name for path in directory.iterdir()}
        if names & {ROUNDS_FILE, CLIENTS_FILE} and _is_free(directory):
            raise ConfigError(
                f"{directory} holds the beginning of a run that ended before its configuration "
                f"was written. Nothing was trained: begin it again with `fedopt run ... --out "
                f"{directory}`."
            )
    check_run(directory)
    if not (directory / CONFIG_FILE).exists():
        raise ConfigError(
            f"{directory} has rounds but no {CONFIG_FILE}: somebody removed it. Put it back; "
            "without it nobody knows what to go on with."
        )


def _evaluations(payload: bytes, path: Path | None) -> DataFrame:
    header = ",".join(column.name for column in EVALUATION_COLUMNS) + "\n"
    return parse_frame(payload or header.encode(), EVALUATION_COLUMNS, path)


def _create(directory: Path) -> RunLock:
    """Return the lock of a new or free folder, emptied of what an ended run began."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        check_free(directory)  # before the lock leaves a file in a folder of somebody's
        lock = RunLock(directory)
    except FileExistsError:
        raise ConfigError(
            f"{directory} is a file. Give a folder that is empty or does not exist.", key="out"
        ) from None
    except OSError as error:
        raise _unmakeable(directory, error) from error
    try:
        check_free(directory)
        for path in directory.iterdir():
            if path.name != LOCK_FILE:
                path.unlink()
    except BaseException:
        lock.release()
        raise
    return lock


def _is_free(directory: Path) -> bool:
    """Return whether a folder holds at most what a run writes before its configuration."""
    for path in directory.iterdir():
        if path.name == LOCK_FILE or is_temporary(path.name):
            continue
        if path.name not in (ROUNDS_FILE, CLIENTS_FILE) or not path.is_file():
            return False
        if path.read_bytes().partition(b"\n")[2]:  # rows, below the names of the columns
            return False
    return True


def _not_empty(directory: Path) -> ConfigError:
    if (directory / ROUNDS_FILE).exists():
        return ConfigError(
            f"{directory} holds a run already. Give another folder, or continue that run with: "
            f"fedopt resume {directory}",
            key="out",
        )
    return ConfigError(
        f"{directory} is not empty. Give a folder that is empty or does not exist.", key="out"
    )


def _unmakeable(directory: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot make the folder {directory}: {error.strerror or error}. Give another folder.",
        key="out",
    )


def check_run(directory: Path) -> Path:
    """Return the folder if it is a run's, else raise the most helpful error.

    Raises:
        ConfigError: it is not.
    """
    if (directory / ROUNDS_FILE).is_file():
        return directory
    if not directory.exists():
        problem = f"{directory} does not exist."
    elif not directory.is_dir():
        problem = f"{directory} is a file, not the folder of a run."
    else:
        problem = f"{directory} is not the folder of a run: it has no {ROUNDS_FILE}."
        inside = _runs_in(directory)
        if inside:
            problem += f" Name a run in it, such as {directory / inside[-1]}."
            raise ConfigError(problem)
    absolute = directory.absolute()
    hint = did_you_mean(absolute.name, _runs_in(absolute.parent))
    raise ConfigError(problem + hint)


def _runs_in(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    try:
        return sorted(path.name for path in directory.iterdir() if (path / ROUNDS_FILE).is_file())
    except OSError:  # an unreadable folder offers no hint
        return []


def _strict(value: object) -> object:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"JSON keys must be text, got {key!r}")
        return {key: _strict(item) for key, item in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _strict(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_strict(item) for item in value]
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")
