"""Federated search: any strategy over a supernet, the same bits everywhere, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.client.algorithm import LocalTerms
from fedopt.client.plan import LocalWork, plan_clients
from fedopt.client.rates import constant_rates
from fedopt.client.recipe import Recipe
from fedopt.client.search import SearchEngine
from fedopt.config import load
from fedopt.data.population import Examples
from fedopt.errors import ConfigError
from fedopt.models.layout import ParameterLayout
from fedopt.optim.rules import Adam, Sgd
from fedopt.search import DenseSupernet, Genotype, SearchSettings
from fedopt.search.bilevel import Bilevel, split_examples
from fedopt.search.gradient import architecture_gradient
from fedopt.search_command import run_search
from fedopt.seeds import generator

EXHAUSTIVE = pytest.mark.exhaustive

SIZES = (9, 23, 14, 30, 5)


def supernet() -> nn.Module:
    return DenseSupernet((6,), 3, widths=(4, 8), activations=("relu", "tanh"), depth=2)


def clients() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in SIZES]


def simulate(model: Any = supernet, **tables: Any) -> fedopt.Run:
    defaults: dict[str, Any] = {
        "rounds": 3,
        "clients_per_round": 4,
        "dtype": "float64",
        "local": {"epochs": 2, "batch_size": 5},
        "search": {"lr": 0.05},
        "engine": {"name": "inline"},
    }
    data = clients()
    return fedopt.simulate(model=model, clients=data, test=data[1], **(defaults | tables))


def vector(run: fedopt.Run) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in run.parameters().values()])


def test_a_round_is_architecture_and_weight_steps_in_turn() -> None:
    """One client, by hand: Adam along the exact gradient, then SGD, on the client's two parts."""
    torch.manual_seed(0)
    model = supernet().double()
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(20, 6)), rng.integers(0, 3, 20))
    work, settings = LocalWork(1, None, 4), SearchSettings(lr=0.1)
    (plan,) = plan_clients(work, 7, 2, [3], [20], constant_rates(0.2), [5])
    layout = ParameterLayout.of(model)
    start = layout.state({n: p.detach() for n, p in model.named_parameters()})
    loss = nn.functional.cross_entropy
    engine = SearchEngine(model, loss, Recipe(Sgd()), settings, 7, torch.device("cpu"))
    result = engine.train(start, 2, [plan], examples, LocalTerms())

    again = supernet().double()
    again.load_state_dict(layout.named(start), strict=False)
    bilevel = Bilevel(again, loss, settings)
    weights, alphas = bilevel.values()
    train, val = split_examples(20, 0.5, generator(7, "search split", 3))
    assert not set(train) & set(val)
    draws = generator(7, "search batches", 2, 3)
    left: dict[str, np.ndarray] = {"train": train[:0], "val": val[:0]}

    def batch(part: str, places: np.ndarray) -> tuple[Tensor, Tensor]:
        if not len(left[part]):
            left[part] = draws.permutation(places)
        taken, left[part] = left[part][:4], left[part][4:]
        return torch.from_numpy(examples.x[taken]), torch.from_numpy(examples.y[taken])

    rule, state = Adam(0.5, 0.999, weight_decay=1e-3), Adam().init(list(alphas.values()))
    for _ in range(5):
        ours, theirs = batch("train", train), batch("val", val)
        slopes = architecture_gradient(
            bilevel.loss_of(ours), bilevel.loss_of(theirs), weights, alphas, 0.2
        )
        rule.update(list(alphas.values()), list(slopes.values()), state, 0.1)
        gradients = torch.func.grad(bilevel.loss_of(ours))(weights, alphas)
        for name, weight in weights.items():
            weight -= 0.2 * gradients[name]
    expected = layout.state(alphas | weights).parameters - start.parameters
    torch.testing.assert_close(result.delta[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "strategy",
    [
        *(pytest.param(name, marks=EXHAUSTIVE) for name in ("fedavg", "fedprox")),
        "scaffold",
    ],
)
def test_neither_workers_nor_blocks_change_a_bit(strategy: str) -> None:
    tables: dict[str, Any] = {
        "rounds": 2,
        "clients_per_round": 4,
        "partition": {"name": "iid", "clients": 8},
        "model": {"name": "dense_supernet", "widths": [4, 8], "depth": 1},
        "strategy": strategy,
        "local": {"steps": 2},
        "search": {"lr": 0.05},
    }
    alone, shared = (
        fedopt.simulate(tables, engine={**engine, "block_size": 2})
        for engine in ({"name": "inline"}, {"name": "ray", "workers": 2})
    )
    assert torch.equal(vector(alone), vector(shared))


@pytest.mark.parametrize("option", ["I", "II"])
def test_control_variates_are_of_the_weights_alone(option: str) -> None:
    run = simulate(strategy={"name": "scaffold", "option": option}, clients_per_round="all")
    state = run.state()
    for name, vector in state["control_variate"].items():
        assert bool((vector == 0).all()) == name.startswith("alphas."), name
    for rows in state["client_control_variate"].values():
        assert all((v == 0).all() for n, v in rows.items() if n.startswith("alphas."))


def test_a_proximal_term_pulls_the_weights_alone() -> None:
    """A pull so strong that the weights stay: the architecture moves all the same."""
    run = simulate(
        rounds=1,
        strategy={"name": "fedprox", "mu": 1.0},
        local={"epochs": 1, "batch_size": 5, "optimizer": {"name": "sgd", "lr": 1e-12}},
        keep_parameters=True,
    )
    torch.manual_seed(0)
    moved = run.parameters(1)
    assert any(float(v.abs().max()) > 0.01 for n, v in moved.items() if n.startswith("alphas."))


def test_the_architecture_is_recorded_and_counted() -> None:
    run = simulate()
    size = sum(p.numel() for p in supernet().parameters())
    assert run.history["bytes_up"].tolist() == [8 * 4 * size * t for t in (1, 2, 3)]
    assert run.history["architecture_entropy"].notna().all()
    found = run.summary["architecture"]
    assert found["rounds"] == 3
    assert found["collapsed_at"] is None
    genotype = Genotype.from_json(json.dumps(found["genotype"]))
    assert run.history["skip_connections"].iloc[-1] == genotype.skip_connections
    for name, entropy in found["entropies"].items():
        assert 0 <= entropy <= found["largest_entropies"][name] + 1e-12


class Interruption(SilentProgress):
    def __init__(self, at: int) -> None:
        self.left = at

    def update(self, row: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


TABLES: dict[str, Any] = {
    "rounds": 3,
    "clients_per_round": 3,
    "data": "breast_cancer",
    "partition": {"name": "iid", "clients": 6},
    "model": {"name": "dense_supernet", "widths": [4, 8], "depth": 2},
    "local": {"epochs": 1},
    "search": {"lr": 0.05, "random_samples": 2, "retrain_rounds": 2},
    "engine": {"name": "inline"},
    "checkpoint": {"every": 1},
}


@pytest.mark.exhaustive
def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path: Path) -> None:
    config = load(None, **TABLES)
    whole = run_search(config, tmp_path / "whole", SilentProgress())
    for at in (2, 2, 3):  # in the search, in it again, and while random ones are retrained
        with pytest.raises(KeyboardInterrupt):
            run_search(config, tmp_path / "broken", Interruption(at))
    resumed = run_search(config, tmp_path / "broken", SilentProgress())
    assert resumed.facts() == whole.facts()
    files = ("architecture.jsonl",)
    for name in files:
        mine, theirs = (tmp_path / run / "search" / name for run in ("broken", "whole"))
        assert mine.read_text() == theirs.read_text()
    with pytest.raises(ConfigError, match="another configuration"):
        run_search(load(None, **{**TABLES, "seed": 1}), tmp_path / "whole", SilentProgress())


def test_the_outcome_is_told_in_full(tmp_path: Path) -> None:
    outcome = run_search(load(None, **TABLES), tmp_path / "out", SilentProgress())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"genotype.json", "genotype.png", "comparison.csv", "comparison.png"} <= names
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table["architecture"].tolist() == ["found", "random 1", "random 2"]
    scores = table["test_accuracy"].tolist()
    assert outcome.median == pytest.approx(np.median(scores[1:]))
    assert outcome.rank == 1 + sum(score >= scores[0] for score in scores[1:])
    again = fedopt.simulate(
        {
            **TABLES,
            "model": {"name": "genotype", "path": str(tmp_path / "out" / "genotype.json")},
            "rounds": 2,
        }
    )
    assert again.history["test_accuracy"].iloc[-1] == scores[0]


def test_the_search_ends_when_skips_take_over(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        **TABLES,
        "data": {"name": "digits"},
        "model": {
            "name": "cell_supernet",
            "channels": 2,
            "cells": 1,
            "nodes": 1,
            "operations": ["skip_connect"],
        },
        "local": {"steps": 1},
        "search": {"skip_limit": 2},
    }
    run = fedopt.simulate(tables, out=tmp_path / "run")
    assert len(run.history) == 1
    assert run.summary["architecture"]["collapsed_at"] == 1


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"local": {"self_paced": {"name": "hard", "threshold": 1.0}}}, r"local\.self_paced\.name"),
        ({"local": {"optimizer": "kfac"}}, r"local\.optimizer\.name"),
        ({"local": {"gradient": {"penalty": 0.1}}}, r"local\.gradient\.penalty"),
        ({"engine": {"name": "inline", "training": "stacked"}}, r"engine\.training"),
        ({"search": {"xi": -0.1}}, r"search\.xi"),
        ({"search": {"validation_share": 1.0}}, r"search\.validation_share"),
        ({"search": {"gradient": "secnd"}}, r'search\.gradient: .*"second"'),
    ],
)
def test_bad_input_is_refused_by_name(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(**tables)


def test_models_without_an_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'model\.name: got "mlp", which has no architecture'):
        run_search(load(None, model="mlp"), tmp_path / "out", SilentProgress())
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"client 1 has one example"):
        fedopt.simulate(
            model=supernet,
            clients=[(np.zeros((4, 6)), np.zeros(4, int)), (np.zeros((1, 6)), np.zeros(1, int))],
            clients_per_round=1,
            engine={"name": "inline"},
        )
