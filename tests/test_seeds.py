"""Random draws: pure functions of (seed, purpose, ids), independent of each other."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedopt.seeds import derive, generator, seed_torch, torch_generator, torch_seed

integers = st.integers(-(2**63), 2**63 - 1)
draws = st.tuples(integers, st.text(max_size=30), st.lists(integers, max_size=3))


@given(draws, draws)
def test_different_arguments_give_different_draws(
    one: tuple[int, str, list[int]], other: tuple[int, str, list[int]]
) -> None:
    first, second = derive(one[0], one[1], *one[2]), derive(other[0], other[1], *other[2])
    assert 0 <= first < 2**128
    assert (first == second) == (one == other)


def test_the_bits_are_fixed() -> None:
    """A change of these numbers changes every published result: it needs a new major version."""
    assert derive(0, "cohort", 1) == derive(0, "cohort", 1)
    program = "from fedopt.seeds import derive; print(derive(7, 'batches', 3, 4))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(printed.stdout) == derive(7, "batches", 3, 4)


def test_generators_start_where_they_are_keyed() -> None:
    assert generator(1, "a", 2).integers(2**62) == generator(1, "a", 2).integers(2**62)
    assert generator(1, "a", 2).integers(2**62) != generator(1, "a", 3).integers(2**62)
    one, other = torch_generator(1, "a", 2), torch_generator(1, "a", 2)
    assert torch.equal(torch.rand(5, generator=one), torch.rand(5, generator=other))


@given(integers)
def test_torch_takes_every_seed(seed: int) -> None:
    value = torch_seed(seed, "train", 1)
    assert 0 <= value < 2**63
    torch.Generator().manual_seed(value)


def test_seeding_torch_is_manual_seed() -> None:
    before = torch.get_rng_state()
    try:
        seed_torch(12345, torch.device("cpu"))
        mine = torch.rand(8)
        torch.manual_seed(12345)
        assert torch.equal(mine, torch.rand(8))
    finally:
        torch.set_rng_state(before)


def test_draws_of_neighbouring_rounds_look_independent() -> None:
    """The correlation of n = 4096 independent uniforms is within 5 / sqrt(n) but once in 10^6."""
    first = np.array([generator(0, "cohort", r).random() for r in range(4097)])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 5 / 64
    assert abs(first.mean() - 0.5) < 5 * np.sqrt(1 / 12) / 64
