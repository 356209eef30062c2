"""`fedopt ablate`: what each technique of a recipe brings."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fedopt.commands.common import Arguments, AsJson, Debug, Quiet, guarded
from fedopt.commands.sweep import Jobs, Retry, SweepOut, show_outcome


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ablate")(ablate)


def ablate(
    arguments: Arguments = None,
    out: SweepOut = None,
    seeds: Annotated[int, typer.Option("--seeds", help="repetitions of every variant, >= 1")] = 5,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="METRIC=VALUE to reach (default: what the baseline ends with)"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="that is compared (default: that of the target)"),
    ] = None,
    instead: Annotated[
        list[str] | None,
        typer.Option(
            "--instead",
            help="KEY=VALUE where its technique is absent, in place of the default, such as "
            "local.optimizer.lr=0.05; may be repeated",
        ),
    ] = None,
    jobs: Jobs = None,
    retry_failed: Retry = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a recipe whole, without each of its techniques, with each alone, and without any.

    Says with 95 % t intervals, seed by seed, what each technique brings in rounds to a target and
    in the final metric. The same call goes on with what was interrupted.

    Example: fedopt ablate local.sam.rho=0.05 local.schedule=cosine strategy=scaffold --seeds 5
    """

    def run() -> None:
        from fedopt.analysis.targets import Target
        from fedopt.sweep.ablate import run_ablation

        outcome = run_ablation(
            arguments or [],
            out,
            seeds=seeds,
            target=Target.parse(target) if target else None,
            metric=metric,
            instead=instead or (),
            jobs=jobs,
            retry=retry_failed,
            stream=None if quiet else sys.stderr,
        )
        show_outcome(outcome, as_json)

    guarded(run, debug)
