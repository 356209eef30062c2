"""What a run leaves behind: its folder, its metrics, its summary, its figures, its progress.

Names are imported on first use (PEP 562), so the light modules (columns, store, summary)
can be used without loading torch, pandas or matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedopt.analysis.calibration import Calibration as Calibration
    from fedopt.analysis.calibration import measure_calibration as measure_calibration
    from fedopt.analysis.calibration_plots import reliability_figure as reliability_figure
    from fedopt.analysis.client_plots import client_figure as client_figure
    from fedopt.analysis.columns import CLIENT_COLUMNS as CLIENT_COLUMNS
    from fedopt.analysis.columns import EVALUATION_COLUMNS as EVALUATION_COLUMNS
    from fedopt.analysis.columns import ROUND_COLUMNS as ROUND_COLUMNS
    from fedopt.analysis.columns import Column as Column
    from fedopt.analysis.columns import markdown_table as markdown_table
    from fedopt.analysis.comparison import Comparison as Comparison
    from fedopt.analysis.distribution import ClientDistribution as ClientDistribution
    from fedopt.analysis.distribution import client_distribution as client_distribution
    from fedopt.analysis.groups import Group as Group
    from fedopt.analysis.groups import group_runs as group_runs
    from fedopt.analysis.groups import read_stored as read_stored
    from fedopt.analysis.intervals import MeanInterval as MeanInterval
    from fedopt.analysis.intervals import mean_interval as mean_interval
    from fedopt.analysis.metrics import ReliabilityBins as ReliabilityBins
    from fedopt.analysis.metrics import classification_metrics as classification_metrics
    from fedopt.analysis.metrics import expected_calibration_error as expected_calibration_error
    from fedopt.analysis.metrics import maximum_calibration_error as maximum_calibration_error
    from fedopt.analysis.metrics import reliability as reliability
    from fedopt.analysis.metrics import temperature_scale as temperature_scale
    from fedopt.analysis.paired import PairedInterval as PairedInterval
    from fedopt.analysis.paired import paired_interval as paired_interval
    from fedopt.analysis.plots import convergence_figure as convergence_figure
    from fedopt.analysis.plots import convergence_plot as convergence_plot
    from fedopt.analysis.plots import save_figure as save_figure
    from fedopt.analysis.progress import Progress as Progress
    from fedopt.analysis.progress import make_progress as make_progress
    from fedopt.analysis.sharpness import sam_ball_increase as sam_ball_increase
    from fedopt.analysis.sharpness import top_hessian_eigenvalue as top_hessian_eigenvalue
    from fedopt.analysis.store import RunWriter as RunWriter
    from fedopt.analysis.store import default_directory as default_directory
    from fedopt.analysis.store import read_clients as read_clients
    from fedopt.analysis.store import read_evaluations as read_evaluations
    from fedopt.analysis.store import read_history as read_history
    from fedopt.analysis.store import read_summary as read_summary
    from fedopt.analysis.summary import final_table as final_table
    from fedopt.analysis.summary import summarise as summarise
    from fedopt.analysis.targets import Target as Target
    from fedopt.analysis.targets import cost_to_target as cost_to_target

_HOME = {
    "Comparison": "comparison",
    "Group": "groups",
    "group_runs": "groups",
    "read_stored": "groups",
    "MeanInterval": "intervals",
    "mean_interval": "intervals",
    "convergence_plot": "plots",
    "Target": "targets",
    "cost_to_target": "targets",
    "Calibration": "calibration",
    "measure_calibration": "calibration",
    "reliability_figure": "calibration_plots",
    "client_figure": "client_plots",
    "CLIENT_COLUMNS": "columns",
    "EVALUATION_COLUMNS": "columns",
    "ROUND_COLUMNS": "columns",
    "Column": "columns",
    "markdown_table": "columns",
    "ClientDistribution": "distribution",
    "client_distribution": "distribution",
    "ReliabilityBins": "metrics",
    "classification_metrics": "metrics",
    "expected_calibration_error": "metrics",
    "maximum_calibration_error": "metrics",
    "reliability": "metrics",
    "temperature_scale": "metrics",
    "PairedInterval": "paired",
    "paired_interval": "paired",
    "convergence_figure": "plots",
    "save_figure": "plots",
    "Progress": "progress",
    "make_progress": "progress",
    "sam_ball_increase": "sharpness",
    "top_hessian_eigenvalue": "sharpness",
    "RunWriter": "store",
    "default_directory": "store",
    "read_clients": "store",
    "read_evaluations": "store",
    "read_history": "store",
    "read_summary": "store",
    "final_table": "summary",
    "summarise": "summary",
}

__all__ = [
    "CLIENT_COLUMNS",
    "EVALUATION_COLUMNS",
    "ROUND_COLUMNS",
    "Calibration",
    "ClientDistribution",
    "Column",
    "Comparison",
    "Group",
    "MeanInterval",
    "PairedInterval",
    "Progress",
    "ReliabilityBins",
    "RunWriter",
    "Target",
    "classification_metrics",
    "client_distribution",
    "client_figure",
    "convergence_figure",
    "convergence_plot",
    "cost_to_target",
    "default_directory",
    "expected_calibration_error",
    "final_table",
    "group_runs",
    "make_progress",
    "markdown_table",
    "maximum_calibration_error",
    "mean_interval",
    "measure_calibration",
    "paired_interval",
    "read_clients",
    "read_evaluations",
    "read_history",
    "read_stored",
    "read_summary",
    "reliability",
    "reliability_figure",
    "sam_ball_increase",
    "save_figure",
    "summarise",
    "temperature_scale",
    "top_hessian_eigenvalue",
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
