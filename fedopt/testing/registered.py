"""What comes with fedopt, as subjects: every registered strategy, and the codecs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedopt.errors import did_you_mean
from fedopt.registry import entries
from fedopt.testing.fedopt_subject import FedoptSubject
from fedopt.testing.function_subject import FunctionSubject
from fedopt.testing.report import Report, certify
from fedopt.testing.subject import Subject

TABLES: dict[str, dict[str, Any]] = {
    "mofedsam": {"local": {"sam": {"rho": 0.05}}},
    "fedpm": {
        "local": {
            "optimizer": {"name": "kfac", "lr": 1.0, "damping": 1e-12, "fisher": "type-2"},
            "loss": "mse",
        }
    },
    "local_only": {
        "data": {"validation_fraction": 0.5},
        "evaluation": {"validation_clients": 1},
    },
}
"""Other tables of a run, for the strategies that need them."""


def strategies() -> dict[str, Subject]:
    """Return every registered strategy, claiming what it is, by name."""
    return {
        entry.name: FedoptSubject(entry.name, **TABLES.get(entry.name, {}))
        for entry in entries("strategies")
    }


def combinations() -> dict[str, Subject]:
    """Return federated averaging with what other tables of a configuration add, by name."""
    found: tuple[FedoptSubject, ...] = (
        FedoptSubject(
            "fedavg",
            kind=("fedavg", "server_optimizer"),
            name="fedavg+server_sgd",
            server={"optimizer": {"name": "sgd", "lr": 1.0}},
        ),
        FedoptSubject("fedavg", kind="fedavg", name="fedavg+fedbuff", policy="fedbuff"),
        FedoptSubject(
            "fedavg",
            kind=("compressed", "biased"),
            name="fedavg+top_k",
            uplink={"compression": {"name": "top_k", "share": 0.25}},
        ),
    )
    return {subject.name: subject for subject in found}


def codecs() -> dict[str, Subject]:
    """Return the codecs of `fedopt.compression`, claiming what they are, by name."""
    from fedopt.compression import QSGD, PowerSGD, RandomK, StochasticUniform, TopK

    kinds: Mapping[str, tuple[Any, str | tuple[str, ...]]] = {
        "TopK": (TopK(0.25), ("contraction", "biased")),
        "RandomK": (RandomK(0.25, scaled=False), "contraction"),
        "RandomK_scaled": (RandomK(0.25), "unbiased"),
        "PowerSGD": (PowerSGD(1), ("contraction", "biased")),
        "QSGD": (QSGD(4), "unbiased"),
        "StochasticUniform": (StochasticUniform(4), "unbiased"),
    }
    return {
        name: FunctionSubject(codec=codec, kind=kind, name=name)
        for name, (codec, kind) in kinds.items()
    }


def subjects() -> dict[str, Subject]:
    """Return everything that comes with fedopt, by name."""
    return {**strategies(), **combinations(), **codecs()}


def reports(names: Iterable[str] = ()) -> list[Report]:
    """Certify what comes with fedopt.

    Args:
        names: which of it; none: all.

    Raises:
        ValueError: a name is not known; with the allowed names and the nearest one.
    """
    known = subjects()
    wanted = list(names) or list(known)
    for name in wanted:
        if name not in known:
            raise ValueError(
                f'"{name}" is not known.{did_you_mean(name, known)} One of: {", ".join(known)}.'
            )
    return [certify(known[name]) for name in wanted]


def passed_checks(names: Iterable[str] = ()) -> dict[str, list[str]]:
    """Return the names of the checks that each strategy passes, by the strategy's name.

    Args:
        names: of registered strategies; none: all of them.

    Raises:
        ValueError: a name is not known.
    """
    wanted = list(names) or list(strategies())
    return {
        name: [outcome.check.name for outcome in report.passed]
        for name, report in zip(wanted, reports(wanted), strict=True)
    }
