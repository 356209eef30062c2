"""`fedopt compare`: what runs reached, what it cost them, and how they differ seed by seed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import AsJson, Debug, RunDirs, guarded
from fedopt.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    run_dirs: RunDirs,
    target: Annotated[
        str | None,
        typer.Option("--target", help="METRIC=VALUE, such as test_accuracy=0.9: what it cost"),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help="a column of rounds.csv; may be repeated (default: that of the target, or "
            "test_accuracy)",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="group or run that others are compared with (the first)"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0,
            help="a simulated against a real run: relative difference of a metric (0.001)",
        ),
    ] = None,
    devices: Annotated[
        Path | None,
        typer.Option("--devices", help="write devices fitted to a real run's clients, CSV"),
    ] = None,
    by_run: Annotated[
        bool, typer.Option("--by-run", help="each run for itself, in place of means over seeds")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV: a row a group")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown tables")] = False,
    as_latex: Annotated[
        bool, typer.Option("--latex", help="print LaTeX tables (package booktabs)")
    ] = False,
    debug: Debug = False,
) -> None:
    """Compare runs: final and best values, and rounds, bytes, steps and seconds to a target.

    Runs that differ in the seed alone are a group, of which means with 95 % t intervals are given,
    and paired differences to the first group. A simulated and a real run (fedopt deploy) of one
    configuration are compared round by round as well.

    Example: fedopt compare runs/fedavg runs/scaffold --target test_accuracy=0.9
    """
    formats = {
        "--json": as_json,
        "--csv": as_csv,
        "--markdown": as_markdown,
        "--latex": as_latex,
    }
    guarded(
        lambda: _compare(run_dirs, target, metric, reference, by_run, formats, tolerance, devices),
        debug,
    )


def _compare(
    run_dirs: list[Path],
    target: str | None,
    metric: list[str] | None,
    reference: str | None,
    by_run: bool,
    formats: dict[str, bool],
    tolerance: float | None,
    devices: Path | None,
) -> None:
    asked = [name for name, is_asked in formats.items() if is_asked]
    if len(asked) > 1:
        raise ConfigError(f"got {' and '.join(asked)}; one format at a time")
    from fedopt.analysis.comparison import comparison
    from fedopt.analysis.comparison_tables import group_records, sections_of
    from fedopt.analysis.deployed import TOLERANCE, compare_deployed, pair_of
    from fedopt.analysis.groups import group_runs, read_stored, run_folders
    from fedopt.analysis.sections import print_sections
    from fedopt.analysis.store import to_json
    from fedopt.analysis.targets import Target

    deployed = None
    pair = pair_of(run_dirs)
    if pair is not None:
        deployed = compare_deployed(*pair, TOLERANCE if tolerance is None else tolerance)
    elif tolerance is not None:
        raise ConfigError("needs two folders, a simulated run and a real one", key="--tolerance")
    if devices is not None:
        typer.echo(_fitted(run_dirs, devices), err=True)
    goal = Target.parse(target) if target else None
    metrics = metric or [goal.metric if goal else "test_accuracy"]
    folders, notes = run_folders(run_dirs)
    for note in notes:
        typer.echo(note, err=True)
    groups = group_runs([read_stored(folder) for folder in folders], not by_run)
    found = comparison(groups, metrics, goal, reference)
    sections = sections_of(found)
    match asked:
        case ["--json"]:
            plain = {
                "metrics": list(found.metrics),
                "target": str(goal) if goal else None,
                "reference": found.reference.label,
                **{section.name: section.data for section in sections},
                **({} if deployed is None else {"deployment": deployed.plain()}),
            }
            typer.echo(to_json(plain), nl=False)
        case ["--csv"]:
            import pandas as pd

            typer.echo(pd.DataFrame(group_records(found)).to_csv(index=False), nl=False)
        case ["--markdown"]:
            typer.echo("\n".join(section.markdown() for section in sections), nl=False)
        case ["--latex"]:
            typer.echo("\n".join(section.latex() for section in sections), nl=False)
        case _:
            print_sections(sections, sys.stdout)
            if deployed is not None:
                typer.echo("\n".join(["", *deployed.lines()]))


def _fitted(run_dirs: list[Path], path: Path) -> str:
    """Write the devices of the one real run among some folders; return what was found."""
    from fedopt.analysis.deployed import fit_devices, is_deployed, write_devices

    real = [directory for directory in run_dirs if is_deployed(directory)]
    if len(real) != 1:
        raise ConfigError(f"needs one run on real clients, got {len(real)}", key="--devices")
    found = fit_devices(real[0])
    write_devices(found, path)
    return f"{found.to_string(index=False)}\n{path}: devices for system.devices.name=file"
