"""Reports of runs as single HTML files that open anywhere, without a request to anywhere.

`run_report` tells one run, `comparison_report` several; both return the text of a page. What a
folder holds is read in `record.py`, charts are drawn in `svg.py`, figures made of them in
`figures.py` and its neighbours, and the page is laid out in `page.py` and its templates.
"""

from __future__ import annotations

from fedopt.analysis.report.comparison import ExtraTable, comparison_report
from fedopt.analysis.report.folder import folder_report, folder_tables
from fedopt.analysis.report.page import write_report
from fedopt.analysis.report.record import RunRecord, find_runs, read_run
from fedopt.analysis.report.run_page import run_report

__all__ = [
    "ExtraTable",
    "RunRecord",
    "comparison_report",
    "find_runs",
    "folder_report",
    "folder_tables",
    "read_run",
    "run_report",
    "write_report",
]
