"""A plateau lowers the rate exactly when torch's scheduler does."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.errors import ConfigError
from fedopt.schedules.plateau import Plateau, PlateauState

metric = st.floats(0.0, 2.0) | st.sampled_from([1.0, 0.5, math.nan])


@settings(deadline=None, max_examples=300)
@given(
    metrics=st.lists(metric, min_size=1, max_size=40),
    options=st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["min", "max"]),
            "factor": st.floats(0.1, 0.9),
            "patience": st.integers(0, 4),
            "threshold": st.floats(0, 0.3),
            "threshold_mode": st.sampled_from(["rel", "abs"]),
            "cooldown": st.integers(0, 3),
            "min_lr": st.floats(0, 0.05),
            "eps": st.sampled_from([1e-8, 0.01]),
        }
    ),
)
def test_it_is_that_of_torch(metrics: list[float], options: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    plateau = Plateau(**options)
    state = plateau.begin(0.3)
    for value in metrics:
        scheduler.step(value)
        # Through its numbers, as a checkpoint keeps it.
        state = PlateauState.from_list(plateau.update(state, value).to_list())
        assert state.lr == optimizer.param_groups[0]["lr"]
        assert (state.bad_checks, state.cooldown_left) == (
            scheduler.num_bad_epochs,
            scheduler.cooldown_counter,
        )


def test_a_state_survives_json() -> None:
    plateau = Plateau(patience=0)
    for state in (plateau.begin(0.1), plateau.update(plateau.begin(0.1), 0.7)):
        assert PlateauState(**json.loads(json.dumps(asdict(state)))) == state
        assert PlateauState.from_list(json.loads(json.dumps(state.to_list()))) == state


def test_nan_is_no_progress() -> None:
    plateau = Plateau(patience=1, mode="max")
    state = plateau.update(plateau.begin(0.1), math.nan)
    assert (state.lr, state.bad_checks) == (0.1, 1)
    assert plateau.update(state, math.nan).lr == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "least"}, r'plateau\.mode: "least" is not known'),
        ({"factor": 1.0}, r"plateau\.factor.*1\.0.*\(0, 1\)"),
        ({"factor": 0.0}, r"plateau\.factor.*0\.0.*\(0, 1\)"),
        ({"patience": -1}, r"plateau\.patience.*-1.*>= 0"),
        ({"cooldown": -1}, r"plateau\.cooldown.*-1.*>= 0"),
        ({"threshold": -0.1}, r"plateau\.threshold.*-0\.1.*>= 0"),
        ({"threshold_mode": "relative"}, r"threshold_mode.*'relative'.*'rel' or 'abs'"),
        ({"min_lr": -1.0}, r"plateau\.min_lr.*-1\.0.*>= 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Plateau(**options)
