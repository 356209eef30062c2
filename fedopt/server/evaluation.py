"""Evaluation of a model on examples: loss, accuracy, calibration, sharpness; over clients too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedopt.analysis.distribution import client_distribution
from fedopt.analysis.metrics import balanced_accuracy, classification_metrics
from fedopt.analysis.sharpness import sam_ball_increase, top_hessian_eigenvalue
from fedopt.client.gradients import mean_gradient
from fedopt.client.messages import content_of
from fedopt.data.population import Examples
from fedopt.models.batch_norm import Places, statistics_batches, statistics_places
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout
from fedopt.optim.averaging import update_batch_norm
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
        mce: maximum calibration error over 15 bins, in [0, 1] (cross-entropy only).
        brier: Brier score, in [0, 2] (cross-entropy only).
        balanced_accuracy: mean over the classes of their accuracies, in [0, 1].
        auroc: area under the receiver operating characteristic, in [0, 1] (cross-entropy and two
            classes only).
    """

    examples: int
    loss: float = math.nan
    accuracy: float = math.nan
    ece: float = math.nan
    mce: float = math.nan
    brier: float = math.nan
    balanced_accuracy: float = math.nan
    auroc: float = math.nan


@dataclass(frozen=True)
class Sharpness:
    """How sharp the loss is around a model; NaN where it is not finite.

    Args:
        eigenvalue: largest eigenvalue of the Hessian of the mean loss.
        ball_increase: rise of the mean loss under the ascent step of SAM.
    """

    eigenvalue: float = math.nan
    ball_increase: float = math.nan


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

    @cached_property
    def statistics(self) -> Places:
        """Where BatchNorm's running statistics lie among the model's buffers."""
        return statistics_places(self._bound.module, self.layout)

    def batch_statistics(self, state: ModelState, examples: Examples) -> Tensor:
        """Return the buffers `[Q]` with BatchNorm's statistics of some examples anew."""
        self._bound.load(state)
        inputs = statistics_batches(torch.from_numpy(examples.x), self._batch_size)
        update_batch_norm(self._bound.module, (part.to(self._device) for part in inputs))
        return self._bound.buffers()

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
            loss = self._loss(output, batch_targets)
            found.append(self._batch_output(batch, output, loss, len(batch_targets)))
        return found

    def _batch_output(self, batch: int, output: Tensor, loss: Tensor, size: int) -> BatchOutput:
        is_kept = self._is_classification and output.dim() == 2
        return BatchOutput(batch, float(loss) * size, output.cpu() if is_kept else None)

    def gradient(self, state: ModelState, examples: Examples) -> tuple[Measurement, Tensor]:
        """Return what `measure` does, and the gradient of the mean loss by the parameters.

        The model is in evaluation mode: statistics of BatchNorm are those of `state` and stay so,
        dropout does nothing. The batches are those of `measure`.

        Args:
            state: the model's values.
            examples: N >= 1 examples.

        Returns:
            The measurement, and the gradient `[P]` in float64, on the model's device.
        """
        self._bound.load(state)
        count, outputs = len(examples.y), []
        total = torch.zeros(self.layout.size, dtype=torch.float64, device=self._device)
        for batch in range(self.batches(examples)):
            part = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            inputs = torch.from_numpy(examples.x[part]).to(self._device)
            targets = torch.from_numpy(examples.y[part]).to(self._device)
            with self._differentiable():
                output, loss, slope = mean_gradient(self._bound, self._loss, inputs, targets)
            total.add_(slope.double(), alpha=len(targets) / count)
            outputs.append(self._batch_output(batch, output, loss, len(targets)))
        return self.combine(outputs, examples), total

    def _differentiable(self) -> AbstractContextManager[object]:
        """Return the context in which the model, in evaluation mode, has gradients."""
        parts = self._bound.module.modules()
        # cuDNN's recurrent layers have gradients in training mode alone, and no second ones.
        recurrent = any(isinstance(part, torch.nn.RNNBase) for part in parts)
        return torch.backends.cudnn.flags(enabled=not recurrent, deterministic=True)

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
            guesses = logits.argmax(1)
            accuracy = float((guesses == targets).double().mean())
            balanced = balanced_accuracy(guesses, targets)
            return Measurement(count, loss, accuracy, balanced_accuracy=balanced)
        if not torch.isfinite(logits).all():
            return Measurement(count, loss=math.inf)
        return Measurement(count, **classification_metrics(logits, targets))

    def logits(self, state: ModelState, examples: Examples) -> Tensor | None:
        """Return the outputs `[N, C]` on the CPU; None where they are not those of cross-entropy.

        Outputs that are not finite, and no examples, give None as well.
        """
        if not self._is_cross_entropy:
            return None
        found = self.outputs(state, examples, range(self.batches(examples)))
        kept = [output.logits for output in found if output.logits is not None]
        if not kept or not all(torch.isfinite(logits).all() for logits in kept):
            return None
        return torch.cat(kept)

    def sharpness(
        self, state: ModelState, examples: Examples, rho: float, generator: torch.Generator
    ) -> Sharpness:
        """Measure the sharpness of the mean loss around the values of `state`.

        The model is in evaluation mode: statistics of BatchNorm are those of `state`, dropout
        does nothing.

        Args:
            state: the model's values.
            examples: N >= 1 examples; their batches are those of `measure`.
            rho: radius of SAM's perturbation, > 0.
            generator: draws the start vector of the eigenvalue.
        """
        self._bound.load(state)
        module, parameters, count = self._bound.module, self._bound.parameters, len(examples.y)

        def mean_loss(batch: int) -> Tensor:
            part = slice(batch * self._batch_size, (batch + 1) * self._batch_size)
            inputs = torch.from_numpy(examples.x[part]).to(self._device)
            targets = torch.from_numpy(examples.y[part]).to(self._device)
            return self._loss(module(inputs), targets) * (len(targets) / count)

        terms = [partial(mean_loss, batch) for batch in range(self.batches(examples))]
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH), self._differentiable():
            return Sharpness(
                top_hessian_eigenvalue(terms, parameters, generator=generator),
                sam_ball_increase(terms, parameters, rho),
            )


def over_clients(
    rows: Sequence[tuple[int, float, float]], prefix: str = "validation"
) -> dict[str, float]:
    """Return the columns of `rounds.csv` that some clients' data come to.

    Args:
        rows: (examples, loss, accuracy) of each client that has such examples, at least one;
            accuracy is NaN in regression.
        prefix: of the columns: `validation`, or `unseen`.

    Returns:
        Loss and accuracy weighted by examples, that is over all examples together, and the
        distribution of the accuracies over the clients.
    """
    examples = sum(n for n, _, _ in rows)
    spread = client_distribution([accuracy for _, _, accuracy in rows])
    return {
        f"{prefix}_loss": math.fsum(n * loss for n, loss, _ in rows) / examples,
        f"{prefix}_accuracy": math.fsum(n * accuracy for n, _, accuracy in rows) / examples,
        f"{prefix}_accuracy_mean": spread.mean,
        f"{prefix}_accuracy_worst10": spread.worst10,
        f"{prefix}_accuracy_variance": spread.variance,
    }


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
