"""`fedopt explain`: what a key of the configuration is, from the schema."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedopt.commands.common import AsJson, Debug, guarded
from fedopt.completion import complete_explainable


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def explain(
        key: Annotated[
            str,
            typer.Argument(
                help="a key (local.sam.rho), a table (local.sam) or a name (strategy=fedprox)",
                autocompletion=complete_explainable,
            ),
        ],
        words: Annotated[
            list[str] | None,
            typer.Argument(
                metavar="[KEY=VALUE]...",
                help="choices whose option is meant, such as strategy=fedprox",
                autocompletion=complete_explainable,
            ),
        ] = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Say what a key of the configuration is: type, default, allowed values, source, effect.

        Example: fedopt explain strategy.mu strategy=fedprox
        """
        guarded(lambda: _explain(key, words or [], as_json), debug)


def _explain(key: str, words: list[str], as_json: bool) -> None:
    from fedopt.explanation import explain

    found = explain(key, words)
    typer.echo(json.dumps(found.facts(), indent=2) if as_json else found.text())
