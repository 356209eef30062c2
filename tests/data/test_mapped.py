"""Rows of mapped files are asked for before they are used, as long as the disk is waited for."""

from __future__ import annotations

import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedopt
from fedopt.data import mapped
from fedopt.data.arrays import ArrayPopulation
from fedopt.data.dataset import Dataset
from fedopt.data.mapped import ReadAhead
from fedopt.data.partitioners import Partition

pytestmark = pytest.mark.skipif(
    not hasattr(mmap, "MADV_WILLNEED"), reason="the system has no madvise"
)


class Mapping:
    """Takes the place of a mapping; keeps what is asked of it."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self.nbytes

    def madvise(self, option: int, start: int, length: int) -> None:
        assert option == mmap.MADV_WILLNEED
        self.asked.append((start, start + length))


def saved(path: Path, rows: int, width: int) -> Any:
    np.save(path, np.arange(rows * width, dtype=np.uint8).reshape(rows, width))
    return np.load(path, mmap_mode="r")


@given(
    st.integers(1, 12_000),
    st.lists(st.integers(0, 199), min_size=1, max_size=60),
    st.integers(0, 3),
)
def test_what_is_asked_for_are_the_pages_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, width: int, rows: list[int], skipped: int
) -> None:
    file = tmp_path_factory.mktemp("mapped") / "x.npy"
    array = saved(file, 200 + skipped, width)[skipped:]
    ahead, size = ReadAhead(array), file.stat().st_size
    ahead._mapping = mapping = Mapping(size)  # type: ignore[assignment]
    assert ahead.ask(np.array(rows)) == len(mapping.asked)
    header = size - (200 + skipped) * width
    bytes_ = np.zeros(size + mmap.PAGESIZE, dtype=int)
    for start, stop in mapping.asked:
        assert start % mmap.PAGESIZE == 0
        assert start < stop <= size
        bytes_[start:stop] += 1
    assert bytes_.max() == 1  # no page twice
    pages = np.zeros(size + mmap.PAGESIZE, dtype=int)
    for row in rows:
        first = header + (row + skipped) * width
        begin = first - first % mmap.PAGESIZE
        pages[begin : min(size, -(-(first + width) // mmap.PAGESIZE) * mmap.PAGESIZE)] = 1
    assert np.array_equal(bytes_, pages)


def test_asking_ends_where_nothing_is_read_and_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = ReadAhead(saved(tmp_path / "x.npy", 9, 5_000))
    reads = 0
    monkeypatch.setattr(mapped, "_reads", lambda: reads)

    class Cold(Mapping):
        def madvise(self, option: int, start: int, length: int) -> None:
            nonlocal reads
            reads += 1

    warm, cold = ahead._mapping, Cold(50_000)
    ahead._mapping = cold  # type: ignore[assignment]
    for _ in range(3 * ReadAhead.PATIENCE):  # what asking itself reads keeps it up
        assert ahead.ask(np.array([6, 1])) == 2
        with ahead.watched():
            pass
    ahead._mapping = warm
    for left in range(ReadAhead.PATIENCE, 0, -1):
        assert ahead.is_asking, left
        assert ahead.ask(np.array([6, 1])) == 2
    assert not ahead.is_asking
    assert ahead.ask(np.array([6, 1])) == 0
    with ahead.watched():
        reads += 1
    assert ahead.is_asking


def test_who_does_not_take_advice_is_not_asked_again(tmp_path: Path) -> None:
    class Deaf(Mapping):
        def madvise(self, option: int, start: int, length: int) -> None:
            raise OSError(22, "Invalid argument")

    ahead = ReadAhead(saved(tmp_path / "x.npy", 9, 8))
    ahead._mapping = Deaf(200)  # type: ignore[assignment]
    assert ahead.ask(np.array([1])) == 0
    assert not ahead.is_asking


def test_nothing_is_asked_where_reads_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS threads have no counts of their own, on Windows nothing has."""
    array = saved(tmp_path / "x.npy", 9, 8)
    for without in (object(), None):
        monkeypatch.setattr(mapped, "resource", without)
        ahead = ReadAhead(array)
        with ahead.watched():
            assert ahead.ask(np.array([1])) == 0


@pytest.mark.parametrize("array", [np.zeros((4, 3)), np.zeros((4, 0))])
def test_what_is_in_memory_is_not_asked_for(array: Any) -> None:
    ahead = ReadAhead(array)
    assert not ahead.is_asking
    assert ahead.ask(np.array([1])) == 0


def test_rows_that_are_not_in_order_are_not_asked_for(tmp_path: Path) -> None:
    array = saved(tmp_path / "x.npy", 9, 8)
    assert not ReadAhead(array[::2]).is_asking
    assert not ReadAhead(array[:, :3]).is_asking
    assert not ReadAhead(array[::-1]).is_asking


def test_a_population_asks_for_the_rows_of_clients_also_when_it_came_to_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.array([5, 0, 3, 8, 1])
    population = ArrayPopulation(
        Dataset("own", saved(tmp_path / "x.npy", 9, 4), np.zeros(9, dtype=np.int64), 2),
        Partition(np.array([0, 2, 5]), rows),
    )
    for own in (population, pickle.loads(pickle.dumps(population))):
        asked: list[Any] = []
        monkeypatch.setattr(ReadAhead, "ask", lambda _, r, asked=asked: asked.append(r.tolist()))
        own.read_ahead([1, 0])
        assert asked == [[3, 8, 1, 5, 0]]


def test_a_block_is_asked_for_while_the_one_before_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(40, 6)).astype(np.float32))
    np.save(tmp_path / "y.npy", rng.integers(0, 3, 40))
    log: list[str] = []
    ask, watched = ArrayPopulation.read_ahead, ArrayPopulation.train_many

    def asks(self: ArrayPopulation, clients: Any) -> None:
        log.append("ask")
        ask(self, clients)

    def uses(self: ArrayPopulation, clients: Any) -> Any:
        log.append("use")
        return watched(self, clients)

    monkeypatch.setattr(ArrayPopulation, "read_ahead", asks)
    monkeypatch.setattr(ArrayPopulation, "train_many", uses)
    fedopt.simulate(
        data={"name": "files", "path": str(tmp_path)},
        partition={"name": "iid", "clients": 6},
        model="logistic",
        rounds=1,
        clients_per_round=6,
        evaluation={"every": 5},
        engine={"name": "inline", "block_size": 2},
    )
    assert log == ["ask", "ask", "use", "ask", "use", "use"]
