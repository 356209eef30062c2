"""Lines: answers and errors come back, and a worker's end is noticed however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path

import pytest

from fedopt.errors import ConfigError
from fedopt.simulation import lines
from fedopt.simulation.lines import AnswerError, Line, Switchboard, serve


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switchboard]:
    monkeypatch.setattr(lines, "WATCH_SECONDS", 0.05)
    found = Switchboard(tmp_path / "driver")
    yield found
    found.close()


def lives() -> bool:
    return False


def ended() -> bool:
    return True


def called(board: Switchboard, answer: Callable[..., object]) -> tuple[Line, threading.Thread]:
    """Return a connected line to a thread that answers."""
    line = board.expect()
    thread = threading.Thread(target=serve, args=(board.address, line.number, answer))
    thread.start()
    return board.connect(line, lives), thread


def asked(board: Switchboard, line: Line, *arguments: object) -> object:
    line.send(arguments)
    assert board.wait({line: lives}) is line
    return line.receive()


def test_answers_come_back_and_the_worker_ends_with_the_line(board: Switchboard) -> None:
    line, thread = called(board, lambda a, b: [a, b])
    assert line.pid == os.getpid()
    assert asked(board, line, 1, "x") == [1, "x"]
    assert asked(board, line, b"0" * 10**6, None) == [b"0" * 10**6, None]
    board.drop(line)
    thread.join(10)
    assert not thread.is_alive()


class UnsendableError(Exception):
    """An exception that cannot be made again from its pickle."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def test_errors_come_back_and_the_line_goes_on(board: Switchboard) -> None:
    def answer(error: Exception | None, *more: int) -> object:
        if more:
            raise UnsendableError(*more)
        if error is not None:
            raise error
        return lambda: None  # cannot be pickled

    line, _ = called(board, answer)
    with pytest.raises(AnswerError, match="in answer") as caught:
        asked(board, line, ConfigError("broken", key="engine.device"))
    assert isinstance(caught.value.cause, ConfigError)
    assert caught.value.cause.key == "engine.device"
    with pytest.raises(AnswerError, match="1 2") as caught:
        asked(board, line, None, 1, 2)
    assert caught.value.cause is None
    with pytest.raises(AnswerError, match="pickle"):
        asked(board, line, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_cuts_its_line(board: Switchboard) -> None:
    def answer() -> None:
        raise SystemExit

    line, thread = called(board, answer)
    assert asked(board, line) is None
    thread.join(10)
    line.send("nobody hears it")
    assert board.wait({line: lives}) is line
    assert line.receive() is None


def test_an_end_is_noticed_also_where_the_line_stays_open(board: Switchboard) -> None:
    line, _ = called(board, lambda: None)
    assert board.wait({line: ended}) is line
    assert line.receive() is None
    never = board.expect()
    assert board.connect(never, ended).is_cut


def test_a_worker_that_was_given_up_is_not_taken_for_another(board: Switchboard) -> None:
    old = board.expect()
    board.drop(old)
    late = threading.Thread(target=serve, args=(board.address, old.number, lambda: "old"))
    late.start()
    assert connection.wait([board._socket], 10)  # it calls first
    line, _ = called(board, lambda: "new")
    assert asked(board, line) == "new"
    late.join(10)
    assert not late.is_alive()
