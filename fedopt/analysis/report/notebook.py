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

from fedopt.analysis.report.svg import Line, line_chart, swatch
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

_STYLE = """<style>
.fedopt-run{display:flex;flex-wrap:wrap;gap:6px 24px;align-items:flex-start;background:#fff;color:#1b1f24;
padding:8px 12px;border:1px solid #d0d7de;border-radius:8px;width:fit-content;max-width:100%;font:13px/1.4 system-ui,sans-serif}
.fedopt-run table{border-collapse:collapse;font-size:13px;margin:0}
.fedopt-run th,.fedopt-run td{padding:2px 8px;text-align:right;background:#fff;color:#1b1f24;border:0}
.fedopt-run th:first-child{text-align:left;font-weight:500}
.fedopt-run figure{margin:0;width:340px}
.fedopt-run figcaption{font-size:12px}
.fedopt-run .chart{width:340px;height:auto}
.fedopt-run .chart text{fill:#57606a;font-size:12px}
.fedopt-run .mid{text-anchor:middle}.fedopt-run .end{text-anchor:end}
.fedopt-run .grid{stroke:#e4e7eb;fill:none}.fedopt-run .axis{stroke:#57606a;fill:none}
.fedopt-run .line{fill:none;stroke-width:1.9}.fedopt-run .swatch{width:26px;height:12px}
.fedopt-run .line.c0{stroke:#0072b2}.fedopt-run .line.c1{stroke:#d55e00}.fedopt-run .line.c2{stroke:#009e73}
.fedopt-run .dot.c0{fill:#0072b2}.fedopt-run .dot.c1{fill:#d55e00}.fedopt-run .dot.c2{fill:#009e73}
.fedopt-run .d1{stroke-dasharray:7 3}.fedopt-run .d2{stroke-dasharray:8 3 2 3}
</style>"""

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
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td><td>{escape(top)}</td></tr>'
        for name, value, top in rows
    )
    title = f"{strategy}, {summary.get('rounds', len(history))} rounds"
    where = f"<p>{escape(directory)}</p>" if directory is not None else ""
    head = '<th scope="col"></th><th scope="col">final</th><th scope="col">best (round)</th>'
    return (
        f'{_STYLE}<div class="fedopt-run"><div><strong>{escape(title)}</strong>'
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
