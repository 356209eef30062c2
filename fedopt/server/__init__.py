"""The server's side: strategies, aggregation, client state, checkpoints, evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.server.fedavg import FedAvg
    from fedopt.server.fedprox import FedProx
    from fedopt.server.rounds import Federation
    from fedopt.server.scaffold import Scaffold
    from fedopt.server.strategy import FederatedStrategy

__all__ = ["FedAvg", "FedProx", "FederatedStrategy", "Federation", "Scaffold"]

_MODULES = {
    "FedAvg": "fedavg",
    "FedProx": "fedprox",
    "FederatedStrategy": "strategy",
    "Federation": "rounds",
    "Scaffold": "scaffold",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"fedopt.server.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
