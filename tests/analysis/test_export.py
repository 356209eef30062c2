"""Exports hold what the runs recorded, to the bit where the format has doubles."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import fedopt
from fedopt.analysis import read_clients, read_evaluations, read_history
from fedopt.analysis.columns import ROUND_COLUMNS
from fedopt.analysis.export import EXPERIMENT, FORMS, export_runs, scalar_tag
from fedopt.cli import app
from fedopt.errors import ConfigError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small runs with evaluated clients."""
    folder = tmp_path_factory.mktemp("exports")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 8, 3)).astype("float32")
    y = (x.sum(axis=2) > 0).astype("int64")
    for seed in (0, 1):
        fedopt.simulate(
            out=folder / f"seed{seed}",
            rounds=3,
            seed=seed,
            clients_per_round=None,
            clients=list(zip(x[1:], y[1:], strict=True)),
            test=(x[0], y[0]),
            model=lambda: torch.nn.Linear(3, 2),
            data={"validation_fraction": 0.25},
            evaluation={"validation_clients": 5},
            engine={"name": "inline"},
        )
    return folder


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_tables_are_those_of_the_runs_bit_for_bit(runs, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra parquet")
    result = CliRunner().invoke(app, ["export", str(runs), "--to", form, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = sorted(path.name for path in tmp_path.iterdir())
    kinds = ("clients", "config", "evaluations", "rounds", "runs")
    assert written == [f"{kind}.{form}" for kind in kinds]

    def read(kind):
        path = tmp_path / f"{kind}.{form}"
        if form == "parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path)

    for kind, reader in (
        ("rounds", read_history),
        ("clients", read_clients),
        ("evaluations", read_evaluations),
    ):
        table = read(kind)
        for seed in (0, 1):
            mine = table[(table["run"] == f"seed{seed}") & (table["seed"] == seed)]
            theirs = reader(runs / f"seed{seed}")
            for name in theirs.columns:
                ours, expected = mine[name], theirs[name]
                if expected.notna().any():
                    assert ours.tolist() == expected.tolist(), (kind, name)
                else:
                    assert ours.isna().all()
    facts = read("runs").set_index("run")
    assert facts.loc["seed1", "status"] == "completed"
    final = read_history(runs / "seed1")["test_loss"].iloc[-1]
    assert facts.loc["seed1", "final_test_loss"] == final
    config = read("config")
    seeds = config[config["key"] == "seed"].set_index("run")["value"].astype(int)
    assert seeds.to_dict() == {"seed0": 0, "seed1": 1}


def test_tensorboard_has_each_value_at_its_round_and_again_only_once(runs, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        export_runs([runs / "seed0"], "tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "seed0"), {"histograms": 0, "scalars": 0})
    events.Reload()
    history = read_history(runs / "seed0")
    for column in ("test_loss", "test_accuracy", "bytes_up", "lr"):
        scalars = events.Scalars(scalar_tag(column))
        assert [s.step for s in scalars] == history["round"].tolist()
        # TensorBoard keeps floats of 32 bits.
        assert [s.value for s in scalars] == pytest.approx(history[column].tolist(), rel=1e-6)
    moments = [s.wall_time for s in events.Scalars("loss/test")]
    spans = history["wall_seconds"].diff().dropna().tolist()
    # Times since 1970 have steps of 2e-7 seconds.
    assert np.diff(moments).tolist() == pytest.approx(spans, abs=1e-5)
    assert [h.step for h in events.Histograms("clients/accuracy")] == [1, 2, 3]


def test_tags_are_unique():
    tags = [scalar_tag(column.name) for column in ROUND_COLUMNS]
    assert len(set(tags)) == len(tags)
    assert scalar_tag("swa_test_loss") == "loss/swa_test"


def test_mlflow_has_parameters_metrics_and_files_and_again_only_once(runs, tmp_path):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow.tracking import MlflowClient

    for _ in range(2):
        (store,) = export_runs([runs / "seed0", runs / "seed1"], "mlflow", tmp_path)
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["seed0", "seed1"]
    assert len(client.search_runs([experiment.experiment_id])) == 2
    run = found["seed1"]
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy.name"] == "fedavg"
    assert run.data.params["seed"] == "1"
    history = read_history(runs / "seed1")
    metric = client.get_metric_history(run.info.run_id, "test_loss")
    assert {m.step: m.value for m in metric} == dict(
        zip(history["round"], history["test_loss"], strict=True)
    )
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert files == {"config.toml", "summary.json", "report.html"}


def test_what_cannot_be_exported_is_said_before_anything_is_written(runs, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r'--to: "tensorbord".*Did you mean "tensorboard"'):
        export_runs([runs / "seed0"], "tensorbord", tmp_path / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for form in set(FORMS) - {"csv"}:
        with pytest.raises(ConfigError, match=rf"fedopt\[{form}\]"):
            export_runs([runs / "seed0"], form, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out"):
        export_runs([runs / "seed0"], "csv", tmp_path / "file")


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(runs / "seed0", tmp_path / place / "run")
    export_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"], "csv", tmp_path / "out")
    names = pd.read_csv(tmp_path / "out" / "runs.csv")["run"]
    assert names.is_unique
