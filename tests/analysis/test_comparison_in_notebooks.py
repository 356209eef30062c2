"""Comparisons of runs in Python: the numbers of the command, shown as tables."""

from __future__ import annotations

import fedopt

SETTINGS = {
    "rounds": 3,
    "clients_per_round": 3,
    "partition": {"clients": 6},
    "model": "logistic",
    "engine": "inline",
}


def test_runs_are_compared_and_show_themselves():
    runs = [
        fedopt.simulate(**SETTINGS, strategy=strategy, seed=seed)
        for strategy in ("fedavg", "scaffold")
        for seed in (0, 1)
    ]
    found = runs[0].compare(*runs[1:], target="test_accuracy=0.2")
    assert [group.n for group in found.groups] == [2, 2]
    best = [row.best["test_accuracy"] for rows in found.rows for row in rows]
    assert sorted(best) == sorted(run.history.iloc[1:]["test_accuracy"].max() for run in runs)
    page = found._repr_html_()
    assert page.count("<table>") == page.count("</table>") >= 1
    assert "scaffold" in page
    assert "<script" not in page
