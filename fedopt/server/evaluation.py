"""Evaluation of a model on examples: loss, accuracy, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fedopt.analysis.metrics import classification_metrics
from fedopt.data.population import Examples
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout

if TYPE_CHECKING:
    from fedopt.experiment import Experiment


@dataclass(frozen=True)
class Measurement:
    """What was measured; NaN where it does not apply.

    Args:
        examples: number of examples.
        loss: mean loss.
        accuracy: share of examples whose highest output is their label, in [0, 1].
        ece: expected calibration error over 15 bins, in [0, 1] (cross-entropy only).
        brier: Brier score, in [0, 2] (cross-entropy only).
    """

    examples: int
    loss: float = math.nan
    accuracy: float = math.nan
    ece: float = math.nan
    brier: float = math.nan


class Evaluator:
    """Evaluates states of the experiment's model.

    Args:
        experiment: gives model, loss and batch size.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._device = torch.device(experiment.config.engine.device)
        self._bound = BoundModel(experiment.build_model(), self._device)
        self._bound.module.eval()
        self._loss = experiment.loss
        self._batch_size = experiment.config.evaluation.batch_size
        self._is_classification = experiment.population.classes is not None
        self._is_cross_entropy = self._loss is torch.nn.functional.cross_entropy

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the model's parameters."""
        return self._bound.layout

    @torch.no_grad()
    def measure(self, state: ModelState, examples: Examples) -> Measurement:
        """Evaluate the model with the values of `state` on some examples."""
        count = len(examples.y)
        if not count:
            return Measurement(0)
        self._bound.load(state)
        inputs, targets = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
        outputs, loss_sum = [], 0.0
        for first in range(0, count, self._batch_size):
            part = slice(first, first + self._batch_size)
            output = self._bound.module(inputs[part].to(self._device))
            batch_targets = targets[part].to(self._device)
            loss_sum += float(self._loss(output, batch_targets)) * len(batch_targets)
            if self._is_classification:
                outputs.append(output.cpu())
        if not outputs or outputs[0].dim() != 2:
            return Measurement(count, loss=loss_sum / count)
        logits = torch.cat(outputs)
        if not self._is_cross_entropy:
            accuracy = float((logits.argmax(1) == targets).double().mean())
            return Measurement(count, loss_sum / count, accuracy)
        if not torch.isfinite(logits).all():
            return Measurement(count, loss=math.inf)
        metrics = classification_metrics(logits, targets)
        return Measurement(
            count, metrics["loss"], metrics["accuracy"], metrics["ece"], metrics["brier"]
        )
