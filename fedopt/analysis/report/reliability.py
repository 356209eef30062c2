"""The reliability diagram of a run's final model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedopt.analysis.report.figures import Figure, Key, Table, number
from fedopt.analysis.report.record import RunRecord
from fedopt.analysis.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    frame,
    linear_axis,
    plot_frame,
    rect,
)
from fedopt.analysis.units import human_metric


def reliability_figure(record: RunRecord) -> Figure | None:
    """Return accuracy by confidence of the final model, where it was measured."""
    bins = record.reliability
    if not bins or not isinstance(bins.get("counts"), list):
        return None
    edges, counts, accuracy, confidence = (
        np.array([math.nan if v is None else v for v in bins[name]], dtype=np.float64)
        for name in ("edges", "counts", "accuracy", "confidence")
    )
    x_axis = linear_axis(0.0, 1.0, LEFT, WIDTH - RIGHT)
    y_axis = linear_axis(0.0, 1.0, HEIGHT - BOTTOM, TOP)
    parts = [plot_frame(x_axis, y_axis, "confidence", "accuracy", upright=False)]
    places, floor = x_axis.places(edges), y_axis.place(0.0)
    for left, right, share, mean in zip(places, places[1:], accuracy, confidence, strict=False):
        if math.isfinite(share):
            parts.append(rect(left + 1, y_axis.place(share), right - 1, floor, "bar c5"))
            low, high = sorted((y_axis.place(share), y_axis.place(mean)))
            parts.append(rect(left + 1, low, right - 1, high, "gap"))
    corner = y_axis.place(1.0)
    parts.append(f'<path class="diagonal" d="M{LEFT} {floor:.1f}L{WIDTH - RIGHT} {corner:.1f}"/>')
    keys = [Key("accuracy", 5, patch="bar c5"), Key("gap to the confidence", 1, patch="gap")]
    scaled = bins.get("scaled")
    if isinstance(scaled, Mapping):
        points = [
            (float(x), float(y))
            for x, y in zip(scaled["confidence"], scaled["accuracy"], strict=True)
            if x is not None and y is not None
        ]
        path = "L".join(f"{x_axis.place(x):.1f} {y_axis.place(y):.1f}" for x, y in points)
        parts.append(f'<path class="line c2 d0" d="M{path}"/>')
        keys.append(Key("after temperature scaling", 2))
    values = record.summary.get("calibration")
    values = values if isinstance(values, Mapping) else {}
    words = [
        f"{name} {human_metric(float(values[key]))}"
        for name, key in (("ECE", "ece"), ("MCE", "mce"), ("NLL", "loss"), ("T", "temperature"))
        if isinstance(values.get(key), int | float)
    ]
    text = ", ".join(words) + "." if words else ""
    rows = [
        (f"{low:.3f} to {high:.3f}", number(int(n)), *(("", "") if not n else (_4(a), _4(c))))
        for low, high, n, a, c in zip(edges, edges[1:], counts, accuracy, confidence, strict=False)
    ]
    table = Table(("confidence", "examples", "accuracy", "mean confidence"), rows)
    chart = frame("".join(parts), "Reliability diagram of the final model", text)
    return Figure("Reliability of the final model", [("", chart)], keys, table, text)


def _4(value: float) -> str:
    return f"{value:.4f}"
