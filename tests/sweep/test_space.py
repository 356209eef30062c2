from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.errors import ConfigError
from fedopt.sweep.space import Interval, Listed, key_hint, known_keys, read_space, split_commas


def values(word: str) -> list[object]:
    space = read_space([word])
    if space.seeds:
        return list(space.seeds)
    (dimension,) = space.dimensions
    assert isinstance(dimension, Listed)
    return [value.plain for value in dimension.values]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("strategy=fedavg,scaffold", ["fedavg", "scaffold"]),
        ("a=0.1,0.2", [0.1, 0.2]),
        ("a=1..5", [1, 2, 3, 4, 5]),
        ("a=1..9..4", [1, 5, 9]),
        ("a=1..8..4", [1, 5]),
        ("a=5..1..-2", [5, 3, 1]),
        ("a=0.1..0.5..0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("a=-1.5..0..0.5", [-1.5, -1.0, -0.5, 0.0]),
        ("a=linear(0, 1, 5)", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("a=log(1e-3, 1, 4)", [0.001, 0.01, 0.1, 1.0]),
        ("a=0,log(0.01,1,3)", [0, 0.01, 0.1, 1.0]),
        ("model.hidden=[64],[32,32]", [[64], [32, 32]]),
        ('a="x,y",z', ["x,y", "z"]),
        ("a='x,y',z", ["x,y", "z"]),
        (
            'strategy=fedavg,{name="fedprox", mu=0.1}',
            ["fedavg", {"name": "fedprox", "mu": 0.1}],
        ),
        ("a=true,false", [True, False]),
        ("seed=0,1,2", [0, 1, 2]),
        ("seed=7", [7]),
        ("seed=0,5..7", [0, 5, 6, 7]),
    ],
)
def test_values_of_a_word(word: str, expected: list[object]) -> None:
    assert values(word) == expected


@pytest.mark.parametrize(
    "word", ["model.hidden=[64,32]", 'a="x,y"', "a=0.1", "a=fedavg", "data.path=../x.npz", "a=.."]
)
def test_one_value_is_fixed_as_it_stands(word: str) -> None:
    space = read_space([word])
    assert space.fixed == (word,)
    assert not space.dimensions


def test_intervals_have_ends_and_are_drawn_from() -> None:
    space = read_space(["a=log(0.01, 1)", "b=linear(-1, 1)"])
    assert space.dimensions == (Interval("a", 0.01, 1.0, "log"), Interval("b", -1.0, 1.0, "linear"))
    with pytest.raises(ConfigError, match=r"a: .* give a count, such as log\(0\.01, 1, 5\)"):
        space.grid()
    points = space.random(200, seed=0)
    logs = [math.log10(dict(point)["a"].plain) for point in points]
    # The mean of 200 uniform numbers in [-2, 0] has a deviation of 0.041: five of them.
    assert abs(sum(logs) / len(logs) + 1) < 0.2
    assert all(-2 <= value <= 0 for value in logs)
    assert space.random(50, seed=0) == points[:50], "more points go on where fewer ended"
    assert space.random(50, seed=1) != points[:50]


def test_a_grid_has_every_combination_and_drawing_repeats_none() -> None:
    space = read_space(["a=1..3", "b=x,y", "c=1"])
    plain = [tuple(value.plain for _, value in point) for point in space.grid()]
    assert plain == list(itertools.product([1, 2, 3], ["x", "y"]))
    drawn = space.random(100, seed=0)
    assert sorted(map(str, drawn)) == sorted(map(str, space.grid()))
    assert drawn[:2] == space.random(2, seed=0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a"], "not of the form key=values"),
        (["a=1,"], "empty value"),
        (["a=1,,2"], "empty value"),
        (["a=1,1"], "1 is given twice"),
        (["a=1,2", "a=3"], "a: given twice"),
        (["a=[1,2"], r"lacks a closing \]"),
        (["a=1],2"], 'has a "]" too many'),
        (['a="x,y'], "lacks a closing"),
        (["a=lgo(1,2)"], 'Did you mean "log"'),
        (["a=log(0,1)"], "needs 0 < low < high"),
        (["a=linear(1,0)"], "needs low < high"),
        (["a=log(1)"], r"expected log\(low, high\)"),
        (["a=log(1,2,2.5)"], "count must be an integer"),
        (["a=0,log(1,2)"], "needs a count beside other values"),
        (["a=1..0"], "never arrives"),
        (["a=0.5..1"], r"needs a step, as in 0\.5\.\.1\.\.0\.1"),
        (["a=1.."], "lacks an end"),
        (["a=1..99999"], "more than 10,000"),
        (["seed=a,b"], "use whole numbers"),
        (["seed=log(1,2)"], "use whole numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_space(words)


def test_a_huge_grid_is_refused() -> None:
    with pytest.raises(ConfigError, match="1,000,000 combinations"):
        read_space(["a=1..1000", "b=1..1000"]).grid()


@given(st.lists(st.text("ab[]{}\"',x", min_size=1, max_size=6), min_size=1, max_size=5))
def test_splitting_loses_nothing(parts: list[str]) -> None:
    text = ",".join(parts)
    try:
        found = split_commas(text)
    except ConfigError:
        return
    assert ",".join(found) == text


def test_near_keys_are_named() -> None:
    assert "local.optimizer.lr" in known_keys()
    assert key_hint(["lr"]).startswith(' Did you mean "local.optimizer.lr"')
    assert key_hint(["strategy.naem"]) == ' Did you mean "strategy.name"?'
    assert key_hint(["local.optimizer.lr", "seed"]) == ""
