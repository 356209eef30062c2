"""Supernets and found architectures as models that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedopt.search.cells import CellSupernet
from fedopt.search.dense import DenseSupernet
from fedopt.search.genotype import Genotype


def cell_supernet(input_shape: Sequence[int], classes: int, **options: Any) -> nn.Module:
    """Return a supernet of cells for images.

    Source: Liu et al. 2019 (DARTS), section 2.1.
    """
    return CellSupernet(input_shape, classes, **options)


def dense_supernet(input_shape: Sequence[int], classes: int, **options: Any) -> nn.Module:
    """Return a supernet of dense layers for tables.

    Source: Liu et al. 2019 (DARTS), equation 2.
    """
    return DenseSupernet(input_shape, classes, **options)


def genotype(input_shape: Sequence[int], classes: int, path: str) -> nn.Module:
    """Return a new network of a found architecture.

    Raises:
        ConfigError: the file cannot be read, or is no architecture.

    Source: Liu et al. 2019 (DARTS), section 3.2.
    """
    return Genotype.load(path).build(input_shape, classes)
