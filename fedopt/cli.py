"""The `fedopt` command. Heavy imports happen inside the commands, so that `--help` is instant.

Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted, 143 terminated. With `--json`
standard output holds JSON alone; progress and messages go to standard error.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fedopt.commands.common import (
    Arguments,
    AsJson,
    Debug,
    Out,
    Quiet,
    RunDir,
    check_out,
    configuration,
    guarded,
    show_summary,
)
from fedopt.errors import unknown_name

app = typer.Typer(
    name="fedopt",
    help="Federated optimisation on Flower, Ray and PyTorch.\n\n"
    "Example: fedopt run strategy=scaffold rounds=50",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Print the version where it is asked for."""
    if version:
        import fedopt

        typer.echo(f"fedopt {fedopt.__version__}")
        raise typer.Exit


@app.command()
def run(
    arguments: Arguments = None,
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, train and write nothing")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a federated model.

    Example: fedopt run strategy=scaffold partition.alpha=0.1 rounds=100 --out runs/scaffold
    """
    guarded(lambda: _run(arguments or [], out, dry_run, as_json, quiet), debug)


@app.command()
def resume(
    run_dir: RunDir,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Go on with a run from its newest checkpoint, to the same bits as without a break.

    A run that is completed is left as it is.

    Example: fedopt resume runs/scaffold
    """
    guarded(lambda: _resume(run_dir, as_json, quiet), debug)


@app.command()
def verify(
    run_dir: RunDir,
    rounds: Annotated[
        str | None, typer.Option("--rounds", help="A-B, the rounds to compare (default: all)")
    ] = None,
    from_round: Annotated[
        int | None, typer.Option("--from-round", help="compare from this round on")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="inline or ray")] = "inline",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute a run again and compare the model of every round; exit code 1 where one differs.

    Nothing is written. Some rounds alone are computed from the newest checkpoint before them.

    Example: fedopt verify runs/scaffold --from-round 100
    """
    guarded(lambda: _verify(run_dir, rounds, from_round, engine, as_json, quiet), debug)


@app.command()
def replay(
    run_dir: RunDir,
    round: Annotated[int, typer.Option("--round", help="communication round, from 1")],
    client: Annotated[int, typer.Option("--client", help="id of a client of that round")],
    use_pdb: Annotated[
        bool,
        typer.Option("--pdb", help="debug: where it fails, or from its first line if it does not"),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Train one client of one round again, alone and in this process; exit code 1 where it fails.

    Example: fedopt replay runs/scaffold --round 12 --client 7 --pdb
    """
    guarded(lambda: _replay(run_dir, round, client, use_pdb, as_json), debug)


@app.command()
def timeline(
    run_dir: RunDir,
    rounds: Annotated[
        str, typer.Option("--rounds", help="A-B, the rounds whose clients are drawn")
    ] = "1-3",
    out: Annotated[Path, typer.Option("--out", help="the figure; .png, .svg or .pdf")] = Path(
        "timeline.png"
    ),
    debug: Debug = False,
) -> None:
    """Draw who did what when on the virtual clock, as a Gantt chart.

    Example: fedopt timeline runs/deadline --rounds 1-5 --out timeline.png
    """
    guarded(lambda: _timeline(run_dir, rounds, out), debug)


@app.command("lr-range")
def lr_range(
    arguments: Arguments = None,
    low: Annotated[float, typer.Option("--low", help="learning rate of the first round, > 0")] = (
        1e-4
    ),
    high: Annotated[float, typer.Option("--high", help="that of the last, > low")] = 10.0,
    rounds: Annotated[int, typer.Option("--rounds", help="communication rounds, >= 3")] = 60,
    out: Annotated[Path, typer.Option("--out", help="the figure; .png, .svg or .pdf")] = Path(
        "lr_range.png"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find learning rates: train at a rate that grows from round to round, draw the loss.

    Proposes bounds for cyclical and 1Cycle schedules (Smith 2017).

    Example: fedopt lr-range strategy=scaffold --low 1e-3 --high 5
    """
    guarded(lambda: _lr_range(arguments or [], low, high, rounds, out, as_json, quiet), debug)


@app.command()
def schedule(
    arguments: Arguments = None,
    out: Annotated[Path, typer.Option("--out", help="the figure; .png, .svg or .pdf")] = Path(
        "schedule.png"
    ),
    debug: Debug = False,
) -> None:
    """Draw the learning rate, and the momentum where it is cycled, of a configuration's run.

    Example: fedopt schedule local.schedule=one_cycle local.schedule.scope=across rounds=50
    """
    guarded(lambda: _schedule(arguments or [], out), debug)


@app.command()
def demo(
    rounds: Annotated[int, typer.Option("--rounds", help="communication rounds, >= 1")] = 200,
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the results (default: runs/demo-...)")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", help="ray or inline")] = "ray",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare FedAvg, FedProx and SCAFFOLD on non-IID handwritten digits.

    Example: fedopt demo --rounds 50
    """
    guarded(lambda: _demo(rounds, out, engine, as_json, quiet), debug)


@app.command()
def search(
    arguments: Arguments = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="folder of all stages; that of an interrupted search goes on"),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search an architecture, retrain it from scratch, and compare it with random ones.

    The model is a supernet; clients split their data between weights and architecture (FedNAS),
    and any strategy averages both. Random architectures of the same space get the same rounds.

    Example: fedopt search simulations/search/digits.toml --out runs/search
    """
    guarded(lambda: _search(arguments or [], out, as_json, quiet), debug)


MODULES: tuple[str, ...] = (
    "plot",
    "compare",
    "sweep",
    "ablate",
    "reproduce",
    "report",
    "watch",
    "dashboard",
    "export",
    "deploy",
    "list",
    "explain",
    "doctor",
    "init",
)
"""Modules of `fedopt.commands`; each has `register(app)`."""

for _name in MODULES:
    importlib.import_module(f"fedopt.commands.{_name}").register(app)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # models and losses by path come from where the user is
    app()


def _run(arguments: list[str], out: Path | None, dry_run: bool, as_json: bool, quiet: bool) -> None:
    config = configuration(arguments)
    if out is not None:
        check_out(out)
    from fedopt.analysis.progress import make_progress
    from fedopt.analysis.store import default_directory
    from fedopt.experiment import Experiment
    from fedopt.registry import get

    experiment = Experiment.from_config(config)
    get("engines", config.engine.name).load().check(experiment)
    if dry_run:
        from fedopt.run import preview

        facts = preview(experiment)
        typer.echo(json.dumps(facts, indent=2) if as_json else _preview_text(facts, config))
        return
    from fedopt.run import execute, run_words

    directory = out or default_directory("runs", run_words(config))
    finished = execute(experiment, directory, make_progress(quiet, sys.stderr))
    show_summary(finished.summary, as_json, quiet)


def _resume(run_dir: Path, as_json: bool, quiet: bool) -> None:
    from fedopt.analysis.deployed import check_simulated
    from fedopt.analysis.progress import make_progress
    from fedopt.analysis.store import SUMMARY_FILE, check_resumable, read_history, read_summary
    from fedopt.config import load

    check_resumable(run_dir)
    check_simulated(run_dir)
    read_history(run_dir)
    summary = read_summary(run_dir) if (run_dir / SUMMARY_FILE).exists() else {}
    if summary.get("status") == "completed":
        typer.echo(f"{run_dir} is completed; nothing is left to do", err=True)
        show_summary(summary, as_json, quiet)
        return
    from fedopt.experiment import Experiment
    from fedopt.run import execute

    experiment = Experiment.from_config(load(run_dir / "config.toml"))
    progress = make_progress(quiet, sys.stderr)
    finished = execute(experiment, run_dir, progress, resume=True)
    show_summary(finished.summary, as_json, quiet)


def _verify(
    run_dir: Path,
    rounds: str | None,
    from_round: int | None,
    engine: str,
    as_json: bool,
    quiet: bool,
) -> None:
    if engine not in ("inline", "ray"):
        raise unknown_name("--engine", engine, ("inline", "ray"))
    from fedopt.verify import verify as compare

    def shows(round: int, last: int) -> None:
        if not quiet and sys.stderr.isatty():
            typer.echo(f"\rround {round}/{last}", err=True, nl=round == last)

    found = compare(run_dir, rounds, from_round, engine, shows)
    if as_json:
        typer.echo(json.dumps({**vars(found), "is_equal": found.is_equal}, indent=2))
    else:
        typer.echo(found.text())
    if not found.is_equal:
        raise typer.Exit(1)


def _replay(run_dir: Path, round: int, client: int, use_pdb: bool, as_json: bool) -> None:
    from fedopt.replay import Replay

    with Replay(run_dir, round, client) as ready:
        if use_pdb:
            _debug(ready.train)
            return
        found = ready.train()
    typer.echo(json.dumps(_finite(found.facts()), indent=2) if as_json else found.text())
    if found.reason is not None:
        raise typer.Exit(1)


def _debug(train: Callable[..., Any]) -> None:
    """Enter the debugger where a training fails; one that does not is entered at its first line."""
    import bdb
    import pdb
    import traceback

    try:
        typer.echo(train(raises=True).text())
    except Exception:
        traceback.print_exc()
        pdb.post_mortem()
        raise typer.Exit(1) from None
    with contextlib.suppress(bdb.BdbQuit):
        pdb.runcall(train, raises=True)


def _finite(value: Any) -> Any:
    """Return plain values with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _timeline(run_dir: Path, rounds: str, out: Path) -> None:
    from fedopt.analysis.plots import save_figure
    from fedopt.analysis.store import read_clients, read_history
    from fedopt.analysis.timeline import timeline_figure
    from fedopt.validation import round_span

    first, last = round_span(rounds, "--rounds")
    clients, history = read_clients(run_dir), read_history(run_dir)
    figure = timeline_figure(clients, history, first, last, title=run_dir.resolve().name)
    typer.echo(str(save_figure(figure, out)))


def _lr_range(
    arguments: list[str],
    low: float,
    high: float,
    rounds: int,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    config = configuration(arguments)
    from fedopt.analysis.plots import save_figure
    from fedopt.analysis.progress import make_progress
    from fedopt.lr_range import range_test

    found = range_test(config, low, high, rounds, make_progress(quiet, sys.stderr))
    figure = save_figure(found.figure(), out)
    if as_json:
        typer.echo(json.dumps(found.facts(), indent=2))
        return
    typer.echo(found.text())
    typer.echo(f"plot: {figure}")


def _schedule(arguments: list[str], out: Path) -> None:
    config = configuration(arguments)
    from fedopt.analysis.plots import save_figure
    from fedopt.experiment import Experiment
    from fedopt.schedule_figure import draw_schedule

    typer.echo(str(save_figure(draw_schedule(Experiment.from_config(config)), out)))


def _demo(rounds: int, out: Path | None, engine: str, as_json: bool, quiet: bool) -> None:
    if out is not None:
        check_out(out)
    from fedopt.demo import run_demo

    finished = run_demo(rounds, out, engine, quiet, sys.stderr)
    if as_json:
        typer.echo(json.dumps(finished.facts(), indent=2))
        return
    from rich.console import Console

    Console().print(finished.table())
    for figure in finished.figures:
        typer.echo(f"plot:    {figure}")
    typer.echo(f"results: {finished.directory}")


def _search(arguments: list[str], out: Path | None, as_json: bool, quiet: bool) -> None:
    config = configuration(arguments)
    from fedopt.analysis.progress import make_progress
    from fedopt.analysis.store import default_directory
    from fedopt.search_command import run_search

    directory = out or default_directory("runs", ["search", config.data.name, f"s{config.seed}"])
    outcome = run_search(config, directory, make_progress(quiet, sys.stderr))
    if as_json:
        typer.echo(json.dumps(outcome.facts(), indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("architecture", "test accuracy", "test loss", "parameters", "MB", "operations"):
        left = heading in ("architecture", "operations")
        table.add_column(heading, justify="left" if left else "right")
    ranked = sorted((outcome.found, *outcome.random), key=lambda c: -c.score)
    for candidate in ranked:
        accuracy = candidate.test_accuracy
        counts = candidate.genotype.operation_counts
        table.add_row(
            candidate.name,
            "" if accuracy is None else f"{accuracy:.4f}",
            f"{candidate.test_loss:.4f}",
            f"{candidate.parameters:,}",
            f"{candidate.bytes / 1e6:.1f}",
            ", ".join(f"{count} {name}" for name, count in counts.items()),
        )
    Console().print(table)
    if outcome.collapsed_at is not None:
        typer.echo(f"the search ended in round {outcome.collapsed_at}: too many skip connections")
    if outcome.median is not None:
        found, median = outcome.found.score, outcome.median
        word = "above" if found > median else ("equal to" if found == median else "below")
        typer.echo(
            f"found: {abs(found):.4f}, {word} the median {abs(median):.4f} of "
            f"{len(outcome.random)} random architectures (rank {outcome.rank} of "
            f"{1 + len(outcome.random)})"
        )
    typer.echo(f"results: {outcome.directory}")


def _preview_text(facts: dict[str, Any], config: Any) -> str:
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "config"]
    return "\n".join([config.to_toml(), *lines, "nothing was trained or written (--dry-run)"])
