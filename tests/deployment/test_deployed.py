"""Runs on real clients, all in this process: the bits of the simulation, and what is lost."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import fedopt
from fedopt.analysis.store import read_clients, read_history
from fedopt.config import load

from .nodes import TASK, Nodes, deploy, sites, split

CLOCKS = ("wall_seconds",)


def metrics(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns=[c for c in CLOCKS if c in history]).fillna(-1)


@pytest.mark.parametrize(
    "words",
    [
        ["strategy=fedavg"],
        ["strategy=scaffold"],
        ["strategy=fedprox", "strategy.mu=0.1", "local.optimizer=adam", "local.optimizer_state=keep"],
        ["strategy=scaffold", "clients_per_round=2", "local.schedule=one_cycle", "local.schedule.scope=across"],
        ["strategy=fedper", "uplink.compression=top_k"],
    ],
    ids=" ".join,
)
def test_real_clients_give_the_bits_of_the_simulation(words, tmp_path, monkeypatch):
    words = [*TASK, *words]
    folders = split(load(None, words), tmp_path / "data")
    nodes = Nodes(sites(tmp_path, folders))
    real = deploy(monkeypatch, tmp_path, nodes, [*words, "deployment.min_clients=3"])
    simulated = fedopt.simulate(load(None, words), out=tmp_path / "simulated")
    summary = json.loads((real / "summary.json").read_text())
    assert summary["model_sha256"] == simulated.summary["model_sha256"]
    pd.testing.assert_frame_equal(
        metrics(read_history(real)), metrics(read_history(tmp_path / "simulated"))
    )
