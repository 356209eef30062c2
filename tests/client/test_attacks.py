"""Hostile clients: what they train on and send, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedopt
from fedopt.client.algorithm import ClientUpdate, Senders
from fedopt.client.attacks import (
    Alie,
    Hostility,
    LabelFlip,
    ScaledNoise,
    SignFlip,
    hostile_clients,
)
from fedopt.client.channel import SentPart
from fedopt.data.population import Examples
from fedopt.errors import ConfigError

UNIFORM = {"name": "fedavg", "weighting": "uniform"}
A, B = (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, -1.0, 2.0, 0.5, -0.5)
LR, STEPS = 0.05, 3


def half_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 0.5 * (output - target).square().mean()


def line() -> torch.nn.Module:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return model


def simulate(attack: Any, **tables: Any) -> fedopt.Run:
    """Rounds of the quadratics a_i / 2 (w - b_i)^2, of which some clients are hostile."""
    given: dict[str, Any] = {
        "rounds": 1,
        "clients_per_round": "all",
        "dtype": "float64",
        "strategy": UNIFORM,
        "local": {"steps": STEPS, "batch_size": None, "optimizer": {"name": "sgd", "lr": LR}},
        "engine": {"name": "inline"},
        "evaluation": {"every": 100},
        "attack": attack,
    }
    pairs = [(np.array([[a**0.5]]), np.array([[a**0.5 * b]])) for a, b in zip(A, B, strict=True)]
    return fedopt.simulate(model=line, loss=half_square, clients=pairs, **{**given, **tables})


def changes(x: float = 0.0) -> np.ndarray:
    """The honest changes of all clients."""
    return np.array([(1 - (1 - LR * a) ** STEPS) * (b - x) for a, b in zip(A, B, strict=True)])


def hostile(run: fedopt.Run) -> np.ndarray:
    """Which clients are hostile, by what the run says."""
    return run.clients.sort_values("client")["hostile"].to_numpy().astype(bool)


@pytest.mark.parametrize("training", ["loop", "stacked"])
def test_flipped_signs_in_closed_form(training: str) -> None:
    attack = {"name": "sign_flip", "fraction": 0.4, "scale": 3.0}
    run = simulate(attack, engine={"name": "inline", "training": training})
    bad = hostile(run)
    assert bad.sum() == 2 == run.summary["hostile_clients"]
    expected = np.where(bad, -3.0, 1.0) @ changes() / 5
    assert float(run.parameters()["weight"]) == pytest.approx(expected, abs=1e-9)
    # What is reported of the work is that of an honest client.
    assert run.clients["update_norm"].to_numpy() == pytest.approx(np.abs(changes()))


@pytest.mark.parametrize("strategy", [UNIFORM, "median", "scaffold"], ids=str)
def test_a_little_is_enough_in_closed_form(strategy: Any) -> None:
    """Hostile clients send mean - z std of their own changes, wherever they were trained."""
    attack = {"name": "alie", "fraction": 0.6, "z": 2.0}
    run = simulate(attack, strategy=strategy, engine={"name": "inline", "block_size": 1})
    bad, honest = hostile(run), changes()
    theirs = honest[bad].mean() - 2.0 * honest[bad].std()
    sent = np.where(bad, theirs, honest)
    expected = np.median(sent) if strategy == "median" else sent.mean()
    assert float(run.parameters()["weight"]) == pytest.approx(expected, abs=1e-9)


def test_alone_a_colluding_client_is_honest() -> None:
    run = simulate({"name": "alie", "fraction": 0.2})
    assert hostile(run).sum() == 1
    assert float(run.parameters()["weight"]) == pytest.approx(changes().mean(), abs=1e-12)


def test_every_vector_of_scaffold_is_turned_round() -> None:
    """All clients hostile with scale 1: the model and the control variate are mirrored."""
    attack = {"name": "sign_flip", "fraction": 1.0}
    mirrored, plain = simulate(attack, strategy="scaffold"), simulate("none", strategy="scaffold")
    assert mirrored.parameters()["weight"] == -plain.parameters()["weight"]
    one, other = (run.state()["control_variate"]["weight"] for run in (mirrored, plain))
    assert one == -other
    assert other != 0


def test_noise_is_as_long_as_it_says() -> None:
    rows = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0))
    draws = [torch.Generator().manual_seed(i) for i in range(3)]
    sent = ScaledNoise(5.0).vectors(rows.clone(), draws)
    noise = torch.linalg.vector_norm(sent - rows, dim=1) / torch.linalg.vector_norm(rows, dim=1)
    assert noise.tolist() == pytest.approx([5.0] * 3, rel=0.02)


def test_what_stays_with_a_client_is_not_attacked() -> None:
    part = SentPart(torch.tensor([0, 2]), ((2,),))
    hostility = Hostility(ScaledNoise(3.0), np.array([4]), part)
    rows = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]])
    update = hostility.update(ClientUpdate({"delta": rows}), Senders(0, 1, [2, 4], 2))
    sent = update.terms["delta"]
    assert torch.equal(sent[0], rows[0])
    assert sent[1, 1] == 0
    assert (sent[1, ::2] != rows[1, ::2]).all()
    assert torch.equal(rows, torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.data())
def test_labels_are_flipped_for_hostile_clients_alone(sizes: list[int], data: Any) -> None:
    clients = list(range(10, 10 + len(sizes)))
    bad = data.draw(st.sets(st.sampled_from(clients)))
    labels = np.arange(sum(sizes)) % 7
    hostility = Hostility(LabelFlip(), np.array(sorted(bad)), SentPart(None, ()), 7)
    before = labels.copy()
    found = hostility.examples(Examples(np.zeros((len(labels), 1)), labels), clients, sizes)
    owners = np.repeat(clients, sizes)
    expected = np.where(np.isin(owners, sorted(bad)), 6 - labels, labels)
    np.testing.assert_array_equal(found.y, expected)
    np.testing.assert_array_equal(labels, before)


def test_flipped_labels_are_trained_on() -> None:
    """With all labels flipped a run is that on flipped data, to the bit."""
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(6, 3)), rng.integers(0, 4, 6)) for _ in range(4)]
    tables: dict[str, Any] = {
        "model": lambda: torch.nn.Linear(3, 4),
        "rounds": 2,
        "clients_per_round": "all",
        "engine": {"name": "inline"},
    }
    attack = {"name": "label_flip", "fraction": 1.0}
    attacked = fedopt.simulate(clients=data, attack=attack, **tables)
    classes = 1 + max(int(y.max()) for _, y in data)
    flipped = [(x, classes - 1 - y) for x, y in data]
    plain = fedopt.simulate(clients=flipped, **tables)
    assert attacked.summary["model_sha256"] == plain.summary["model_sha256"]


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 5))
def test_hostile_clients_are_a_share_of_those_with_examples(
    clients: int, fraction: float, seed: int
) -> None:
    sizes = np.arange(clients) % 3 + (clients == 1)
    eligible = np.flatnonzero(sizes)
    if not len(eligible):
        return
    found = hostile_clients(sizes, fraction, seed)
    assert set(found) <= set(eligible)
    assert len(set(found)) == len(found) == max(1, round(fraction * len(eligible)))
    np.testing.assert_array_equal(found, hostile_clients(sizes, fraction, seed))


def test_the_same_clients_are_hostile_in_every_round() -> None:
    run = simulate({"name": "sign_flip", "fraction": 0.4}, rounds=4, clients_per_round=3)
    by_client = run.clients.groupby("client")["hostile"].nunique()
    assert (by_client == 1).all()
    assert SignFlip().scale == 1
    assert Alie().colludes


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"attack": {"name": "sign_flip", "fraction": 0.0}}, r"in \(0, 1\]"),
        ({"attack": {"name": "sign_flip", "fraction": 1.1}}, r"in \(0, 1\]"),
        ({"attack": {"name": "sign_flip", "scale": -1.0}}, "> 0"),
        ({"attack": {"name": "alie", "z": 0.0}}, "> 0"),
        ({"attack": "sgn_flip"}, 'Did you mean "sign_flip"'),
        ({"attack": "label_flip"}, "real targets"),
        ({"attack": "alie", "uplink": {"clip": {"norm": 1.0}}}, "together"),
        ({"attack": "alie", "uplink": {"compression": {"name": "qsgd"}}}, "together"),
        ({"attack": "sign_flip", "strategy": "centralised"}, "send nothing"),
    ],
)
def test_bad_attacks_are_refused_by_name(tables: dict[str, Any], says: str) -> None:
    attack = tables.pop("attack")
    with pytest.raises(ConfigError, match=says):
        simulate(attack, **tables)
