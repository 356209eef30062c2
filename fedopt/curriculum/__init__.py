"""Curricula and self-paced learning for any torch project: imports neither Flower nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "CurriculumSampler": "sampler",
    "PACINGS": "pacing",
    "SELF_PACED": "self_paced",
    "available": "pacing",
    "difficulty_order": "ordering",
    "pacing_share": "pacing",
    "self_paced_regulariser": "self_paced",
    "self_paced_weights": "self_paced",
}
"""Public name -> the module it comes from, imported on first use."""

__all__ = [
    "PACINGS",
    "SELF_PACED",
    "CurriculumSampler",
    "available",
    "difficulty_order",
    "pacing_share",
    "self_paced_regulariser",
    "self_paced_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"fedopt.curriculum.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
