"""Client selection: the rules by hand, and in runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quadratics
from resuming import assert_resumes

import fedopt
from fedopt.errors import ConfigError
from fedopt.server.client_selection import (
    BySize,
    ClientSelection,
    Fastest,
    Oort,
    PowerOfChoice,
    Question,
    jain_index,
    weighted_sample,
)

SIZES = np.array([1, 2, 3, 4, 10])
UNIFORM = {"name": "fedavg", "weighting": "uniform"}


def question(count: int, round: int = 1, **changes: Any) -> Question:
    def refuse(clients: Any) -> Any:
        raise AssertionError("nobody was to be measured")

    given: dict[str, Any] = {
        "round": round,
        "attempt": 0,
        "count": count,
        "clients": np.arange(5),
        "sizes": SIZES,
        "seconds": None,
        "measure": refuse,
    }
    return Question(**{**given, **changes})


def test_a_draw_by_size_is_in_proportion() -> None:
    selection = ClientSelection(BySize(), 0, 5)
    drawn = [selection.choose(question(1, round)) for round in range(1, 4001)]
    shares = np.bincount(np.concatenate(drawn), minlength=5) / 4000
    np.testing.assert_allclose(shares, SIZES / 20, atol=4 * 0.5 / 4000**0.5)
    # The second of two is drawn among the others: the pair (i, j) in either order.
    p = SIZES / SIZES.sum()
    pairs = [tuple(selection.choose(question(2, round)).tolist()) for round in range(1, 4001)]
    share = np.mean([pair == (3, 4) for pair in pairs])
    exact = p[3] * p[4] / (1 - p[3]) + p[4] * p[3] / (1 - p[4])
    assert share == pytest.approx(exact, abs=4 * 0.5 / 4000**0.5)


def test_the_highest_losses_are_chosen() -> None:
    losses = {0: 0.3, 1: 2.0, 2: 1.0, 3: 0.1, 4: 0.5}
    asked: list[int] = []

    def measure(clients: Any) -> dict[int, float]:
        asked.extend(clients.tolist())
        return {int(c): losses[int(c)] for c in clients}

    everyone = PowerOfChoice(candidates=2.5)
    found = ClientSelection(everyone, 0, 5).choose(question(2, measure=measure))
    assert found.tolist() == [1, 2]
    assert sorted(asked) == [0, 1, 2, 3, 4]
    asked.clear()
    found = ClientSelection(PowerOfChoice(1.5), 0, 5).choose(question(2, measure=measure))
    assert len(set(asked)) == 3
    assert set(found) == set(sorted(asked, key=lambda c: -losses[c])[:2])


def test_without_measuring_the_last_losses_count_and_new_clients_come_first() -> None:
    selection = ClientSelection(PowerOfChoice(5.0, measure=False), 0, 5)
    selection.learn(1, [0, 1, 2], [0.3, 2.0, 1.0])
    assert selection.choose(question(2)).tolist() == [3, 4]
    selection.learn(2, [3, 4], [0.1, 5.0])
    assert selection.choose(question(2)).tolist() == [1, 4]


def test_oorts_utility_by_hand() -> None:
    rule = Oort(quantile=0.5, alpha=2.0)
    selection = ClientSelection(rule, 0, 5)
    selection.learn(1, [0, 1], [2.0, 1.0])
    selection.learn(4, [2], [0.5])
    seconds = np.array([10.0, 40.0, 1.0, 20.0, 30.0])  # the median is 20
    ask = question(2, 6, seconds=lambda clients: seconds[clients])
    found = rule.utility(ask, selection, np.array([0, 1, 2]), SIZES[:3])
    bonus = np.sqrt(0.1 * np.log(6) / np.array([1, 1, 4]))
    gains = np.array([1 * 2.0, 2 * 1.0, 3 * 0.5]) / 2.0
    np.testing.assert_allclose(found, (gains + bonus) * [1, (20 / 40) ** 2, 1], rtol=1e-12)


def test_oort_explores_less_and_less() -> None:
    rule = Oort(explore=1.0, decay=0.5, least=0.25)
    selection = ClientSelection(rule, 0, 100)
    everyone = {"clients": np.arange(100), "sizes": np.ones(100, dtype=np.int64)}
    for round, new in ((1, 8), (2, 4), (3, 2), (4, 2)):
        before = selection.rounds > 0
        found = selection.choose(question(8, round, **everyone))
        assert len(set(found)) == 8
        assert (~before[found]).sum() == new
        selection.learn(round, found.tolist(), [1.0] * 8)


def test_the_fastest_are_chosen() -> None:
    seconds = np.array([3.0, 1.0, 2.0, 1.0, 5.0])
    ask = question(3, seconds=lambda clients: seconds[clients])
    assert ClientSelection(Fastest(), 0, 5).choose(ask).tolist() == [1, 2, 3]


def test_draws_are_distinct_whatever_the_weights() -> None:
    rng = np.random.default_rng(0)
    found = weighted_sample(np.arange(5), np.array([1e-9, 1, 1e9, 1, 1]), 4, rng)
    assert len(set(found)) == 4
    assert 2 in found


def test_jains_index() -> None:
    assert jain_index(np.array([3, 3, 3])) == 1
    assert jain_index(np.array([5, 0, 0, 0])) == 0.25
    assert jain_index(np.array([1, 2])) == pytest.approx(9 / 10)
    assert np.isnan(jain_index(np.zeros(2)))


# In runs ------------------------------------------------------------------------------------------


def test_a_run_chooses_the_clients_that_fit_worst() -> None:
    """With all as candidates: the two whose loss a_i / 2 (x - b_i)^2 at the model is highest."""
    a, b = (1.0, 1.0, 1.0, 1.0), (0.5, -3.0, 2.0, 1.0)
    run = quadratics.simulate(
        UNIFORM,
        quadratics.clients(a, b),
        rounds=6,
        clients_per_round=2,
        selection={"name": "power_of_choice", "candidates": 2.0},
        keep_parameters=True,
    )
    x = 0.0
    for round in range(1, 7):
        chosen = run.clients[run.clients["round"] == round]["client"].tolist()
        assert chosen == sorted(np.argsort([-((x - bi) ** 2) for bi in b], kind="stable")[:2])
        x = quadratics.weight(run, round)
    # Four candidates download the model once more and send a number.
    rows = run.history.iloc[-1]
    assert rows["bytes_down"] == 6 * (2 * 8 + 4 * 8)
    assert rows["bytes_up"] == 6 * (2 * 8 + 4 * 8)


@pytest.mark.parametrize("name", ["size", "power_of_choice", "oort"])
def test_selections_resume_to_the_bit(name: str, tmp_path: Path) -> None:
    population = quadratics.clients((1.0, 2.0, 3.0, 4.0), (1.0, -1.0, 0.5, 2.0))
    assert_resumes(tmp_path, UNIFORM, population, clients_per_round=2, selection={"name": name})


def test_who_is_away_is_not_chosen(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("client,start,end\n1,0,1e9\n3,0,1e9\n4,0,1e9\n")
    run = fedopt.simulate(
        rounds=5,
        clients_per_round=2,
        partition={"name": "iid", "clients": 6},
        selection="oort",
        system={
            "devices": "log_normal",
            "availability": {"name": "trace", "path": str(tmp_path / "trace.csv")},
        },
        engine="inline",
        evaluation={"every": 10},
    )
    assert set(run.clients["client"]) <= {1, 3, 4}
    assert run.clients.groupby("round").size().eq(2).all()


def test_fairness_of_participation_is_reported() -> None:
    tables: dict[str, Any] = {
        "rounds": 10,
        "clients_per_round": 2,
        "partition": {"name": "iid", "clients": 8},
        "engine": "inline",
        "evaluation": {"every": 20},
        "system": {"devices": "log_normal"},
    }
    fair, fast = fedopt.simulate(**tables), fedopt.simulate(**tables, selection="fastest")
    assert fast.summary["participation"] == {
        "clients": 8,
        "took_part": 2,
        "jain_index": pytest.approx(0.25),
    }
    assert fair.summary["participation"]["jain_index"] > 0.5
    assert fast.history["clients_seen"].eq(2).all()
    counts = fair.clients.groupby("round")["client"].apply(set)
    seen = [len(set().union(*counts.iloc[: place + 1])) for place in range(10)]
    assert fair.history["clients_seen"].tolist() == seen


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"selection": "powerofchoice"}, 'Did you mean "power_of_choice"'),
        ({"selection": {"name": "power_of_choice", "candidates": 0.5}}, ">= 1"),
        ({"selection": {"name": "oort", "explore": 1.5}}, r"\[0, 1\]"),
        ({"selection": "fastest"}, "set system.devices"),
        ({"selection": "oort", "policy": "fedbuff"}, "begin one by one"),
        ({"selection": "size", "strategy": "centralised"}, "centralised"),
        (
            {"selection": "size", "server": {"curriculum": {"name": "anti"}}},
            "chooses clients already",
        ),
    ],
)
def test_bad_selections_are_refused_by_name(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fedopt.simulate(**{"clients_per_round": 5, **tables})
