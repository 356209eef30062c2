"""A run as a notebook shows it: a compact table and one chart, with a style of their own.

A notebook's page has its own style sheet and may be dark, so that the chart brings its colours
along, on a white ground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from fedopt.analysis.report.page import asset
from fedopt.analysis.report.svg import Line, line_chart, swatch
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

_ROWS = ("test_accuracy", "test_loss", "train_loss", "validation_accuracy", "test_ece", "epsilon")
_CHARTS = (
    ("accuracy", (("test_accuracy", "test"), ("validation_accuracy", "validation"))),
    ("loss", (("test_loss", "test"), ("train_loss", "training"))),
)


def run_html(
    strategy: str, summary: Mapping[str, object], history: pd.DataFrame, directory: Path | None
) -> str:
    """Return a run as a piece of HTML that needs nothing else.

    Args:
        strategy: its name.
        summary: as `summary.json` has it.
        history: its rounds.
        directory: its folder, if it has one.
    """
    final, best = _table(summary, "final"), _table(summary, "best")
    rows = []
    for name in _ROWS:
        value = final.get(name)
        if isinstance(value, int | float):
            top = _table(best, name)
            words = f"{human_metric(float(str(top['value'])))} ({top['round']})" if top else ""
            rows.append((name.replace("_", " "), human_metric(value), words))
    sent = [v for n in ("bytes_up", "bytes_down") if isinstance(v := final.get(n), int | float)]
    if sent:
        rows.append(("sent", human_bytes(sum(sent)), ""))
    for name, text in (("sim_seconds", "virtual time"), ("wall_seconds", "real time")):
        value = final.get(name)
        if isinstance(value, int | float):
            rows.append((text, human_seconds(value), ""))
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{escape(value)}</td><td>{escape(top)}</td></tr>"
        for name, value, top in rows
    )
    title = f"{strategy}, {summary.get('rounds', len(history))} rounds"
    where = f"<p>{escape(directory)}</p>" if directory is not None else ""
    head = '<th scope="col"></th><th scope="col">final</th><th scope="col">best (round)</th>'
    return (
        f"<style>{asset('notebook.css')}</style>"
        f'<div class="fedopt-run"><div><strong>{escape(title)}</strong>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>{where}</div>"
        f"{_chart(history)}</div>"
    )


def _chart(history: pd.DataFrame) -> Markup:
    """Return accuracy by rounds, or loss where there is none."""
    for title, columns in _CHARTS:
        lines = _lines(history, columns)
        if lines:
            last = ", ".join(f"{ln.label} {human_metric(float(ln.y[-1]))}" for ln in lines)
            chart = line_chart(
                lines,
                "communication rounds",
                title,
                name=f"{title} by rounds",
                text=f"At the end: {last}.",
                whole_x=True,
                fraction=title == "accuracy",
            )
            keys = Markup(" ").join(
                Markup("{} {}").format(swatch(line.colour, line.dash), line.label) for line in lines
            )
            return Markup("<figure>{}<figcaption>{}</figcaption></figure>").format(chart, keys)
    return Markup("")


def _lines(history: pd.DataFrame, columns: Sequence[tuple[str, str]]) -> list[Line]:
    rounds = history["round"].to_numpy(np.float64)
    lines = []
    for index, (name, words) in enumerate(columns):
        if name in history:
            values = history[name].to_numpy(np.float64)
            known = np.isfinite(values)
            if known.any():
                lines.append(Line(words, rounds[known], values[known], index, index))
    return lines


def _table(parent: Mapping[str, object], name: str) -> Mapping[str, object]:
    child = parent.get(name)
    return child if isinstance(child, Mapping) else {}
