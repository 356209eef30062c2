"""The population that a configuration asks for, and in one place the names of all its forms."""

from __future__ import annotations

from typing import cast

from fedopt import registry
from fedopt.data.arrays import ArrayPopulation
from fedopt.data.catalogue import (
    DatasetOptions,
    NaturalOptions,
    PartitionOptions,
    SitesOptions,
    SyntheticOptions,
    SyntheticPartitionOptions,
)
from fedopt.data.dataset import Dataset
from fedopt.data.memory import ListPopulation
from fedopt.data.partitioners import AnyArray, deal
from fedopt.data.protocol import Dtype, Examples, Population, check_dtype
from fedopt.data.site_population import load_sites
from fedopt.data.synthetic import SyntheticPopulation
from fedopt.errors import ConfigError
from fedopt.registry import Options

__all__ = [
    "ArrayPopulation",
    "Dtype",
    "Examples",
    "ListPopulation",
    "Population",
    "SyntheticPopulation",
    "build_population",
]


def build_population(
    data_name: str,
    data_options: Options,
    partition_name: str,
    partition_options: Options,
    seed: int,
    dtype: Dtype = "float32",
) -> Population:
    """Load a dataset, split off its test set and cut the rest into clients.

    Args:
        data_name: a registered dataset.
        data_options: an instance of that entry's options.
        partition_name: a registered partition.
        partition_options: an instance of that entry's options.
        seed: seed of the splits, of the partition and of generated data.
        dtype: type of inputs (and of regression targets).

    Raises:
        ConfigError: the two do not go together, or options are of another entry.
        DataError: the data is missing or unusable.
    """
    check_dtype(dtype)
    entry = registry.get("datasets", data_name)
    for key, got, want in (
        ("data", data_options, entry.options),
        ("partition", partition_options, registry.get("partitions", partition_name).options),
    ):
        if not isinstance(got, want):
            raise ConfigError(f"expected {want.__name__}, got {type(got).__name__}", key=key)
    data_options = cast(DatasetOptions, data_options)
    partition_options = cast(PartitionOptions, partition_options)
    if isinstance(data_options, SyntheticOptions) != isinstance(
        partition_options, SyntheticPartitionOptions
    ):
        raise ConfigError(
            f'data.name = "{data_name}" does not go with partition.name = "{partition_name}": '
            'synthetic data makes its own devices. Write "synthetic" for both, or for neither.',
            key="partition.name",
        )
    if isinstance(data_options, SitesOptions):
        if not isinstance(partition_options, NaturalOptions):
            raise ConfigError(
                f'data.name = "sites" does not go with partition.name = "{partition_name}": its '
                'clients have their own data. Write partition.name = "natural".',
                key="partition.name",
            )
        return load_sites(data_options, seed, dtype)
    if isinstance(data_options, SyntheticOptions):
        devices = cast(SyntheticPartitionOptions, partition_options).clients
        return SyntheticPopulation(data_options, devices, seed, dtype)
    dataset: Dataset = entry.load()(data_options, seed)
    targets: AnyArray | None = dataset.targets
    if isinstance(partition_options, NaturalOptions):
        targets = dataset.clients
        if targets is None:
            raise ConfigError(
                f'"natural" needs a column that names the client of each example, and '
                f'"{data_name}" has none. With data.name = "files", add an array "client"; or '
                "take another partition, such as dirichlet.",
                key="partition.name",
            )
    cut = deal(partition_name, cast(AnyArray, targets), partition_options, seed)
    return ArrayPopulation(
        dataset,
        cut,
        data_options.validation_fraction,
        seed,
        dtype,
        data_options.label_noise,
    )
