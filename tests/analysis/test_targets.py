from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.analysis.columns import ROUND_COLUMNS, names
from fedopt.analysis.targets import Target, cost_to_target, crossing
from fedopt.errors import ConfigError


def frame(accuracy: list[float], rounds: list[int] | None = None) -> pd.DataFrame:
    table = pd.DataFrame({name: [math.nan] * len(accuracy) for name in names(ROUND_COLUMNS)})
    table["round"] = rounds or list(range(1, len(accuracy) + 1))
    table["test_accuracy"] = accuracy
    table["bytes_up"] = 10 * table["round"]
    table["bytes_down"] = 30 * table["round"]
    table["client_steps"] = 100 * table["round"]
    return table


@pytest.mark.parametrize(
    ("values", "target", "is_higher", "expected"),
    [
        ([0.2, 0.4, 0.8], 0.6, True, (2, 0.5)),
        ([0.2, 0.4, 0.8], 0.4, True, (1, 1.0)),  # just reached
        ([0.9, 0.1], 0.5, True, (0, 1.0)),  # there at once: nothing is known of before
        ([0.2, 0.1, 0.6], 0.5, True, (2, 0.75)),  # from the best so far, 0.2, not from 0.1
        ([0.6, 0.1, 0.7], 0.5, True, (0, 1.0)),  # a later fall changes nothing
        ([0.2, 0.3], 0.5, True, None),
        ([], 0.5, True, None),
        ([2.0, 1.0, 0.5], 0.75, False, (2, 0.5)),  # a loss
        ([2.0, 3.0, 1.0], 1.5, False, (2, 0.5)),
        ([2.0, 1.0], 0.5, False, None),
    ],
)
def test_where_hand_made_curves_cross(values, target, is_higher, expected) -> None:
    assert crossing(values, target, is_higher) == (
        expected if expected is None else pytest.approx(expected)
    )


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.floats(0, 1))
def test_a_crossing_is_the_first_and_mirrors(values: list[float], target: float) -> None:
    found = crossing(values, target, True)
    mirrored = crossing([-v for v in values], -target, False)
    assert found == mirrored
    first = next((i for i, v in enumerate(values) if v >= target), None)
    assert (found is None) == (first is None)
    if found is not None:
        assert found[0] == first
        assert 0 < found[1] <= 1


def test_all_costs_share_the_fraction_of_the_round() -> None:
    costs = cost_to_target(frame([0.2, 0.4, 0.8]), Target("test_accuracy", 0.5))
    assert costs is not None
    assert costs["rounds"] == pytest.approx(2.25)
    assert costs["bytes"] == pytest.approx(90.0)
    assert costs["client_steps"] == pytest.approx(225.0)
    assert math.isnan(costs["sim_seconds"])


def test_rounds_without_a_measurement_are_passed_over() -> None:
    table = frame([math.nan, 0.2, math.nan, math.nan, 0.8, math.nan])
    costs = cost_to_target(table, Target("test_accuracy", 0.5))
    assert costs is not None
    assert costs["rounds"] == pytest.approx(3.5)  # half way from round 2 to round 5
    assert cost_to_target(table, Target("test_accuracy", 0.9)) is None
    assert cost_to_target(table.assign(test_accuracy=np.nan), Target("test_accuracy", 0.1)) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("test_accuracy", "expected METRIC=VALUE"),
        ("test_accuracy=high", "expected METRIC=VALUE"),
        ("test_accuracy=nan", "expected METRIC=VALUE"),
        ("test_acuracy=0.9", 'Did you mean "test_accuracy"'),
        ("lr=0.9", "neither more nor less is better"),
    ],
)
def test_targets_are_checked(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Target.parse(text)
    assert Target.parse("test_loss=0.3") == Target("test_loss", 0.3)
