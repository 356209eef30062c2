"""The figures of a population: its clients' labels and sizes, and how often each took part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from fedopt.analysis.report.figures import Figure, Key, Table, bins_table, left_out, number, spaced
from fedopt.analysis.report.record import RunRecord
from fedopt.analysis.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    bar_chart,
    frame,
    label,
    linear_axis,
)

# Ordered colours for many classes: anchors of viridis.
_VIRIDIS = ("#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725")
_FEW_CLASSES = 8
# Petroff (2021): ten colours that are told apart with any colour vision.
_PETROFF = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)


def population_figures(record: RunRecord) -> list[Figure]:
    """Return labels and sizes of the clients, and how often each took part."""
    found: list[Figure] = []
    population = record.population
    labels, histogram = population.get("labels"), population.get("size_histogram")
    total = population.get("clients", 0)
    if isinstance(labels, Mapping) and labels.get("clients"):
        found.append(_labels_figure(labels, int(total)))
    if isinstance(histogram, Mapping) and any(histogram.get("clients", ())):
        edges = np.asarray(histogram["edges"], dtype=np.float64)
        bars = np.asarray(histogram["clients"], dtype=np.float64)
        sizes = population.get("sizes", {})
        text = (
            f"{number(total)} clients hold {number(sizes.get('min'))} to "
            f"{number(sizes.get('max'))} examples, median {number(sizes.get('median'))}."
        )
        chart = bar_chart(
            edges,
            bars,
            "training examples of a client",
            "clients",
            name="Sizes of the clients",
            text=text,
            is_log=bool(histogram.get("is_log")),
        )
        found.append(
            Figure("Sizes of the clients", [("", chart)], table=bins_table(edges, bars), note=text)
        )
    used = record.clients[record.clients["status"].isin(("trained", "partial"))]
    if len(used):
        counts = used["client"].value_counts()
        never = max(0, int(total) - len(counts))
        often = np.bincount(counts.to_numpy(np.int64))
        often[0] = never
        if len(often) <= 60 and total:
            edges = np.arange(len(often) + 1, dtype=np.float64) - 0.5
            text = f"{len(counts):,} of {number(total)} clients took part, {never:,} never did."
            chart = bar_chart(
                edges,
                often.astype(np.float64),
                "rounds that used the client",
                "clients",
                name="Participation",
                text=text,
                colour=2,
            )
            rows = [(number(i), number(int(n))) for i, n in enumerate(often) if n]
            table = Table(("rounds", "clients"), rows)
            found.append(Figure("Participation", [("", chart)], table=table, note=text))
    return found


def _labels_figure(labels: Mapping[str, Any], total: int) -> Figure:
    """Return a bar a client, cut by the shares of its classes."""
    clients, counts = labels["clients"], np.asarray(labels["counts"], dtype=np.float64)
    classes = counts.shape[1]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    tops = np.cumsum(shares, axis=1)
    x_axis = linear_axis(-0.5, len(clients) - 0.5, LEFT, WIDTH - RIGHT, 6, whole=True)
    y_axis = linear_axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts: list[str] = []
    gap = 0.4 if len(clients) <= 60 else 0.0
    for kind in range(classes):
        colour = class_colour(kind, classes)
        shapes = []
        for turn in np.flatnonzero(shares[:, kind]).tolist():
            left, right = x_axis.place(turn - 0.5) + gap, x_axis.place(turn + 0.5) - gap
            top = y_axis.place(float(tops[turn, kind]))
            below = y_axis.place(float(tops[turn, kind] - shares[turn, kind]))
            shapes.append(f"M{left:.1f} {top:.1f}H{right:.1f}V{below:.1f}H{left:.1f}Z")
        if shapes:
            fill = f'fill="{colour[1]}"' if colour[1] else ""
            parts.append(f'<path class="share {colour[0]}" {fill} d="{"".join(shapes)}"/>')
    bottom = HEIGHT - BOTTOM
    for tick, words in zip(y_axis.ticks, y_axis.labels(), strict=True):
        parts.append(label(LEFT - 6, y_axis.place(tick) + 4, words, "end"))
    parts += [
        label(x_axis.place(turn), bottom + 15, f"{clients[turn]:,}", "mid")
        for turn in spaced(len(clients), 6)
    ]
    parts.append(label((LEFT + WIDTH - RIGHT) / 2, bottom + 33, "client", "mid name"))
    parts.append(label(2, 13, "share of the client's examples", "name"))
    skew = "all" if len(clients) == total else f"{len(clients)} evenly spaced of"
    text = f"Labels of {skew} {total:,} clients, {classes} classes."
    chart = frame("".join(parts), "Labels of the clients", text)
    shown = spaced(len(clients), 100)
    named = range(min(classes, 30))
    rows = [(number(clients[i]), *(number(int(counts[i, k])) for k in named)) for i in shown]
    note = left_out(len(shown), len(clients), "population.json")
    if classes > len(named):
        note += f" The first {len(named)} of {classes} classes."
    table = Table(("client", *(f"class {k}" for k in named)), rows, note=note.strip())
    keys = []
    if classes <= 12:
        looks = [class_colour(k, classes) for k in range(classes)]
        keys = [
            Key(str(k), 0, patch=f"share {kind}", fill=fill) for k, (kind, fill) in enumerate(looks)
        ]
    return Figure("Labels of the clients", [("", chart)], keys, table, text)


def class_colour(kind: int, classes: int) -> tuple[str, str]:
    """Return the CSS class of a label's colour, or the colour itself where there are many labels.

    Args:
        kind: the label, in 0..classes-1.
        classes: number of labels.
    """
    if classes <= _FEW_CLASSES:
        return f"c{kind}", ""
    if classes <= len(_PETROFF):
        return "", _PETROFF[kind]
    place = kind / (classes - 1) * (len(_VIRIDIS) - 1)
    below = min(int(place), len(_VIRIDIS) - 2)
    ends = _VIRIDIS[below], _VIRIDIS[below + 1]
    red, green, blue = (
        round(low + (place - below) * (high - low))
        for low, high in zip(*(bytes.fromhex(end[1:]) for end in ends), strict=True)
    )
    return "", f"#{red:02x}{green:02x}{blue:02x}"


def picture(payload: bytes, text: str) -> Markup:
    """Return a PNG picture as part of the page, for runs that recorded no numbers for it."""
    import base64

    data = base64.b64encode(payload).decode()
    return Markup(f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">')
