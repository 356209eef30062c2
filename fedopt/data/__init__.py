"""Data of a federation: datasets, partitions into clients, and the population engines see.

Names are loaded on first use, so that the option schemas in `fedopt.data.catalogue` can be
imported without numpy, torch or matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedopt.data.arrays import ArrayPopulation
    from fedopt.data.dataset import Dataset, check_arrays, load_dataset
    from fedopt.data.memory import ListPopulation
    from fedopt.data.partitioners import Partition, partition
    from fedopt.data.picture import draw_population
    from fedopt.data.population import build_population
    from fedopt.data.protocol import Examples, Population
    from fedopt.data.statistics import label_matrix, population_statistics
    from fedopt.data.synthetic import SyntheticPopulation

_MODULES = {
    "ArrayPopulation": "arrays",
    "Dataset": "dataset",
    "Examples": "protocol",
    "ListPopulation": "memory",
    "Partition": "partitioners",
    "Population": "protocol",
    "SyntheticPopulation": "synthetic",
    "build_population": "population",
    "check_arrays": "dataset",
    "draw_population": "picture",
    "label_matrix": "statistics",
    "load_dataset": "dataset",
    "partition": "partitioners",
    "population_statistics": "statistics",
}

__all__ = [
    "ArrayPopulation",
    "Dataset",
    "Examples",
    "ListPopulation",
    "Partition",
    "Population",
    "SyntheticPopulation",
    "build_population",
    "check_arrays",
    "draw_population",
    "label_matrix",
    "load_dataset",
    "partition",
    "population_statistics",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fedopt.data.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
