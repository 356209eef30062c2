"""Shamir's secret sharing over the integers modulo the smallest prime above 2^256.

A secret of 256 bits is the value at 0 of a random polynomial of degree t - 1; a share is its value
at another point. Any t shares give the secret, t - 1 leave every secret equally likely.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

from fedopt.errors import SecureAggregationError, ThresholdError

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that any 32 bytes are a secret."""
SECRET_NBYTES = 32
SHARE_NBYTES = 33
"""A residue needs 257 bits."""


def split(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return one share a point, each of `SHARE_NBYTES` bytes.

    Args:
        secret: `SECRET_NBYTES` bytes.
        threshold: how many shares give the secret back, 1..len(points).
        points: where the polynomial is evaluated, distinct, in 1..PRIME - 1.
    """
    if len(secret) != SECRET_NBYTES:
        raise ValueError(f"a secret has {SECRET_NBYTES} bytes, got {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold {threshold} is not in 1..{len(points)}, the number of shares")
    _check(points)
    constant = int.from_bytes(secret, "little")
    # From the system's generator, and uniform in the whole field: else shares would tell something.
    higher = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    shares = []
    for point in points:
        value = 0
        for coefficient in reversed(higher):
            value = (value + coefficient) * point % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_NBYTES, "little"))
    return shares


def weights_at_zero(points: Sequence[int]) -> list[int]:
    """Return Lagrange's weights: the secret is the sum of weights times shares.

    Args:
        points: distinct, in 1..PRIME - 1.
    """
    _check(points)
    weights = []
    for one in points:
        numerator = denominator = 1
        for other in points:
            if other != one:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - one) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    return weights


class Reconstruction:
    """Gives secrets back, and keeps Lagrange's weights of each set of points that it met.

    Args:
        threshold: shares that a secret needs.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def secret(self, shares: Mapping[int, bytes]) -> bytes:
        """Return the secret of at least `threshold` shares; more than that are not looked at.

        Args:
            shares: point -> share.

        Raises:
            ThresholdError: there are fewer.
            SecureAggregationError: a share is no residue, or they are not of one secret.
        """
        if len(shares) < self.threshold:
            raise ThresholdError(
                f"{len(shares)} shares of a secret came back; {self.threshold} are needed."
            )
        points = tuple(sorted(shares))[: self.threshold]
        weights = self._weights.get(points)
        if weights is None:
            weights = self._weights[points] = weights_at_zero(points)
        values = [residue(shares[point]) for point in points]
        total = sum(w * v for w, v in zip(weights, values, strict=True)) % PRIME
        if total >> (8 * SECRET_NBYTES):
            raise SecureAggregationError("the shares of a secret do not belong together.")
        return total.to_bytes(SECRET_NBYTES, "little")


def residue(share: bytes) -> int:
    """Return a share as a number.

    Raises:
        SecureAggregationError: it has another length, or is not below the prime.
    """
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_NBYTES or value >= PRIME:
        raise SecureAggregationError("a share is not a number below the prime.")
    return value


def _check(points: Iterable[int]) -> None:
    listed = list(points)
    if len(set(listed)) != len(listed) or not all(0 < point < PRIME for point in listed):
        raise ValueError("points must be distinct and in 1..PRIME - 1")
