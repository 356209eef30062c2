"""Optimizers for any torch project: imports torch, but neither Flower nor Ray."""

from __future__ import annotations

from typing import Any

__all__ = ["RuleOptimizer", "create_optimizer", "list_optimizers", "make_rule"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from fedopt.optim import adapter

        return getattr(adapter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
