"""A picture of a found architecture."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt.atomic import write_atomically

if TYPE_CHECKING:
    from fedopt.search.genotype import Genotype

DPI, TEXT = 200, 9
"""Dots an inch, and size of the letters in points."""

NAMES = {0: "c(k-2)", 1: "c(k-1)"}
"""What the inputs of a cell are called, as in the paper."""


def draw_genotype(genotype: Genotype, path: str | Path) -> Path:
    """Draw the normal and the reduction cell, or the layers of a dense network.

    Args:
        genotype: the architecture.
        path: of the PNG file.

    Source: Liu, Simonyan and Yang 2019 (DARTS), figures 4 and 5.
    """
    from matplotlib.figure import Figure

    if genotype.space == "dense":
        figure = Figure(figsize=(7, 1.6), dpi=DPI)
        _draw_dense(figure.add_axes((0, 0, 1, 1)), genotype, TEXT)
        return _save(figure, Path(path))
    kinds = list(genotype.cells)
    nodes = int(genotype.options["nodes"])
    height = 1.4 + 0.7 * nodes
    figure = Figure(figsize=(8, height * len(kinds)), dpi=DPI)
    for place, kind in enumerate(kinds):
        axes = figure.add_axes((0, 1 - (place + 1) / len(kinds), 1, 1 / len(kinds)))
        _draw_cell(axes, genotype, kind, nodes, TEXT)
    return _save(figure, Path(path))


def _save(figure: Any, path: Path) -> Path:
    """Write a figure as PNG, in one step."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())
    return path


def _box(axes: Any, place: tuple[float, float], text: str, colour: str, size: float) -> None:
    style = {"boxstyle": "round,pad=0.4", "facecolor": colour, "edgecolor": "#555555"}
    axes.text(*place, text, ha="center", va="center", fontsize=size, bbox=style, zorder=3)


def _draw_cell(axes: Any, genotype: Genotype, kind: str, nodes: int, size: float) -> None:
    places = {0: (0.0, 0.75 * nodes), 1: (0.0, 0.25 * nodes)}
    for node in range(2, nodes + 2):
        places[node] = (2.2 + 1.7 * (node - 2), 0.9 * (node - 2) + 0.25)
    output = (2.2 + 1.7 * nodes, 0.5 * nodes)
    for node, place in places.items():
        colour = "#d9ead3" if node < 2 else "#cfe2f3"
        _box(axes, place, NAMES.get(node, str(node - 2)), colour, size)
    _box(axes, output, "c(k)", "#fff2cc", size)
    for node in range(2, nodes + 2):
        _arrow(axes, places[node], output, 0.0, "#bbbbbb")
    seen: dict[tuple[int, int], int] = {}
    for edge in genotype.cells[kind]:
        count = seen.get((edge.source, edge.target), 0)
        seen[edge.source, edge.target] = count + 1
        start, end = places[edge.source], places[edge.target]
        bend = 0.12 if edge.source == 0 else -0.12
        _arrow(axes, start, end, bend, "#444444")
        # The label lies on the arc, at two fifths of the way.
        along = 0.42
        x = start[0] + along * (end[0] - start[0]) + bend * 0.45 * (end[1] - start[1])
        y = start[1] + along * (end[1] - start[1]) - bend * 0.45 * (end[0] - start[0])
        axes.text(
            x,
            y,
            edge.operation,
            ha="center",
            va="center",
            fontsize=size - 1,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9},
            zorder=4,
        )
    axes.set_title(f"{'reduction' if kind == 'reduce' else kind} cell", fontsize=size, y=0.9)
    axes.set_xlim(-0.8, output[0] + 0.8)
    axes.set_ylim(-0.5, max(0.9 * nodes, 0.75 * nodes) + 0.9)
    axes.axis("off")


def _draw_dense(axes: Any, genotype: Genotype, size: float) -> None:
    places = [(2.0 * (i + 1), 0.5) for i in range(len(genotype.layers))]
    start, end = (0.0, 0.5), (2.0 * (len(places) + 1), 0.5)
    chain = [start, *places, end]
    for a, b in pairwise(chain):
        _arrow(axes, a, b, 0.0, "#444444")
    _box(axes, start, "inputs", "#d9ead3", size)
    for (x, y), layer in zip(places, genotype.layers, strict=True):
        _box(axes, (x, y), f"{layer.width}\n{layer.activation}", "#cfe2f3", size)
    for place, layer in enumerate(genotype.layers):
        if layer.skip:
            _arrow(axes, chain[place], (chain[place + 1][0], 0.85), -0.5, "#cc4125")
            axes.text(
                (chain[place][0] + chain[place + 1][0]) / 2,
                1.28,
                "skip",
                ha="center",
                fontsize=size - 1,
                color="#cc4125",
            )
    _box(axes, end, "classes", "#fff2cc", size)
    axes.set_xlim(-0.8, end[0] + 0.8)
    axes.set_ylim(-0.2, 1.6)
    axes.axis("off")


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str
) -> None:
    axes.annotate(
        "",
        xy=end,
        xytext=start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": colour,
            "shrinkA": 18,
            "shrinkB": 18,
            "connectionstyle": f"arc3,rad={bend}",
            "linewidth": 1.0,
        },
        zorder=1,
    )
