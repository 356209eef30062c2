"""Following a run: new rows once each, what it does, how long it takes, what a terminal shows."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedopt.analysis.follow import RunFollower, signature
from fedopt.analysis.live_view import (
    braille_curve,
    closing_line,
    live_view,
    plain_line,
    sparkline,
)
from fedopt.analysis.store import RunWriter
from fedopt.errors import ConfigError

from .growing import GrowingRun


def test_rows_come_once_whole_and_in_order(tmp_path):
    run = GrowingRun(tmp_path / "run")
    followed = RunFollower(run.directory)
    assert followed.poll()
    assert (followed.status, followed.round, followed.planned) == ("running", 0, 10)
    for round in range(1, 4):
        run.grow(0.1 * round)
        assert followed.poll()
        assert not followed.poll()
        assert [row["round"] for row in followed.rows] == list(range(1, round + 1))
    line = b"4,0.5"  # the beginning of a line that is being written
    with (run.directory / "rounds.csv").open("ab") as file:
        file.write(line)
    followed.poll()
    assert followed.round == 3
    assert followed.column("test_accuracy") == pytest.approx([0.1, 0.2, 0.3])
    assert followed.seconds_left() == pytest.approx(2.0 * 7)


def test_a_run_that_is_resumed_begins_anew_where_its_table_was_cut(tmp_path):
    run = GrowingRun(tmp_path / "run")
    for accuracy in (0.1, 0.2, 0.3):
        run.grow(accuracy, reason="late")
    followed = RunFollower(run.directory)
    followed.poll()
    run.end("interrupted", error="by a signal")
    followed.poll()
    assert followed.status == "interrupted"
    assert followed.lost == {"dropped": 3}
    with RunWriter.resume(run.directory, 2):
        followed.poll()
        assert followed.status == "running"
        assert followed.round == 2
        assert followed.lost == {"dropped": 2}


def test_a_run_whose_process_died_is_stopped(tmp_path):
    run = GrowingRun(tmp_path / "run")
    run.grow(0.5)
    run.writer.close()
    (run.directory / ".lock").write_text("999999999\n")  # no process has such an id
    followed = RunFollower(run.directory)
    followed.poll()
    assert followed.status == "stopped"
    assert "fedopt resume" in closing_line(followed)


def test_signatures_change_with_what_a_follower_reads(tmp_path):
    run = GrowingRun(tmp_path / "run")
    seen = {signature(run.directory)}
    run.grow(0.5)
    seen.add(signature(run.directory))
    run.end()
    seen.add(signature(run.directory))
    assert len(seen) == 3


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        RunFollower(tmp_path / "nothing")


values = st.lists(st.one_of(st.floats(-1e9, 1e9), st.just(float("nan"))), max_size=300)


@given(values, st.integers(1, 80))
def test_sparklines_fit_and_span_from_the_lowest_bar_to_the_highest(numbers, width):
    known = [n for n in numbers if n == n]
    line = sparkline(numbers, width)
    assert len(line) == min(len(known), width)
    if known and len(known) <= width and min(known) < max(known):
        assert line[known.index(min(known))] == "▁"
        assert line[known.index(max(known))] == "█"


@given(values, st.integers(1, 60), st.integers(1, 10))
def test_braille_curves_fill_their_box_and_have_no_gap(numbers, width, height):
    lines = braille_curve(numbers, width, height)
    assert [len(line) for line in lines] == [width] * height
    columns = list(zip(*lines, strict=True))
    if any(n == n for n in numbers):
        assert all(any(c != "\u2800" for c in column) for column in columns)
    else:
        assert all(c == "\u2800" for line in lines for c in line)


def shown(followed: RunFollower, width: int = 100, unicode: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(live_view(followed, width, unicode))
    return console.file.getvalue()


def test_the_view_shows_progress_values_failures_and_warnings(tmp_path):
    run = GrowingRun(tmp_path / "run")
    for accuracy in (0.25, 0.75, 0.5):
        run.grow(accuracy, reason="late")
    (run.directory / "warnings.jsonl").write_text(
        json.dumps({"time": "", "message": "[red]mind\x1b[31m this"}) + "\n"
    )
    followed = RunFollower(run.directory)
    followed.poll()
    text = shown(followed)
    for words in ("running", "round 3/10", "0:14 left", "3 dropped", "client 7 dropped: late"):
        assert words in text
    row = next(line for line in text.splitlines() if "test_accuracy" in line)
    assert row.split()[2:5] == ["0.5000", "0.7500", "2"]
    assert "warning: [red]mind?[31m this" in text
    assert "\x1b" not in text
    narrow = shown(followed, 40, unicode=False)
    assert max(map(len, narrow.splitlines())) <= 40
    assert "▁" not in narrow
    assert "test accuracy 0.5000" in plain_line(followed)
    run.end("failed", error="client 3\x1b[2J failed\nlong trace")
    followed.poll()
    assert "error: client 3?[2J failed" in shown(followed)
    assert closing_line(followed) == "failed: 3 of 10 rounds; client 3?[2J failed"
