"""The server's side: strategies, aggregation, client state, checkpoints, evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.server.adaptive import FedAdagrad, FedAdam, FedAvgM, FedYogi
    from fedopt.server.centralised import Centralised
    from fedopt.server.fedavg import FedAvg
    from fedopt.server.feddyn import FedDyn
    from fedopt.server.fednova import FedNova
    from fedopt.server.fedpm import FedPm
    from fedopt.server.fedprox import FedProx
    from fedopt.server.mimelite import MimeLite
    from fedopt.server.mofedsam import MoFedSam
    from fedopt.server.personal import Ditto, FedBn, FedPer, FedRep, LocalOnly
    from fedopt.server.qffl import QFedAvg
    from fedopt.server.robust import Krum, Median, Rfa, TrimmedMean
    from fedopt.server.rounds import Federation
    from fedopt.server.scaffold import Scaffold
    from fedopt.server.strategy import FederatedStrategy

__all__ = [
    "Centralised",
    "Ditto",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedBn",
    "FedDyn",
    "FedNova",
    "FedPer",
    "FedPm",
    "FedProx",
    "FedRep",
    "FedYogi",
    "FederatedStrategy",
    "Federation",
    "Krum",
    "LocalOnly",
    "Median",
    "MimeLite",
    "MoFedSam",
    "QFedAvg",
    "Rfa",
    "Scaffold",
    "TrimmedMean",
]

_MODULES = {
    "Centralised": "centralised",
    "Ditto": "personal",
    "FedAdagrad": "adaptive",
    "FedAdam": "adaptive",
    "FedAvg": "fedavg",
    "FedAvgM": "adaptive",
    "FedBn": "personal",
    "FedDyn": "feddyn",
    "FedNova": "fednova",
    "FedPer": "personal",
    "FedPm": "fedpm",
    "FedProx": "fedprox",
    "FedRep": "personal",
    "FedYogi": "adaptive",
    "FederatedStrategy": "strategy",
    "Federation": "rounds",
    "Krum": "robust",
    "LocalOnly": "personal",
    "Median": "robust",
    "MimeLite": "mimelite",
    "MoFedSam": "mofedsam",
    "QFedAvg": "qffl",
    "Rfa": "robust",
    "Scaffold": "scaffold",
    "TrimmedMean": "robust",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"fedopt.server.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
