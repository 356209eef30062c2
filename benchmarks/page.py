"""The size of a report and the seconds to make it and to show it, for a long and large run.

`python -m benchmarks.page` trains 1,000 clients for 100 rounds, all of them in each round, on a
virtual clock and with the accuracy of each client measured; writes the report; and opens it in
headless Chromium (`--browser` says where that is). It also times the report of a run of three
rounds, which must not be felt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

import fedopt
from benchmarks.measuring import Row, machine, show, write_csv
from fedopt.analysis.report import read_run, run_report

CHROMIUM = "/usr/bin/chromium"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
REPEATS = 5
# From the beginning of the navigation: the document is laid out and painted, nothing is pending.
TIMING = """new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
  const entry = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  done([performance.now(), entry.loadEventEnd, paint ? paint.startTime : NaN]);
})))"""


def long_run(folder: Path, rounds: int, clients: int) -> None:
    """Train a run that fills every section of a report."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(clients + 1, 20, 10)).astype("float32")
    y = (x[:, :, :5].argmax(axis=2) + rng.integers(0, 2, size=(clients + 1, 1))) % 10
    fedopt.simulate(
        out=folder,
        rounds=rounds,
        clients_per_round=None,
        clients=list(zip(x[1:], y[1:], strict=True)),
        test=(x[0], y[0]),
        model=lambda: torch.nn.Linear(10, 10),
        data={"validation_fraction": 0.2},
        local={"steps": 1},
        engine={"name": "inline"},
        system={"devices": {"name": "log_normal"}},
        policy={"name": "deadline", "seconds": 1.0},
        evaluation={"validation_clients": clients, "every": 1},
    )


def make_seconds(folder: Path) -> tuple[float, int]:
    """Return the median seconds to make a report from a folder, and its bytes."""
    seconds, text = [], ""
    for _ in range(REPEATS):
        began = time.perf_counter()
        text = run_report(read_run(folder))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), len(text.encode())


def show_seconds(page: Path, browser: str) -> tuple[float, float]:
    """Return the median seconds until a page is laid out and painted, and to its first paint."""
    from playwright.sync_api import sync_playwright

    done, first = [], []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=list(FLAGS))
        for _ in range(REPEATS + 1):
            tab = chromium.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.resolve().as_uri())
            total, _, paint = tab.evaluate(TIMING)
            done.append(max(total, paint) / 1000)
            first.append(paint / 1000)
            tab.close()
        chromium.close()
    return statistics.median(done[1:]), statistics.median(first[1:])


def main() -> None:
    """Measure, print and write `page.csv`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--browser", default=CHROMIUM)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for rounds, clients in ((3, 20), (given.rounds, given.clients)):
            run = Path(folder) / f"{rounds}_{clients}"
            long_run(run, rounds, clients)
            seconds, size = make_seconds(run)
            shown, painted = show_seconds(run / "report.html", given.browser)
            rows.append(
                {
                    "rounds": rounds,
                    "clients": clients,
                    "kB": round(size / 1000, 1),
                    "seconds to make": round(seconds, 3),
                    "seconds to show": round(shown, 3),
                    "seconds to first paint": round(painted, 3),
                }
            )
    show(Console(), "a report", rows)
    write_csv(given.out / "page.csv", rows, machine())


if __name__ == "__main__":
    main()
