"""Compression of updates for any torch project: imports neither Flower nor Ray."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "QSGD": "quantisation",
    "Codec": "codecs",
    "Compressed": "codecs",
    "Identity": "codecs",
    "PowerSGD": "low_rank",
    "RandomK": "sparsification",
    "StochasticUniform": "quantisation",
    "TopK": "sparsification",
    "error_feedback": "codecs",
}
"""Public name -> the module it comes from, imported on first use."""

__all__ = [
    "QSGD",
    "Codec",
    "Compressed",
    "Identity",
    "PowerSGD",
    "RandomK",
    "StochasticUniform",
    "TopK",
    "error_feedback",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"fedopt.compression.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
