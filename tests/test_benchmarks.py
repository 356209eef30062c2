"""The benchmarks run and do the same mathematics, at tiny settings; no time is asserted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import accelerator, measuring, reading, report, scaling, secure, speed, techniques
from benchmarks.contenders import distance
from benchmarks.two_processes import FusedDense, LeanLoop, views
from benchmarks.workloads import BareLoop, find


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measuring, "PATIENCE_SECONDS", 0)
    monkeypatch.setenv("BENCHMARK_PATIENCE", "0")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_speed_writes_its_tables_and_the_contenders_agree(tmp_path: Path) -> None:
    without = ["ray", "flower", "reference"]
    options = ["--quick", "--workloads", "W1", "W3", "--rounds", "2", "--out", str(tmp_path)]
    assert speed.main([*options, "--without", *without]) == 0
    table = pd.read_csv(tmp_path / "speed.csv", comment="#")
    assert set(table["workload"]) == {"W1", "W3"}
    assert {"bare torch loop", "fedopt, inline, loop", "fedopt, inline, stacked"} == set(
        table["contender"]
    )
    assert table["max difference"].max() < 1e-6  # float32 sums, taken in another order
    assert len(pd.read_csv(tmp_path / "speed_rounds.csv", comment="#")) == 2 * 3 * 2
    assert (tmp_path / "speed.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
def test_the_reference_engines_agree_with_the_plain_loop(name: str) -> None:
    torch.set_num_threads(1)
    workload = find(name, quick=True)
    loop = BareLoop(workload)
    start = loop.initial()
    cohort = workload.cohort_of(1)
    orders = workload.orders(1, cohort)
    expected = loop.round(start, cohort, orders)
    engine = LeanLoop(workload) if name == "W2" else FusedDense(workload, chunk=3)
    flat = torch.cat([value.flatten() for value in start])
    total = torch.zeros_like(flat)
    engine.add(total, flat, cohort, torch.stack(orders))
    got = views(total / len(cohort), [value.shape for value in start])
    # Channels-last convolutions add in another order than those of the plain loop.
    assert distance(got, expected) < (1e-4 if name == "W2" else 1e-6)


def test_the_engines_agree_with_a_plain_loop_on_a_device(tmp_path: Path) -> None:
    options = ["--quick", "--workloads", "W3", "--without", "compiled", "--out", str(tmp_path)]
    assert accelerator.main(["--device", "cpu", *options]) == 0
    table = pd.read_csv(tmp_path / "compiled.csv", comment="#")
    assert set(table["contender"]) == {accelerator.PLAIN, "fedopt, loop", "fedopt, stacked"}
    if not torch.cuda.is_available():
        assert accelerator.main(options) == 2
    assert "| W3 |" in report.device_table(report.read(tmp_path / "compiled.csv")[1])


def test_reading_writes_its_table(tmp_path: Path) -> None:
    if reading.main(["--quick", "--out", str(tmp_path)]) == 2:
        pytest.skip("the system cannot be asked to read ahead")
    table = pd.read_csv(tmp_path / "reading.csv", comment="#").set_index("examples")
    assert table.loc["read as touched", "x read as touched"] == 1
    assert table.loc["in memory", "waits for the disk a round"] == 0


def test_scaling_writes_its_tables(tmp_path: Path) -> None:
    assert scaling.main(["--quick", "--rounds", "2", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "scaling.csv", comment="#")
    assert set(table["table"]) == {"registered", "sampled", "model"}
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_profile_accounts_for_the_round(tmp_path: Path) -> None:
    options = ["--quick", "--workloads", "W3", "--without", "ray", "--out", str(tmp_path)]
    # In a process of its own: it puts clocks around fedopt's functions and leaves them there.
    subprocess.run([sys.executable, "-m", "benchmarks.profile_round", *options], check=True)
    table = pd.read_csv(tmp_path / "profile.csv", comment="#").set_index("stage, ms")
    assert table.loc["training", "W3 inline"] > 0
    assert table.loc["round", "W3 inline"] >= table.loc["training", "W3 inline"]


@pytest.mark.exhaustive
def test_techniques_are_timed_in_both_engines(tmp_path: Path) -> None:
    assert techniques.main(["--quick", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "techniques.csv", comment="#")
    assert set(table["workload"]) == {"W1", "W3"}
    assert list(table["technique"][: len(techniques.TECHNIQUES)]) == list(techniques.TECHNIQUES)
    assert (table[["loop, us", "stacked, us"]] > 0).all(axis=None)
    plain = table[table["technique"] == techniques.PLAIN]
    assert (plain[["loop, x", "stacked, x"]] == 1).all(axis=None)


def test_secure_sums_are_exact_and_accounted_for(tmp_path: Path) -> None:
    assert secure.main(["--quick", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "secure.csv", comment="#")
    assert set(table["graph"]) == set(secure.GRAPHS)
    assert (table["exact"] == "yes").all()
    masked = table[table["stage"] == "masked"]
    assert (masked["bytes up"] == 32 + 8 * masked["coordinates"]).all()
    shares = table[table["stage"] == "shares"]
    assert (shares["bytes up"] == 65 + 102 * shares["neighbours"]).all()
    rows = [{k: str(v) for k, v in row.items()} for row in table.to_dict("records")]
    assert report.secure_table(rows).count("\n") == 1 + len(secure.GRAPHS)


def test_report_fills_the_marked_places() -> None:
    document = "a\n<!-- W1 -->\nold\n<!-- end -->\nb\n<!-- W2 -->\nkept\n<!-- end -->\n"
    filled = report.fill(document, {"W1": "new", "unknown": "nowhere"})
    assert filled == document.replace("old", "\nnew\n")
    assert report.markdown([{"x": "1234", "y": "0.5"}], ["x", "y"]).endswith("| 1,234 | 0.50 |")
