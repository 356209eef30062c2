"""Running the runs of a sweep, as many at once as there are cores.

A run that is completed is kept, one that was interrupted goes on, one that failed is noted and the
rest goes on. The loop polls: it has one thread, and knows what each process is for.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from fedopt.analysis.store import CONFIG_FILE
from fedopt.interruption import SIGNALS, InterruptedRunError
from fedopt.sweep.book import Book, State, Task
from fedopt.sweep.children import Child, available_cores, check_jobs, cores_of

_POLL = 0.1  # seconds
_PATIENCE = 60.0  # seconds that a run may take to write a checkpoint


class Source(Protocol):
    """Which runs there are."""

    total: int
    """Runs in all, as far as is known."""

    def next(self) -> Task | None:
        """Return the next run to start; None where there is none now, or none any more."""

    def ended(self, task: Task, state: State) -> None:
        """Take note of a run that is done."""

    def is_hopeless(self, task: Task) -> bool:
        """Return whether a run that goes on should be stopped for good."""


class Watcher(Protocol):
    """Shows how a sweep goes."""

    def started(self, task: Task) -> None:
        """Show that a run starts or goes on."""

    def ended(self, task: Task, state: State, is_kept: bool) -> None:
        """Show how a run ended; `is_kept`: in an earlier call."""

    def tick(self) -> None:
        """Be called now and then."""


def drive(
    book: Book, source: Source, watcher: Watcher, jobs: int | None = None, retry: bool = False
) -> None:
    """Run all runs of a source.

    Args:
        book: where they lie and how they stand.
        source: which there are.
        watcher: shows how it goes.
        jobs: runs at once; None: as many as there are cores.
        retry: run again what failed in an earlier call.

    Raises:
        ConfigError: more jobs than cores.
        InterruptedRunError: Ctrl-C or SIGTERM; the runs have been stopped and can go on.
    """
    cores = available_cores()
    limit = check_jobs(jobs, cores)
    running: dict[str, tuple[Task, Child, int]] = {}
    stopped: set[str] = set()
    waiting: Task | None = None
    with collected_signals() as arrived:
        try:
            while True:
                if arrived:
                    raise InterruptedRunError(arrived[0])
                taken = sum(need for _, _, need in running.values())
                # Asked for when it can start, not before: a search learns from what has ended.
                if waiting is None and len(running) < limit and taken < cores:
                    waiting = _next(book, source, watcher, retry)
                need = cores_of(waiting.config, cores) if waiting else 0
                if waiting and len(running) < limit and taken + need <= cores:
                    running[waiting.name] = (waiting, _start(book, waiting), need)
                    watcher.started(waiting)
                    waiting = None
                    continue
                if not running:
                    return
                time.sleep(_POLL)
                watcher.tick()
                for name, (task, child, _) in list(running.items()):
                    code = child.poll()
                    if code is not None:
                        del running[name]
                        state = _ended(book, task, child, name in stopped)
                        source.ended(task, state)
                        watcher.ended(task, state, False)
                    elif name not in stopped and source.is_hopeless(task):
                        stopped.add(name)
                        child.stop()
        except BaseException:
            _stop_all(book, running, arrived)
            raise


def _next(book: Book, source: Source, watcher: Watcher, retry: bool) -> Task | None:
    """Return the next run that is not done yet."""
    while (task := source.next()) is not None:
        state = book.states.get(task.name)
        if state is None:
            return task
        if not state.is_done and book.summary(task.name).get("status") == "completed":
            state = book.note(task.name, "completed")
        if not state.is_done or (retry and state.status == "failed"):
            return task
        source.ended(task, state)
        watcher.ended(task, state, True)
    return None


def _start(book: Book, task: Task) -> Child:
    """Start a run, or let it go on."""
    path = book.begin(task)
    folder = book.run_folder(task.name)
    if book.can_resume(task.name) and (folder / CONFIG_FILE).stat().st_size:
        words = ["resume", str(folder), "--quiet"]
    else:
        words = ["run", str(path), "--out", str(folder), "--quiet"]
    return Child(words, book.log_file(task.name))


def _ended(book: Book, task: Task, child: Child, is_stopped: bool) -> State:
    """Note how a run ended."""
    code = child.poll()
    if code == 0:
        return book.note(task.name, "completed")
    if is_stopped:
        return book.note(task.name, "stopped")
    return book.note(task.name, "failed", child.error())


def _stop_all(book: Book, running: dict[str, tuple[Task, Child, int]], arrived: list[int]) -> None:
    """End all runs so that they can go on later; a second signal ends them at once."""
    for _, child, _ in running.values():
        child.stop()
    signals, deadline = len(arrived), time.monotonic() + _PATIENCE
    for name, (_, child, _) in running.items():
        while not child.wait(_POLL):
            if len(arrived) > signals or time.monotonic() > deadline:
                child.kill()
        # It may have finished in the meantime.
        book.note(name, "completed" if child.poll() == 0 else "interrupted")


@contextmanager
def collected_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that they end the loop where nothing is half done.

    Outside the main thread, and where the calling program has a handler of its own, nothing is
    changed.
    """
    arrived: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        if len(arrived) == 1:
            os.write(2, b"stopping the runs; once more ends them at once\n")

    before: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            held = signal.getsignal(number)
            if held in (signal.SIG_DFL, signal.default_int_handler):
                before[int(number)] = held
                signal.signal(number, handle)
    except ValueError:  # not the main thread
        pass
    try:
        yield arrived
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
