"""What all tests share: one torch thread, and property tests that draw the same cases each time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Ray finds a running cluster by a file in its folder; tests must not join each other's.
    _own = Path(tempfile.gettempdir()) / f"ray-{os.environ['PYTEST_XDIST_WORKER']}"
    _own.mkdir(exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(_own)

settings.register_profile("fedopt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fedopt")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are promised for one thread; more only compete for the cores."""
    torch.set_num_threads(1)
