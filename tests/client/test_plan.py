"""Plans: what each step takes, and how many steps happen."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.client.plan import ClientPlan, LocalWork, happening_steps, permutations, plan_clients
from fedopt.client.rates import constant_rates

examples = st.integers(1, 60)
batches = st.one_of(st.none(), st.integers(1, 70))
works = st.one_of(
    st.builds(LocalWork, st.floats(0.05, 4), st.none(), batches),
    st.builds(LocalWork, st.none(), st.integers(1, 20), batches),
)
seeds = st.integers(-(2**63), 2**63 - 1)


def plan(
    work: LocalWork,
    n: int,
    seed: int = 0,
    round: int = 1,
    client: int = 0,
    steps: int | None = None,
) -> ClientPlan:
    wanted = work.planned_steps(n) if steps is None else steps
    (made,) = plan_clients(work, seed, round, [client], [n], constant_rates(0.1), [wanted])
    return made


def batches_of(made: ClientPlan) -> list[list[int]]:
    """The examples of each step."""
    if made.order is None:
        return [list(range(made.examples)) for _ in range(made.steps)]
    return [made.order[a:b].tolist() for a, b in pairwise(made.offsets.tolist())]


@given(works, examples, seeds)
def test_every_epoch_takes_every_example_once(work: LocalWork, n: int, seed: int) -> None:
    made = plan(work, n, seed)
    per_epoch = work.steps_per_epoch(n)
    steps = batches_of(made)
    assert len(steps) == made.steps == len(made.learning_rates)
    size = n if work.batch_size is None else min(work.batch_size, n)
    for first in range(0, len(steps), per_epoch):
        epoch = steps[first : first + per_epoch]
        seen = [i for batch in epoch for i in batch]
        assert len(set(seen)) == len(seen)
        assert all(0 <= i < n for i in seen)
        if len(epoch) == per_epoch:
            assert sorted(seen) == list(range(n))
            assert all(len(batch) == size for batch in epoch[:-1])
            assert 1 <= len(epoch[-1]) <= size
    assert int(made.offsets[-1]) == sum(map(len, steps))


@given(works, examples)
def test_the_number_of_steps_is_what_was_asked_for(work: LocalWork, n: int) -> None:
    planned = work.planned_steps(n)
    if work.steps is not None:
        assert planned == work.steps
    else:
        assert work.epochs is not None
        exact = work.epochs * math.ceil(n / work.batch(n))
        assert planned == max(1, round(exact))
    assert not plan(work, n).is_partial


def test_fractions_of_an_epoch() -> None:
    tenths = LocalWork(0.5, None, 10)
    assert tenths.planned_steps(100) == 5
    assert tenths.planned_steps(1) == 1, "a client always does a step"
    assert LocalWork(1.5, None, 10).planned_steps(100) == 15
    assert len(batches_of(plan(LocalWork(1.5, None, 10), 100))) == 15


@given(works, examples, seeds, st.data())
def test_a_straggler_does_the_beginning_of_the_full_plan(
    work: LocalWork, n: int, seed: int, data: st.DataObject
) -> None:
    full = plan(work, n, seed)
    steps = data.draw(st.integers(1, full.steps))
    part = plan(work, n, seed, steps=steps)
    assert batches_of(part) == batches_of(full)[:steps]
    assert part.planned_steps == full.planned_steps
    assert part.is_partial == (steps < full.steps)


def test_the_full_batch_is_in_order() -> None:
    made = plan(LocalWork(None, 3, None), 7)
    assert made.order is None
    assert batches_of(made) == [list(range(7))] * 3
    assert plan(LocalWork(2, None, 100), 7).order is None


@given(works, st.lists(examples, min_size=1, max_size=8), seeds, st.integers(1, 1000))
def test_a_plan_does_not_depend_on_who_else_is_planned(
    work: LocalWork, sizes: list[int], seed: int, round: int
) -> None:
    clients = [3 * i + 1 for i in range(len(sizes))]
    steps = [work.planned_steps(n) for n in sizes]
    together = plan_clients(work, seed, round, clients, sizes, constant_rates(0.1), steps)
    reverse = plan_clients(
        work, seed, round, clients[::-1], sizes[::-1], constant_rates(0.1), steps[::-1]
    )
    for client, n, made, again in zip(clients, sizes, together, reverse[::-1], strict=True):
        alone = plan(work, n, seed, round, client)
        assert made.client == again.client == client
        assert batches_of(made) == batches_of(again) == batches_of(alone)
        np.testing.assert_array_equal(made.learning_rates, np.full(made.steps, 0.1))


def test_plans_differ_by_seed_round_and_client() -> None:
    work = LocalWork(2, None, 5)
    made = {
        tuple(map(tuple, batches_of(plan(work, 50, seed, round, client))))
        for seed in (0, 1)
        for round in (1, 2)
        for client in (0, 1)
    }
    assert len(made) == 8
    first = batches_of(plan(work, 50))
    assert first[:10] != first[10:], "epochs are shuffled anew"


def test_permutations_are_uniform() -> None:
    """Chi-square over the 24 orders of 4 examples: 49.7 is exceeded once in a thousand laws."""
    made = permutations(0, 1, range(4800), [4] * 4800, [1] * 4800)
    counts = np.unique(np.stack(made), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 200) ** 2 / 200).sum() < 49.7


def test_large_client_ids_are_as_good_as_small() -> None:
    made = permutations(0, 1, [0, 2**40, 2**62], [9] * 3, [1] * 3)
    assert len({tuple(m) for m in made}) == 3
    assert all(sorted(m) == list(range(9)) for m in made)


# Stragglers ---------------------------------------------------------------------------------------


@given(works, st.lists(examples, min_size=1, max_size=30), st.floats(0, 1), seeds)
def test_stragglers_are_as_many_as_asked_for(
    work: LocalWork, sizes: list[int], share: float, seed: int
) -> None:
    array = np.array(sizes, dtype=np.int64)
    cohort = list(range(len(sizes)))
    steps = happening_steps(work, seed, 1, cohort, array, share)
    again = happening_steps(work, seed, 1, cohort, array, share)
    np.testing.assert_array_equal(steps, again)
    planned = np.array([work.planned_steps(n) for n in sizes])
    whole_epochs = work.epochs is not None and work.epochs >= 2
    unit = np.array([work.steps_per_epoch(n) if whole_epochs else 1 for n in sizes])
    assert (steps >= 1).all()
    assert (steps <= planned).all()
    slow = steps < planned
    assert slow.sum() <= np.rint(share * len(sizes))
    if (planned > unit).all():
        assert slow.sum() == np.rint(share * len(sizes))
    assert (steps[slow] % unit[slow] == 0).all()


@pytest.mark.parametrize(
    ("work", "possible"),
    [
        (LocalWork(5, None, 10), [10, 20, 30, 40]),  # whole epochs of ten steps, 1 to 4
        (LocalWork(None, 6, 10), [1, 2, 3, 4, 5]),
        (LocalWork(1, None, 20), [1, 2, 3, 4]),  # one epoch of five steps: 1 to 4 steps
    ],
)
def test_what_a_straggler_does_is_uniform(work: LocalWork, possible: list[int]) -> None:
    """Chi-square with at most 4 degrees: 18.5 is exceeded once in a thousand laws."""
    sizes = np.full(2000, 100)
    steps = happening_steps(work, 0, 1, range(2000), sizes, 1.0)
    values, counts = np.unique(steps, return_counts=True)
    assert values.tolist() == possible
    expected = 2000 / len(possible)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5


def test_stragglers_change_from_round_to_round() -> None:
    work, sizes = LocalWork(None, 10, 10), np.full(40, 50)
    slow = [
        tuple(np.flatnonzero(happening_steps(work, 0, r, range(40), sizes, 0.5) < 10))
        for r in (1, 2, 3)
    ]
    assert len(set(slow)) == 3
    assert all(len(s) == 20 for s in slow)


@given(examples=st.integers(2, 60), batch=st.integers(2, 20), epochs=st.integers(1, 3))
def test_no_step_takes_a_single_example_where_none_may(
    examples: int, batch: int, epochs: int
) -> None:
    from fedopt.client.curriculum import restrict

    work = LocalWork(epochs, None, batch, merges_single=True)
    plain = LocalWork(epochs, None, batch)
    steps = work.planned_steps(examples)
    rates = constant_rates(0.1)
    (plan,) = plan_clients(work, 0, 1, [3], [examples], rates, [steps])
    sizes = np.diff(plan.offsets)
    assert sizes.min() >= 2
    assert sizes.sum() == epochs * examples
    if examples % batch != 1:
        assert steps == plain.planned_steps(examples)
    counts = np.linspace(1, examples, steps).astype(np.int64)
    held = restrict(plan, np.arange(examples), counts, np.random.default_rng(0))
    assert np.diff(held.offsets).min() >= 2
    assert held.steps == plan.steps
