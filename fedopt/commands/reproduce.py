"""`fedopt reproduce`: published experiments, each by one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import AsJson, Debug, Quiet, guarded
from fedopt.completion import complete_studies


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("reproduce")(reproduce)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="which study", autocompletion=complete_studies)
    ] = None,
    is_listing: Annotated[bool, typer.Option("--list", help="list the studies")] = False,
    is_quick: Annotated[
        bool, typer.Option("--quick", help="a short form: minutes, and less is shown by it")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="seeds that are reported, >= 2")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="folder; that of the same study goes on (default: new)"),
    ] = None,
    pages: Annotated[
        Path | None,
        typer.Option(
            "--pages",
            help="a folder that gets the page as well, and a folder of its tables and figures",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", help="runs at once (default: as many as there are cores)"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a published experiment, or its closest offline analogue, over seeds.

    Prints its tables and a verdict on each claim; writes them with the figures and a page. The same
    call goes on with what was interrupted.

    Example: fedopt reproduce fedprox-synthetic --quick
    """

    def run() -> None:
        from fedopt.errors import ConfigError

        if is_listing:
            _show_list(as_json)
            return
        if name is None:
            raise ConfigError("which study? fedopt reproduce --list names them", key="NAME")
        from fedopt.analysis.sections import print_sections
        from fedopt.analysis.store import to_json
        from fedopt.studies.command import reproduce

        made = reproduce(
            name,
            out,
            is_quick=is_quick,
            seeds=seeds,
            jobs=jobs,
            pages=pages,
            stream=None if quiet else sys.stderr,
        )
        if as_json:
            typer.echo(to_json(made.summary), nl=False)
        else:
            print_sections(made.tables, sys.stdout)
            typer.echo(made.bill)
            typer.echo(f"page: {made.directory / made.results.study.slug}.md")
        for task, why in made.failed.items():
            typer.echo(f"failed: {task}: {why.partition(chr(10))[0]}", err=True)
        if made.failed:
            raise typer.Exit(1)

    guarded(run, debug)


def _show_list(as_json: bool) -> None:
    """Print the studies."""
    from fedopt.analysis.sections import Section, print_sections
    from fedopt.analysis.store import to_json
    from fedopt.studies.catalogue import every_study

    rows = [{"name": s.name, "title": s.title, "source": s.source} for s in every_study()]
    if as_json:
        typer.echo(to_json(rows), nl=False)
        return
    cells = [list(row.values()) for row in rows]
    headings = ["study", "question", "source"]
    print_sections(
        [Section("studies", "studies", headings, cells, rows, left=headings)], sys.stdout
    )
