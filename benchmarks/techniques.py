"""What each technique of local training costs, in both engines.

`python -m benchmarks.techniques` trains the cohorts of W1 and W3 with one technique after another
and prints the time of a client, and its ratio to plain SGD in the same engine. Contenders take
turns in one process; nothing is sent, so that the cost of the steps alone is seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.measuring import (
    Row,
    interleave,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from benchmarks.workloads import WORKLOADS, Workload, find
from fedopt.client.trainer import Block
from fedopt.memory import keep_freed_memory
from fedopt.recorder import model_state
from fedopt.run import in_memory

ROUNDS = {"W1": 12, "W3": 40}
WARM_UP = 3
PLAIN = "plain SGD"
TECHNIQUES: dict[str, Mapping[str, Any]] = {
    PLAIN: {},
    "SGD with momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    "Adam": {"optimizer": {"name": "adam", "lr": 1e-3}},
    "1Cycle, momentum cycled": {
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"name": "one_cycle"},
    },
    "SAM": {"sam": {"rho": 0.05}},
    "ASAM": {"sam": {"rho": 0.5, "adaptive": True}},
    "clipping": {"gradient": {"clip_norm": 1.0}},
    "skipping": {"gradient": {"skip_norm": 1e6}},
    "gradient noise": {"gradient": {"noise_eta": 1e-4}},
    "gradient penalty": {"gradient": {"penalty": 0.01}},
    "local SWA": {"swa": {"last_steps": 2}},
    "K-FAC": {"optimizer": {"name": "kfac", "lr": 0.01}},
    "K-FAC, factors every 10th": {
        "optimizer": {"name": "kfac", "lr": 0.01, "factor_every": 10, "inverse_every": 10}
    },
    "EKFAC": {"optimizer": {"name": "ekfac", "lr": 0.01}},
    "curriculum, loss": {"curriculum": {"name": "curriculum", "full_at": 0.5}},
    "self-paced": {"self_paced": {"name": "linear", "quantile": 0.5}},
    "SAM, Adam, clipping, noise, SWA": {
        "optimizer": {"name": "adam", "lr": 1e-3},
        "sam": {"rho": 0.05},
        "gradient": {"clip_norm": 1.0, "noise_eta": 1e-4},
        "swa": {"last_steps": 2},
    },
}


class Cohort:
    """Trains the same cohort again and again, with one technique in one engine.

    Args:
        name: for the table.
        workload: model, data and work.
        technique: what the `local` table has besides.
        training: the engine.
    """

    def __init__(
        self, name: str, workload: Workload, technique: Mapping[str, Any], training: str
    ) -> None:
        tree = workload.config(name="inline", training=training).dump()
        tree["local"] = {**tree["local"], **technique}
        experiment = in_memory(type(workload.config()).from_tree(tree), clients=workload.data())
        self.name = name
        self._trainer = experiment.trainer()
        self._start = model_state(experiment.build_model(), self._trainer.engine.layout)
        cohort = workload.cohort_of(1)
        steps = experiment.work.planned_steps(workload.examples)
        self._block = Block(0, cohort, [steps] * len(cohort))

    def round(self) -> None:
        """Train the cohort once."""
        outcome = self._trainer.train(1, [self._block], self._start, {}, None, 1)
        if outcome.failures:
            raise RuntimeError(outcome.failures[0].reason)

    def close(self) -> None:
        """Release nothing."""


def measure(workload: Workload, rounds: int) -> list[Row]:
    """Return a row a technique: microseconds a client and ratio to plain SGD, in both engines."""
    contenders = [
        Cohort(f"{training}: {name}", workload, technique, training)
        for name, technique in TECHNIQUES.items()
        for training in ("loop", "stacked")
    ]
    seconds, foreign = interleave(contenders, rounds, WARM_UP)
    medians = {name: quartiles(times)[1] / workload.cohort for name, times in seconds.items()}
    rows = []
    for name in TECHNIQUES:
        row: dict[str, object] = {"workload": workload.name, "technique": name}
        for training in ("loop", "stacked"):
            took = medians[f"{training}: {name}"]
            row[f"{training}, us"] = took * 1e6
            row[f"{training}, x"] = took / medians[f"{training}: {PLAIN}"]
        row["others, cores"] = foreign
        rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.techniques", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few clients and rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console = Console(width=120)
    warn_if_busy(console)
    facts = machine()
    rows: list[Row] = []
    for name, rounds in ROUNDS.items():
        workload = find(name, options.quick)
        found = measure(workload, 2 if options.quick else rounds)
        show(console, f"{name}, {WORKLOADS[name].description}", found)
        rows += found
    write_csv(options.out / "techniques.csv", rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
