"""Running the runs of a study: a process a core, each of which trains one run after another.

A run leaves two files, its rounds and a record of how it ended, the record last and both in one
step: what is there when a study is interrupted, or killed, is whole and is not run again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from fedopt.analysis.store import to_json
from fedopt.atomic import remove_temporary, write_atomically
from fedopt.errors import DivergenceError, FedoptError, NotFiniteError, unwritable
from fedopt.interruption import InterruptedRunError
from fedopt.studies.tasks import Form, RunTask
from fedopt.sweep.children import die_with_parent
from fedopt.sweep.drive import collected_signals

_POLL = 0.5  # seconds between looks for signals


@dataclass(frozen=True)
class Record:
    """How a run ended.

    Args:
        label: of the run, for people.
        status: `completed`, `diverged` (the loss or the model is not finite) or `failed`.
        error: what ended it, empty if nothing did.
        seconds: processor time, s.
        model_sha256: of the model it came to, empty where there is none.
        version: of the package.
    """

    label: str
    status: str
    error: str
    seconds: float
    model_sha256: str
    version: str


class Store:
    """The folder where the runs of a study lie.

    Args:
        directory: the folder, made if need be.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        remove_temporary(directory)

    def record(self, task: RunTask) -> Record | None:
        """Return how a run ended; None where it has not."""
        try:
            return Record(**json.loads((self._directory / f"{task.name}.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def history(self, task: RunTask) -> pd.DataFrame:
        """Return a run's rounds; empty where it diverged or failed."""
        path = self._directory / f"{task.name}.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame({"round": []})

    def put(self, task: RunTask, record: Record, history: pd.DataFrame | None) -> None:
        """Keep a run.

        Raises:
            RunError: it cannot be written.
        """
        try:
            if history is not None:
                # All digits: what is read again is what was measured.
                payload = history.to_csv(index=False).encode()
                write_atomically(self._directory / f"{task.name}.csv", payload)
            payload = to_json(asdict(record)).encode()
            write_atomically(self._directory / f"{task.name}.json", payload)
        except OSError as error:
            raise unwritable(self._directory / task.name, error) from error


class Source(Protocol):
    """Which runs there are: `fedopt.studies.tasks.Schedule`."""

    def next(self) -> RunTask | None:
        """Return a run that can start now; None where there is none now, or none any more."""

    def ended(self, task: RunTask) -> None:
        """Take note of a run that has ended."""


def run_tasks(
    form: Form,
    source: Source,
    store: Store,
    jobs: int,
    ended: Callable[[RunTask, Record, bool], None],
) -> None:
    """Run all runs of a source that are not in the store yet.

    Args:
        form: the study they belong to.
        source: which there are.
        store: where they are kept.
        jobs: processes, >= 1.
        ended: is told of each run, and whether it was there before; before the source is.

    Raises:
        RunError: a run ended in an error that is not of its making, as of a full disk.
        InterruptedRunError: Ctrl-C or SIGTERM; runs that had not ended begin anew next time.
    """
    workers: list[_Worker] = []
    with collected_signals() as arrived:
        try:
            while True:
                if arrived:
                    raise InterruptedRunError(arrived[0])
                idle = next((w for w in workers if w.task is None), None)
                if (idle is not None or len(workers) < jobs) and (task := source.next()):
                    record = store.record(task)
                    if record is not None and record.status != "failed":
                        ended(task, record, True)
                        source.ended(task)
                        continue
                    if idle is None:
                        idle = _Worker(form)
                        workers.append(idle)
                    idle.begin(task)
                    continue
                busy = {w.answers: w for w in workers if w.task is not None}
                if not busy:
                    return
                for answers in wait(list(busy), _POLL):
                    worker = busy[answers]  # type: ignore[index]
                    task = worker.task
                    assert task is not None
                    record, history = worker.end()
                    if not worker.is_alive():
                        workers.remove(worker)
                    store.put(task, record, history)
                    ended(task, record, False)
                    source.ended(task)
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process that trains one run after another."""

    def __init__(self, form: Form) -> None:
        self.task: RunTask | None = None
        context = multiprocessing.get_context("spawn")
        self.answers, theirs = context.Pipe()
        words = form.study.name, form.is_quick
        self._process = context.Process(target=_serve, args=(theirs, *words), daemon=True)
        held = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"  # read as the process starts
        try:
            self._process.start()
        finally:
            if held is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = held
        theirs.close()

    def begin(self, task: RunTask) -> None:
        """Give it a run."""
        self.task = task
        self.answers.send(task)

    def end(self) -> tuple[Record, pd.DataFrame | None]:
        """Return how its run ended."""
        label = "" if self.task is None else self.task.label
        self.task = None
        try:
            record, history = self.answers.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode or 0
            name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return Record(label, "failed", f"its process ended by {name}", 0.0, "", ""), None
        return record, history

    def is_alive(self) -> bool:
        """Return whether it can take another run."""
        return self._process.is_alive()

    def stop(self) -> None:
        """End it at once."""
        self.answers.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, name: str, is_quick: bool) -> None:
    """Train the runs that arrive, until there are no more: the body of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent()
    from fedopt.studies.catalogue import study_of
    from fedopt.studies.tasks import quick, whole

    study = study_of(name)
    form = quick(study) if is_quick else whole(study)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(perform(form, task))


def perform(form: Form, task: RunTask) -> tuple[Record, pd.DataFrame | None]:
    """Train a run.

    Returns:
        How it ended, and its rounds if it did not fail.
    """
    from fedopt import __version__, simulate

    began = time.process_time()
    condition = next(c for c in form.study.conditions if c.name == task.condition)
    kept: dict[str, Any] = {} if condition.maker is None else condition.maker(task.seed)
    status, error, digest, history = "completed", "", "", None
    try:
        run = simulate(form.config(task.words, task.seed), **kept)
        history, digest = run.history, str(run.summary["model_sha256"])
    except (DivergenceError, NotFiniteError) as found:
        status, error = "diverged", str(found)
    except FedoptError as found:
        status, error = "failed", str(found)
    seconds = time.process_time() - began
    return Record(task.label, status, error, seconds, digest, __version__), history
