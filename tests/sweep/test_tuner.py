"""The search that learns, on curves that are written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedopt.analysis.store import RunWriter
from fedopt.sweep.book import Book, State, Task
from fedopt.sweep.plan import Design
from fedopt.sweep.space import read_space
from fedopt.sweep.tuner import Tuner

pytest.importorskip("optuna")

ROUNDS = 9


def curve(book: Book, task: Task, values: list[float]) -> None:
    folder = book.run_folder(task.name)
    book.begin(task)
    with RunWriter(folder) as writer:
        for round, value in enumerate(values, start=1):
            writer.add_round({"round": round, "test_accuracy": value})


def tuner(book: Book, count: int = 6, words: tuple[str, ...] = ()) -> Tuner:
    design = Design(
        None,
        read_space([f"rounds={ROUNDS}", "local.optimizer.lr=log(0.001,1)", "seed=3,4", *words]),
    )
    return Tuner(design, book, "test_accuracy", count, 0, True, 1)


@pytest.fixture
def book(tmp_path: Path):
    with Book(tmp_path / "sweep", {"kind": "sweep"}) as opened:
        yield opened


def finish(book: Book, search: Tuner, task: Task, status: str = "completed") -> State:
    state = book.note(task.name, status)
    search.ended(task, state)
    return state


def test_what_is_behind_at_a_rung_is_stopped(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedopt.sweep.tuner._LOOK_EVERY", 0.0)
    search = tuner(book)
    good = search.next()
    assert good is not None
    assert good.seed == 3
    curve(book, good, [0.5 + 0.04 * r for r in range(ROUNDS)])
    assert not search.is_hopeless(good), "there is nobody to be behind of"
    finish(book, search, good)
    other_seed = search.next()
    assert other_seed is not None
    assert (other_seed.seed, other_seed.trial) == (4, good.trial)
    curve(book, other_seed, [0.5] * ROUNDS)
    assert not search.is_hopeless(other_seed), "only the first seed is compared"
    finish(book, search, other_seed)
    bad = search.next()
    assert bad is not None
    assert (bad.seed, bad.trial) == (3, 1)
    curve(book, bad, [0.1] * 4)
    assert search.is_hopeless(bad)
    finish(book, search, bad, "stopped")
    better = search.next()
    assert better is not None
    assert (better.seed, better.trial) == (3, 2), "the other seeds of what was stopped are not run"
    curve(book, better, [0.9] * 4)
    assert not search.is_hopeless(better)


def test_a_run_that_is_behind_but_done_is_not_stopped(book: Book) -> None:
    search = tuner(book)
    good = search.next()
    assert good is not None
    curve(book, good, [0.9] * ROUNDS)
    finish(book, search, good)
    search.next()
    bad = search.next()
    assert bad is not None
    curve(book, bad, [0.1] * ROUNDS)
    assert not search.is_hopeless(bad)


def test_a_later_call_proposes_what_the_first_would_have(tmp_path: Path) -> None:
    def points(book: Book, calls: int) -> list[float]:
        found = []
        search = tuner(book, 6)
        for _ in range(calls):
            task = search.next()
            if task is None:
                break
            lr = task.values["local.optimizer.lr"]
            if task.name not in book.states:
                curve(book, task, [1 - abs(lr - 0.1)] * ROUNDS)
                finish(book, search, task)
            else:
                search.ended(task, book.states[task.name])
            found.append(lr)
        return found

    with Book(tmp_path / "whole", {}) as book:
        whole = points(book, 12)
    assert len(set(whole)) == 6
    with Book(tmp_path / "half", {}) as book:
        points(book, 5)
        assert points(book, 12) == whole


def test_values_that_do_not_go_together_are_passed_over(book: Book, caplog) -> None:
    search = tuner(book, 4, ("strategy=fedprox,fedavg", "strategy.mu=0.5"))
    tasks = []
    while (task := search.next()) is not None:
        tasks.append(task)
        book.begin(task)
        finish(book, search, task, "failed")
    assert {task.config.strategy.name for task in tasks} <= {"fedprox"}
    assert len(tasks) + len(caplog.records) == 4
    assert search.total == len(tasks)
