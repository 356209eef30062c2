"""What a person sees while a sweep goes on: a line a run, and what runs now."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from fedopt.analysis.store import ROUNDS_FILE
from fedopt.analysis.tables import last_whole_round
from fedopt.analysis.units import human_metric, human_seconds
from fedopt.sweep.book import Book, State, Task

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_EVERY = 1.0  # seconds between looks


class Watch:
    """Shows how a sweep goes, on one stream. Use as a context manager.

    Args:
        book: where the runs lie.
        total: returns the number of runs, as far as is known.
        stream: where to write; None shows nothing.
    """

    def __init__(self, book: Book, total: Callable[[], int], stream: TextIO | None) -> None:
        self._book, self._total, self._stream = book, total, stream
        self._done = 0
        self._began: dict[str, float] = {}
        self._looked = 0.0
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}
        if stream is not None and stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                console=Console(file=stream),
                transient=True,
            )

    def __enter__(self) -> Watch:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, task: Task) -> None:
        """Show a bar of the run's rounds."""
        self._began[task.name] = time.monotonic()
        if self._live is not None:
            words = f"{task.label}, seed {task.seed}"
            self._bars[task.name] = self._live.add_task(words, total=task.config.rounds)

    def ended(self, task: Task, state: State, is_kept: bool) -> None:
        """Say how a run ended."""
        self._done += 1
        if task.name in self._bars and self._live is not None:
            self._live.remove_task(self._bars.pop(task.name))
        words = f"{task.label}, seed {task.seed}: {state.status}"
        if is_kept:
            words += " before"
        else:
            words += f" in {human_seconds(time.monotonic() - self._began[task.name])}"
        if state.status == "completed":
            final = self._book.summary(task.name).get("final", {})
            for name in ("test_accuracy", "validation_accuracy", "test_loss", "train_loss"):
                if isinstance(final.get(name), int | float):
                    words += f", {name.replace('_', ' ')} {human_metric(final[name])}"
                    break
        elif state.status == "stopped":
            words += ", behind the other trials"
        elif state.error:
            words += f": {state.error.splitlines()[0]}"
        self._say(f"[{self._done}/{max(self._total(), self._done)}] {words}")

    def tick(self) -> None:
        """Move the bars."""
        now = time.monotonic()
        if self._live is None or now - self._looked < _EVERY:
            return
        self._looked = now
        for name, bar in self._bars.items():
            path = self._book.run_folder(name) / ROUNDS_FILE
            if path.is_file():
                self._live.update(bar, completed=last_whole_round(path.read_bytes()))

    def _say(self, text: str) -> None:
        plain = "".join(c if c.isprintable() else " " for c in text)
        if self._live is not None:
            self._live.console.print(plain, markup=False, highlight=False, soft_wrap=True)
        elif self._stream is not None:
            self._stream.write(plain + "\n")
            self._stream.flush()
