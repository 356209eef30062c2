"""Freed memory is used again instead of being asked of the system anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from fedopt import memory
from fedopt.client.thrift import is_out_of_memory
from fedopt.memory import empty_rows, keep_freed_memory

FAULTS = """
import resource
import torch
from fedopt.memory import keep_freed_memory
assert keep_freed_memory()
def step():
    tensors = [torch.zeros(500_000) for _ in range(8)]
    return sum(float(t[0]) for t in tensors)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_pages_are_touched_once() -> None:
    """A step of 16 MB is 4,000 pages: they are mapped once, not in each of twenty steps."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 2_000


def test_it_says_whether_the_allocator_took_it() -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_too_little_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a group of clients is halved, as where torch says so."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", refuse)
    with pytest.raises(MemoryError) as caught:
        empty_rows(2, 2**20, torch.float32, torch.device("cpu"))
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (1, 7), (3, 1_000), (5, 1_000_003)])
def test_rows_are_aligned_apart_and_the_process_s_own(
    rows: int, columns: int, dtype: torch.dtype
) -> None:
    memory = empty_rows(rows, columns, dtype, torch.device("cpu"))
    assert memory.shape == (rows, columns)
    assert memory.dtype == dtype
    values = torch.arange(rows, dtype=dtype)
    for row, value in zip(memory, values, strict=True):
        assert row.is_contiguous()
        assert row.data_ptr() % 64 == 0
        row.fill_(value)
    assert torch.equal(memory, values[:, None].expand(rows, columns))
    del row
    again = empty_rows(rows, columns, dtype, torch.device("cpu"))
    again.fill_(-1)  # in other memory than what is still in use
    assert torch.equal(memory, values[:, None].expand(rows, columns))
