"""`fedopt export`: runs in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import Debug, guarded
from fedopt.completion import complete_runs


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="folders of runs, or folders with runs",
            autocompletion=complete_runs,
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="csv, parquet, tensorboard or mlflow")],
    out: Annotated[Path, typer.Option("--out", help="folder of what is written")],
    debug: Debug = False,
) -> None:
    """Write runs as tables, for TensorBoard, or into an MLflow store; all of it offline.

    Parquet, TensorBoard and MLflow need the extra of that name. Exporting a run again replaces
    what was exported of it.

    Example: fedopt export runs/fedavg runs/scaffold --to csv --out exported
    """
    guarded(lambda: _export(places, to, out), debug)


def _export(places: list[Path], to: str, out: Path) -> None:
    from fedopt.analysis.export import export_runs
    from fedopt.analysis.report import find_runs

    for path in export_runs(find_runs(places), to, out):
        typer.echo(str(path))
