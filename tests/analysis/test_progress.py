from __future__ import annotations

import io
import sys

import pytest

from fedopt.analysis.progress import (
    LiveProgress,
    PlainProgress,
    Progress,
    SilentProgress,
    make_progress,
)
from fedopt.analysis.summary import summarise


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that moves by `step` seconds a reading."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 100.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def rows(first: int, rounds: int) -> list[dict[str, object]]:
    return [
        {
            "round": n,
            "train_loss": 1 / n,
            "test_loss": 1.5 / n if n % 5 == 0 else None,
            "test_accuracy": 1 - 0.5 / n if n % 5 == 0 else float("nan"),
            "bytes_up": 1000 * n,
            "bytes_down": 2000 * n,
        }
        for n in range(first, rounds + 1)
    ]


def show(progress: Progress, rounds: int, first: int = 1) -> None:
    progress.start(rounds, "fedavg on digits")
    for row in rows(first, rounds):
        progress.update(row)
    progress.message("a warning \x1b[31min red\x1b[0m")
    progress.finish(summarise(rows(first, rounds), {"run_dir": "runs/a"}))
    progress.close()


@pytest.mark.parametrize("rounds", [1, 5, 20, 21, 1000, 12345])
def test_plain_output_is_bounded_and_has_no_control_codes(rounds: int) -> None:
    stream = io.StringIO()
    show(PlainProgress(stream, Clock(1e-4)), rounds)
    text = stream.getvalue()
    assert {c for c in text if not c.isprintable()} == {"\n"}
    lines = [line for line in text.splitlines() if line.startswith("round ")]
    assert min(rounds, 10) <= len(lines) <= 22
    assert lines[0].startswith(f"round 1/{rounds}, train 1.0000")
    assert lines[-1].startswith(f"round {rounds}/{rounds}, ")
    assert "left" not in lines[-1]
    assert "warning ?[31min red" in text
    assert text.endswith("results in runs/a\n")


def test_slow_rounds_show_a_line_every_ten_seconds() -> None:
    stream = io.StringIO()
    show(PlainProgress(stream, Clock(6.0)), 1000)
    shown = [line for line in stream.getvalue().splitlines() if line.startswith("round ")]
    assert 500 <= len(shown) <= 525


def test_a_line_keeps_the_last_measured_values() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, Clock(11.0))
    progress.start(20, "header")
    for row in rows(1, 6):
        progress.update(row)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "round 1/20, train 1.0000, 3.0 kB, 0:11, 3:29 left"
    assert lines[6] == (
        "round 6/20, train 0.1667, test 0.3000, accuracy 0.900, 18.0 kB, 1:06, 2:34 left"
    )


def test_time_left_of_a_resumed_run_is_by_its_own_pace() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, Clock(10.0))
    progress.start(100, "resumed")
    progress.update({"round": 91})
    assert stream.getvalue().splitlines()[1] == "round 91/100, 0:10, 1:30 left"


def test_the_display_fits_the_stream(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_progress(True, Terminal()), SilentProgress)
    assert isinstance(make_progress(False, Terminal()), LiveProgress)
    assert isinstance(make_progress(False, io.StringIO()), PlainProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress(False, Terminal()), PlainProgress)


def test_the_live_line_ends_with_the_results(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    show(LiveProgress(stream), 10)
    text = stream.getvalue()
    assert "fedavg on digits" in text
    assert "round 10/10  train 0.1000  test 0.1500  accuracy 0.950  30.0 kB" in text
    assert "done: 10 rounds" in text
    assert "\x1b[31m" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def test_a_failed_run_gives_the_terminal_back(monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = LiveProgress(stream)
    progress.start(10, "header")
    progress.close()
    progress.close()
    assert stream.getvalue().count("\x1b[?25h") == 1


@pytest.mark.parametrize("kind", [PlainProgress, LiveProgress])
def test_standard_output_stays_clean(kind, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    show(kind(sys.stderr), 3)
    show(SilentProgress(), 3)
    assert capsys.readouterr().out == ""
