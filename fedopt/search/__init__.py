"""Differentiable architecture search for any torch project: imports neither Flower nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CellSupernet": "cells",
    "DARTS_OPERATIONS": "operations",
    "DenseSupernet": "dense",
    "Genotype": "genotype",
    "MixedOp": "operations",
    "SearchSettings": "bilevel",
    "Supernet": "supernet",
    "architecture_gradient": "gradient",
    "draw_genotype": "picture",
    "finite_difference_gradient": "gradient",
    "random_genotype": "genotype",
    "search": "bilevel",
}
"""Public name -> the module it comes from, imported on first use."""

__all__ = [
    "DARTS_OPERATIONS",
    "CellSupernet",
    "DenseSupernet",
    "Genotype",
    "MixedOp",
    "SearchSettings",
    "Supernet",
    "architecture_gradient",
    "draw_genotype",
    "finite_difference_gradient",
    "random_genotype",
    "search",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"fedopt.search.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
