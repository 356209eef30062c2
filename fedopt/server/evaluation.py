"""Evaluation of a model on examples: loss, accuracy, calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedopt.analysis.metrics import classification_metrics
from fedopt.client.messages import content_of
from fedopt.data.population import Examples
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout
from fedopt.records import from_record, integers, numbers, to_record

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


@dataclass(frozen=True)
class BatchOutput:
    """What the evaluation of one batch gave.

    Args:
        batch: its number.
        loss_sum: sum of the losses of its examples.
        logits: the model's output `[B, classes]` on the CPU; None for regression.
    """

    batch: int
    loss_sum: float
    logits: Tensor | None


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

    def batches(self, examples: Examples) -> int:
        """Return the number of batches that some examples are evaluated in."""
        return -(-len(examples.y) // self._batch_size)

    def measure(self, state: ModelState, examples: Examples) -> Measurement:
        """Evaluate the model with the values of `state` on some examples."""
        outputs = self.outputs(state, examples, range(self.batches(examples)))
        return self.combine(outputs, examples)

    @torch.no_grad()
    def outputs(
        self, state: ModelState, examples: Examples, batches: Iterable[int]
    ) -> list[BatchOutput]:
        """Return loss and outputs of some batches; each is the same wherever it is evaluated."""
        self._bound.load(state)
        inputs, targets = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
        found = []
        for batch in batches:
            part = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            output = self._bound.module(inputs[part].to(self._device))
            batch_targets = targets[part].to(self._device)
            loss_sum = float(self._loss(output, batch_targets)) * len(batch_targets)
            is_kept = self._is_classification and output.dim() == 2
            found.append(BatchOutput(batch, loss_sum, output.cpu() if is_kept else None))
        return found

    def combine(self, outputs: Sequence[BatchOutput], examples: Examples) -> Measurement:
        """Return what all batches of some examples come to."""
        count = len(examples.y)
        if not count:
            return Measurement(0)
        ordered = sorted(outputs, key=lambda output: output.batch)
        loss = math.fsum(output.loss_sum for output in ordered) / count
        kept = [output.logits for output in ordered if output.logits is not None]
        if not kept:
            return Measurement(count, loss=loss)
        logits, targets = torch.cat(kept), torch.from_numpy(examples.y)
        if not self._is_cross_entropy:
            accuracy = float((logits.argmax(1) == targets).double().mean())
            return Measurement(count, loss, accuracy)
        if not torch.isfinite(logits).all():
            return Measurement(count, loss=math.inf)
        metrics = classification_metrics(logits, targets)
        return Measurement(
            count, metrics["loss"], metrics["accuracy"], metrics["ece"], metrics["brier"]
        )


def measure_on_grid(
    grid: Grid, evaluator: Evaluator, arrays: ArrayRecord, test: Examples, config: ConfigRecord
) -> Measurement:
    """Evaluate on the test set, its batches shared out over the nodes of a simulation.

    The batches are those of `Evaluator.measure`, so that the result has the same bits.
    """
    nodes = sorted(grid.get_node_ids())
    batches = list(range(evaluator.batches(test)))
    messages = []
    for position, node in enumerate(nodes[: len(batches)]):
        own = ConfigRecord(dict(config))
        own["batches"] = batches[position :: len(nodes)]
        content = RecordDict({"arrays": arrays, "config": own})
        messages.append(Message(content, dst_node_id=node, message_type="evaluate.test"))
    outputs = []
    for reply in grid.send_and_receive(messages):
        content = content_of(reply)
        record, logits = content["batches"], content.array_records["logits"]
        assert isinstance(record, ConfigRecord)
        tensors = from_record(logits)
        for batch, loss_sum in zip(
            integers(record, "batches"), numbers(record, "loss_sums"), strict=True
        ):
            outputs.append(BatchOutput(batch, loss_sum, tensors.get(str(batch))))
    return evaluator.combine(outputs, test)


def encode_outputs(outputs: Sequence[BatchOutput]) -> RecordDict:
    """Return the reply to an `evaluate.test` message."""
    logits = {str(o.batch): o.logits for o in outputs if o.logits is not None}
    batches = ConfigRecord(
        {
            "batches": [o.batch for o in outputs],
            "loss_sums": [o.loss_sum for o in outputs],
        }
    )
    return RecordDict({"batches": batches, "logits": to_record(logits)})
