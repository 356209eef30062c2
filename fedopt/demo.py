"""The demo: FedAvg, FedProx and SCAFFOLD on the same non-IID clients, compared by rounds and bytes.

Three ordinary runs of one configuration that differ in the strategy alone, with one Ray for all
of them, and one figure and one table over the three. Nothing here is needed by other runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fedopt.analysis.plots import convergence_figure, save_figure
from fedopt.analysis.progress import make_progress
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.results import Run
from fedopt.run import execute
from fedopt.simulation.ray_grid import start_ray

if TYPE_CHECKING:
    from rich.table import Table

STRATEGIES = ("fedavg", "fedprox", "scaffold")
"""The strategies that are compared, each with its default options."""

TARGETS = (0.9, 0.95)
"""Test accuracies for which the rounds are counted, in [0, 1]."""

TASK: dict[str, Any] = {
    "seed": 0,
    "clients_per_round": 20,
    "data": {"name": "digits"},
    "partition": {"name": "dirichlet", "alpha": 0.1, "clients": 100},
    "model": {"name": "mlp", "hidden": [64]},
    "local": {"epochs": 5, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.1}},
}
"""The task, as a configuration: `simulations/digits.toml` is the same."""

TITLE = "digits, Dirichlet(0.1): 100 clients, 20 a round, 5 local epochs"


@dataclass(frozen=True)
class Demo:
    """What the demo left.

    Args:
        directory: folder of the three runs and the figures.
        figures: the comparison by rounds and by bytes.
        runs: the run of each strategy.
    """

    directory: Path
    figures: tuple[Path, ...]
    runs: Mapping[str, Run]

    def facts(self) -> dict[str, Any]:
        """Return what was measured, as plain values."""
        return {
            "run_dir": str(self.directory),
            "figures": [str(path) for path in self.figures],
            "runs": {name: _facts(run) for name, run in self.runs.items()},
        }

    def table(self) -> Table:
        """Return the comparison as a table for people."""
        from rich.table import Table

        table = Table(title=TITLE)
        table.add_column("strategy")
        heads = ("final accuracy", "best accuracy", *(f"rounds to {t}" for t in TARGETS), "MB sent")
        for head in heads:
            table.add_column(head, justify="right")
        for name, run in self.runs.items():
            facts = _facts(run)
            rounds = (facts["rounds_to"][str(target)] for target in TARGETS)
            table.add_row(
                name,
                f"{facts['final_test_accuracy']:.4f}",
                f"{facts['best_test_accuracy']:.4f}",
                *("-" if r is None else str(r) for r in rounds),
                f"{facts['bytes_sent'] / 1e6:.1f}",
            )
        return table


def run_demo(rounds: int, out: Path | None, engine: str, quiet: bool, stream: TextIO) -> Demo:
    """Run the three strategies one after another and draw them over each other.

    Args:
        rounds: communication rounds of each run, >= 1.
        out: folder of the results, new or empty; None makes `runs/demo-<timestamp>`.
        engine: "ray" or "inline".
        quiet: show no progress.
        stream: where the progress is shown.

    Raises:
        ConfigError: an argument is out of range.
        RunError: a run cannot go on.
    """
    configs = {
        name: load(None, **TASK, rounds=rounds, strategy={"name": name}, engine={"name": engine})
        for name in STRATEGIES
    }
    experiments = {name: Experiment.from_config(config) for name, config in configs.items()}
    directory = out or Path("runs") / datetime.now().strftime("demo-%Y-%m-%d_%H-%M-%S")
    owns_ray = engine == "ray" and start_ray(next(iter(experiments.values())))
    try:
        runs = {
            name: execute(experiment, directory / name, make_progress(quiet, stream))
            for name, experiment in experiments.items()
        }
    finally:
        if owns_ray:
            import ray

            ray.shutdown()
    histories = [(name, run.history) for name, run in runs.items()]
    figures = tuple(
        save_figure(convergence_figure(histories, x=x, title=TITLE), directory / f"{file}.png")
        for x, file in (("rounds", "comparison"), ("bytes", "comparison_bytes"))
    )
    return Demo(directory, figures, runs)


def rounds_to(run: Run, target: float) -> int | None:
    """Return the first round whose test accuracy is at least `target`, None if there is none."""
    history = run.history
    reached = history.loc[history["test_accuracy"] >= target, "round"]
    return int(reached.iloc[0]) if len(reached) else None


def _facts(run: Run) -> dict[str, Any]:
    final = run.summary["final"]
    return {
        "final_test_accuracy": final["test_accuracy"],
        "best_test_accuracy": run.summary["best"]["test_accuracy"]["value"],
        "rounds_to": {str(target): rounds_to(run, target) for target in TARGETS},
        "bytes_sent": final["bytes_up"] + final["bytes_down"],
        "wall_seconds": final["wall_seconds"],
        "model_sha256": run.summary["model_sha256"],
    }
