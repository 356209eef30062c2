"""`fedopt doctor`: can this machine run fedopt, and if not, what to do."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fedopt.commands.common import AsJson, Debug, guarded


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor(
        no_ray: Annotated[
            bool, typer.Option("--no-ray", help="do not start Ray, which takes some seconds")
        ] = False,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """Check that this machine can run fedopt, and say what it found and what to do.

        Levels: ok; warn, it works but not as well as it could; fail, runs will fail. Exit code 1
        where something fails.

        Example: fedopt doctor
        """
        guarded(lambda: _doctor(with_ray=not no_ray, as_json=as_json), debug)


def _doctor(with_ray: bool, as_json: bool) -> None:
    from fedopt.doctor import diagnose

    findings = diagnose(with_ray)
    if as_json:
        typer.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.level:<4}  {finding.name:<{width}}  {finding.detail}")
            if finding.advice:
                typer.echo(f"{'':<{width + 8}}-> {finding.advice}")
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)
