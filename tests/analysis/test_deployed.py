"""Simulated beside real: differences found to the metric, and devices found from what they took."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import fedopt
from fedopt.analysis.deployed import (
    DEPLOYMENT_FILE,
    TRANSFERS_FILE,
    compare_deployed,
    fit_devices,
    pair_of,
    write_devices,
)
from fedopt.cli import app
from fedopt.errors import ConfigError
from fedopt.system.devices import read_devices

SETTINGS = {
    "rounds": 3,
    "clients_per_round": 3,
    "partition": {"clients": 3},
    "model": "logistic",
    "engine": {"name": "inline", "block_size": 1},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A simulation, and the same as if it had been real."""
    root = tmp_path_factory.mktemp("runs")
    fedopt.simulate(**SETTINGS, out=root / "simulated")
    shutil.copytree(root / "simulated", root / "real")
    (root / "real" / DEPLOYMENT_FILE).write_text("{}")
    return root


def test_equal_runs_are_equal(runs):
    found = compare_deployed(runs / "simulated", runs / "real")
    assert found.equal_bits
    assert found.within
    assert found.rounds == 3
    assert not any(found.largest.values())
    assert "the same bits after each of 3 rounds" in found.lines()[0]


def test_a_difference_is_dated_and_measured(runs, tmp_path):
    shutil.copytree(runs / "real", tmp_path / "real")
    path = tmp_path / "real" / "rounds.csv"
    table = pd.read_csv(path, dtype=str)
    row = table.index[table["round"] == "2"][0]
    table.loc[row, "model_sha256"] = "0" * 64
    table.loc[row, "test_loss"] = str(float(table.loc[row, "test_loss"]) + 0.5)
    table.to_csv(path, index=False)
    found = compare_deployed(runs / "simulated", tmp_path / "real")
    assert not found.equal_bits
    assert found.first_difference == 2
    assert not found.within
    assert found.largest["test_loss"] == pytest.approx(0.5)
    assert compare_deployed(runs / "simulated", tmp_path / "real", tolerance=10).within


def test_blocks_of_other_sizes_are_named_as_the_reason(runs, tmp_path):
    fedopt.simulate(
        **{**SETTINGS, "engine": {"name": "inline", "block_size": 3}}, out=tmp_path / "s"
    )
    found = compare_deployed(tmp_path / "s", runs / "real")
    if not found.equal_bits:
        assert any("engine.block_size = 1" in reason for reason in found.reasons)
    assert found.within


def test_other_experiments_are_refused(runs, tmp_path):
    fedopt.simulate(**{**SETTINGS, "seed": 1}, out=tmp_path / "s")
    with pytest.raises(ConfigError, match="seed: 1 simulated, 0 real"):
        compare_deployed(tmp_path / "s", runs / "real")


def test_a_pair_is_one_of_each(runs):
    a, b = runs / "simulated", runs / "real"
    assert pair_of([b, a]) == pair_of([a, b]) == (a, b)
    assert pair_of([a, a]) is None
    assert pair_of([b]) is None


def transfers(folder, devices, noise=0.0):
    """Write what exchanges with devices of known speed and link would have taken."""
    draw = np.random.default_rng(0)
    rows = []
    for client, (speed, latency, down, up) in enumerate(devices):
        for number, (d, u, seen) in enumerate(
            [(0, 0, 0), (2e6, 0, 0), (0, 2e6, 0), (5e5, 5e5, 900), (5e5, 5e5, 600)]
        ):
            trained = seen / speed
            rows.append(
                {
                    "round": number,
                    "client": client,
                    "kind": "train" if seen else "query.probe",
                    "bytes_down": d,
                    "bytes_up": u,
                    "train_seconds": trained if seen else "",
                    "round_trip_seconds": trained
                    + latency
                    + d / down
                    + u / up
                    + noise * draw.random(),
                    "steps": "",
                    "examples_seen": seen or "",
                }
            )
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / TRANSFERS_FILE, index=False)


def test_devices_are_found_from_their_exchanges(tmp_path):
    real = [(1000.0, 0.2, 1e6, 2e5), (50.0, 1.5, 4e5, 4e5)]
    transfers(tmp_path / "run", real)
    found = fit_devices(tmp_path / "run")
    for row, (speed, latency, down, up) in zip(found.itertuples(), real, strict=True):
        assert row.speed == pytest.approx(speed)
        assert row.latency == pytest.approx(latency)
        assert row.downlink == pytest.approx(down)
        assert row.uplink == pytest.approx(up)
        assert row.residual < 1e-9
    write_devices(found, tmp_path / "devices.csv")
    devices = read_devices(tmp_path / "devices.csv", "system.devices.path")
    assert devices.speed == pytest.approx([1000.0, 50.0])
    assert devices.uplink == pytest.approx([2e5, 4e5])


def test_what_exchanges_do_not_tell_is_infinite_and_not_guessed(tmp_path):
    transfers(tmp_path / "run", [(100.0, 0.5, 1e6, 1e6)])
    table = pd.read_csv(tmp_path / "run" / TRANSFERS_FILE)
    table[table["kind"] == "train"].to_csv(tmp_path / "run" / TRANSFERS_FILE, index=False)
    found = fit_devices(tmp_path / "run").iloc[0]
    assert math.isinf(found.downlink)
    assert math.isinf(found.uplink)
    assert found.latency == pytest.approx(1.5)  # the transfers are in it
    write_devices(fit_devices(tmp_path / "run"), tmp_path / "devices.csv")
    assert "uplink" not in (tmp_path / "devices.csv").read_text()


def test_a_real_run_is_not_computed_again_here(runs):
    for command in ("resume", "verify"):
        done = CliRunner().invoke(app, [command, str(runs / "real")])
        assert done.exit_code == 2
        assert "fedopt deploy submit --resume real" in done.output


def test_a_simulation_has_no_devices_to_fit(runs):
    with pytest.raises(ConfigError, match="not a run on real clients"):
        fit_devices(runs / "simulated")
