"""Ctrl-C and SIGTERM in a run: it ends where nothing of a finished round is lost.

While clients train, a signal drops the round at once. While the server works (it adds, evaluates
and writes, and its state is between two rounds) the signal waits until the round is recorded. A
second signal ends the process at once: everything in a run's folder is whole at any moment. In an
interactive interpreter or a notebook it ends the run alone.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def is_interactive() -> bool:
    """Return whether somebody types into this process: Python's prompt, IPython or a notebook."""
    return hasattr(sys, "ps1") or hasattr(builtins, "get_ipython")


class InterruptedRunError(KeyboardInterrupt):
    """A signal ended a run, between two rounds.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"interrupted by {name}")
        self.exit_code = 128 + number


class Interruption:
    """What becomes of SIGINT and SIGTERM while it is entered.

    Signals that the process ignores stay ignored. Outside the main thread, and where the calling
    program has a handler of its own for SIGINT, nothing is changed.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._number: int | None = None
        self._is_open = False

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) in (
            signal.default_int_handler,
            signal.SIG_IGN,
        ):
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if kind is None:
            self.check()

    def install(self) -> None:
        """Set the handlers again, where something else (Ray, as it starts) has set its own."""
        for number, before in self._before.items():
            if before != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """While entered, a signal is raised at once: what is interrupted is dropped.

        Raises:
            InterruptedRunError: a signal arrives, or has arrived before.
        """
        self._is_open = True
        try:
            self.check()
            yield
        finally:
            self._is_open = False

    def check(self) -> None:
        """Raise the signal that has arrived, if any.

        Raises:
            InterruptedRunError: one has.
        """
        if self._number is not None:
            raise InterruptedRunError(self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number is not None:
            if is_interactive():  # the interpreter, or the notebook's kernel, outlives the run
                raise InterruptedRunError(number)
            os.write(2, b"ended at once\n")
            os._exit(128 + number)
        self._number = number
        if self._is_open:
            self.check()
        os.write(2, b"the run ends after this round; once more ends it at once\n")
