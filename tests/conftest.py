"""What all tests share: one torch thread, and property tests that draw the same cases each time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("fedopt", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("fedopt")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Results are promised for one thread; more only compete for the cores."""
    torch.set_num_threads(1)
