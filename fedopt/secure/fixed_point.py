"""Numbers as integers modulo 2^64, and named vectors and scalars as one such vector.

A number x with |x| <= limit becomes q = round(x 2^bits), to the nearest, ties to even. Multiplying
by a power of two is exact in float64, so |q 2^-bits - x| <= 2^-(bits + 1). The sum S of the q of m
clients is exact, since n round(limit 2^bits) <= 2^63 - 1 is asked for all n clients of a round, and
becomes float64 once:

    |decoded - sum of the x| <= m 2^-(bits + 1) + 2^-53 |S| 2^-bits

What does not fit is refused; nothing is clipped unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fedopt.errors import ConfigError, DataError, did_you_mean

Words = npt.NDArray[np.uint64]
"""Integers modulo 2^64, `[L]`."""

MOST = 2**63 - 1
PIECE = 32_768
"""Coordinates worked on at a time: their words and a mask's fit the second-level cache."""
LONGEST = 2**32
"""Coordinates of a vector; a mask of one key has fewer than 2^38 bytes, ChaCha20's limit."""
BITS = (-52, 200)
"""Range of the fractional bits: outside it, steps would not be normal numbers of float64."""


@dataclass(frozen=True)
class FixedPoint:
    """How a number becomes an integer.

    Args:
        limit: greatest absolute value of a client's number, > 0.
        bits: binary digits behind the point; numbers are multiples of 2^-bits.
    """

    limit: float
    bits: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.limit) and self.limit > 0):
            raise ConfigError(f"got {self.limit}; a finite number above 0 is needed.", key="limit")
        low, high = BITS
        if not low <= self.bits <= high:
            raise ConfigError(f"got {self.bits}; allowed is {low} to {high}.", key="bits")
        if self.largest < 1:
            raise ConfigError(
                f"got {self.bits}: the step 2^{-self.bits} is too coarse for numbers up to "
                f"{self.limit}.",
                key="bits",
            )

    @classmethod
    def finest(cls, limit: float, clients: int) -> FixedPoint:
        """Return the one with the most bits with which the sum over `clients` clients fits.

        Raises:
            ConfigError: there is none.
        """
        low, high = BITS
        if not (np.isfinite(limit) and limit > 0):
            raise ConfigError(f"got {limit}; a finite number above 0 is needed.", key="limit")
        for bits in range(high, low - 1, -1):
            if clients * _scaled(limit, bits) <= MOST:
                return cls(limit, bits)
        raise ConfigError(
            f"sums of {clients} numbers up to {limit} do not fit 64 bits.", key="limit"
        )

    @property
    def largest(self) -> int:
        """The integer of `limit`."""
        return _scaled(self.limit, self.bits)

    def fits(self, clients: int) -> bool:
        """Return whether no sum over so many clients can wrap."""
        return clients * self.largest <= MOST

    def error(self, clients: int) -> float:
        """Return the bound of a sum's quantisation error, m 2^-(bits + 1), for m clients."""
        return clients * 2.0 ** -(self.bits + 1)


@dataclass(frozen=True)
class Part:
    """A named vector, or a scalar, inside the long vector.

    Args:
        name: unique in its layout, 1..255 bytes of UTF-8.
        size: its coordinates, at least 1; None for a scalar.
        fixed_point: of all its coordinates.
    """

    name: str
    size: int | None
    fixed_point: FixedPoint

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= 255:
            raise ConfigError(f"got {self.name!r}; a name has 1 to 255 bytes.", key="name")
        if self.size is not None and self.size < 1:
            raise ConfigError(f'got {self.size} for "{self.name}"; at least 1.', key="size")

    @property
    def length(self) -> int:
        """Its coordinates."""
        return 1 if self.size is None else self.size


@dataclass(frozen=True)
class Layout:
    """What the clients sum: named vectors and scalars, in this order, as one vector of `length`.

    A weighted mean is two parts: the client gives `weight * vector` and `weight`, and the server
    divides the sums.

    Args:
        parts: at least one, with distinct names.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"parts need distinct names, at least one; got {names}.", key="parts")
        if self.length >= LONGEST:
            raise ConfigError(
                f"{self.length} coordinates are too many; below {LONGEST}.", key="parts"
            )

    @classmethod
    def finest(
        cls, limits: Mapping[str, float], sizes: Mapping[str, int | None], clients: int
    ) -> Layout:
        """Return the layout with the finest steps that sums over `clients` clients allow.

        Args:
            limits: name -> greatest absolute value of a client's coordinate.
            sizes: name -> coordinates, None for a scalar; its order is that of the parts.
            clients: of a round, at most.
        """
        if set(limits) != set(sizes):
            raise ConfigError(
                f"limits are of {sorted(limits)}, sizes of {sorted(sizes)}.", key="limits"
            )
        return cls(
            tuple(
                Part(name, size, FixedPoint.finest(limits[name], clients))
                for name, size in sizes.items()
            )
        )

    @cached_property
    def length(self) -> int:
        """Coordinates of the long vector."""
        return sum(part.length for part in self.parts)

    def spans(self) -> Iterator[tuple[Part, int, int]]:
        """Yield each part with its first coordinate and that after its last."""
        first = 0
        for part in self.parts:
            yield part, first, first + part.length
            first += part.length

    def check_sums(self, clients: int) -> None:
        """Refuse fixed points with which a sum over so many clients could wrap.

        Raises:
            ConfigError: naming the part and the bits that fit.
        """
        for part in self.parts:
            if not part.fixed_point.fits(clients):
                finest = FixedPoint.finest(part.fixed_point.limit, clients)
                raise ConfigError(
                    f'got {part.fixed_point.bits} for "{part.name}"; the sum of {clients} numbers '
                    f"up to {part.fixed_point.limit} fits 64 bits with at most {finest.bits}.",
                    key="bits",
                )

    def encode(self, values: Mapping[str, npt.ArrayLike], *, clip: bool = False) -> Words:
        """Return the long vector, `[length]`.

        Args:
            values: name -> `[size]`, or a number for a scalar; float64, or what is exact in it.
            clip: bring numbers beyond the limit back to it, rather than refuse them.

        Raises:
            DataError: a part is missing, unknown, of another shape, not finite, beyond its limit.
        """
        names = [part.name for part in self.parts]
        for name in values:
            if name not in names:
                raise DataError(
                    f'"{name}" is not a part.{did_you_mean(name, names)} Parts: {", ".join(names)}.'
                )
        out = np.empty(self.length, dtype=np.uint64)
        for part, first, stop in self.spans():
            if part.name not in values:
                raise DataError(f'"{part.name}" is missing; parts: {", ".join(names)}.')
            _encode(part, _checked(part, values[part.name]), clip, out[first:stop])
        return out

    def decode(self, words: Words) -> dict[str, Any]:
        """Return the sums that words stand for: name -> `[size]` in float64, or a float.

        Args:
            words: `[length]`.
        """
        if words.shape != (self.length,):
            raise DataError(f"expected a vector of {self.length} words, got shape {words.shape}.")
        signed = words.view(np.int64)
        sums: dict[str, Any] = {}
        for part, first, stop in self.spans():
            step = 2.0**-part.fixed_point.bits
            if part.size is None:
                sums[part.name] = float(signed[first]) * step
            else:
                sums[part.name] = signed[first:stop].astype(np.float64)
                sums[part.name] *= step
        return sums


def _scaled(limit: float, bits: int) -> int:
    """Return round(limit 2^bits), exactly, ties to even."""
    top, below = float(limit).as_integer_ratio()
    if bits >= 0:
        top <<= bits
    else:
        below <<= -bits
    whole, rest = divmod(top, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2))


def _checked(part: Part, value: npt.ArrayLike) -> np.ndarray[Any, Any]:
    """Return a part's value as an array that converts to float64 without loss."""
    array = np.asarray(value)
    shape = () if part.size is None else (part.size,)
    if array.shape != shape:
        raise DataError(f'"{part.name}" has the shape {array.shape}; expected {shape}.')
    exact = np.can_cast(array.dtype, np.float64)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        exact = int(array.min()) >= -(2**53) and int(array.max()) <= 2**53
    if array.dtype.kind not in "fiub" or not exact:
        raise DataError(f'"{part.name}" of type {array.dtype} does not fit float64.')
    return array.reshape(part.length)


def _encode(part: Part, values: np.ndarray[Any, Any], clip: bool, out: Words) -> None:
    """Write the words of a part, piece after piece."""
    limit, scale = part.fixed_point.limit, 2.0**part.fixed_point.bits
    for first in range(0, part.length, PIECE):
        piece = values[first : first + PIECE].astype(np.float64)
        magnitude = np.abs(piece)
        bad = ~(magnitude <= limit)  # NaN is bad too
        if bad.any():
            if not clip or not np.isfinite(magnitude).all():
                at = int(np.argmax(~np.isfinite(magnitude) if clip else bad))
                raise DataError(
                    f'"{part.name}"[{first + at}] is {float(piece[at])!r}; allowed are numbers up '
                    f"to {limit} in absolute value."
                )
            np.clip(piece, -limit, limit, out=piece)
        piece *= scale
        np.rint(piece, out=piece)
        out[first : first + PIECE] = piece.astype(np.int64).view(np.uint64)
