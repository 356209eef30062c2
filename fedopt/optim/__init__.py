"""Optimizers for any torch project: imports torch, but neither Flower nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "ASAM": "sam",
    "EKFAC": "kfac",
    "GradientTransforms": "transforms",
    "KFAC": "kfac",
    "RuleOptimizer": "adapter",
    "SAM": "sam",
    "Transformed": "transformed",
    "WeightAverage": "averaging",
    "create_optimizer": "adapter",
    "frozen_statistics": "sam",
    "list_optimizers": "adapter",
    "make_rule": "adapter",
    "update_batch_norm": "averaging",
}
"""Public name -> the module it comes from, imported on first use."""

__all__ = [
    "ASAM",
    "EKFAC",
    "KFAC",
    "SAM",
    "GradientTransforms",
    "RuleOptimizer",
    "Transformed",
    "WeightAverage",
    "create_optimizer",
    "frozen_statistics",
    "list_optimizers",
    "make_rule",
    "update_batch_norm",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"fedopt.optim.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
