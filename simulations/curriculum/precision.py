"""How clean is what self-paced learning selects, where 40 % of the labels are wrong.

    python simulations/curriculum/precision.py [--seeds 5]

Runs the arm "hard" of the study self_paced, and measures after some rounds, over all clients, the
share of right labels among the examples below the client's threshold: the half of its losses under
the server's model. Chance is the share of right labels among all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedopt.client.curriculum import Pace
from fedopt.client.scoring import ExampleScorer
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.run import simulate

HERE = Path(__file__).parent
ROUNDS = (1, 5, 10, 20, 40)
PACE = Pace(threshold=None, quantile=0.5, quantile_step=0.0)
WORDS = ("name=hard", "quantile=0.5", "quantile_step=0")


def precisions(seed: int) -> tuple[list[float], float]:
    """Return the share of right labels among what is selected after each round, and among all."""
    words = [f"seed={seed}", "local.optimizer.lr=0.3", "evaluation.every=40"]
    words += [f"local.self_paced.{word}" for word in WORDS]
    path = HERE / "self_paced.toml"
    run = simulate(load(path, words), keep_parameters=True)
    noisy = Experiment.from_config(load(path, words))
    clean = Experiment.from_config(load(path, [*words, "data.label_noise=0"])).population
    scorer = ExampleScorer(noisy.build_model(), noisy.loss, torch.device("cpu"))
    found, right_of_all = [], []
    for round in ROUNDS:
        state = scorer.layout.state(run.parameters(round))
        right: list[np.ndarray] = []
        for client in np.flatnonzero(noisy.population.sizes):
            examples = noisy.population.train(int(client))
            is_right = examples.y == clean.train(int(client)).y
            losses = scorer.losses(state, examples)
            selected = losses < PACE.threshold_of(losses, 1)
            right.append(is_right[selected.numpy()])
            if round == ROUNDS[0]:
                right_of_all.append(is_right)
        found.append(float(np.concatenate(right).mean()))
    return found, float(np.concatenate(right_of_all).mean())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds, >= 1 (default: 5)")
    given = parser.parse_args(arguments)
    results = [precisions(seed) for seed in range(given.seeds)]
    table = Table(box=SIMPLE)
    for heading in ("rounds", "precision, mean", "least", "most"):
        table.add_column(heading, justify="right")
    for place, round in enumerate(ROUNDS):
        values = [found[place] for found, _ in results]
        cells = (np.mean(values), min(values), max(values))
        table.add_row(str(round), *(f"{value:.3f}" for value in cells))
    chance = np.mean([base for _, base in results])
    print(f"share of right labels among the selected half; among all: {chance:.3f}")
    Console(width=80, highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
