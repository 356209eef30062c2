"""`fedopt watch`: a run as it goes, on a terminal or as plain lines."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedopt.commands.common import Debug, RunDir, guarded

if TYPE_CHECKING:
    from fedopt.analysis.follow import RunFollower

_LINES = 20  # of plain output a run, about
_SILENCE = 10.0  # seconds after which a plain line is due


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)


def watch(
    run_dir: RunDir,
    interval: Annotated[
        float, typer.Option("--interval", min=0.05, help="seconds between two looks, >= 0.05")
    ] = 0.5,
    debug: Debug = False,
) -> None:
    """Watch a run: progress, curves, last values, failures, time left; ends when the run ends.

    The run is not touched. Exit code 1 where it failed or was stopped. Into a file or a pipe go
    plain lines.

    Example: fedopt watch runs/scaffold
    """
    guarded(lambda: _watch(run_dir, interval), debug)


def _watch(run_dir: Path, interval: float) -> None:
    from fedopt.analysis.follow import RunFollower

    run = RunFollower(run_dir)
    run.poll()
    from rich.console import Console

    console = Console(file=sys.stdout)
    if console.is_terminal and not console.is_dumb_terminal:
        _show_live(run, interval, console)
    else:
        _print_lines(run, interval)
    if run.status != "completed":
        raise typer.Exit(1)


def _show_live(run: RunFollower, interval: float, console: object) -> None:
    from rich.console import Console
    from rich.live import Live

    from fedopt.analysis.live_view import closing_line, live_view

    assert isinstance(console, Console)
    unicode = "utf" in (console.encoding or "").lower()
    with Live(live_view(run, console.width, unicode), console=console, auto_refresh=False) as live:
        while True:
            live.update(live_view(run, console.width, unicode), refresh=True)
            if run.status != "running":
                break
            time.sleep(interval)
            run.poll()
    console.print(closing_line(run), markup=False, highlight=False)


def _print_lines(run: RunFollower, interval: float) -> None:
    from fedopt.analysis.live_view import closing_line, plain_line

    printed, at = -1, time.monotonic()
    warned = 0
    while True:
        every = -(-(run.planned or _LINES) // _LINES)
        is_due = printed < 0 or run.round // every > printed // every
        is_late = time.monotonic() - at >= _SILENCE
        if run.rows and run.round != printed and (is_due or is_late or run.status != "running"):
            typer.echo(plain_line(run))
            printed, at = run.round, time.monotonic()
        for message in run.warnings[warned:]:
            typer.echo(f"warning: {''.join(c if c.isprintable() else '?' for c in message)}")
        warned = len(run.warnings)
        if run.status != "running":
            break
        time.sleep(interval)
        run.poll()
    typer.echo(closing_line(run))
