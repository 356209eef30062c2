"""The figures of one run that are made of its tables: curves, clients, bytes, failures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from fedopt.analysis.report.figures import (
    Axis,
    Curve,
    Figure,
    Table,
    bins_table,
    curves_figure,
    number,
)
from fedopt.analysis.report.record import RunRecord
from fedopt.analysis.report.svg import Floats, bar_chart

# What a run's lines measure: label, colour, dash. As in the other figures of a run.
_PARTS = {
    "train": ("training", 5, 1),
    "validation": ("validation", 2, 3),
    "test": ("test", 0, 0),
    "swa_test": ("test, averaged model", 1, 0),
    "drift_test": ("test, as the world is now", 3, 2),
    "unseen": ("clients never trained on", 4, 2),
}
_SINGLE = (
    ("lr", "Learning rate", "mean of a client's steps"),
    ("test_brier", "Brier score", ""),
    ("test_balanced_accuracy", "Balanced accuracy", "mean of the classes' accuracies"),
    ("test_auroc", "AUROC", "of class 1"),
    ("test_sharpness", "Sharpness", "largest eigenvalue of the Hessian"),
    ("test_ball_increase", "Rise of the loss in SAM's ball", "loss"),
    ("epsilon", "Privacy spent", "epsilon"),
    ("clip_norm", "Norm of clipping", ""),
    ("skipped_steps", "Skipped steps", "steps a round"),
    ("available_share", "Examples made available", "share"),
    ("selected_share", "Examples selected", "share"),
    ("drift", "Drift", "from the old concept (0) to the new (1)"),
    ("architecture_entropy", "Entropy of the architecture", "nats"),
    ("joules", "Energy of clients", "J, cumulative"),
)


def curve_figures(record: RunRecord, axes: Sequence[Axis]) -> list[Figure]:
    """Return loss, accuracy, calibration, and whatever else was measured by rounds."""
    history = record.history
    found = [
        curves_figure("Loss", _parts(history, "loss"), history, axes, unit="mean loss"),
        curves_figure(
            "Accuracy",
            _parts(history, "accuracy", "higher"),
            history,
            axes,
            unit="share of right answers",
            fraction=True,
            note="A ring marks the best round.",
        ),
        curves_figure(
            "Calibration error",
            [
                Curve("expected (ECE)", _column(history, "test_ece"), 0, 0),
                Curve("maximum (MCE)", _column(history, "test_mce"), 1, 1),
                Curve("ECE, averaged model", _column(history, "swa_test_ece"), 2, 2),
            ],
            history,
            axes,
            unit="share, 15 bins",
            fraction=True,
        ),
    ]
    for name, title, unit in _SINGLE:
        values = _column(history, name)
        known = values[np.isfinite(values)]
        if len(known) and known.min() != known.max():
            found.append(
                curves_figure(title, [Curve(title.lower(), values)], history, axes, unit=unit)
            )
    return [figure for figure in found if figure is not None]


def bytes_figures(record: RunRecord) -> list[Figure]:
    """Return what was sent in each round, and in all."""
    history = record.history
    up, down = (_column(history, name) * 1e-6 for name in ("bytes_up", "bytes_down"))
    rounds = [axis for axis in (Axis("", "communication rounds", ("round",)),) if len(history)]
    titles = (("MB a round", True), ("MB in all", False))
    found = [
        curves_figure(
            title,
            [
                Curve("from clients (up)", np.diff(up, prepend=0.0) if each else up, 0, 0),
                Curve("to clients (down)", np.diff(down, prepend=0.0) if each else down, 1, 1),
            ],
            history,
            rounds,
            unit="MB",
            from_zero=True,
        )
        for title, each in titles
    ]
    return [figure for figure in found if figure is not None]


def client_figures(record: RunRecord) -> list[Figure]:
    """Return how accuracies and losses are spread over clients, at the end and by rounds."""
    found: list[Figure | None] = []
    evaluations = record.evaluations
    for split, words in (("validation", "clients"), ("unseen", "clients never trained on")):
        rows = evaluations[evaluations["split"] == split] if len(evaluations) else evaluations
        rows = rows[rows["accuracy"].notna()] if len(rows) else rows
        if not len(rows):
            continue
        last = int(rows["round"].max())
        final = rows[rows["round"] == last]["accuracy"].to_numpy(np.float64)
        found.append(_histogram(f"Accuracy of {words} after round {last}", final))
        found.append(_quantiles(f"Accuracy of {words} by rounds", rows, "accuracy", True))
    clients = record.clients
    if len(clients) and clients["train_loss"].notna().any():
        trained = clients[clients["train_loss"].notna()]
        found.append(
            _quantiles("Training loss of the cohort by rounds", trained, "train_loss", False)
        )
    return [figure for figure in found if figure is not None]


def failure_figure(record: RunRecord) -> Figure | None:
    """Return clients that were not used, by rounds; None where all were."""
    history = record.history
    gone = [_column(history, name) for name in ("dropped_clients", "failed_clients")]
    if not any(np.nansum(column) for column in gone):
        return None
    return curves_figure(
        "Clients that were not used",
        [Curve("dropped", gone[0], 4, 0), Curve("failed", gone[1], 1, 1)],
        history,
        [Axis("", "communication rounds", ("round",))],
        unit="clients of the round",
        from_zero=True,
    )


def failure_table(record: RunRecord, most: int = 200) -> Table | None:
    """Return who was not used, when and why; None where all were."""
    clients = record.clients
    rows = clients[clients["status"].isin(("dropped", "failed"))]
    if not len(rows):
        return None
    shown = rows.head(most)
    cells = [
        (number(r), number(c), s, "" if reason != reason else str(reason), number(done), number(of))
        for r, c, s, reason, done, of in zip(
            *(
                shown[name]
                for name in ("round", "client", "status", "reason", "steps", "planned_steps")
            ),
            strict=True,
        )
    ]
    note = "" if len(rows) == len(shown) else f"The first {most} of {len(rows):,}; see clients.csv."
    return Table(("round", "client", "status", "why", "steps", "planned"), cells, note=note)


def _parts(history: pd.DataFrame, metric: str, best: str = "") -> list[Curve]:
    curves = [
        Curve(words, _column(history, f"{part}_{metric}"), colour, dash)
        for part, (words, colour, dash) in _PARTS.items()
    ]
    return [
        Curve(c.label, c.values, c.colour, c.dash, best if c.label == "test" else "")
        for c in curves
    ]


def _column(history: pd.DataFrame, name: str) -> Floats:
    if name not in history:
        return np.full(len(history), math.nan)
    values: Floats = history[name].to_numpy(np.float64)
    return values


def _histogram(title: str, values: Floats) -> Figure:
    edges = np.linspace(0.0, 1.0, 21)
    bars, _ = np.histogram(values, bins=edges)
    tenth = np.sort(values)[: -(-len(values) // 10)]
    text = (
        f"{len(values):,} clients: mean {values.mean():.4f}, worst tenth {tenth.mean():.4f}, "
        f"standard deviation {values.std():.4f}."
    )
    chart = bar_chart(
        edges, bars.astype(np.float64), "accuracy of a client", "clients", name=title, text=text
    )
    return Figure(title, [("", chart)], table=bins_table(edges, bars.astype(np.float64)), note=text)


def _quantiles(title: str, rows: pd.DataFrame, column: str, fraction: bool) -> Figure | None:
    """Return median, quartiles and the worst tenth of a column over clients, by rounds."""
    values = rows[["round", column]].astype(np.float64)
    worst = 0.1 if fraction else 0.9  # a high loss is a bad one
    spread = values.groupby("round")[column].quantile(np.array([0.25, 0.5, 0.75, worst])).unstack()
    by_round = pd.DataFrame({"round": spread.index.to_numpy().astype(np.int64)})
    middle, low, high = (spread[level].to_numpy(np.float64) for level in (0.5, 0.25, 0.75))
    return curves_figure(
        title,
        [
            Curve("median, with the middle half", middle, 0, 0, band=(low, high)),
            Curve("lower quartile", low, 5, 2),
            Curve("upper quartile", high, 2, 3),
            Curve(
                f"{worst:.0%} quantile".replace("%", " %"), spread[worst].to_numpy(np.float64), 1, 1
            ),
        ],
        by_round,
        [Axis("", "communication rounds", ("round",))],
        unit=column.replace("_", " "),
        fraction=fraction,
    )
