"""Which engine trains: a fixed rule of model, update rule and device, never of measured time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fedopt.client.curvature import kronecker_model
from fedopt.client.loop import LoopEngine
from fedopt.client.losses import Loss
from fedopt.client.recipe import Recipe
from fedopt.client.stacked import (
    NotStackableError,
    StackedEngine,
    check_stackable,
    group_size,
    is_fused,
)
from fedopt.client.trainer import Engine
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout

TWICE_DIFFERENTIABLE = 20_000
"""Parameters up to which clients are stacked on a CPU where the gradient is differentiated too."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a run.

    Args:
        name: `loop` or `stacked`.
        group_size: clients trained at once.
        parameters: P, the trained scalars of the model.
        reason: why, in a few words.
    """

    name: str
    group_size: int
    parameters: int
    reason: str


def choose_engine(
    training: str, model: nn.Module, recipe: Recipe, device: torch.device
) -> EngineChoice:
    """Return the engine for a model.

    Args:
        training: `auto`, `loop` or `stacked`.
        model: the model.
        recipe: how a step is taken.
        device: where to train.

    Raises:
        ConfigError: `stacked` is asked for, but a part of the model has no stacked form.
    """
    layout = ParameterLayout.of(model)
    rule = recipe.kronecker
    kronecker = kronecker_model(model, rule) if rule is not None else None
    size = group_size(layout, device, kronecker)

    def loop(reason: str) -> EngineChoice:
        return EngineChoice("loop", 1, layout.size, reason)

    def stacked(reason: str) -> EngineChoice:
        return EngineChoice("stacked", size, layout.size, reason)

    if training == "loop":
        return loop("asked for")
    try:
        check_stackable(model, kronecker)
    except NotStackableError as error:
        if training == "stacked":
            raise ConfigError(f'"stacked" cannot be used: {error}', key="engine.training") from None
        return loop(str(error))
    if training == "stacked":
        return stacked("asked for")
    if device.type != "cpu":
        return stacked("accelerators are kept busy by stacking")
    if any(isinstance(layer, nn.Conv2d) for layer in model.modules()):
        return loop("convolutions are faster one client at a time on a CPU")
    if size < 2:
        return loop(
            "two clients' parameters would not fit into the cache"
            if kronecker is None
            else "two clients' parameters and factors would not fit into the cache"
        )
    if is_fused(recipe):
        return stacked("dense layers, fused update")
    if recipe.penalty and layout.size > TWICE_DIFFERENTIABLE:
        return loop("the gradient is differentiated too, and the model is not small")
    return stacked("dense layers")


def build_engine(
    choice: EngineChoice,
    model: nn.Module,
    loss: Loss,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    precision: str = "full",
) -> Engine:
    """Return the chosen engine over a model."""
    kind = StackedEngine if choice.name == "stacked" else LoopEngine
    return kind(model, loss, recipe, seed, device, precision)
