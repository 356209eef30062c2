"""Fixed point: the error's bound, exact sums, refusals; and the layout of parts."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.errors import ConfigError, DataError
from fedopt.secure import FixedPoint, Layout, Part
from fedopt.secure.fixed_point import BITS, MOST, PIECE

LIMITS = st.floats(1e-3, 1e12)


def exactly_summed(columns: np.ndarray[Any, Any]) -> list[Fraction]:
    return [sum((Fraction(float(x)) for x in row), Fraction(0)) for row in columns.T]


@given(LIMITS, st.integers(2, 1000), st.integers(0, 60), st.data())
@settings(max_examples=100)
def test_the_error_of_a_sum_is_within_its_bound(
    limit: float, clients: int, coarser: int, data: st.DataObject
) -> None:
    finest = FixedPoint.finest(limit, clients)
    fixed_point = FixedPoint(limit, max(finest.bits - coarser, -int(np.log2(limit)), BITS[0]))
    layout = Layout((Part("x", 4, fixed_point),))
    summed = data.draw(st.integers(1, min(clients, 20)))
    number = st.one_of(
        st.floats(-limit, limit, allow_nan=False), st.sampled_from([limit, -limit, 0.0, -0.0])
    )
    rows = np.array([data.draw(st.lists(number, min_size=4, max_size=4)) for _ in range(summed)])
    words = np.zeros(4, dtype=np.uint64)
    whole = [0] * 4
    for row in rows:
        encoded = layout.encode({"x": row})
        words += encoded
        whole = [a + int(q) for a, q in zip(whole, encoded.view(np.int64), strict=True)]
    assert words.view(np.int64).tolist() == whole
    decoded = layout.decode(words)["x"]
    step = Fraction(2) ** -fixed_point.bits
    for got, exact, integer in zip(decoded, exactly_summed(rows), whole, strict=True):
        bound = summed * step / 2 + Fraction(2) ** -53 * abs(integer) * step
        assert abs(Fraction(float(got)) - exact) <= bound
    assert Fraction(fixed_point.error(summed)) == summed * step / 2


@given(LIMITS, st.integers(1, 10**6))
@settings(max_examples=100)
def test_the_finest_steps_just_fit(limit: float, clients: int) -> None:
    fixed_point = FixedPoint.finest(limit, clients)
    assert clients * fixed_point.largest <= MOST
    assert fixed_point.largest == round(Fraction(limit) * Fraction(2) ** fixed_point.bits)
    finer = FixedPoint(limit, fixed_point.bits + 1)
    assert not finer.fits(clients)
    with pytest.raises(ConfigError, match=f"at most {fixed_point.bits}"):
        Layout((Part("x", 1, finer),)).check_sums(clients)


@given(LIMITS, st.integers(2, 1000), st.sampled_from([-1, 1]))
@settings(max_examples=50)
def test_the_extreme_sum_does_not_wrap(limit: float, clients: int, sign: int) -> None:
    layout = Layout((Part("x", None, FixedPoint.finest(limit, clients)),))
    word = layout.encode({"x": sign * limit})
    total = (word * np.uint64(clients)).astype(np.uint64)  # the sum of equal words, modulo 2^64
    got = layout.decode(total)["x"]
    assert got == pytest.approx(sign * clients * limit, rel=2**-40)


@pytest.mark.parametrize(
    "bad", [np.nan, np.inf, -np.inf, 100.5, -100.5, np.nextafter(100.0, np.inf)]
)
@pytest.mark.parametrize("at", [0, PIECE - 1, PIECE, PIECE + 2])
def test_what_does_not_fit_is_refused_with_its_place(bad: float, at: int) -> None:
    layout = Layout(
        (Part("first", 3, FixedPoint(1.0, 3)), Part("x", PIECE + 3, FixedPoint(100, 8)))
    )
    values = {"first": np.zeros(3), "x": np.zeros(PIECE + 3)}
    values["x"][at] = bad
    with pytest.raises(DataError, match=rf'"x"\[{at}\] is {float(bad)!r}'.replace("+", r"\+")):
        layout.encode(values)
    if np.isfinite(bad):
        clipped = layout.decode(layout.encode(values, clip=True))["x"]
        assert clipped[at] == np.sign(bad) * 100.0
        assert np.count_nonzero(clipped) == 1
    else:
        with pytest.raises(DataError, match=rf'"x"\[{at}\]'):
            layout.encode(values, clip=True)
    assert values["x"][at] == bad or np.isnan(bad)  # the caller's array is left alone


def test_parts_come_back_under_their_names() -> None:
    layout = Layout.finest(
        {"delta": 10.0, "control": 1.0, "weight": 1e6},
        {"delta": PIECE + 7, "control": 3, "weight": None},
        clients=100,
    )
    assert [(part.name, part.length) for part in layout.parts] == [
        ("delta", PIECE + 7),
        ("control", 3),
        ("weight", 1),
    ]
    rng = np.random.default_rng(0)
    delta = rng.uniform(-10, 10, PIECE + 7).astype(np.float32)
    values = {"weight": 17, "delta": delta, "control": np.array([1, -1, 0])}
    decoded = layout.decode(layout.encode(values))
    assert decoded["weight"] == 17.0
    assert isinstance(decoded["weight"], float)
    assert decoded["control"].tolist() == [1.0, -1.0, 0.0]
    # 2^-(bits + 1) with bits = 53 is below the spacing of float32 numbers above 2^-29.
    assert np.max(np.abs(decoded["delta"] - delta)) <= layout.parts[0].fixed_point.error(1)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"x": np.zeros(3)}, '"n" is missing'),
        ({"x": np.zeros(3), "n": 1.0, "nn": 1.0}, 'Did you mean "n"'),
        ({"x": np.zeros((1, 3)), "n": 1.0}, r"shape \(1, 3\)"),
        ({"x": np.zeros(4), "n": 1.0}, r"shape \(4,\)"),
        ({"x": np.zeros(3), "n": np.zeros(1)}, r"shape \(1,\)"),
        ({"x": np.zeros(3, dtype=complex), "n": 1.0}, "complex"),
        ({"x": np.array(["a", "b", "c"]), "n": 1.0}, "does not fit float64"),
        ({"x": np.full(3, 2**53 + 1), "n": 1.0}, "int64"),
        ({"x": np.full(3, -(2**63)), "n": 1.0}, "int64"),
    ],
)
def test_values_that_are_not_of_the_layout_are_refused(values: Any, match: str) -> None:
    layout = Layout((Part("x", 3, FixedPoint(1e18, 0)), Part("n", None, FixedPoint(1.0, 0))))
    with pytest.raises(DataError, match=match):
        layout.encode(values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedPoint(0.0, 1),
        lambda: FixedPoint(float("nan"), 1),
        lambda: FixedPoint(1.0, BITS[0] - 1),
        lambda: FixedPoint(1.0, BITS[1] + 1),
        lambda: FixedPoint(1.0, -2),
        lambda: FixedPoint.finest(float("inf"), 2),
        lambda: FixedPoint.finest(1e300, 2),
        lambda: Part("", 1, FixedPoint(1.0, 1)),
        lambda: Part("x" * 256, 1, FixedPoint(1.0, 1)),
        lambda: Part("x", 0, FixedPoint(1.0, 1)),
        lambda: Layout(()),
        lambda: Layout((Part("x", 1, FixedPoint(1.0, 1)),) * 2),
        lambda: Layout((Part("x", 2**32, FixedPoint(1.0, 1)),)),
        lambda: Layout.finest({"x": 1.0}, {"y": 1}, 2),
    ],
)
def test_senseless_layouts_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
