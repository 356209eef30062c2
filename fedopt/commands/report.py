"""`fedopt report`: one HTML file about a run, or about several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import Debug, guarded
from fedopt.completion import complete_runs


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="folders of runs, or folders with runs",
            autocompletion=complete_runs,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="the file; default: report.html in the folder, comparison.html for several",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="METRIC=VALUE whose cost is told, such as test_accuracy=0.9; repeatable",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="heading of a comparison")] = None,
    debug: Debug = False,
) -> None:
    """Write a self-contained HTML report of a run, finished or not, or a comparison of several.

    Runs that differ in the seed alone are drawn as a mean with its 95 % interval.

    Example: fedopt report runs/fedavg runs/scaffold --target test_accuracy=0.9
    """
    guarded(lambda: _report(places, out, target or [], title), debug)


def _report(places: list[Path], out: Path | None, targets: list[str], title: str | None) -> None:
    from fedopt.analysis.report import (
        comparison_report,
        find_runs,
        folder_report,
        read_run,
        run_report,
        write_report,
    )
    from fedopt.analysis.store import ROUNDS_FILE
    from fedopt.analysis.targets import Target
    from fedopt.errors import ConfigError

    wanted = [Target.parse(text) for text in targets]
    if out is not None and (out.is_dir() or out.suffix.lower() not in (".html", ".htm")):
        raise ConfigError(
            f'got "{out}", expected the name of a file that ends in .html', key="--out"
        )
    runs = find_runs(places)
    alone = len(places) == 1 and (places[0] / ROUNDS_FILE).is_file()
    if alone:
        text = run_report(read_run(runs[0]), wanted)
    elif len(places) == 1:
        text = folder_report(places[0], title, wanted)
    else:
        text = comparison_report(runs, title or "Comparison", targets=wanted)
    usual = places[0] / "report.html" if len(places) == 1 else Path("comparison.html")
    typer.echo(str(write_report(out or usual, text)))
