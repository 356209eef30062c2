"""`fedopt plot`: curves of runs, over each other, with bands over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import Debug, RunDirs, guarded


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plot")(plot)


def plot(
    run_dirs: RunDirs,
    x: Annotated[str, typer.Option("--x", help="rounds, bytes, seconds, wall or steps")] = "rounds",
    out: Annotated[Path, typer.Option("--out", help="the figure; .png, .svg or .pdf")] = Path(
        "convergence.png"
    ),
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="a column of rounds.csv, or loss, accuracy, calibration, distribution; may be "
            "repeated (default: loss and accuracy)",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="METRIC=VALUE: a line, and where each curve reaches it"),
    ] = None,
    width: Annotated[
        str, typer.Option("--width", help="column (3.3 inches), text (7.0) or a number of inches")
    ] = "text",
    smooth: Annotated[
        int,
        typer.Option(
            "--smooth", help="running mean over so many evaluations, odd; the figure says it"
        ),
    ] = 1,
    log: Annotated[
        str,
        typer.Option("--log", help="logarithmic axes: x, y, xy, none; auto: wide losses alone"),
    ] = "auto",
    title: Annotated[str | None, typer.Option("--title", help="a line above the panels")] = None,
    by_run: Annotated[
        bool, typer.Option("--by-run", help="a curve a run, in place of means over seeds")
    ] = False,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="write the numbers as CSV beside the figure")
    ] = True,
    debug: Debug = False,
) -> None:
    """Draw the convergence of one run, or of several over each other.

    Runs that differ in the seed alone are drawn as their mean with a 95 % band; `centralised` and
    `local_only` are horizontal lines.

    Example: fedopt plot runs/sweep --x bytes --target test_accuracy=0.9 --out comparison.pdf
    """

    def draw() -> None:
        from fedopt.analysis.groups import group_runs, read_stored, run_folders
        from fedopt.analysis.plots import convergence_plot
        from fedopt.analysis.targets import Target

        goal = Target.parse(target) if target else None
        folders, notes = run_folders(run_dirs)
        for note in notes:
            typer.echo(note, err=True)
        groups = group_runs([read_stored(folder) for folder in folders], not by_run)
        figure = convergence_plot(
            groups,
            x,
            title,
            metric or (),
            target=goal,
            smooth=smooth,
            log=log,
            width=width,
        )
        for file in figure.save(out, data):
            typer.echo(str(file))

    guarded(draw, debug)
