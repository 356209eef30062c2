"""A picture of a population: labels and sizes of its clients, as one PNG file."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedopt.atomic import write_atomically
from fedopt.data.partitioners import IntArray
from fedopt.data.protocol import Population
from fedopt.data.statistics import label_matrix, size_edges, tells_labels
from fedopt.layout import laid_out

# Okabe and Ito (2008) and Petroff (2021): told apart with any colour vision.
_OKABE_ITO = [
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
]
_PETROFF = [
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
]


def draw_population(population: Population, path: str | Path, limit: int = 100) -> None:
    """Draw the label shares of up to `limit` clients, and the histogram of all client sizes.

    Regression data has no labels: the sizes alone are drawn. The file is replaced in one step.

    Args:
        population: the clients.
        path: PNG file to write; its folder exists.
        limit: most clients whose labels are drawn, >= 1; of more, evenly spaced ones.

    Raises:
        ConfigError: the limit is below 1.
        OSError: the file cannot be written.
    """
    if population.classes is None or not tells_labels(population):
        figure = Figure(figsize=(4.2, 3.4), dpi=200, layout="constrained")
        _draw_sizes(figure.subplots(), population.sizes)
    else:
        figure = Figure(figsize=(10.0, 3.6), dpi=200, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(2.3, 1))
        _draw_labels(left, population, population.classes, limit)
        _draw_sizes(right, population.sizes)
    buffer = io.BytesIO()
    with laid_out(figure):
        figure.savefig(buffer, format="png")
    write_atomically(Path(path), buffer.getvalue())


def _draw_labels(axes: Axes, population: Population, classes: int, limit: int) -> None:
    clients, counts = label_matrix(population, limit)
    sizes = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(sizes, 1)
    tops = np.cumsum(shares, axis=1)
    colors = _colors(classes)
    place = np.arange(len(clients))
    half = 0.45 if len(clients) <= 50 else 0.5
    for label in range(classes):
        there = shares[:, label] > 0
        sides = np.stack([place - half, place - half, place + half, place + half], axis=1)[there]
        high = tops[there, label]
        low = high - shares[there, label]
        corners = np.stack([sides, np.stack([low, high, high, low], axis=1)], axis=2)
        # One artist a class: a bar each would take seconds to draw.
        bars = PolyCollection(
            list(corners), facecolor=colors[label], edgecolor="white", linewidth=0.25
        )
        axes.add_collection(bars, autolim=False)
    ticks = max(1, -(-len(clients) // (10 if clients[-1] < 1000 else 5)))
    axes.set_xticks(place[::ticks], [f"{client:,}" for client in clients[::ticks]])
    axes.set_xlim(-0.6, len(clients) - 0.4)
    axes.set_ylim(0, 1)
    axes.set_xlabel("client")
    axes.set_ylabel("share of the client's examples")
    every = len(clients) == population.clients
    shown = "all" if every else f"{len(clients)} evenly spaced of"
    axes.set_title(f"Labels of {shown} {population.clients:,} clients", fontsize=10)
    if classes <= len(_PETROFF):
        labels = range(classes - 1, -1, -1)  # from top to bottom as in the bars
        axes.legend(
            [Patch(color=colors[label]) for label in labels],
            [str(label) for label in labels],
            title="class",
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            fontsize=8,
            title_fontsize=8,
            handlelength=1.0,
            handleheight=1.0,
        )
    else:
        edges = BoundaryNorm(np.arange(-0.5, classes), classes)
        mappable = ScalarMappable(edges, ListedColormap(colors))
        bar = axes.get_figure(root=True).colorbar(  # type: ignore[union-attr]
            mappable, ax=axes, label="class", pad=0.01
        )
        bar.ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        bar.ax.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


def _draw_sizes(axes: Axes, sizes: IntArray) -> None:
    filled = sizes[sizes > 0]
    empty = len(sizes) - len(filled)
    high = int(filled.max()) if filled.size else 0
    edges, is_log = size_edges(filled)
    if is_log:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plain = not is_log or high < 10_000  # larger numbers would touch: powers of ten instead
    if plain:
        axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.hist(filled, bins=list(edges), color=_OKABE_ITO[0], edgecolor="white", linewidth=0.4)
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("training examples per client")
    axes.set_ylabel("clients")
    note = f", {empty:,} empty" if empty else ""
    axes.set_title(f"{len(sizes):,} clients, median {np.median(sizes):,g}{note}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _colors(classes: int) -> list[str]:
    """Return a colour per class: two safe palettes, then samples of an ordered colour map."""
    for palette in (_OKABE_ITO, _PETROFF):
        if classes <= len(palette):
            return palette[:classes]
    scale = mpl.colormaps["viridis"](np.linspace(0, 1, classes))
    return [mpl.colors.to_hex(color) for color in scale]
