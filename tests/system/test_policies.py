"""Runs on the virtual clock: policies against each other and against recursions written out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.run import execute

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))
from quadratics import half_square, line

EXHAUSTIVE = pytest.mark.exhaustive

DEVICES = {"devices": {"name": "log_normal", "speed_sigma": 1.2}}
ON_DIGITS: dict[str, Any] = {
    "rounds": 6,
    "clients_per_round": 5,
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [8]},
    "local": {"epochs": 1.0},
    "engine": {"name": "inline", "block_size": 2},
    "evaluation": {"every": 100},
}


def on_digits(**tables: Any) -> fedopt.Run:
    return fedopt.simulate(**{**ON_DIGITS, **tables})


def digest(run: fedopt.Run) -> str:
    found: str = run.summary["model_sha256"]
    return found


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        {"name": "fedavg", "weighting": "uniform"},
        "fedadam",
        {"name": "fedprox", "mu": 1.0},
    ],
    ids=str,
)
def test_without_delays_a_full_buffer_is_the_synchronous_run_to_the_bit(strategy: Any) -> None:
    buffered = on_digits(strategy=strategy, policy="fedbuff")
    assert digest(buffered) == digest(on_digits(strategy=strategy))
    assert buffered.history["sim_seconds"].eq(0).all()
    assert buffered.clients["staleness"].eq(0).all()


@pytest.mark.parametrize(
    "policy",
    [
        "synchronous",
        {"name": "deadline", "seconds": 1e9},
        {"name": "over_selection", "factor": 1.0},
    ],
    ids=str,
)
def test_policies_that_cut_nothing_are_synchronous(policy: Any) -> None:
    plain = on_digits()
    run = on_digits(system=DEVICES, policy=policy)
    assert digest(run) == digest(plain)
    assert run.history["sim_seconds"].is_monotonic_increasing
    assert plain.history["sim_seconds"].isna().all()
    np.testing.assert_array_equal(run.history["bytes_up"], plain.history["bytes_up"])


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param({"policy": {"name": "deadline", "seconds": 0.3}}, marks=EXHAUSTIVE),
        pytest.param({"policy": {"name": "fedbuff", "buffer": 3}}, marks=EXHAUSTIVE),
        pytest.param({"policy": "fedasync"}, marks=EXHAUSTIVE),
        {
            "policy": {"name": "fedbuff", "buffer": 3},
            "system": {**DEVICES, "failures": {"during": 0.2}},
            "strategy": "fedyogi",
            "uplink": {"compression": {"name": "top_k", "share": 0.2}},
        },
    ],
    ids=["deadline", "fedbuff", "fedasync", "everything"],
)
def test_virtual_time_knows_neither_workers_nor_breaks(
    tables: dict[str, Any], tmp_path: Path
) -> None:
    given = {**ON_DIGITS, "system": DEVICES, **tables, "checkpoint": {"every": 2}}

    def run(folder: str, **engine: Any) -> fedopt.Run:
        settings = {**given, "engine": {**given["engine"], **engine}}
        experiment = Experiment.from_config(load(None, **settings))
        return execute(experiment, tmp_path / folder, SilentProgress())

    whole = run("whole")
    parallel = run("parallel", name="ray", workers=2)
    columns = [c for c in whole.history if c != "wall_seconds"]
    assert digest(parallel) == digest(whole)
    assert parallel.history[columns].equals(whole.history[columns])
    assert parallel.clients.equals(whole.clients)
    # What is cut off must not know that it will be: a killed run is one of all rounds.
    broken = tmp_path / "broken"
    copy_until(tmp_path / "whole", broken, 4)
    experiment = Experiment.from_config(load(None, **given))
    resumed = execute(experiment, broken, SilentProgress(), resume=True)
    assert digest(resumed) == digest(whole)
    assert resumed.history[columns].equals(whole.history[columns])
    assert resumed.clients.equals(whole.clients)


def copy_until(source: Path, target: Path, round: int) -> None:
    """Copy a run's folder as a kill after a round's checkpoint leaves it."""
    import shutil

    shutil.copytree(source, target)
    for path in (target / "checkpoints").iterdir():
        if int("".join(c for c in path.stem if c.isdigit())) > round:
            path.unlink()
    for name in ("summary.json", "model.safetensors"):
        (target / name).unlink(missing_ok=True)


# Asynchronous rounds, written out -----------------------------------------------------------------

A, B, LR, STEPS = (1.0, 2.0, 3.0, 4.0), (1.0, -1.0, 2.0, 0.5), 0.05, 3


def asynchronous(policy: dict[str, Any], strategy: Any) -> fedopt.Run:
    clients = [(np.array([[a**0.5]]), np.array([[a**0.5 * b]])) for a, b in zip(A, B, strict=True)]
    return fedopt.simulate(
        model=line,
        loss=half_square,
        clients=clients,
        rounds=25,
        clients_per_round=3,
        dtype="float64",
        strategy=strategy,
        local={"steps": STEPS, "batch_size": None, "optimizer": {"name": "sgd", "lr": LR}},
        engine={"name": "inline"},
        evaluation={"every": 100},
        system={"devices": {"name": "log_normal", "speed": 1.0, "speed_sigma": 1.0}},
        policy=policy,
        keep_parameters=True,
    )


def change(client: int, x: float) -> float:
    return float((1 - (1 - LR * A[client]) ** STEPS) * (B[client] - x))


def test_buffered_updates_are_those_of_the_models_that_clients_had() -> None:
    """x_r = x_(r-1) + lr mean over the buffer of (1 + r - v)^-1/2 (change from x_(v-1))."""
    run = asynchronous(
        {"name": "fedbuff", "buffer": 2},
        {"name": "fedavg", "weighting": "uniform", "server_lr": 0.7},
    )
    table = run.clients
    assert table["staleness"].max() >= 2
    models = [0.0]
    for round in range(1, 26):
        used = table[(table["staleness"] >= 0) & (table["round"] + table["staleness"] == round)]
        terms = [
            (1 + row.staleness) ** -0.5 * change(row.client, models[row.round - 1])
            for row in used.itertuples()
        ]
        models.append(models[-1] + 0.7 * float(np.mean(terms)))
        assert float(run.parameters(round)["weight"]) == pytest.approx(models[-1], abs=1e-12)


def test_mixed_models_are_those_of_the_clients() -> None:
    """x_r = (1 - a) x_(r-1) + a w, a = alpha (1 + r - v)^-1/2, w the client's model."""
    run = asynchronous({"name": "fedasync", "mixing": 0.6}, "fedavg")
    table = run.clients
    assert table["staleness"].max() >= 2
    models = [0.0]
    for round in range(1, 26):
        used = table[(table["staleness"] >= 0) & (table["round"] + table["staleness"] == round)]
        (row,) = used.itertuples()
        begun = models[row.round - 1]
        local = begun + change(row.client, begun)
        a = 0.6 * (1 + row.staleness) ** -0.5
        models.append((1 - a) * models[-1] + a * local)
        assert float(run.parameters(round)["weight"]) == pytest.approx(models[-1], abs=1e-12)


# What is written ----------------------------------------------------------------------------------


def test_times_bytes_and_energy_add_up() -> None:
    run = on_digits(
        strategy="fedprox",
        system={**DEVICES, "failures": {"before": 0.2, "during": 0.2, "upload": 0.2}},
        policy={"name": "over_selection", "factor": 1.6},
    )
    table, history = run.clients, run.history
    assert table.groupby("round").size().eq(8).all()
    totals = table.groupby("round")[["bytes_up", "bytes_down", "joules"]].sum().cumsum()
    for name in totals:
        np.testing.assert_allclose(history[name], totals[name])
    spans = table[["download_seconds", "compute_seconds", "upload_seconds"]].sum(axis=1)
    ends = (table["sim_start"] + spans).groupby(table["round"]).max()
    np.testing.assert_allclose(history["sim_seconds"], ends)
    used = table["reason"].fillna("") == ""
    assert set(table.loc[used, "status"]) <= {"trained", "partial"}
    assert set(table.loc[~used, "status"]) == {"dropped"}
    assert {"cancelled", "failed while training"} <= set(table.loc[~used, "reason"])
    assert table.loc[~used, "staleness"].eq(-1).all()


def test_late_clients_are_dropped_or_send_what_is_done() -> None:
    tables = {"system": DEVICES, "policy": {"name": "deadline", "seconds": 0.2}}
    dropped = on_digits(**tables).clients
    assert set(dropped["status"]) == {"trained", "dropped"}
    kept = on_digits(strategy={"name": "fedprox", "mu": 0.0}, **tables).clients
    assert "partial" in set(kept["status"])
    late = dropped["status"] == "dropped"
    np.testing.assert_array_equal(dropped["client"], kept["client"])
    assert (kept.loc[late, "steps"] < kept.loc[late, "planned_steps"]).all()


def test_a_round_without_updates_leaves_the_model() -> None:
    run = on_digits(
        system={**DEVICES, "failures": {"upload": 1.0}}, rounds=2, evaluation={"every": 1}
    )
    assert run.history["clients"].eq(0).all()
    assert run.history["test_loss"].nunique() == 1
    assert run.history["sim_seconds"].gt(0).all()


def test_operations_are_counted_on_the_model() -> None:
    """A dense layer of n x m takes 2 n m forward and 4 n m backward, but none for its input."""
    experiment = Experiment.from_config(
        load(None, **{**ON_DIGITS, "system": {**DEVICES, "speed_counts": "operations"}})
    )
    assert experiment.system is not None
    first, second = 64 * 8, 8 * 10
    assert experiment.system.operations == 2 * (first + second) + 2 * first + 4 * second


def test_memory_counts_parameters_gradients_and_moments() -> None:
    run = on_digits(
        system={"devices": {"name": "log_normal", "memory": 1e-6}},
        local={"optimizer": {"name": "adam"}},
        rounds=1,
    )
    assert set(run.clients["reason"]) == {"model too large for its memory"}


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"policy": "fedbuf"}, 'Did you mean "fedbuff"'),
        ({"policy": {"name": "deadline", "seconds": 0.0}}, "policy.seconds: got 0"),
        ({"policy": {"name": "over_selection", "factor": 0.5}}, ">= 1"),
        ({"policy": {"name": "fedbuff", "buffer": 0}}, ">= 1"),
        ({"policy": {"name": "fedbuff", "buffer": 21}}, "use at most 20"),
        ({"policy": {"name": "fedasync", "mixing": 1.5}}, r"\(0, 1\]"),
        ({"policy": "fedbuff", "strategy": "scaffold"}, "sends control_delta"),
        ({"policy": "fedbuff", "strategy": "median"}, "updates of one model"),
        ({"policy": "fedbuff", "strategy": "fednova"}, "all clients of a round report"),
        ({"policy": "fedbuff", "attack": "alie"}, "together"),
        ({"policy": {"name": "semi_synchronous"}}, 'under "semi_synchronous"'),
        (
            {"policy": "over_selection", "clients_per_round": "all"},
            "all 20 clients are wanted",
        ),
        ({"system": {"devices": "phone"}}, "system.devices.name"),
        (
            {"system": {"devices": {"name": "classes", "names": ["lapptop"]}}},
            'Did you mean "laptop"',
        ),
        ({"system": {"devices": {"name": "uniform", "speed": [5.0, 1.0]}}}, "smallest <= largest"),
        ({"system": {"devices": {"name": "file", "path": "none.csv"}}}, "cannot be read"),
        ({"system": {"availability": {"name": "bernoulli", "probability": 0.0}}}, r"\(0, 1\]"),
        ({"system": {"failures": {"before": 1.5}}}, r"\[0, 1\]"),
        ({"system": DEVICES, "strategy": "centralised"}, "no clients whose devices"),
    ],
)
def test_bad_systems_are_refused_by_name(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        on_digits(**tables)


def test_buffers_of_a_model_are_averaged_without_delays_as_in_a_synchronous_run() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))

    tables: dict[str, Any] = {
        "model": model,
        "partition": {"name": "iid", "clients": 20},
        "local": {"steps": 2, "batch_size": None},
    }
    plain, buffered = on_digits(**tables), on_digits(**tables, policy="fedbuff")
    assert digest(plain) == digest(buffered)
