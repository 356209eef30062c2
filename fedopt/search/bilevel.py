"""Bilevel search: architecture steps on validation data, weight steps on training data, in turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedopt.optim.rules import Adam
from fedopt.search.genotype import Genotype
from fedopt.search.gradient import architecture_gradient, finite_difference_gradient
from fedopt.search.supernet import Supernet, split_names

Loss = Callable[[Tensor, Tensor], Tensor]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SearchSettings:
    """How the architecture is searched.

    Args:
        gradient: `second` differentiates exactly through the unrolled weight step, `first` takes
            the weights as they are, `finite` is the paper's finite difference.
        xi: learning rate of the unrolled step, >= 0; None for that of the weights.
        lr: of the architecture's Adam, > 0.
        beta1: of its first moment, in [0, 1).
        beta2: of its second moment, in [0, 1).
        weight_decay: L2 penalty on the architecture parameters, >= 0.
        validation_share: share of a client's examples for architecture steps, in (0, 1).
        skip_limit: skip connections of the normal cell at which the search ends, or None.

    Raises:
        ValueError: an option is out of range; the message names it.

    Source: Liu, Simonyan and Yang 2019 (DARTS), section 3 and its defaults; Liang et al. 2019
    (DARTS+), criterion 1 (skip_limit).
    """

    gradient: str = "second"
    xi: float | None = None
    lr: float = 3e-4
    beta1: float = 0.5
    beta2: float = 0.999
    weight_decay: float = 1e-3
    validation_share: float = 0.5
    skip_limit: int | None = None

    def __post_init__(self) -> None:
        if self.gradient not in ("second", "first", "finite"):
            raise ValueError(f'gradient must be second, first or finite, got "{self.gradient}"')
        if self.xi is not None and not self.xi >= 0:
            raise ValueError(f"xi must be >= 0, got {self.xi}")
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share must be in (0, 1), got {self.validation_share}")
        if self.skip_limit is not None and self.skip_limit < 1:
            raise ValueError(f"skip_limit must be >= 1, got {self.skip_limit}")

    @property
    def rule(self) -> Adam:
        """Adam for the architecture parameters."""
        return Adam(beta1=self.beta1, beta2=self.beta2, weight_decay=self.weight_decay)

    def has_collapsed(self, genotype: Genotype) -> bool:
        """Whether an architecture has as many skip connections as end the search."""
        return self.skip_limit is not None and genotype.skip_connections >= self.skip_limit


class Bilevel:
    """The losses of a supernet as functions of weights and architecture, and its gradients.

    Args:
        model: the supernet, or any module whose architecture parameters are named `alphas...`.
        loss: function of (output, target) that returns the batch mean.
        settings: how the architecture is searched.
    """

    def __init__(self, model: nn.Module, loss: Loss, settings: SearchSettings) -> None:
        self._model = model
        self._loss = loss
        self.settings = settings
        self.weight_names, self.alpha_names = split_names(model)

    def values(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return weights and architecture parameters by name, sharing the model's memory."""
        named = {name: p.detach() for name, p in self._model.named_parameters()}
        return (
            {name: named[name] for name in self.weight_names},
            {name: named[name] for name in self.alpha_names},
        )

    def loss_of(
        self, batch: Batch
    ) -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]:
        """Return the loss of a batch as a function of weights and architecture."""
        x, y = batch

        def value(weights: Mapping[str, Tensor], alphas: Mapping[str, Tensor]) -> Tensor:
            output = functional_call(self._model, {**weights, **alphas}, (x,))
            return self._loss(output, y)

        return value

    def architecture_gradient(self, train: Batch, val: Batch, lr: float) -> dict[str, Tensor]:
        """Return the gradient of the validation loss by the architecture parameters.

        Args:
            train: batch of the unrolled step.
            val: batch of the validation loss.
            lr: learning rate of the weights, for the unrolled step where `xi` is None.
        """
        settings = self.settings
        xi = lr if settings.xi is None else settings.xi
        weights, alphas = self.values()
        losses = self.loss_of(train), self.loss_of(val)
        if settings.gradient == "finite":
            found = finite_difference_gradient(*losses, weights, alphas, xi)
        else:
            order = 2 if settings.gradient == "second" else 1
            found = architecture_gradient(*losses, weights, alphas, xi, order)
        gradients: dict[str, Tensor] = found
        return gradients


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        genotype: the architecture: the last one, or the last before a collapse.
        history: of each epoch: losses, mean entropy, skip connections and operation counts.
        model: the supernet after the search.
        collapsed_at: epoch at which skip connections reached their limit, or None.
    """

    genotype: Genotype
    history: list[dict[str, object]]
    model: Supernet
    collapsed_at: int | None


def search(
    model: Supernet,
    loss: Loss,
    x: Tensor,
    y: Tensor,
    settings: SearchSettings | None = None,
    epochs: int = 50,
    batch_size: int = 64,
    lr: float = 0.025,
    momentum: float = 0.9,
    weight_decay: float = 3e-4,
    clip_norm: float | None = 5.0,
    seed: int = 0,
) -> SearchResult:
    """Search an architecture on data in memory; the model is copied.

    Each step takes an architecture step on a validation batch, then a weight step (SGD with
    momentum, at a rate that falls to 0 as a cosine over the epochs) on a training batch.

    Args:
        model: the supernet.
        loss: function of (output, target) that returns the batch mean.
        x: inputs, `[N, ...]`.
        y: targets, `[N, ...]`.
        settings: how the architecture is searched; None for the paper's defaults.
        epochs: passes over the training part, >= 1.
        batch_size: examples of a step, >= 1.
        lr: first learning rate of the weights, > 0.
        momentum: of the weights, in [0, 1).
        weight_decay: of the weights, >= 0.
        clip_norm: largest norm of the weights' gradient, or None.
        seed: of the split and the batches.

    Raises:
        ValueError: an option is out of range, or there are too few examples to split.

    Source: Liu, Simonyan and Yang 2019 (DARTS), algorithm 1 and section 3.1.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be >= 1, got {epochs} and {batch_size}")
    settings = settings or SearchSettings()
    model = copy.deepcopy(model).train()
    bilevel = Bilevel(model, loss, settings)
    train, val = split_examples(len(y), settings.validation_share, np.random.default_rng([seed, 0]))
    rng = np.random.default_rng([seed, 1])
    weights, alphas = bilevel.values()
    optimizer = torch.optim.SGD(
        [p for name, p in model.named_parameters() if name in weights],
        lr,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    rule, state = settings.rule, settings.rule.init(list(alphas.values()))
    history: list[dict[str, object]] = []
    best, collapsed_at = model.genotype(), None
    for epoch in range(1, epochs + 1):
        rate = lr * (1 + math.cos(math.pi * (epoch - 1) / epochs)) / 2
        optimizer.param_groups[0]["lr"] = rate
        losses = []
        for places in np.array_split(rng.permutation(train), max(1, len(train) // batch_size)):
            ours, theirs = _batch(x, y, places), _batch(x, y, rng.choice(val, len(places)))
            gradients = bilevel.architecture_gradient(ours, theirs, rate)
            rule.update(list(alphas.values()), list(gradients.values()), state, settings.lr)
            optimizer.zero_grad()
            value = loss(model(ours[0]), ours[1])
            value.backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip_norm)
            optimizer.step()
            losses.append(float(value))
        found = model.genotype()
        entropies = model.entropies()
        history.append(
            {
                "epoch": epoch,
                "train_loss": math.fsum(losses) / len(losses),
                "entropy": math.fsum(entropies.values()) / len(entropies),
                "skip_connections": found.skip_connections,
                **{f"entropy.{name}": value for name, value in entropies.items()},
                **{f"operations.{name}": n for name, n in found.operation_counts.items()},
            }
        )
        if settings.has_collapsed(found):
            collapsed_at = epoch
            break
        best = found
    return SearchResult(best, history, model, collapsed_at)


def split_examples(
    examples: int, validation_share: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions for weight steps and for architecture steps, at least one each.

    Raises:
        ValueError: there are fewer than two examples.
    """
    if examples < 2:
        raise ValueError(f"a search needs at least 2 examples to split, got {examples}")
    order = rng.permutation(examples)
    held = min(examples - 1, max(1, round(validation_share * examples)))
    return np.sort(order[held:]), np.sort(order[:held])


def _batch(x: Tensor, y: Tensor, places: np.ndarray) -> Batch:
    where = torch.from_numpy(places)
    return x[where], y[where]
