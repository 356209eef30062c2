"""fedopt: federated optimisation on Flower, Ray and PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.errors import ClientError, ConfigError, DataError, FedoptError
    from fedopt.run import Run, simulate

__version__ = "0.1.0"

__all__ = [
    "ClientError",
    "ConfigError",
    "DataError",
    "FedoptError",
    "Run",
    "__version__",
    "simulate",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("simulate", "Run"):
        return getattr(importlib.import_module("fedopt.run"), name)
    if name in ("ClientError", "ConfigError", "DataError", "FedoptError"):
        return getattr(importlib.import_module("fedopt.errors"), name)
    if name in ("analysis", "data", "optim", "server"):
        return importlib.import_module(f"fedopt.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
