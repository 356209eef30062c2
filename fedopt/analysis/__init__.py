"""What a run leaves behind: its folder, its metrics, its summary, its figures, its progress.

Names are imported on first use (PEP 562), so the light modules (columns, store, summary)
can be used without loading torch, pandas or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedopt.analysis.columns import CLIENT_COLUMNS as CLIENT_COLUMNS
    from fedopt.analysis.columns import ROUND_COLUMNS as ROUND_COLUMNS
    from fedopt.analysis.columns import Column as Column
    from fedopt.analysis.columns import markdown_table as markdown_table
    from fedopt.analysis.metrics import classification_metrics as classification_metrics
    from fedopt.analysis.metrics import expected_calibration_error as expected_calibration_error
    from fedopt.analysis.plots import convergence_figure as convergence_figure
    from fedopt.analysis.plots import save_figure as save_figure
    from fedopt.analysis.progress import Progress as Progress
    from fedopt.analysis.progress import make_progress as make_progress
    from fedopt.analysis.store import RunWriter as RunWriter
    from fedopt.analysis.store import default_directory as default_directory
    from fedopt.analysis.store import read_clients as read_clients
    from fedopt.analysis.store import read_history as read_history
    from fedopt.analysis.store import read_summary as read_summary
    from fedopt.analysis.summary import final_table as final_table
    from fedopt.analysis.summary import summarise as summarise

_HOME = {
    "CLIENT_COLUMNS": "columns",
    "ROUND_COLUMNS": "columns",
    "Column": "columns",
    "markdown_table": "columns",
    "classification_metrics": "metrics",
    "expected_calibration_error": "metrics",
    "convergence_figure": "plots",
    "save_figure": "plots",
    "Progress": "progress",
    "make_progress": "progress",
    "RunWriter": "store",
    "default_directory": "store",
    "read_clients": "store",
    "read_history": "store",
    "read_summary": "store",
    "final_table": "summary",
    "summarise": "summary",
}

__all__ = [
    "CLIENT_COLUMNS",
    "ROUND_COLUMNS",
    "Column",
    "Progress",
    "RunWriter",
    "classification_metrics",
    "convergence_figure",
    "default_directory",
    "expected_calibration_error",
    "final_table",
    "make_progress",
    "markdown_table",
    "read_clients",
    "read_history",
    "read_summary",
    "save_figure",
    "summarise",
]


def __getattr__(name: str) -> object:
    """Import and return a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
