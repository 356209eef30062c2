"""What drifts, and how far it is by which round, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.data.population import Examples, ListPopulation
from fedopt.drift.concepts import (
    Concept,
    FeatureDrift,
    Group,
    LabelDrift,
    PriorDrift,
    RotationDrift,
    partial_permutation,
    rotated,
)
from fedopt.drift.population import TEST, TRAIN, Drift, DriftedPopulation, drift_groups
from fedopt.drift.transition import Transition
from fedopt.seeds import generator

CLASSES, SEED = 10, 3


def group(number: int = 1, count: int = 1, classes: int | None = CLASSES) -> Group:
    return Group(number, count, SEED, classes)


def changed(concept: Concept, examples: Examples, amount: float = 1.0, **which: Any) -> Examples:
    return concept.examples(examples, group(**which), amount, np.random.default_rng(0))


def some(n: int = 200, shape: tuple[int, ...] = (4,)) -> Examples:
    draws = np.random.default_rng(1)
    return Examples(
        draws.normal(size=(n, *shape)).astype("float32"), draws.integers(CLASSES, size=n)
    )


# When --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sudden", [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]),
        ("gradual", [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("incremental", [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]),
        ("recurring", [0, 0, 0, 1, 1, 0, 0, 1, 1, 0]),
    ],
)
def test_how_far_a_group_is(kind: str, expected: list[float]) -> None:
    transition = Transition(kind, start=4, stagger=0, length=4, period=2)
    assert [transition.amount(round, 1) for round in range(1, 11)] == expected
    assert not any(transition.amount(round, 0) for round in range(1, 11))


def test_groups_start_one_after_another() -> None:
    transition = Transition("sudden", start=3, stagger=2)
    first = [next(r for r in range(1, 20) if transition.amount(r, g)) for g in (1, 2, 3)]
    assert first == [3, 5, 7] == [transition.first_round(g) for g in (1, 2, 3)]


# What --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["permute", "shift", "swap"])
@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_labels_are_permuted_and_none_stays(change: str, classes: int) -> None:
    found = LabelDrift(change).permutation(group(classes=classes))
    assert sorted(found) == list(range(classes))
    stay = int(np.count_nonzero(found == np.arange(classes)))
    assert stay == (classes % 2 if change == "swap" else 0)
    if change == "swap":
        assert (found[found] == np.arange(classes)).all()


def test_group_g_is_shifted_by_g() -> None:
    for number in range(1, 13):
        found = LabelDrift("shift").permutation(group(number))
        assert found.tolist() == [(c + 1 + (number - 1) % 9) % 10 for c in range(10)]


def test_a_share_of_the_classes_is_concerned() -> None:
    found = LabelDrift("permute", classes=0.4).permutation(group())
    assert np.count_nonzero(found != np.arange(CLASSES)) == 4
    assert np.count_nonzero(LabelDrift(classes=0.01).permutation(group()) != np.arange(10)) == 2


def test_groups_have_concepts_of_their_own() -> None:
    one, other = (LabelDrift().permutation(group(number)).tolist() for number in (1, 2))
    assert one != other
    assert one == LabelDrift().permutation(group(1, count=5)).tolist()


@given(st.permutations(range(7)), st.floats(0, 1))
def test_labels_on_the_way_are_permuted_at_any_time(end: list[int], amount: float) -> None:
    permutation = np.array(end)
    found = partial_permutation(permutation, amount)
    assert sorted(found) == list(range(7))
    assert (partial_permutation(permutation, 1.0) == permutation).all()
    assert (partial_permutation(permutation, 0.0) == np.arange(7)).all()
    # Nothing that has reached its place leaves it again.
    later = partial_permutation(permutation, min(1.0, amount + 0.2))
    assert np.count_nonzero(later == permutation) >= np.count_nonzero(found == permutation)


def test_features_get_factor_and_offset() -> None:
    examples = some()
    draws = group().draws()
    a, b = draws.standard_normal(4), draws.standard_normal(4)
    found = changed(FeatureDrift(shift=0.5, scale=0.2), examples, amount=0.5)
    expected = examples.x * (1 + 0.1 * a) + 0.25 * b
    assert found.x.dtype == np.float32
    assert np.allclose(found.x, expected, atol=1e-6)  # float32
    assert found.y is examples.y


def test_quarter_turns_move_pixels_to_the_bit() -> None:
    images = some(5, (2, 6, 6)).x
    for turns in range(-4, 5):
        assert np.array_equal(rotated(images, 90.0 * turns), np.rot90(images, turns, axes=(2, 3)))
    assert np.array_equal(rotated(images[..., :4], 180.0), np.rot90(images[..., :4], 2, (2, 3)))


def test_a_turn_keeps_what_does_not_depend_on_direction() -> None:
    rows, columns = np.mgrid[:15, :15] - 7.0
    disc = np.exp(-(rows**2 + columns**2) / 8)[None, None]
    # Bilinear interpolation errs by at most 1/8 of the sum of the second derivatives, 1/4 each.
    assert np.abs(rotated(disc, 30.0) - disc).max() < 1 / 16
    ramp = columns[None, None]
    centre = (slice(None), slice(None), slice(4, 11), slice(4, 11))
    expected = np.cos(np.pi / 6) * columns - np.sin(np.pi / 6) * rows
    assert np.allclose(rotated(ramp, 30.0)[centre], expected[4:11, 4:11])  # linear is exact


def test_group_g_of_g_turns_by_its_part() -> None:
    examples = some(3, (1, 6, 6))
    for number in (1, 2, 3):
        found = changed(RotationDrift(270.0), examples, number=number, count=3)
        assert np.array_equal(found.x, np.rot90(examples.x, number, axes=(2, 3)))
    half = changed(RotationDrift(180.0), examples, amount=0.5)
    assert np.array_equal(half.x, np.rot90(examples.x, 1, axes=(2, 3)))


def test_classes_become_as_frequent_as_the_group_says() -> None:
    examples = some(40_000)
    concept = PriorDrift(alpha=1.0)
    found = changed(concept, examples)
    assert found.size == examples.size
    shares = np.bincount(found.y, minlength=CLASSES) / found.size
    # Three standard deviations of a share of 40,000 draws, and the most of ten of them.
    assert np.abs(shares - concept.frequencies(group())).max() < 0.012
    pairs = {tuple(row) for row in examples.x.tolist()}
    assert all(tuple(row) in pairs for row in found.x[:100].tolist())


def test_a_client_keeps_to_its_classes() -> None:
    examples = some()
    part = Examples(examples.x[examples.y < 3], examples.y[examples.y < 3])
    found = changed(PriorDrift(alpha=1e-3), part)
    assert set(found.y.tolist()) <= {0, 1, 2}
    assert changed(PriorDrift(), Examples(part.x[:0], part.y[:0])).size == 0


# Whose --------------------------------------------------------------------------------------------


def test_a_share_of_the_clients_with_examples_is_cut_into_groups() -> None:
    sizes = np.array([0, 5] * 50)
    found = drift_groups(sizes, share=0.5, groups=4, seed=SEED)
    assert np.bincount(found).tolist() == [75, 7, 6, 6, 6]
    assert not found[sizes == 0].any()
    assert (drift_groups(sizes, 0.5, 1, SEED) > 0).tolist() == (found > 0).tolist()
    assert (drift_groups(sizes, 0.001, 1, SEED) > 0).sum() == 1


def population() -> ListPopulation:
    draws = np.random.default_rng(2)
    pairs = [
        (draws.normal(size=(n, 3)).astype("float32"), draws.integers(CLASSES, size=n))
        for n in (30, 0, 20, 25, 10, 40)
    ]
    test = (draws.normal(size=(600, 3)).astype("float32"), draws.integers(CLASSES, size=600))
    return ListPopulation(pairs, test, classes=CLASSES, validation_fraction=0.2, seed=SEED)


def drifting(kind: str, concept: Concept | None = None, groups: int = 2) -> Drift:
    sizes = population().sizes
    return Drift(
        LabelDrift("shift") if concept is None else concept,
        Transition(kind, start=3, length=4, period=2),
        drift_groups(sizes, 0.8, groups, SEED),
        sizes,
        SEED,
        CLASSES,
    )


def test_what_a_client_sees_in_a_round_is_exactly_this() -> None:
    clean, drift = population(), drifting("sudden")
    assert sorted(drift.groups.tolist()) == [0, 0, 1, 1, 2, 2]
    for round in range(1, 6):
        now = DriftedPopulation(clean, drift, round)
        for client in range(6):
            step = int(drift.groups[client]) if round >= 3 else 0
            for split in ("train", "validation"):
                old, new = getattr(clean, split)(client), getattr(now, split)(client)
                assert np.array_equal(new.x, old.x)
                assert np.array_equal(new.y, (old.y + step) % CLASSES)


def test_gradually_each_example_changes_once_its_threshold_is_passed() -> None:
    clean, drift = population(), drifting("gradual")
    for client in np.flatnonzero(drift.groups).tolist():
        old = clean.train(client)
        thresholds = generator(SEED, "drift thresholds", TRAIN, client).random(old.size)
        for round in range(1, 9):
            amount = min(1.0, max(0, round - 2) / 4)
            new = DriftedPopulation(clean, drift, round).train(client)
            step = int(drift.groups[client])
            expected = np.where(thresholds < amount, (old.y + step) % CLASSES, old.y)
            assert np.array_equal(new.y, expected)


@pytest.mark.parametrize("kind", ["sudden", "gradual", "incremental", "recurring"])
@pytest.mark.parametrize(
    "concept", [LabelDrift(), FeatureDrift(scale=0.3), PriorDrift()], ids=lambda c: type(c).__name__
)
def test_clients_together_see_what_they_see_alone(kind: str, concept: Concept) -> None:
    clean, drift = population(), drifting(kind, concept)
    for round in (2, 3, 4, 5, 9):
        now = DriftedPopulation(clean, drift, round)
        order = [4, 0, 5, 2]
        together, alone = now.train_many(order), [now.train(client) for client in order]
        assert np.array_equal(together.x, np.concatenate([part.x for part in alone]))
        assert np.array_equal(together.y, np.concatenate([part.y for part in alone]))


def test_reading_a_round_leaves_the_data_as_they_were() -> None:
    clean, drift = population(), drifting("sudden", FeatureDrift())
    before = clean.train_many([0, 2, 3]), clean.test()
    for round in (1, 5):
        now = DriftedPopulation(clean, drift, round)
        now.train_many([0, 2, 3])
        now.test()
    after = clean.train_many([0, 2, 3]), clean.test()
    for one, other in zip(before, after, strict=True):
        assert one is not None
        assert other is not None
        assert np.array_equal(one.x, other.x)


def test_the_test_set_is_a_mixture_of_the_groups() -> None:
    clean, drift = population(), drifting("sudden")
    old, new = clean.test(), drift.test(clean.test(), 3)  # type: ignore[arg-type]
    assert old is not None
    steps = (new.y - old.y) % CLASSES
    shares = np.bincount(drift.groups, weights=clean.sizes) / clean.sizes.sum()
    # Three standard deviations of a share of 600 draws.
    assert np.abs(np.bincount(steps, minlength=3) / 600 - shares).max() < 0.062
    assert np.array_equal(drift.test(old, 2).y, old.y)
    assert np.array_equal(drift.test(old, 4).y, new.y)


def test_the_test_set_changes_gradually_too() -> None:
    clean, drift = population(), drifting("gradual", groups=1)
    old = clean.test()
    assert old is not None
    whole = drift.test(old, 6).y != old.y
    half = drift.test(old, 4).y != old.y
    assert not (half & ~whole).any()
    thresholds = generator(SEED, "drift thresholds", TEST, 1).random(int(whole.sum()))
    assert half.sum() == (thresholds < 0.5).sum()


def test_the_mean_amount_is_over_the_drifting_clients() -> None:
    drift = Drift(
        LabelDrift(),
        Transition("sudden", start=2, stagger=3),
        np.array([0, 1, 1, 1, 2], dtype=np.int32),
        np.full(5, 10),
        SEED,
        CLASSES,
    )
    assert [drift.amount(round) for round in (1, 2, 4, 5)] == [0, 0.75, 0.75, 1]
    assert drift.clients == 4
    assert drift.is_still(1)
    assert not drift.is_still(2)
