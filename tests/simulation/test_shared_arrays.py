"""Slots of shared memory: what is read is what was written, and nobody's view is overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedopt.errors import RunError
from fedopt.records import TensorArray
from fedopt.simulation.shared_arrays import MappedSlots, SlotPool

ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7),
)


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    made = ArrayRecord()
    for name, values in arrays.items():
        made[name] = TensorArray(values)
    return made


@pytest.fixture
def pool() -> SlotPool:
    return SlotPool()


@given(st.lists(st.dictionaries(st.text(min_size=1), ARRAYS, max_size=3), max_size=3))
def test_another_process_reads_what_was_written(content: list[dict[str, np.ndarray]]) -> None:
    pool, reader = SlotPool(), MappedSlots()  # a reader with mappings of its own
    try:
        records = {str(i): record(arrays) for i, arrays in enumerate(content)}
        packed = pool.memory.write(pool.lend(), records)
        found = reader.read(packed)
        assert found.keys() == records.keys()
        for i, arrays in enumerate(content):
            assert list(found[str(i)]) == list(arrays)
            for name, values in arrays.items():
                mine = found[str(i)][name].numpy()
                assert mine.dtype == values.dtype
                assert mine.shape == values.shape
                assert mine.tobytes() == values.tobytes()
                assert not mine.flags.writeable
    finally:
        pool.close()


def test_a_slot_is_lent_again_only_when_nobody_looks_into_it(pool: SlotPool) -> None:
    path = pool.lend()
    packed = pool.memory.write(path, {"r": record({"a": np.arange(5.0)})})
    view = pool.memory.read(packed)["r"]["a"].numpy()
    assert pool.lend() != path, "a slot on loan is not lent"
    pool.take_back(path)
    assert pool.lend() != path, "a slot with living views is not lent"
    np.testing.assert_array_equal(view, np.arange(5.0))
    del view
    assert pool.lend() == path
    pool.close()


def test_views_survive_the_growth_of_their_slot_and_its_end(pool: SlotPool) -> None:
    path = pool.lend()
    small = pool.memory.write(path, {"r": record({"a": np.arange(3.0)})})
    view = pool.memory.read(small)["r"]["a"].numpy()
    other = pool.lend()
    large = np.arange(100_000.0)
    packed = pool.memory.write(other, {"r": record({"a": large})})
    pool.close()
    np.testing.assert_array_equal(pool.memory.read(packed)["r"]["a"].numpy(), large)
    np.testing.assert_array_equal(view, np.arange(3.0))


def test_too_little_memory_is_an_error_and_not_a_crash(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(RunError, match=r"no room for 128 bytes of shared memory.*No space left"):
        pool.memory.write(pool.lend(), {"r": record({"a": np.arange(10.0)})})
    pool.close()


def test_what_a_killed_driver_left_is_removed() -> None:
    code = (
        "import os, signal\n"
        "from fedopt.simulation.shared_arrays import SlotPool\n"
        "pool = SlotPool(); print(pool.lend(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    left = Path(killed.stdout.strip()).parent
    assert left.is_dir()
    SlotPool().close()
    assert not left.exists()
