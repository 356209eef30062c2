"""What a person sees while a run goes on, written to one stream and nowhere else.

A terminal gets one live line, a log file gets a few plain ones, `--quiet` gets none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from fedopt.analysis.units import human_bytes, human_metric, human_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Clock = Callable[[], float]

_LINES = 20  # a run, about, besides the first and the last
_SILENCE = 10.0  # seconds after which a plain line is due whatever the round


class Progress(Protocol):
    """Shows how a run goes. Calls come in this order: start, update and message, finish, close."""

    def start(self, rounds: int, header: str) -> None:
        """Begin.

        Args:
            rounds: the run's last round, at least 1.
            header: one line that says what runs.
        """

    def update(self, row: Mapping[str, object]) -> None:
        """Show a finished round, given as a row of `rounds.csv`; None is "not measured"."""

    def message(self, text: str) -> None:
        """Show a line that is not about a round, such as a warning."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Show what the run came to, given its summary."""

    def close(self) -> None:
        """Give the terminal back; safe to call twice, and due even when the run fails."""


def make_progress(quiet: bool, stream: TextIO) -> Progress:
    """Return the progress display that fits a stream.

    Args:
        quiet: show nothing.
        stream: where to write: standard error, so that standard output stays clean.

    Returns:
        `SilentProgress` if quiet, `NotebookProgress` in a notebook, `LiveProgress` on a terminal,
        else `PlainProgress`.
    """
    if quiet:
        return SilentProgress()
    if "IPython" in sys.modules:
        from fedopt.analysis.notebook import NotebookProgress, notebook_shell

        if notebook_shell() is not None:
            return NotebookProgress()
    if not stream.isatty():
        return PlainProgress(stream)
    from rich.console import Console

    # A dumb terminal is one that cannot redraw a line.
    return PlainProgress(stream) if Console(file=stream).is_dumb_terminal else LiveProgress(stream)


class SilentProgress:
    """Shows nothing."""

    def start(self, rounds: int, header: str) -> None:
        """Show nothing."""

    def update(self, row: Mapping[str, object]) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing."""

    def finish(self, summary: Mapping[str, object]) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainProgress:
    """Writes plain lines without control codes: about twenty a run, or one every ten seconds.

    The first and the last round are always among them.

    Args:
        stream: where to write.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._state = RoundState(rounds=1, began=0.0)
        self._printed = 0.0
        self._first = True

    def start(self, rounds: int, header: str) -> None:
        """Write the header."""
        self._state = RoundState(rounds, self._clock())
        self._first = True
        self._write(header)

    def update(self, row: Mapping[str, object]) -> None:
        """Write the round, if a line is due."""
        now = self._clock()
        state = self._state
        state.see(row, now)
        every = -(-state.rounds // _LINES)
        due = state.round % every == 0 or state.round >= state.rounds
        if self._first or due or now - self._printed >= _SILENCE:
            self._write(", ".join(state.words()))
            self._printed = now
            self._first = False

    def message(self, text: str) -> None:
        """Write the text."""
        self._write(text)

    def finish(self, summary: Mapping[str, object]) -> None:
        """Write one line with the final values."""
        self._write(closing(summary, self._clock() - self._state.began))

    def close(self) -> None:
        """Do nothing: every line is flushed as it is written."""

    def _write(self, text: str) -> None:
        self._stream.write(printable(text) + "\n")
        self._stream.flush()


class LiveProgress:
    """Redraws one line on a terminal: bar, round, losses, accuracy, bytes, elapsed, time left.

    Args:
        stream: a terminal.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(file=stream)
        self._clock = clock
        self._state = RoundState(rounds=1, began=0.0)
        self._display: RichProgress | None = None
        self._task: TaskID | None = None

    def start(self, rounds: int, header: str) -> None:
        """Print the header and draw an empty bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        self.close()
        self._state = RoundState(rounds, self._clock())
        self.message(header)
        words = TextColumn(
            "{task.fields[words]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis"),
        )
        self._display = RichProgress(BarColumn(bar_width=12), words, console=self._console)
        self._task = self._display.add_task("", total=rounds, words=f"round 0/{rounds}")
        self._display.start()

    def update(self, row: Mapping[str, object]) -> None:
        """Redraw the line."""
        self._state.see(row, self._clock())
        if self._display is not None and self._task is not None:
            words = "  ".join(self._state.words())
            self._display.update(self._task, completed=self._state.round, words=words)

    def message(self, text: str) -> None:
        """Print the text above the line."""
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def finish(self, summary: Mapping[str, object]) -> None:
        """Leave the line as it is and print the final values below it."""
        self.close()
        self.message(closing(summary, self._clock() - self._state.began))

    def close(self) -> None:
        """Stop redrawing and show the cursor again."""
        if self._display is not None:
            self._display.stop()
            self._display = None


@dataclass
class RoundState:
    """What is known so far: the last measured values, and the pace since this process began."""

    rounds: int
    began: float
    now: float = 0.0
    round: int = 0
    done: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def see(self, row: Mapping[str, object], now: float) -> None:
        """Take in a finished round at time `now`."""
        for name, value in row.items():
            if value is not None and value == value:
                self.values[name] = float(value)  # type: ignore[arg-type]
        self.round = int(self.values["round"])
        self.done += 1
        self.now = now

    def words(self) -> list[str]:
        """Return the parts of the line about the last round."""
        values = self.values
        words = [f"round {self.round}/{self.rounds}"]
        for name, label in (("train_loss", "train"), ("test_loss", "test")):
            if name in values:
                words.append(f"{label} {human_metric(values[name])}")
        if "test_accuracy" in values:
            words.append(f"accuracy {values['test_accuracy']:.3f}")
        if "validation_accuracy" in values:
            words.append(f"validation {values['validation_accuracy']:.3f}")
        if "validation_accuracy_worst10" in values:
            words.append(f"worst clients {values['validation_accuracy_worst10']:.3f}")
        if "bytes_up" in values or "bytes_down" in values:
            words.append(human_bytes(values.get("bytes_up", 0) + values.get("bytes_down", 0)))
        if "epsilon" in values:
            words.append(f"epsilon {values['epsilon']:.3g}")
        if "sim_seconds" in values:
            words.append(f"virtual {human_seconds(values['sim_seconds'])}")
        elapsed = self.now - self.began
        words.append(human_seconds(elapsed))
        if self.round < self.rounds:
            # A resumed run begins late: its pace is that of the rounds of this process.
            left = elapsed / self.done * (self.rounds - self.round)
            words.append(f"{human_seconds(left)} left")
        return words


def printable(text: str) -> str:
    """Return the text without control codes: messages may quote what others wrote."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def closing(summary: Mapping[str, object], elapsed: float) -> str:
    """Return the last line of a run: final metrics, best accuracy, where the results are."""
    rounds = summary.get("rounds", 0)
    plural = "" if rounds == 1 else "s"
    parts = [f"done: {rounds} round{plural} in {human_seconds(elapsed)}"]
    final, best = summary.get("final"), summary.get("best")
    if isinstance(final, Mapping):
        for name in ("train_loss", "test_loss", "test_accuracy"):
            value = final.get(name)
            if isinstance(value, int | float):
                parts.append(f"{name.replace('_', ' ')} {human_metric(value)}")
    accuracy = best.get("test_accuracy") if isinstance(best, Mapping) else None
    if isinstance(accuracy, Mapping):
        parts[-1] += f" (best {human_metric(accuracy['value'])} in round {accuracy['round']})"
    if isinstance(final, Mapping):
        for name, label in (("validation_accuracy", "validation accuracy"), ("epsilon", "epsilon")):
            value = final.get(name)
            if isinstance(value, int | float):
                parts.append(f"{label} {human_metric(value)}")
    folder = summary.get("run_dir")
    return ", ".join(parts) + (f"\nresults in {folder}" if folder else "")
