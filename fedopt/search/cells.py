"""The image space: a chain of normal and reduction cells, each a graph of mixed operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.search.genotype import Edge, Genotype
from fedopt.search.operations import (
    DARTS_OPERATIONS,
    OPERATIONS,
    FactorizedReduce,
    MixedOp,
    Norm,
    check_operations,
    make_norm,
    relu_conv,
)
from fedopt.search.supernet import Supernet

KINDS = ("normal", "reduce")


def edges_of(nodes: int) -> list[tuple[int, int]]:
    """Return the (from, to) of all edges of a cell: 0 and 1 are its inputs, nodes from 2 on."""
    return [(source, target) for target in range(2, nodes + 2) for source in range(target)]


def reductions(cells: int) -> set[int]:
    """Return which cells halve the image: those at one and two thirds of the chain."""
    return {cells // 3, 2 * cells // 3} - {0} if cells > 1 else set()


class Cell(nn.Module):
    """A cell: two inputs, nodes that sum what comes in along edges, and their concatenation.

    Args:
        before: channels of the input before the last, and whether that is twice as large.
        last: channels of the last input.
        channels: of a node.
        is_reduction: whether edges from the inputs halve the image.
        edges: (from, to) and the operations on the edge.
        nodes: number of nodes.
        norm: makes normalisations.
    """

    def __init__(
        self,
        before: tuple[int, bool],
        last: int,
        channels: int,
        is_reduction: bool,
        edges: Sequence[tuple[int, int, Sequence[str]]],
        nodes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        width, is_larger = before
        self._nodes = nodes
        self._edges = [(source, target) for source, target, _ in edges]
        if is_larger:
            self._before: nn.Module = FactorizedReduce(width, channels, norm)
        else:
            self._before = relu_conv(width, channels, norm)
        self._last = relu_conv(last, channels, norm)
        self._mixtures = nn.ModuleList(
            MixedOp(
                [
                    OPERATIONS[name](channels, 2 if is_reduction and source < 2 else 1, norm)
                    for name in names
                ]
            )
            for source, _, names in edges
        )

    def forward(self, before: Tensor, last: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return the concatenated nodes, for the weights of each edge's operations."""
        states = [self._before(before), self._last(last)]
        for node in range(2, self._nodes + 2):
            parts = [
                mixture(states[source], weight)
                for (source, target), mixture, weight in zip(
                    self._edges, self._mixtures, weights, strict=True
                )
                if target == node
            ]
            states.append(torch.stack(parts).sum(0))
        return torch.cat(states[2:], dim=1)


class Chain(nn.Module):
    """Stem, cells and classifier, shared by the supernet and by what it finds.

    Args:
        input_shape: `(channels, height, width)`; two axes are read as one channel.
        classes: width of the output.
        channels: of a node of the first cell; doubled by each reduction.
        cells: number of cells.
        nodes: of a cell.
        edges: of a normal and of a reduction cell, with their operations.
        norm: makes normalisations.

    Raises:
        ConfigError: the data are no images.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        channels: int,
        cells: int,
        nodes: int,
        edges: dict[str, Sequence[tuple[int, int, Sequence[str]]]],
        norm: Norm,
    ) -> None:
        super().__init__()
        if len(input_shape) not in (2, 3):
            raise ConfigError(
                f"cells need images, got inputs of shape {tuple(input_shape)}; "
                'use the space "dense"',
                key="model",
            )
        depth = input_shape[0] if len(input_shape) == 3 else 1
        self._has_depth = len(input_shape) == 3
        width = 3 * channels
        self._stem = nn.Sequential(nn.Conv2d(depth, width, 3, padding=1, bias=False), norm(width))
        halves = reductions(cells)
        before, last, is_larger = width, width, False
        self._cells = nn.ModuleList()
        self.kinds: list[str] = []
        for place in range(cells):
            is_reduction = place in halves
            channels *= 2 if is_reduction else 1
            kind = "reduce" if is_reduction else "normal"
            self._cells.append(
                Cell((before, is_larger), last, channels, is_reduction, edges[kind], nodes, norm)
            )
            self.kinds.append(kind)
            before, last, is_larger = last, nodes * channels, is_reduction
        self._classifier = nn.Linear(last, classes)

    def forward(self, x: Tensor, weights: dict[str, Sequence[Tensor]]) -> Tensor:
        """Return logits `[B, classes]`, for the weights of both kinds of cells."""
        if not self._has_depth:
            x = x.unsqueeze(1)
        before = last = self._stem(x)
        for cell, kind in zip(self._cells, self.kinds, strict=True):
            before, last = last, cell(before, last, weights[kind])
        logits: Tensor = self._classifier(last.mean((-2, -1)))
        return logits


class CellSupernet(Supernet):
    """The supernet of the image space.

    Args:
        input_shape: `(channels, height, width)` or `(height, width)`.
        classes: width of the output.
        channels: of a node of the first cell, >= 1.
        cells: number of cells, >= 1; those at one and two thirds halve the image.
        nodes: of a cell, >= 1.
        operations: names out of `DARTS_OPERATIONS`, at least one besides `none`.
        norm: `group` (each example alone) or `batch`; without scale and shift.

    Raises:
        ConfigError: the search space is empty or unknown, or the data are no images.

    Source: Liu, Simonyan and Yang 2019 (DARTS), section 2.1 and appendix A.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        channels: int = 4,
        cells: int = 2,
        nodes: int = 2,
        operations: Sequence[str] = DARTS_OPERATIONS,
        norm: str = "group",
    ) -> None:
        check_operations(operations, DARTS_OPERATIONS, "model.operations")
        if set(operations) == {"none"}:
            raise ConfigError(
                "the search space is empty: it has no operation besides none",
                key="model.operations",
            )
        places = edges_of(nodes)
        kinds = KINDS if reductions(cells) else KINDS[:1]
        super().__init__({kind: (len(places), len(operations)) for kind in kinds})
        self.operations = tuple(operations)
        self._places = places
        self._options: dict[str, Any] = {
            "channels": channels,
            "cells": cells,
            "nodes": nodes,
            "norm": norm,
        }
        all_edges = [(source, target, tuple(operations)) for source, target in places]
        edges: dict[str, Sequence[tuple[int, int, Sequence[str]]]] = dict.fromkeys(KINDS, all_edges)
        self.network = Chain(
            input_shape, classes, channels, cells, nodes, edges, make_norm(norm, affine=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, classes]` for images `[B, *input_shape]`."""
        weights = {kind: list(self.weights_of(kind)) for kind in self.alphas}
        found: Tensor = self.network(x, weights)
        return found

    def genotype(self) -> Genotype:
        """Return the best operation of the two best edges into each node.

        An edge is as good as its heaviest operation besides `none`.

        Source: Liu, Simonyan and Yang 2019 (DARTS), section 2.4.
        """
        cells: dict[str, tuple[Edge, ...]] = {}
        allowed = [i for i, name in enumerate(self.operations) if name != "none"]
        for kind in self.alphas:
            weights = self.weights_of(kind).detach()[:, allowed]
            values, chosen = weights.max(-1)
            edges: list[Edge] = []
            for node in range(2, self._options["nodes"] + 2):
                into = [i for i, (_, target) in enumerate(self._places) if target == node]
                best = sorted(into, key=lambda i: (-float(values[i]), i))[:2]
                for i in sorted(best):
                    operation = self.operations[allowed[int(chosen[i])]]
                    edges.append(Edge(self._places[i][0], node, operation))
            cells[kind] = tuple(edges)
        return Genotype("cells", self._options, cells=cells)


class FoundCells(nn.Module):
    """A network of found cells, with scale and shift in its normalisations.

    Args:
        genotype: of the space `cells`.
        input_shape: as of `CellSupernet`.
        classes: width of the output.

    Source: Liu, Simonyan and Yang 2019 (DARTS), section 3.2.
    """

    def __init__(self, genotype: Genotype, input_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        options = genotype.options
        edges: dict[str, Sequence[tuple[int, int, Sequence[str]]]] = {
            kind: [(e.source, e.target, (e.operation,)) for e in genotype.cells.get(kind, ())]
            for kind in KINDS
        }
        self.network = Chain(
            input_shape,
            classes,
            options["channels"],
            options["cells"],
            options["nodes"],
            edges,
            make_norm(options["norm"], affine=True),
        )
        self._counts = {kind: len(edges[kind]) for kind in KINDS}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, classes]`."""
        one = x.new_ones(1)
        found: Tensor = self.network(x, {kind: [one] * n for kind, n in self._counts.items()})
        return found
