from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from fedopt.analysis.store import RunWriter, to_json
from fedopt.analysis.summary import final_table, summarise
from fedopt.analysis.units import human_bytes, human_metric, human_seconds

ROWS = [
    {"round": 1, "train_loss": 2.0, "test_loss": 1.0, "test_accuracy": 0.5, "clients": 9},
    {"round": 2, "train_loss": 1.5, "bytes_up": 10, "clients": 10, "failed_clients": 1},
    {"round": 3, "train_loss": 1.4, "test_loss": 0.9, "test_accuracy": 0.7, "bytes_up": 20},
    {"round": 4, "train_loss": 1.3, "test_loss": 1.2, "test_accuracy": 0.7, "bytes_up": 30},
    {"round": 5, "train_loss": 1.2, "bytes_up": 40, "wall_seconds": 2.5, "clients": 10},
]


def test_final_is_the_last_measured_and_best_the_first_best() -> None:
    summary = summarise(ROWS, {"run_dir": "runs/a"})
    assert summary["rounds"] == 5
    assert summary["final"] == {
        "train_loss": 1.2,
        "test_loss": 1.2,
        "test_accuracy": 0.7,
        "test_ece": None,
        "test_mce": None,
        "test_brier": None,
        "test_balanced_accuracy": None,
        "test_auroc": None,
        "test_round": 4,
        "bytes_up": 40,
        "bytes_down": None,
        "sim_seconds": None,
        "joules": None,
        "wall_seconds": 2.5,
        "client_steps": None,
        "client_gradients": None,
    }
    assert summary["best"] == {
        "test_loss": {"value": 0.9, "round": 3},
        "test_accuracy": {"value": 0.7, "round": 3},
    }
    assert summary["totals"] == {"clients": 29, "dropped_clients": 0, "failed_clients": 1}
    assert summary["run_dir"] == "runs/a"


def test_a_loss_that_became_nan_is_not_reported_by_an_older_one() -> None:
    final = summarise([*ROWS, {"round": 6, "test_loss": math.nan, "test_accuracy": 0.1}])["final"]
    assert isinstance(final, dict)
    assert (final["test_loss"], final["test_accuracy"], final["test_round"]) == (None, 0.1, 6)


def test_sharpness_is_reported_from_its_own_rounds() -> None:
    sharp = {"round": 6, "test_sharpness": 7.0, "test_ball_increase": 0.1}
    final = summarise([*ROWS, sharp, {"round": 7, "train_loss": 1.0}])["final"]
    assert isinstance(final, dict)
    assert (final["test_loss"], final["test_round"]) == (1.2, 4)
    assert (final["test_sharpness"], final["test_ball_increase"]) == (7.0, 0.1)
    later = summarise([*ROWS, sharp, {"round": 8, "test_sharpness": math.nan, **ROWS[0]}])
    assert later["final"]["test_sharpness"] == 7.0  # type: ignore[index]


def test_rows_of_the_frame_give_the_same() -> None:
    with RunWriter(None) as writer:
        for row in ROWS:
            writer.add_round(row)
    records = writer.history().to_dict("records")
    assert to_json(summarise(writer.rows)) == to_json(summarise(records))
    assert to_json(summarise(writer.rows)) == to_json(summarise(ROWS))


def test_no_rounds_no_values() -> None:
    summary = summarise([])
    assert (summary["rounds"], summary["final"], summary["best"]) == (0, {}, {})
    assert final_table(summary).row_count == 0


def test_facts_replace_nothing() -> None:
    with pytest.raises(ValueError, match="best"):
        summarise(ROWS, {"best": {}})


def test_the_table_shows_what_was_measured() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(final_table(summarise(ROWS)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = {words[1]: words for line in text.splitlines() if len(words := line.split()) > 4}
    assert [word for word in lines["test_loss"] if word != "│"] == [
        "test_loss", "1.2000", "0.9000", "3"
    ]  # fmt: skip
    assert "40 B" in text
    assert "test_ece" not in text


def test_numbers_for_people() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 3_210_000, 999_960, 2e15)] == [
        "0 B", "999 B", "1.0 kB", "3.2 MB", "1.0 MB", "2.0 PB"
    ]  # fmt: skip
    assert [human_seconds(n) for n in (0, 59.6, 3600, 90_000)] == [
        "0:00", "1:00", "1:00:00", "1 day 1:00:00"
    ]  # fmt: skip
    assert [human_metric(n) for n in (0.0, 0.312, 12.3456, 1.5e-7, 2.5e6, math.inf)] == [
        "0", "0.3120", "12.346", "1.500e-07", "2.500e+06", "inf"
    ]  # fmt: skip
