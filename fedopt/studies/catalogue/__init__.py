"""The studies by name; each is a module here that holds a `STUDY`."""

from __future__ import annotations

import dataclasses
from importlib import import_module

from fedopt.errors import ConfigError, unknown_name
from fedopt.studies.study import Study

MODULES = {
    "fedprox-synthetic": "fedprox_synthetic",
    "scaffold-similarity": "scaffold_similarity",
    "scaffold-quadratics": "scaffold_quadratics",
    "fedavg-mnist": "fedavg_mnist",
    "fedopt-adaptive": "fedopt_adaptive",
    "flat-minima": "flat_minima",
    "feddyn": "feddyn",
    "niid-bench": "niid_bench",
    "personalisation": "personalisation",
    "combination": "combination",
    "rare-disease": "rare_disease",
}
"""Name of a study -> its module."""


def study_of(name: str) -> Study:
    """Return a study.

    Args:
        name: one of `MODULES`, or `module:NAME` for a study of the user's own.

    Raises:
        ConfigError: there is none of this name; the nearest is named.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f'"{name}" cannot be imported: {error}', key="study") from error
        if not isinstance(found, Study):
            raise ConfigError(f'"{name}" is not a Study, but {type(found).__name__}', key="study")
        return dataclasses.replace(found, name=name)
    if name not in MODULES:
        raise unknown_name("study", name, MODULES)
    study: Study = import_module(f"{__name__}.{MODULES[name]}").STUDY
    return study


def every_study() -> list[Study]:
    """Return all studies, in the order in which they are listed."""
    return [study_of(name) for name in MODULES]
