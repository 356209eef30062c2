"""What commands share: common options, the guard that turns errors into exit codes, the summary.

Nothing heavy is imported here, so that `--help` is instant.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fedopt.completion import complete_runs, complete_words
from fedopt.errors import FedoptError

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG.toml] [KEY=VALUE]...",
        help="a TOML file, then overrides",
        autocompletion=complete_words,
    ),
]
RunDir = Annotated[
    Path, typer.Argument(help="folder of a run, finished or not", autocompletion=complete_runs)
]
RunDirs = Annotated[
    list[Path],
    typer.Argument(
        help="folders of runs; that of a sweep stands for all runs in it",
        autocompletion=complete_runs,
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="folder of the results (default: a new one in runs/)")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", help="show no progress")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks of errors")]


def guarded(command: Callable[[], None], debug: bool) -> None:
    """Run a command; turn what goes wrong into a message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        command()
    except FedoptError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        for note in getattr(error, "__notes__", ()):
            typer.echo(note, err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt as error:
        typer.echo(str(error) or "interrupted", err=True)
        raise typer.Exit(getattr(error, "exit_code", 130)) from None


def configuration(arguments: list[str]) -> Any:
    """Return the configuration that a file and overrides give."""
    from fedopt.config import load, split_arguments

    path, words = split_arguments(arguments)
    return load(path, words)


def show_summary(
    summary: dict[str, Any], as_json: bool, quiet: bool, footer: Sequence[str] | None = None
) -> None:
    """Print a run's summary: as JSON, or as a table with lines below it (by default its places)."""
    if as_json:
        from fedopt.analysis.store import to_json

        typer.echo(to_json(summary), nl=False)
    elif not quiet:
        from rich.console import Console

        from fedopt.analysis.summary import final_table

        Console().print(final_table(summary))
        directory = Path(str(summary["run_dir"]))
        places = [f"results: {directory}", f"plot:    {directory / 'convergence.png'}"]
        typer.echo("\n".join(places if footer is None else footer))


def check_out(out: Path) -> None:
    """Refuse a folder that holds something, before any data is loaded."""
    from fedopt.analysis.store import check_free

    check_free(out)
