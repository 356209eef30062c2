"""`fedopt init`: a project with parts of one's own that runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import AsJson, Debug, guarded


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def init(
        name: Annotated[
            str, typer.Argument(help="of the project, its folder and its package: my_study")
        ],
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Make a project with its own model, data, strategy and test, in a new folder.

        It runs at once: cd NAME, then fedopt run experiment.toml. Nothing is overwritten.

        Example: fedopt init my_study
        """
        guarded(lambda: _init(name, as_json), debug)


def _init(name: str, as_json: bool) -> None:
    from fedopt.project import make_project

    files = [str(path) for path in make_project(name, Path())]
    if as_json:
        typer.echo(json.dumps({"project": name, "files": files}, indent=2))
        return
    for file in files:
        typer.echo(file)
    typer.echo(f"\ntry it: cd {name} && fedopt run experiment.toml")
