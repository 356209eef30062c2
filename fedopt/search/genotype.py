"""A found architecture: what it is made of, as JSON, and as a new network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedopt.atomic import write_atomically
from fedopt.errors import ConfigError

SPACES = ("cells", "dense")


@dataclass(frozen=True)
class Edge:
    """An operation between two states of a cell; states 0 and 1 are the cell's inputs."""

    source: int
    target: int
    operation: str


@dataclass(frozen=True)
class DenseLayer:
    """A dense layer: its width, its activation, and whether its input is added."""

    width: int
    activation: str
    skip: bool


@dataclass(frozen=True)
class Genotype:
    """An architecture.

    Args:
        space: `cells` or `dense`.
        options: of the space: channels, cells, nodes and norm, or depth.
        cells: edges of the normal and of the reduction cell.
        layers: of a dense network.
    """

    space: str
    options: Mapping[str, Any]
    cells: Mapping[str, tuple[Edge, ...]] = field(default_factory=dict)
    layers: tuple[DenseLayer, ...] = ()

    def build(self, input_shape: Sequence[int], classes: int) -> nn.Module:
        """Return a new network of the architecture, from `[B, *input_shape]` to `[B, classes]`.

        Raises:
            ConfigError: the data do not fit the space.
        """
        from fedopt.search.cells import FoundCells
        from fedopt.search.dense import FoundDense

        kind = FoundCells if self.space == "cells" else FoundDense
        return kind(self, input_shape, classes)

    @property
    def operation_counts(self) -> dict[str, int]:
        """How often each operation is there: of edges, or activations and skips of layers."""
        names = [edge.operation for edges in self.cells.values() for edge in edges]
        names += [layer.activation for layer in self.layers]
        names += ["skip"] * sum(layer.skip for layer in self.layers)
        return dict(sorted(Counter(names).items()))

    @property
    def skip_connections(self) -> int:
        """Skip connections of the normal cell, or of the dense layers."""
        normal = [e for e in self.cells.get("normal", ()) if e.operation == "skip_connect"]
        return len(normal) + sum(layer.skip for layer in self.layers)

    def to_json(self) -> str:
        """Return the architecture as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the architecture to a file, in one step."""
        write_atomically(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file cannot be read, or is no architecture.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f'"{path}" cannot be read: {error}', key="model.path") from error
        return cls.from_json(text)

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what `to_json` returned.

        Raises:
            ConfigError: it is no architecture; the message says what is wrong.
        """
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"is no JSON: {error}", key="genotype") from error
        try:
            cells = {
                kind: tuple(Edge(**edge) for edge in edges) for kind, edges in tree["cells"].items()
            }
            layers = tuple(DenseLayer(**layer) for layer in tree["layers"])
            found = cls(tree["space"], dict(tree["options"]), cells, layers)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"is no architecture: {error!r}", key="genotype") from error
        found.check()
        return found

    def check(self) -> None:
        """Check that the architecture can be built.

        Raises:
            ConfigError: naming what is wrong.
        """
        from fedopt.search.cells import KINDS, reductions
        from fedopt.search.dense import ACTIVATIONS
        from fedopt.search.operations import DARTS_OPERATIONS, check_operations

        if self.space not in SPACES:
            raise ConfigError(
                f'got "{self.space}"; one of {", ".join(SPACES)}', key="genotype.space"
            )
        wanted = {"cells": ("channels", "cells", "nodes", "norm"), "dense": ("depth",)}[self.space]
        for name in wanted:
            value = self.options.get(name)
            is_good = value in ("group", "batch") if name == "norm" else _is_count(value)
            if not is_good:
                raise ConfigError(f"got {value!r}", key=f"genotype.options.{name}")
        if self.space == "dense":
            if len(self.layers) != self.options["depth"]:
                raise ConfigError(
                    f"got {len(self.layers)} layers for a depth of {self.options['depth']}",
                    key="genotype.layers",
                )
            for layer in self.layers:
                check_operations([layer.activation], list(ACTIVATIONS), "genotype.activation")
                if not _is_count(layer.width):
                    raise ConfigError(f"got {layer.width!r}", key="genotype.width")
            return
        kinds = KINDS if reductions(self.options["cells"]) else KINDS[:1]
        if set(self.cells) != set(kinds):
            raise ConfigError(
                f"got cells {', '.join(self.cells) or 'none'}; it must be {', '.join(kinds)}",
                key="genotype.cells",
            )
        nodes = range(2, self.options["nodes"] + 2)
        for kind, edges in self.cells.items():
            for edge in edges:
                check_operations([edge.operation], DARTS_OPERATIONS, "genotype.operation")
                if edge.target not in nodes or not 0 <= edge.source < edge.target:
                    raise ConfigError(f"got {edge}", key=f"genotype.cells.{kind}")
            missing = set(nodes) - {edge.target for edge in edges}
            if missing:
                raise ConfigError(
                    f"nothing comes into node {min(missing)}", key=f"genotype.cells.{kind}"
                )


def random_genotype(supernet: Any, rng: np.random.Generator) -> Genotype:
    """Return an architecture drawn uniformly from a supernet's space.

    Architecture parameters are drawn without order among them, so that each operation of an edge,
    each pair of edges into a node, and each choice of a dense layer is as likely.

    Args:
        supernet: a `Supernet`; its own architecture parameters are left as they are.
        rng: draws.
    """
    kept = {name: alpha.detach().clone() for name, alpha in supernet.alphas.items()}
    try:
        with torch.no_grad():
            for alpha in supernet.alphas.values():
                alpha.copy_(torch.from_numpy(rng.random(alpha.shape)).to(alpha))
        found: Genotype = supernet.genotype()
    finally:
        with torch.no_grad():
            for name, alpha in supernet.alphas.items():
                alpha.copy_(kept[name])
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
