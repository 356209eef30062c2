"""Shamir's scheme: identities of the field, any t shares, nothing from t - 1."""

from __future__ import annotations

import contextlib
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.errors import SecureAggregationError, ThresholdError
from fedopt.secure.shamir import (
    PRIME,
    SHARE_NBYTES,
    Reconstruction,
    residue,
    split,
    weights_at_zero,
)

SECRETS = st.binary(min_size=32, max_size=32)
POINTS = st.lists(st.integers(1, 10_000), min_size=1, max_size=12, unique=True)


def is_probable_prime(n: int) -> bool:
    """Miller and Rabin's test with 64 bases: wrong with a probability below 2^-128."""
    d, twos = n - 1, 0
    while d % 2 == 0:
        d, twos = d // 2, twos + 1
    rng = random.Random(0)
    for _ in range(64):
        x = pow(rng.randrange(2, n - 1), d, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_modulus_is_the_smallest_prime_above_all_secrets() -> None:
    assert is_probable_prime(PRIME)
    assert not any(is_probable_prime(n) for n in range(2**256 + 1, PRIME))
    assert (PRIME - 1).bit_length() <= 8 * SHARE_NBYTES


@given(SECRETS, POINTS, st.data())
@settings(max_examples=60)
def test_any_t_shares_give_the_secret(
    secret: bytes, points: list[int], data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(1, len(points)))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    chosen = data.draw(
        st.lists(st.sampled_from(points), min_size=threshold, max_size=len(points), unique=True)
    )
    assert Reconstruction(threshold).secret({p: shares[p] for p in chosen}) == secret
    with pytest.raises(ThresholdError):
        Reconstruction(threshold).secret({p: shares[p] for p in chosen[: threshold - 1]})


@given(POINTS, st.lists(st.integers(0, PRIME - 1), min_size=1, max_size=12))
@settings(max_examples=60)
def test_weights_interpolate_every_polynomial_of_lower_degree(
    points: list[int], coefficients: list[int]
) -> None:
    coefficients = coefficients[: len(points)]
    weights = weights_at_zero(points)
    values = [sum(c * pow(x, i, PRIME) for i, c in enumerate(coefficients)) for x in points]
    assert sum(w * v for w, v in zip(weights, values, strict=True)) % PRIME == coefficients[0]
    assert sum(weights) % PRIME == 1


@given(SECRETS, SECRETS)
@settings(max_examples=30)
def test_shares_add_up_to_shares_of_the_sum(one: bytes, two: bytes) -> None:
    points = [3, 1, 7]
    a, b = (list(map(residue, split(s, 2, points))) for s in (one, two))
    weights = weights_at_zero(points)
    total = sum(w * (x + y) for w, x, y in zip(weights, a, b, strict=True)) % PRIME
    assert total == (int.from_bytes(one, "little") + int.from_bytes(two, "little")) % PRIME


@given(SECRETS, SECRETS, st.integers(2, 8))
@settings(max_examples=40)
def test_with_one_share_less_every_secret_is_as_likely(
    secret: bytes, other: bytes, threshold: int
) -> None:
    """For t - 1 shares and any other secret there is just one t-th share that gives that one."""
    points = list(range(1, threshold + 1))
    shares = dict(zip(points, split(secret, threshold, points), strict=True))
    weights = weights_at_zero(points)
    known = sum(w * residue(shares[p]) for w, p in zip(weights[:-1], points[:-1], strict=True))
    wanted = (int.from_bytes(other, "little") - known) * pow(weights[-1], -1, PRIME) % PRIME
    shares[points[-1]] = wanted.to_bytes(SHARE_NBYTES, "little")
    assert Reconstruction(threshold).secret(shares) == other


def test_shares_of_one_secret_are_spread_evenly() -> None:
    """One share of a fixed secret, again and again: its first bytes in 16 classes.

    Chi-square with 15 degrees of freedom is above 50 with a probability of 1.2e-5.
    """
    draws = 3200
    for secret in (bytes(32), b"\xff" * 32):
        classes = Counter(split(secret, 2, [1, 2])[0][0] >> 4 for _ in range(draws))
        expected = draws / 16
        assert sum((classes[c] - expected) ** 2 / expected for c in range(16)) < 50


def test_shares_that_do_not_belong_together_are_refused_or_give_another_secret() -> None:
    secret = bytes(range(32))
    one, two = split(secret, 2, [1, 2]), split(secret, 2, [1, 2])
    with contextlib.suppress(SecureAggregationError):  # a number above 2^256, which no secret is
        assert Reconstruction(2).secret({1: one[0], 2: two[1]}) != secret
    for share in (b"", bytes(32), PRIME.to_bytes(33, "little"), bytes(34)):
        with pytest.raises(SecureAggregationError, match="not a number below the prime"):
            Reconstruction(2).secret({1: one[0], 2: share})


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [
        (bytes(31), 1, [1]),
        (bytes(32), 0, [1]),
        (bytes(32), 2, [1]),
        (bytes(32), 1, [0, 1]),
        (bytes(32), 1, [1, 1]),
        (bytes(32), 1, [PRIME]),
    ],
)
def test_senseless_arguments_are_refused(secret: bytes, threshold: int, points: list[int]) -> None:
    with pytest.raises(ValueError, match=r"secret|threshold|points"):
        split(secret, threshold, points)
