"""`simulate`: what it takes, what it gives back, what it refuses before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedopt
from fedopt.config import Config, load
from fedopt.errors import ConfigError, DataError
from fedopt.experiment import cohort_size
from fedopt.server.checkpoint import digest


def clients(count: int = 6) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(8, 3)), rng.integers(0, 2, 8)) for _ in range(count)]


def simulate(**tables: Any) -> fedopt.Run:
    settings: dict[str, Any] = {
        "clients": clients(),
        "model": "logistic",
        "rounds": 3,
        "clients_per_round": 4,
        "engine": {"name": "inline"},
        "local": {"epochs": 1},
    }
    return fedopt.simulate(**{**settings, **tables})


def test_every_way_to_give_a_configuration_gives_the_same_run(tmp_path: Path) -> None:
    tree = {
        "rounds": 2,
        "clients_per_round": 4,
        "partition": {"clients": 8},
        "engine": {"name": "inline"},
        "local": {"epochs": 1},
    }
    config = Config.from_tree(tree)
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    runs = [fedopt.simulate(tree), fedopt.simulate(path), fedopt.simulate(config)]
    runs += [fedopt.simulate(**tree), fedopt.simulate({**tree, "rounds": 9}, rounds=2)]
    assert len({run.summary["model_sha256"] for run in runs}) == 1
    assert all(run.config == config for run in runs)


def test_a_run_can_be_read_back_from_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = simulate(out=out, test=clients(1)[0])
    assert run.dir == out
    summary = json.loads((out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(run.summary))
    assert summary["status"] == "completed"
    arrays = load_file(out / "model.safetensors")
    assert digest(arrays) == digest(run.parameters()) == summary["model_sha256"]
    for name in ("rounds.csv", "config.toml", "convergence.png", "population.json"):
        assert (out / name).stat().st_size > 0
    assert not list(out.rglob("*.tmp"))
    assert run.history["round"].tolist() == [1, 2, 3]
    assert run.history["test_accuracy"].between(0, 1).all()


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = simulate(strategy="scaffold")
    assert run.dir is None
    assert not list(tmp_path.iterdir())
    assert "client_control_variate" in run.state()


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    simulate(out=tmp_path / "run")
    with pytest.raises(ConfigError):
        simulate(out=tmp_path / "run")


def test_runs_repeat_to_the_bit_whatever_torch_drew_before() -> None:
    tables = {"model": {"name": "mlp", "dropout": 0.5, "hidden": [6]}}
    torch.manual_seed(1)
    first = simulate(**tables)
    torch.rand(10)
    before = torch.get_rng_state()
    second = simulate(**tables)
    assert torch.equal(torch.get_rng_state(), before), "the caller's generator is left alone"
    assert first.summary["model_sha256"] == second.summary["model_sha256"]
    other = simulate(**tables, seed=1)
    assert other.summary["model_sha256"] != first.summary["model_sha256"]


def test_the_block_size_alone_may_change_bits_and_only_bits() -> None:
    runs = [simulate(engine={"name": "inline", "block_size": size}) for size in (1, 3, 100)]
    for run in runs[1:]:
        for name, array in run.parameters().items():
            # Float64 sums of four float32 changes, in another grouping.
            torch.testing.assert_close(array, runs[0].parameters()[name], rtol=1e-5, atol=1e-6)


def test_earlier_rounds_are_kept_on_request() -> None:
    run = simulate(keep_parameters=True)
    assert digest(run.parameters()) == digest(run.parameters(3))
    assert digest(run.parameters(1)) != digest(run.parameters(3))
    assert digest(run.parameters(2)) == digest(simulate(rounds=2).parameters())
    with pytest.raises(ConfigError, match=r"round 1 is not kept.*keep_parameters"):
        simulate().parameters(1)


def test_a_module_is_copied() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    run = simulate(model=module)
    assert digest(dict(module.state_dict())) == digest(before)
    assert digest(run.parameters()) != digest(before)
    assert set(run.parameters()) == {"weight", "bias"}


def test_columns_add_up() -> None:
    run = simulate()
    rows, history = run.clients, run.history
    assert (
        history["client_steps"].tolist() == np.cumsum(rows.groupby("round")["steps"].sum()).tolist()
    )
    model_bytes = 4 * (3 * 2 + 2)
    assert history["bytes_down"].tolist() == [4 * model_bytes * r for r in (1, 2, 3)]
    assert history["bytes_up"].tolist() == history["bytes_down"].tolist()
    for round, own in rows.groupby("round"):
        mean = np.average(own["train_loss"], weights=own["examples"])
        assert history.set_index("round")["train_loss"][round] == pytest.approx(mean, rel=1e-12)
    with_controls = simulate(strategy="scaffold").history
    assert with_controls["bytes_down"].tolist() == [8 * model_bytes * r for r in (1, 2, 3)]


def test_what_is_not_measured_is_empty() -> None:
    run = simulate(rounds=5, test=clients(1)[0], evaluation={"every": 3})
    assert run.history["test_loss"].notna().tolist() == [False, False, True, False, True]
    assert "test_loss" not in simulate().history or simulate().history["test_loss"].isna().all()


@pytest.mark.parametrize(
    ("value", "clients", "size"),
    [("all", 7, 7), (3, 7, 3), (7, 7, 7), (1.0, 7, 7), (0.5, 8, 4), (0.01, 7, 1), (1, 7, 1)],
)
def test_cohort_sizes(value: int | float | str, clients: int, size: int) -> None:
    assert cohort_size(value, clients) == size


def three_outputs() -> nn.Module:
    return nn.Linear(3, 3)


def images() -> nn.Module:
    return nn.Conv2d(1, 1, 3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "cohort": ({"clients_per_round": 7}, r"^clients_per_round: got 7, but only 6"),
    "inputs": ({"model": images}, r"^model: the model cannot take inputs of shape \(2, 3\)"),
    "classes": ({"model": lambda: nn.Linear(3, 1)}, r"^model: .*2 classes"),
    "no module": ({"model": lambda: 3}, r"^model\.name: .*not a torch\.nn\.Module"),
    "no factory": ({"model": 3}, r"^model: expected a name"),
    "factory": ({"model": lambda: nn.Linear(-1, -1)}, r"^model"),
    "loss shape": (
        {"loss": lambda o, t: nn.functional.cross_entropy(o, t, reduction="none")},
        "scalar",
    ),
    "loss fails": ({"loss": lambda o, t: o @ t}, r"^local\.loss: the loss cannot take"),
    "targets": ({"clients": [(np.ones((2, 3)), np.ones(2))] * 6}, r"^local\.loss: .*\"mse\""),
    "device": ({"engine": {"name": "inline", "device": "warp"}}, r"^engine\.device: \"warp\""),
    "option": ({"strategy": {"name": "fedavg", "mu": 1}}, r"^strategy\.mu: unknown key"),
    "test alone": ({"clients": None, "test": (np.ones((2, 3)), np.ones(2))}, "^test: "),
    "loss name": ({"local": {"loss": "cross_entropi"}}, r'^local\.loss: .*"cross_entropy"'),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_training(case: str, tmp_path: Path) -> None:
    tables, words = BAD[case]
    with pytest.raises(ConfigError, match=words):
        simulate(**tables, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_with_more_outputs_than_classes_are_fine() -> None:
    assert simulate(model=three_outputs).parameters()["weight"].shape == (3, 3)


def test_a_checked_config_takes_no_keywords() -> None:
    with pytest.raises(ConfigError, match="checked Config"):
        fedopt.simulate(load(None), rounds=3)


def test_clients_without_examples_are_never_sampled() -> None:
    population = clients(5)
    population[2] = (np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    run = simulate(clients=population, clients_per_round=None)
    assert set(run.clients["client"]) == {0, 1, 3, 4}
    with pytest.raises(DataError):
        simulate(clients=[population[2]])


class Scaled(nn.Module):
    """A model with a parameter that is a bare number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.scale * self.linear(x)
        return out


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "scaffold"])
@pytest.mark.parametrize("model", [Scaled, three_outputs])
def test_any_module_trains_under_every_strategy(
    strategy: str, model: Callable[[], nn.Module]
) -> None:
    run = simulate(model=model, strategy=strategy, rounds=10, local={"epochs": 5})
    losses = run.history["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    shapes = {name: tuple(p.shape) for name, p in model().named_parameters()}
    assert {name: tuple(a.shape) for name, a in run.parameters().items()} == shapes


def test_regression_learns() -> None:
    rng = np.random.default_rng(1)
    weights = np.array([[1.0], [-2.0], [0.5]])
    population = []
    for _ in range(4):
        x = rng.normal(size=(20, 3))
        population.append((x, x @ weights))
    run = simulate(
        clients=population, rounds=30, dtype="float64", local={"loss": "mse", "epochs": 2}
    )
    (name,) = (n for n in run.parameters() if n.endswith("weight"))
    # Noiseless data: every client has the same optimum, to which all contract.
    np.testing.assert_allclose(run.parameters()[name].numpy(), weights.T, atol=1e-6)
