"""Freed memory is used again instead of being asked of the system anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fedopt.memory import keep_freed_memory

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
