"""How calibrated the final model of a run is, and its reliability diagram.

What is measured and drawn is defined in `fedopt.analysis`; here is on which examples: calibration
on the test set, the temperature on validation splits of clients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedopt.analysis.calibration import Calibration, measure_calibration
from fedopt.analysis.metrics import ReliabilityBins, reliability
from fedopt.data.population import Examples, Population
from fedopt.data.site_population import RemotePopulation
from fedopt.experiment import Experiment
from fedopt.models.layout import ModelState
from fedopt.seeds import generator
from fedopt.server.evaluation import Evaluator

MOST_CLIENTS = 200
"""Most clients whose validation splits the temperature is fitted on."""
MOST_EXAMPLES = 10_000
"""Most of their examples."""


@dataclass(frozen=True)
class FinalCalibration:
    """Calibration of a run's final model.

    Args:
        values: the measured values, None where they are not available.
        logits: the model's outputs `[N, C]` on the test set; None where there is no calibration:
            regression, another loss than cross-entropy, no test set, outputs that are not finite.
        targets: the test set's classes `[N]`, or None.
    """

    values: Calibration = field(default_factory=Calibration)
    logits: Tensor | None = None
    targets: Tensor | None = None


def final_calibration(
    experiment: Experiment, evaluator: Evaluator, state: ModelState, test: Examples | None
) -> FinalCalibration:
    """Measure the calibration of a model: one pass over the test set and a bounded sample.

    Args:
        experiment: gives the clients and the seed.
        evaluator: evaluates the model.
        state: the model's values.
        test: the test set, if there is one.
    """
    logits = evaluator.logits(state, test) if test is not None else None
    if test is None or logits is None:
        return FinalCalibration()
    examples = validation_sample(experiment.population, experiment.config.seed)
    outputs = evaluator.logits(state, examples) if examples is not None else None
    held_out = None
    if examples is not None and outputs is not None:
        held_out = (outputs, torch.from_numpy(examples.y))
    targets = torch.from_numpy(test.y)
    return FinalCalibration(measure_calibration(logits, targets, held_out), logits, targets)


def draw_reliability(experiment: Experiment, found: FinalCalibration, path: Path) -> None:
    """Write the reliability diagram of a run's final model; nothing where there is none."""
    if found.logits is None or found.targets is None:
        return
    from fedopt.analysis.calibration_plots import reliability_figure
    from fedopt.analysis.plots import save_figure

    config = experiment.config
    title = (
        f"{config.strategy.name} on {config.data.name}\n"
        f"after {config.rounds} round{'' if config.rounds == 1 else 's'}, "
        f"{len(found.targets):,} test examples"
    )
    save_figure(reliability_figure(found.logits, found.targets, found.values, title), path)


def reliability_facts(found: FinalCalibration) -> dict[str, object] | None:
    """Return the bins of the reliability diagram as plain values; None where there is none.

    Returns:
        `edges`, `counts`, `accuracy` and `confidence` of the bins (NaN in empty ones), and
        `scaled`, the same after temperature scaling, or None.
    """
    if found.logits is None or found.targets is None:
        return None
    logits, temperature = found.logits.double(), found.values.temperature
    scaled = None
    if temperature is not None:
        scaled = _bins(reliability((logits / temperature).softmax(dim=1), found.targets))
    return {**_bins(reliability(logits.softmax(dim=1), found.targets)), "scaled": scaled}


def _bins(bins: ReliabilityBins) -> dict[str, object]:
    names = ("edges", "counts", "accuracy", "confidence")
    return {name: getattr(bins, name).tolist() for name in names}


def validation_sample(population: Population, seed: int) -> Examples | None:
    """Return validation examples of clients that are drawn by the seed.

    Args:
        population: the clients.
        seed: the run's seed.

    Returns:
        The examples of at most `MOST_CLIENTS` clients in the order of the clients, cut at
        `MOST_EXAMPLES`; None where there are none.
    """
    other: object = population
    if not population.has_validation or isinstance(other, RemotePopulation):
        return None  # real clients keep their examples
    eligible = np.flatnonzero(population.sizes)
    count = min(MOST_CLIENTS, len(eligible))
    drawn = generator(seed, "temperature").choice(eligible, count, replace=False, shuffle=False)
    parts: list[Examples] = []
    left = MOST_EXAMPLES
    for client in np.sort(drawn).tolist():
        part = population.validation(client)
        if part.size and left:
            parts.append(Examples(part.x[:left], part.y[:left]))
            left -= parts[-1].size
    if not parts:
        return None
    return Examples(np.concatenate([p.x for p in parts]), np.concatenate([p.y for p in parts]))
