"""Sampling: uniform, without replacement, a function of (seed, round) alone."""

from __future__ import annotations

import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedopt.server.sampling import UniformSampler

seeds = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), seeds, st.data())
def test_samples_are_distinct_eligible_and_sorted(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    sampler = UniformSampler(np.array(sizes, dtype=np.int64), seed)
    eligible = {i for i, n in enumerate(sizes) if n}
    assert sampler.clients == len(eligible)
    count = data.draw(st.integers(0, len(eligible)))
    drawn = sampler.sample(3, count).tolist()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == count
    assert set(drawn) <= eligible
    if count == len(eligible):
        assert set(drawn) == eligible
    assert UniformSampler(np.array(sizes, dtype=np.int64), seed).sample(3, count).tolist() == drawn


def test_rounds_seeds_and_purposes_draw_anew() -> None:
    sizes = np.ones(1000, dtype=np.int64)
    draws = {
        tuple(UniformSampler(sizes, seed).sample(round, 10, purpose))
        for seed in (0, 1)
        for round in (1, 2)
        for purpose in ("cohort", "validation")
    }
    assert len(draws) == 8


def test_every_client_is_drawn_as_often() -> None:
    """Chi-square with 49 degrees: 85.4 is exceeded once in a thousand laws.

    Without replacement the counts vary by (1 - K/N) less, which the statistic is divided by.
    """
    sizes = np.arange(100) % 2  # every other client is empty
    sampler = UniformSampler(sizes, 0)
    rounds, count = 2000, 10
    counts = np.zeros(100)
    for round in range(1, rounds + 1):
        counts[sampler.sample(round, count)] += 1
    assert counts[::2].sum() == 0
    expected = rounds * count / 50
    statistic = ((counts[1::2] - expected) ** 2 / expected).sum() / (1 - count / 50)
    assert statistic < 85.4


def test_pairs_are_drawn_as_often() -> None:
    """Chi-square over the 15 pairs of 6 clients, 14 degrees: 36.1 once in a thousand laws."""
    sampler = UniformSampler(np.ones(6, dtype=np.int64), 1)
    drawn = [tuple(sampler.sample(round, 2)) for round in range(1, 3001)]
    counts = np.unique(np.array(drawn), axis=0, return_counts=True)[1]
    assert len(counts) == 15
    assert ((counts - 200) ** 2 / 200).sum() < 36.1


def test_sampling_few_of_many_makes_no_large_array() -> None:
    """A billion clients in a view of one number: a copy or a permutation would take gigabytes."""
    sizes = np.broadcast_to(np.ones(1, dtype=np.int8), (10**7,))
    sampler = UniformSampler(sizes, 0)
    sampler.sample(1, 10)
    tracemalloc.start()
    drawn = sampler.sample(2, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(drawn.tolist())) == 10
    assert peak < 10**6, "bytes; a permutation of the population would take 80 million"
