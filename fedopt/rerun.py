"""A recorded run, computed again: its server is put back to a round and driven on.

Nothing is written into the run's folder: what clients keep is copied into a folder of the rerun's
own. `verify` and `replay` are made of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from fedopt.analysis.deployed import check_simulated
from fedopt.analysis.store import CONFIG_FILE, check_resumable, read_history
from fedopt.config import Config, load, read_toml
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.interruption import Interruption
from fedopt.models.layout import ParameterLayout
from fedopt.recorder import CHECKPOINTS, environment, make_strategy, model_state, restore
from fedopt.records import to_record
from fedopt.run import drive_round
from fedopt.server.checkpoint import Checkpoint, digest, saved_rounds

IN_MEMORY = "in_memory"


@dataclass(frozen=True)
class RecordedRun:
    """What a run's folder tells of it.

    Args:
        directory: the folder.
        config: the run's configuration, for the engine that is to compute it again.
        digests: round -> SHA-256 of the model after it, ascending.
        changed: versions and hardware that are not those that ran it, as `name: then, now`.
    """

    directory: Path
    config: Config
    digests: dict[int, str]
    changed: tuple[str, ...]

    @property
    def last(self) -> int:
        """The last recorded round; 0 where there is none."""
        return max(self.digests, default=0)


def read_run(directory: Path, engine: str = "inline") -> RecordedRun:
    """Return what a run's folder tells of it.

    Args:
        directory: the run's folder, finished or not.
        engine: what is to compute it again, `inline` or `ray`.

    Raises:
        ConfigError: the folder is not a run's, a file is damaged, or the run had parts that were
            objects of the program that ran it.
    """
    check_resumable(directory)
    check_simulated(directory)
    history = read_history(directory)
    path = directory / CONFIG_FILE
    tree = read_toml(path)
    for key in ("data", "model"):
        table = tree.get(key)
        if isinstance(table, dict) and table.get("name") == IN_MEMORY:
            raise _objects(directory, key)
    local = tree.get("local")
    if isinstance(local, dict) and local.get("loss") == IN_MEMORY:
        raise _objects(directory, "local.loss")
    digests = dict(
        zip(history["round"].tolist(), history["model_sha256"].astype(str).tolist(), strict=True)
    )
    digests.pop(0, None)
    return RecordedRun(
        directory,
        load(path, [f"engine.name={engine}"]),
        digests,
        _changed(path.read_text(encoding="utf-8")),
    )


class Rerun:
    """The server of a recorded run, after one of its rounds. Use as a context manager.

    Args:
        run: what was recorded.
        round: the round after which it is to be; it starts at the newest readable checkpoint at or
            before it, or before the first round, and is to be driven on to it.

    Attributes:
        experiment: what the configuration names.
        strategy: the server.
        round: the last round that it has done.
        arrays: the model after it.

    Raises:
        ConfigError: the configuration's data or code are not there any more.
    """

    def __init__(self, run: RecordedRun, round: int) -> None:
        self.experiment = Experiment.from_config(run.config)
        self._folder = tempfile.TemporaryDirectory(prefix="fedopt-")
        try:
            scratch = Path(self._folder.name) / "clients"
            self.strategy = make_strategy(self.experiment, scratch)
            self.round, self.arrays = self._start(run.directory, round)
        except BaseException:
            self._folder.cleanup()
            raise
        self._config = ConfigRecord({})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    @property
    def digest(self) -> str:
        """SHA-256 of the model's arrays, as in `rounds.csv`."""
        return digest(self.strategy.layout.named(self.strategy.state, copy=False))

    def advance(self, grid: Grid) -> None:
        """Do the next round."""
        self.round += 1
        self.arrays = drive_round(
            self.strategy, self.round, self.arrays, self._config, grid, Interruption()
        )

    def _start(self, directory: Path, round: int) -> tuple[int, ArrayRecord]:
        """Put the server into the newest state that is saved; return the round and the model."""
        experiment, strategy = self.experiment, self.strategy
        model = experiment.build_model()
        layout = ParameterLayout.of(model)
        for number, path in reversed(saved_rounds(directory / CHECKPOINTS).items()):
            if number > round:
                continue
            try:
                checkpoint = Checkpoint.load(path)
            except ValueError:  # an older one will do
                continue
            arrays = restore(strategy, layout, [checkpoint])
            self._copy_rows(directory, path)
            return number, arrays
        arrays = to_record(layout.named(model_state(model, layout)))
        strategy.prepare(arrays)
        return 0, arrays

    def _copy_rows(self, directory: Path, path: Path) -> None:
        """Copy what clients keep, as a checkpoint names it.

        Raises:
            ConfigError: it is not there, or the run has gone on and does not keep it any more.
        """
        store = self.strategy.store
        if store is None:
            return
        source = directory / "clients" / Path(store.file.path).name
        try:
            store.copy_rows(source)
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror or error}.") from error
        if not path.exists():
            raise ConfigError(
                f"{directory} is being written: {path.name} was removed meanwhile. Try again."
            )


def _objects(directory: Path, key: str) -> ConfigError:
    return ConfigError(
        f"{directory} cannot be computed again from its files: {key} was an object of the program "
        "that ran it"
    )


def _changed(text: str) -> tuple[str, ...]:
    """Return what differs between the environment at the head of config.toml and this one."""
    now = environment()
    found = []
    for line in text.splitlines():
        name, _, then = line.removeprefix("# ").partition(" ")
        bits = ("fedopt", "torch", "numpy", "processor")
        if line.startswith("# ") and name in bits and then != now[name]:
            found.append(f"{name}: {then}, now {now[name]}")
    return tuple(found)
