"""Notebooks: one line of progress below the cell, and figures that show themselves.

Needs nothing but IPython, which is there where a notebook is; nothing here is imported elsewhere.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from fedopt.analysis.progress import RoundState, closing, printable

LEAST_SECONDS = 0.1
"""Time between two changes of the line: a front end needs longer than a round may take."""


def notebook_shell() -> Any:
    """Return IPython's shell where a notebook's kernel runs this process, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if hasattr(shell, "kernel") else None


def show_figures() -> None:
    """Have figures shown as pictures, as `%matplotlib inline` does, where this is a notebook.

    matplotlib's figures know no form but their name until somebody registers one.
    """
    shell = notebook_shell()
    if shell is None:
        return
    from IPython.core.pylabtools import select_figure_formats
    from matplotlib.figure import Figure

    if Figure not in shell.display_formatter.formatters["image/png"].type_printers:
        select_figure_formats(shell, {"png"})


class NotebookProgress:
    """Redraws one line below the cell: a bar, and what a terminal's line says.

    Args:
        clock: a monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state = RoundState(rounds=1, began=0.0)
        self._header = ""
        self._notes: list[str] = []
        self._handle: Any = None
        self._drawn = 0.0

    def start(self, rounds: int, header: str) -> None:
        """Show the header and an empty bar."""
        from IPython.display import display

        self._state = RoundState(rounds, self._clock())
        self._header, self._notes = header, []
        self._handle = display(self._bundle(f"round 0/{rounds}"), raw=True, display_id=True)

    def update(self, row: Mapping[str, object]) -> None:
        """Redraw the line, unless that was just done."""
        now = self._clock()
        self._state.see(row, now)
        if now - self._drawn >= LEAST_SECONDS or self._state.round >= self._state.rounds:
            self._drawn = now
            self._draw(", ".join(self._state.words()))

    def message(self, text: str) -> None:
        """Show a line that stays."""
        self._notes.append(text)
        self._draw(", ".join(self._state.words()) if self._state.round else "")

    def finish(self, summary: Mapping[str, object]) -> None:
        """Show the final values."""
        self._draw(closing(summary, self._clock() - self._state.began))

    def close(self) -> None:
        """Do nothing: what was drawn last stays."""

    def _draw(self, words: str) -> None:
        if self._handle is not None:
            self._handle.update(self._bundle(words), raw=True)

    def _bundle(self, words: str) -> dict[str, str]:
        """Return the line as HTML, and as text for a front end that shows no HTML."""
        lines = [printable(text) for text in (self._header, *self._notes, words) if text]
        state = self._state
        bar = f'<progress max="{state.rounds}" value="{state.round}"></progress> '
        text = [html.escape(line).replace("\n", "<br>") for line in lines]
        text[-1] = bar + text[-1]
        return {"text/plain": "\n".join(lines), "text/html": f"<div>{'<br>'.join(text)}</div>"}
