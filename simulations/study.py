"""What a study is, and how it is run: tune the learning rates, repeat over seeds, compare in pairs.

A study is data: arms (a TOML with a few `key=value` words, as on the command line of `fedopt run`),
measures and grids. The first arm is the reference that the others are compared with. The folders
beside this file hold the studies; each has a `run.py`:

    python simulations/first_order/run.py sam|swa|schedules [--seeds 5] [--out DIR] [--quick]

It prints the tables and writes results.csv (a line per arm and seed), intervals.csv, tuning.csv and
the figure. Learning rates are chosen on seeds of their own, which draw another split of the data,
another partition, other noise and another initial model than those that are reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedopt import simulate
from fedopt.analysis import PairedInterval, default_directory, paired_interval, save_figure
from fedopt.analysis.style import COLOURS, DASHES, DPI, HEIGHT, SMALL, TEXT, WIDTH, tidy
from fedopt.atomic import write_atomically
from fedopt.config import Config, load
from fedopt.errors import DivergenceError, FedoptError, NotFiniteError

FIRST_TUNING_SEED = 1000
WIDTH_OF_TABLES = 104  # characters


Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Arm:
    """What one line of the table is about.

    Args:
        name: name for people.
        overrides: words `key=value` that make the arm from the study's TOML.
        model: which model is measured: "last", the server's, or "averaged" (`server.swa`). Arms
            with the same overrides are two models of one run.
    """

    name: str
    overrides: tuple[str, ...] = ()
    model: Literal["last", "averaged"] = "last"

    def column(self, metric: str) -> str:
        """Return the column of `rounds.csv` that holds a metric of the arm's model."""
        return f"swa_{metric}" if self.model == "averaged" else metric


@dataclass(frozen=True)
class Measure:
    """A number that a run comes to.

    Args:
        name: name for people.
        metric: column of `rounds.csv`, of the last model.
        better: which direction is better.
        of: from the values of the rounds that were measured, indexed by round, to the number.
    """

    name: str
    metric: str
    better: Better
    of: Callable[[pd.Series[float]], float]

    def measure(self, history: pd.DataFrame, arm: Arm) -> float:
        """Return the number of an arm's model in a run."""
        values = history.set_index("round")[arm.column(self.metric)].dropna()
        return float(self.of(values))


def last(values: pd.Series[float]) -> float:
    """Return the value of the last round."""
    return float(values.iloc[-1])


def last_quarter(values: pd.Series[float]) -> pd.Series[float]:
    """Return the values of the last quarter of the rounds."""
    return values[values.index > 0.75 * values.index.max()]


FINAL_ACCURACY = Measure("final accuracy", "test_accuracy", "higher", last)
BEST_ACCURACY = Measure("best accuracy", "test_accuracy", "higher", lambda v: float(v.max()))
FINAL_NLL = Measure("final NLL", "test_loss", "lower", last)
FINAL_ECE = Measure("final ECE", "test_ece", "lower", last)
SHARPNESS = Measure("sharpness", "test_sharpness", "lower", last)
LATE_ACCURACY = Measure(
    "late accuracy",
    "test_accuracy",
    "higher",
    lambda v: float(last_quarter(v).mean()),
)
LATE_NLL = Measure("late NLL", "test_loss", "lower", lambda v: float(last_quarter(v).mean()))
LATE_DEVIATION = Measure(
    "late deviation",
    "test_accuracy",
    "lower",
    lambda v: float(last_quarter(v).std()),
)


@dataclass(frozen=True)
class Study:
    """A question, and how it is asked.

    Args:
        name: name on the command line, and of the TOML.
        title: what is compared, one line.
        arms: the first is the reference.
        measures: what is reported.
        rates: grid of learning rates, rising.
        tuned_by: what chooses a rate, on the tuning seeds.
        tuned_arms: "each" chooses a rate for each arm; "reference" uses the reference's for all.
        quick: overrides of all arms under `--quick`.
        population: makes the keywords of `fedopt.simulate` for data in memory, from the seed;
            None where the TOML says which data.
        curves: what the figure shows: column of `rounds.csv` and its label.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    rates: tuple[float, ...]
    tuned_by: Measure
    tuned_arms: Literal["each", "reference"]
    quick: tuple[str, ...]
    population: Callable[[int], dict[str, Any]] | None = None
    curves: tuple[tuple[str, str], ...] = (
        ("test_accuracy", "test accuracy"),
        ("test_loss", "test loss (NLL)"),
    )


@dataclass(frozen=True)
class Plan:
    """How much of a study is run.

    Args:
        study: the study.
        folder: where its TOML is.
        seeds: the seeds that are reported.
        tuning_seeds: the seeds on which learning rates are chosen.
        extra: words that are added to every arm.
    """

    study: Study
    folder: Path
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...]
    extra: tuple[str, ...] = ()

    def config(self, overrides: Sequence[str], rate: float, seed: int) -> Config:
        """Return the configuration of a run."""
        words = [*overrides, *self.extra, f"local.optimizer.lr={rate}", f"seed={seed}"]
        return load(self.folder / f"{self.study.name}.toml", words)


@dataclass(frozen=True)
class Outcome:
    """What a study came to.

    Args:
        plan: what was run.
        tuning: score of each arm that was tuned and each rate, mean over the tuning seeds.
        rates: the learning rate of each arm.
        histories: history of each arm and seed.
        values: number of each arm, measure and seed, the seeds in order.
    """

    plan: Plan
    tuning: Mapping[str, Mapping[float, float]]
    rates: Mapping[str, float]
    histories: Mapping[str, Sequence[pd.DataFrame]]
    values: Mapping[tuple[str, str], Sequence[float]]

    def interval(self, arm: Arm, measure: Measure) -> PairedInterval:
        """Return the interval of an arm's difference to the reference."""
        reference = self.plan.study.arms[0]
        return paired_interval(
            self.values[arm.name, measure.name], self.values[reference.name, measure.name]
        )


def plan_of(study: Study, folder: Path, seeds: int, quick: bool) -> Plan:
    """Return what is run of a study: all, or under `quick` as little as shows that it works."""
    tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + (1 if quick else 3))
    if quick:
        study = dataclasses.replace(study, rates=study.rates[1:3])
    extra = study.quick if quick else ()
    return Plan(
        study, folder, tuple(range(min(seeds, 2) if quick else seeds)), tuple(tuning), extra
    )


def run_study(plan: Plan, console: Console) -> Outcome:
    """Tune the arms, run them on the reported seeds and measure them.

    Raises:
        FedoptError: a run failed at the learning rate that was chosen.
    """
    study = plan.study

    @cache
    def history(overrides: tuple[str, ...], rate: float, seed: int) -> pd.DataFrame:
        """Return the rounds of a run; arms that differ only in the model share it."""
        console.print(f"seed {seed}, rate {rate:g}: {' '.join(overrides) or 'reference'}")
        data = study.population(seed) if study.population is not None else {}
        return simulate(plan.config(overrides, rate, seed), **data).history

    def score(arm: Arm, rate: float) -> float:
        """Return the mean over the tuning seeds; the worst there is, if a run diverged."""
        try:
            found = [
                study.tuned_by.measure(history(arm.overrides, rate, seed), arm)
                for seed in plan.tuning_seeds
            ]
        except (DivergenceError, NotFiniteError):
            return -math.inf if study.tuned_by.better == "higher" else math.inf
        return math.fsum(found) / len(found)

    tuned = study.arms if study.tuned_arms == "each" else study.arms[:1]
    tuning = {arm.name: {rate: score(arm, rate) for rate in study.rates} for arm in tuned}
    best = max if study.tuned_by.better == "higher" else min
    chosen = {name: best(scores, key=lambda rate: scores[rate]) for name, scores in tuning.items()}
    rates = {arm.name: chosen.get(arm.name, chosen[study.arms[0].name]) for arm in study.arms}
    histories = {
        arm.name: [history(arm.overrides, rates[arm.name], seed) for seed in plan.seeds]
        for arm in study.arms
    }
    values = {
        (arm.name, measure.name): [measure.measure(h, arm) for h in histories[arm.name]]
        for arm in study.arms
        for measure in study.measures
    }
    return Outcome(plan, tuning, rates, histories, values)


def verdict(interval: PairedInterval, measure: Measure) -> str:
    """Return what an interval says in words."""
    if not interval.excludes_zero:
        return "no difference shown"
    return "better" if (interval.mean > 0) == (measure.better == "higher") else "worse"


def tuning_table(outcome: Outcome) -> Table:
    """Return the scores of the learning rates; the chosen one of each arm is marked."""
    study = outcome.plan.study
    table = Table(box=SIMPLE)
    table.add_column("arm", no_wrap=True)
    for rate in study.rates:
        table.add_column(f"{rate:g}", justify="right")
    for name, scores in outcome.tuning.items():
        chosen = outcome.rates[name]
        cells = [
            f"{'*' if rate == chosen else ''}{value:.4f}" if math.isfinite(value) else "diverged"
            for rate, value in scores.items()
        ]
        table.add_row(name, *cells)
    return table


def result_table(outcome: Outcome) -> Table:
    """Return means, and the paired differences to the reference with their intervals."""
    study, seeds = outcome.plan.study, outcome.plan.seeds
    table = Table(box=SIMPLE)
    table.add_column("arm", no_wrap=True)
    for heading in ("rate", "mean", "difference", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("reading", no_wrap=True)
    for measure in study.measures:
        table.add_section()
        table.add_row(measure.name, "", "", "", "", f"{measure.better} is better")
        for arm in study.arms:
            mean = math.fsum(outcome.values[arm.name, measure.name]) / len(seeds)
            cells = [f"  {arm.name}", f"{outcome.rates[arm.name]:g}", f"{mean:.4f}"]
            if arm is study.arms[0]:
                table.add_row(*cells, "", "", "reference")
                continue
            found = outcome.interval(arm, measure)
            ends = f"{found.low:+.4f} to {found.high:+.4f}"
            table.add_row(*cells, f"{found.mean:+.4f}", ends, verdict(found, measure))
    return table


def report(outcome: Outcome) -> str:
    """Return the two tables as text, each under a line that says what it is."""
    plan = outcome.plan
    study, tuned = plan.study, ", ".join(map(str, plan.tuning_seeds))
    text = io.StringIO()
    console = Console(file=text, width=WIDTH_OF_TABLES, highlight=False)
    console.print(f"learning rates: {study.tuned_by.name}, mean over seeds {tuned} (* chosen)")
    console.print(tuning_table(outcome))
    console.print(study.title)
    console.print(f"{len(plan.seeds)} seeds; differences to: {study.arms[0].name}")
    console.print(result_table(outcome))
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def study_figure(outcome: Outcome) -> Figure:
    """Draw accuracy and loss against rounds: mean over the seeds, and one deviation around it.

    The vertical axes show what happens in the second half of the rounds.
    """
    study = outcome.plan.study
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07))
    for index, (metric, label) in enumerate(study.curves, start=1):
        axes = figure.add_subplot(1, len(study.curves), index)
        low, high = math.inf, -math.inf
        for place, arm in enumerate(study.arms):
            curves = [
                h.set_index("round")[arm.column(metric)].dropna()
                for h in outcome.histories[arm.name]
            ]
            values = np.array([curve.to_numpy() for curve in curves])
            rounds = curves[0].index.to_numpy()
            mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
            late = rounds > rounds[-1] / 2
            low = min(low, float((mean - deviation)[late].min()))
            high = max(high, float((mean + deviation)[late].max()))
            colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
            axes.fill_between(
                rounds,
                mean - deviation,
                mean + deviation,
                color=colour,
                alpha=0.13,
                linewidth=0,
                antialiased=False,
            )
            axes.plot(rounds, mean, color=colour, linestyle=dash, linewidth=1.2, label=arm.name)
        axes.set_xlabel("communication rounds", fontsize=TEXT)
        axes.set_ylabel(label, fontsize=TEXT)
        margin = 0.05 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
        tidy(axes)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=SMALL,
        frameon=False,
    )
    return figure


def write(outcome: Outcome, directory: Path) -> None:
    """Write results.csv, intervals.csv, tuning.csv and the figure, each in one step."""
    study, seeds = outcome.plan.study, outcome.plan.seeds
    results = [
        {"arm": arm.name, "seed": seed, "lr": outcome.rates[arm.name]}
        | {m.name: outcome.values[arm.name, m.name][place] for m in study.measures}
        for arm in study.arms
        for place, seed in enumerate(seeds)
    ]
    intervals = [
        {"arm": arm.name, "measure": measure.name, "better": measure.better}
        | dataclasses.asdict(outcome.interval(arm, measure))
        for measure in study.measures
        for arm in study.arms[1:]
    ]
    tuning = [
        {"arm": name, "lr": rate, study.tuned_by.name: value}
        for name, scores in outcome.tuning.items()
        for rate, value in scores.items()
    ]
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in (("results", results), ("intervals", intervals), ("tuning", tuning)):
        text = io.StringIO()
        pd.DataFrame(rows).to_csv(text, index=False)
        write_atomically(directory / f"{name}.csv", text.getvalue().encode())
    save_figure(study_figure(outcome), directory / f"study_{study.name}.png")


def main(studies: Mapping[str, Study], folder: Path, arguments: Sequence[str] | None = None) -> int:
    """Run the study of a folder that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(description="Run a study.")
    parser.add_argument("study", choices=studies, help="which study")
    parser.add_argument("--seeds", type=int, default=5, help="seeds reported, >= 2 (default: 5)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: a new one)")
    parser.add_argument(
        "--quick", action="store_true", help="a few rounds on two seeds: whether it works"
    )
    given = parser.parse_args(arguments)
    if given.seeds < 2:
        parser.error(f"--seeds: an interval needs at least 2 seeds, got {given.seeds}")
    directory = given.out or default_directory("runs", ["study", given.study])
    plan = plan_of(studies[given.study], folder, given.seeds, given.quick)
    try:
        outcome = run_study(plan, Console(stderr=True, highlight=False))
        write(outcome, directory)
    except FedoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report(outcome))
    print(f"results in {directory}", file=sys.stderr)
    return 0
