"""`fedopt sweep`: many runs that differ in what is listed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fedopt.commands.common import AsJson, Debug, Quiet, guarded
from fedopt.completion import complete_lists

_MOST_FAILURES = 5

Jobs = Annotated[
    int | None, typer.Option("--jobs", help="runs at once (default: as many as there are cores)")
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="run again what failed before")]
SweepOut = Annotated[
    Path | None,
    typer.Option("--out", help="folder; that of the same sweep goes on (default: new, in runs/)"),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sweep")(sweep)


def sweep(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.toml] [KEY=A,B,C]...",
            help="a TOML file, then values: a,b,c or 1..5 or linear(0,1,5) or log(1e-3,1,7); "
            "without a count, linear and log are for --random and --search tpe",
            autocompletion=complete_lists,
        ),
    ] = None,
    out: SweepOut = None,
    random: Annotated[
        int | None, typer.Option("--random", help="draw so many points, in place of the grid")
    ] = None,
    search: Annotated[
        str | None,
        typer.Option("--search", help="grid, random or tpe (Optuna; the extra `search`)"),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", help="points that --search tries, >= 1")
    ] = None,
    halving: Annotated[
        bool,
        typer.Option(
            "--halving/--no-halving", help="tpe: stop trials that are behind after 1/9, 1/3 rounds"
        ),
    ] = True,
    search_seed: Annotated[int, typer.Option("--search-seed", help="of the drawn points")] = 0,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="that points are ranked by (default: validation_accuracy where it is measured, "
            "else test_accuracy)",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="METRIC=VALUE: what each point needs to reach it")
    ] = None,
    jobs: Jobs = None,
    retry_failed: Retry = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run every combination of listed values, or a search among them, in parallel.

    The same call goes on with what was interrupted. Runs that fail are noted, the rest goes on;
    the exit code is then 1.

    Example: fedopt sweep strategy=fedavg,scaffold seed=0,1,2 --out runs/sweep
    """

    def run() -> None:
        from fedopt.analysis.targets import Target
        from fedopt.sweep.command import Search, run_sweep

        asked = Search.asked(random, search, trials, search_seed, halving, metric)
        goal = Target.parse(target) if target else None
        outcome = run_sweep(
            arguments or [],
            out,
            asked,
            target=goal,
            jobs=jobs,
            retry=retry_failed,
            stream=None if quiet else sys.stderr,
        )
        show_outcome(outcome, as_json)

    guarded(run, debug)


def show_outcome(outcome: Any, as_json: bool) -> None:
    """Print what a sweep came to; exit code 1 where a run failed."""
    from fedopt.analysis.sections import print_sections
    from fedopt.analysis.store import to_json

    if as_json:
        typer.echo(to_json(outcome.summary), nl=False)
    else:
        print_sections(outcome.tables, sys.stdout)
        for note in outcome.notes:
            typer.echo(note)
        typer.echo(f"bill:    {outcome.bill.text()}")
        typer.echo(f"results: {outcome.directory}")
        for name in ("effects.png", "convergence.png", "parameters.png"):
            if (outcome.directory / name).exists():
                typer.echo(f"plot:    {outcome.directory / name}")
    failures = outcome.failures
    if failures:
        typer.echo(f"{len(failures)} of {len(outcome.states)} runs failed:", err=True)
        for name, state in list(failures.items())[:_MOST_FAILURES]:
            first = state.error.partition("\n")[0]
            typer.echo(f"  {name}: {first}", err=True)
        if len(failures) > _MOST_FAILURES:
            typer.echo(f"  ... the others are in {outcome.directory / 'results.csv'}", err=True)
        raise typer.Exit(1)
