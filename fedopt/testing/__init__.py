"""A conformance suite: whether a strategy does what the paper says that it is named for.

A *subject* trains quadratic clients, whose every answer is known in closed form; a *claim* says
what it is meant to be; a *check* compares what it does with the paper's formula. Subjects are
fedopt's strategies (`FedoptSubject`), any Flower strategy with any ClientApp (`FlowerSubject`), and
plain functions and codecs (`FunctionSubject`). `certify` gives a report, `conformance` a pytest
parametrisation, `python -m fedopt.testing` a table of all that comes with fedopt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.testing.check import Check, CheckFailedError, Measurement, Outcome
    from fedopt.testing.checks import ALL
    from fedopt.testing.fedopt_subject import FedoptSubject
    from fedopt.testing.flower_subject import (
        FlowerSubject,
        client_of,
        model_record,
        model_vector,
    )
    from fedopt.testing.function_subject import FunctionSubject
    from fedopt.testing.kinds import KINDS, OPTIONS
    from fedopt.testing.pytest_support import BoundCheck, bound_checks, conformance
    from fedopt.testing.registered import passed_checks, reports, subjects
    from fedopt.testing.report import Report, certify, checks_for
    from fedopt.testing.subject import Subject
    from fedopt.testing.task import (
        NotApplicableError,
        QuadraticClient,
        Quadratics,
        Task,
        Trajectory,
    )

_HOME = {
    "ALL": "checks",
    "KINDS": "kinds",
    "OPTIONS": "kinds",
    "BoundCheck": "pytest_support",
    "Check": "check",
    "CheckFailedError": "check",
    "FedoptSubject": "fedopt_subject",
    "FlowerSubject": "flower_subject",
    "FunctionSubject": "function_subject",
    "Measurement": "check",
    "NotApplicableError": "task",
    "Outcome": "check",
    "QuadraticClient": "task",
    "Quadratics": "task",
    "Report": "report",
    "Subject": "subject",
    "Task": "task",
    "Trajectory": "task",
    "bound_checks": "pytest_support",
    "certify": "report",
    "checks_for": "report",
    "client_of": "flower_subject",
    "conformance": "pytest_support",
    "model_record": "flower_subject",
    "model_vector": "flower_subject",
    "passed_checks": "registered",
    "reports": "registered",
    "subjects": "registered",
}
"""Public name -> the module it comes from, imported on first use."""

__all__ = [
    "ALL",
    "KINDS",
    "OPTIONS",
    "BoundCheck",
    "Check",
    "CheckFailedError",
    "FedoptSubject",
    "FlowerSubject",
    "FunctionSubject",
    "Measurement",
    "NotApplicableError",
    "Outcome",
    "QuadraticClient",
    "Quadratics",
    "Report",
    "Subject",
    "Task",
    "Trajectory",
    "bound_checks",
    "certify",
    "checks_for",
    "client_of",
    "conformance",
    "model_record",
    "model_vector",
    "passed_checks",
    "reports",
    "subjects",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"fedopt.testing.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
