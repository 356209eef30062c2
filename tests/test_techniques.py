"""Techniques of local training and averaging in whole runs: what a run's columns and models say."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.run import execute, in_memory
from fedopt.schedules import make_schedule, values

SIZES = (9, 23, 14, 30, 5)

# Double precision: a handful of roundings of 1e-16 in numbers around one.
EXACT = 1e-12


def clients() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in SIZES]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def simulate(model: Any = network, **tables: Any) -> fedopt.Run:
    defaults: dict[str, Any] = {
        "rounds": 8,
        "clients_per_round": 3,
        "dtype": "float64",
        "local": {"epochs": 2, "batch_size": 5},
        "engine": {"name": "inline"},
        "keep_parameters": True,
    }
    population = clients()
    return fedopt.simulate(
        model=model, clients=population, test=population[0], **(defaults | tables)
    )


def flat(arrays: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in arrays.values()])


# The server's average -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("swa", "averaged"),
    [
        ({"start": 3, "every": 2}, [3, 5, 7]),
        ({"start": 0.75}, [7, 8]),
        ({"start": 0.0}, list(range(1, 9))),
        ({"start": 8}, [8]),
    ],
)
def test_swa_is_the_mean_of_the_models_of_its_rounds(
    swa: dict[str, Any], averaged: list[int]
) -> None:
    run = simulate(server={"swa": swa})
    assert run.averaged is not None
    expected = torch.stack([flat(run.parameters(round)) for round in averaged]).mean(0)
    torch.testing.assert_close(flat(run.averaged), expected, rtol=EXACT, atol=EXACT)
    facts = run.summary["swa"]
    assert (facts["first_round"], facts["models"]) == (averaged[0], len(averaged))
    measured = run.history.loc[run.history["swa_test_loss"].notna(), "round"]
    assert measured.tolist() == list(range(averaged[0], 9))


@pytest.mark.parametrize("start", [None, 4])
def test_the_moving_average_follows_its_formula(start: int | None) -> None:
    swa = {"decay": 0.7} if start is None else {"decay": 0.7, "start": start}
    run = simulate(server={"swa": swa})
    rounds = range(start or 1, 9)
    expected = flat(run.parameters(rounds[0]))
    for round in rounds[1:]:
        expected = 0.7 * expected + 0.3 * flat(run.parameters(round))
    assert run.averaged is not None
    torch.testing.assert_close(flat(run.averaged), expected, rtol=EXACT, atol=EXACT)


def test_the_average_is_never_fed_back_and_is_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with_average = simulate(server={"swa": {"start": 2}}, out=tmp_path / "run")
    without = simulate()
    assert with_average.summary["model_sha256"] == without.summary["model_sha256"]
    assert without.averaged is None
    saved = load_file(tmp_path / "run" / "model_swa.safetensors")
    assert with_average.averaged is not None
    assert all(torch.equal(saved[k], v) for k, v in with_average.averaged.items())
    assert not torch.equal(saved["0.weight"], with_average.parameters()["0.weight"])


def test_statistics_of_the_averaged_model_are_those_of_the_clients_data() -> None:
    """Of each client's mean and variance, by the law of total variance."""
    swa = {"start": 3, "batch_norm_clients": len(SIZES)}
    # Batches of one example have no statistics: none of the sizes leaves a remainder of one.
    run = simulate(normalised, server={"swa": swa}, local={"epochs": 1, "batch_size": 6})
    averaged = run.averaged
    assert averaged is not None
    weights = torch.stack([run.parameters(r)["0.weight"] for r in range(3, 9)]).mean(0)
    torch.testing.assert_close(averaged["0.weight"], weights, rtol=EXACT, atol=EXACT)
    hidden = [
        torch.from_numpy(x) @ averaged["0.weight"].T + averaged["0.bias"] for x, _ in clients()
    ]
    total = sum(SIZES)
    mean = torch.cat(hidden).mean(0)
    within = sum(len(h) / total * h.var(0) for h in hidden)
    between = sum(len(h) / total * (h.mean(0) - mean).square() for h in hidden)
    torch.testing.assert_close(averaged["1.running_mean"], mean, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(averaged["1.running_var"], within + between, rtol=1e-10, atol=EXACT)
    # A client's variance is the unbiased one, as in torch: here that adds at most n / (n - 1).
    pooled = torch.cat(hidden).var(0)
    assert (averaged["1.running_var"] / pooled - 1).abs().max() < 1 / (min(SIZES) - 1)
    other = run.parameters()["1.running_mean"]
    assert (averaged["1.running_mean"] - other).abs().max() > 1e-3, "the last model's are others"


def test_statistics_come_from_a_sample_of_the_clients() -> None:
    everyone = simulate(normalised, server={"swa": {"start": 7, "batch_norm_clients": 5}})
    two = simulate(normalised, server={"swa": {"start": 7, "batch_norm_clients": 2}})
    assert everyone.averaged is not None
    assert two.averaged is not None
    assert torch.equal(everyone.averaged["0.weight"], two.averaged["0.weight"])
    assert not torch.equal(everyone.averaged["1.running_mean"], two.averaged["1.running_mean"])


# Interruption -------------------------------------------------------------------------------------

MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
INTERRUPTED: dict[str, dict[str, Any]] = {
    "server average": {"server": {"swa": {"start": 3}}},
    "server moving average": {"server": {"swa": {"decay": 0.6}}},
    "average of a model with BatchNorm": {
        "model": "mymodel:batch_norm",
        "server": {"swa": {"start": 4, "batch_norm_clients": 3}},
    },
    "plateau": {
        "data": {"validation_fraction": 0.3},
        "evaluation": {"validation_clients": 5},
        "local": {
            "epochs": 1,
            "optimizer": {"lr": 1.5},
            "schedule": {"name": "plateau", "patience": 0, "factor": 0.5, "threshold": 0.1},
        },
    },
    "kept": {"local": {"epochs": 1, "optimizer": MOMENTUM, "optimizer_state": "keep"}},
    "kept adam": {"local": {"epochs": 1, "optimizer": "adam", "optimizer_state": "keep"}},
    "averaged": {"local": {"epochs": 1, "optimizer": "adam", "optimizer_state": "average"}},
    "kfac, averaged": {
        "model": {"name": "mlp", "hidden": [12]},
        "local": {
            "epochs": 1,
            "optimizer": {"name": "kfac", "lr": 0.05, "momentum": 0.9, "adapt_damping": True},
            "optimizer_state": "average",
        },
    },
    "ekfac, kept": {
        "model": {"name": "mlp", "hidden": [12]},
        "local": {
            "epochs": 1,
            "optimizer": {"name": "ekfac", "lr": 0.05, "fisher": "mc"},
            "optimizer_state": "keep",
        },
    },
    "fedpm": {"strategy": "fedpm", "local": {"epochs": 1, "optimizer": "kfac"}},
    "mofedsam": {"strategy": "mofedsam", "local": {"epochs": 1, "sam": {"rho": 0.05}}},
    "scaffold, kept": {
        "strategy": {"name": "scaffold", "option": "I"},
        "local": {"epochs": 1, "optimizer": MOMENTUM, "optimizer_state": "keep"},
    },
    "across, noise, skip": {
        "local": {
            "epochs": 1,
            "schedule": {"name": "one_cycle", "scope": "across"},
            "optimizer": MOMENTUM,
            "gradient": {"noise_eta": 1e-3, "skip_norm": 2.0},
        }
    },
}


COMMON = ("ekfac, kept", "scaffold, kept", "server average", "kept adam", "across, noise, skip")
"""Cases that are always tried."""


class Interruption(SilentProgress):
    """Ends a run after a round, as Ctrl-C does."""

    def __init__(self, round: int) -> None:
        self.round = round

    def update(self, row: Any) -> None:
        if row["round"] == self.round:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "case",
    [
        case if case in COMMON else pytest.param(case, marks=pytest.mark.exhaustive)
        for case in INTERRUPTED
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mymodel.py").write_text(
        "from torch import nn\n"
        "def batch_norm():\n"
        "    hidden = nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()\n"
        "    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(8, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    tables: dict[str, Any] = {
        "rounds": 8,
        "clients_per_round": 4,
        "partition": {"name": "iid", "clients": 8},
        "model": "logistic",
        "local": {"epochs": 1},
        "engine": {"name": "inline"},
        "checkpoint": {"every": 2},
        **INTERRUPTED[case],
    }
    experiment = Experiment.from_config(load(None, **tables))
    whole = execute(experiment, tmp_path / "whole", SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        execute(experiment, tmp_path / "broken", Interruption(5))
    resumed = execute(experiment, tmp_path / "broken", SilentProgress(), resume=True)
    for fact in ("model_sha256", "initial", "final", "totals", "swa"):
        mine, yours = (dict_without_times(run.summary.get(fact)) for run in (resumed, whole))
        assert mine == yours, fact
    columns = [column for column in whole.history if column != "wall_seconds"]
    assert resumed.history[columns].equals(whole.history[columns])
    if case == "plateau":
        assert whole.history["lr"].nunique() > 2, "the rate must have fallen on both sides"


@pytest.mark.parametrize("case", ["server average", "average of a model with BatchNorm"])
def test_a_run_interrupted_while_it_writes_its_results_has_its_average(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rounds are in the last checkpoint: nothing is left to train."""
    import fedopt.recorder

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    tables = {k: v for k, v in INTERRUPTED[case].items() if k != "model"}
    model = normalised if "model" in INTERRUPTED[case] else network
    more: dict[str, Any] = {"engine": {"name": "inline"}, "checkpoint": {"every": 2}}
    config = load(None, rounds=4, clients_per_round=3, **more, **tables)
    experiment = in_memory(config, model, clients=clients(), test=clients()[0])
    whole = execute(experiment, tmp_path / "whole", SilentProgress())
    with monkeypatch.context() as patched:
        patched.setattr(fedopt.recorder, "final_calibration", stop)
        with pytest.raises(KeyboardInterrupt):
            execute(experiment, tmp_path / "broken", SilentProgress())
    resumed = execute(experiment, tmp_path / "broken", SilentProgress(), resume=True)
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert resumed.summary["swa"] == whole.summary["swa"]
    files = [
        (tmp_path / name / "model_swa.safetensors").read_bytes() for name in ("whole", "broken")
    ]
    assert files[0] == files[1]


def dict_without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if "seconds" not in k}
    return value


# Schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("step", {"step_size": 3, "gamma": 0.5}),
        ("exponential", {"gamma": 0.8}),
        ("cosine", {"warmup": 2}),
        ("cyclical", {"step_size_up": 2}),
        ("one_cycle", {}),
        ("swa_cyclic", {"start": 0.5, "cycle": 2}),
    ],
)
def test_the_column_lr_is_the_schedule_by_rounds(name: str, options: dict[str, Any]) -> None:
    schedule = {"name": name, "scope": "round", **options}
    run = simulate(local={"steps": 3, "optimizer": {"lr": 0.3}, "schedule": schedule})
    expected = values(name, 8, lr=0.3, **options)
    np.testing.assert_allclose(run.history["lr"], expected, rtol=EXACT)


@pytest.mark.parametrize("name", ["cosine", "polynomial", "one_cycle", "swa_cyclic"])
def test_the_column_lr_is_the_schedule_across_the_run(name: str) -> None:
    schedule = {"name": name, "scope": "across"}
    run = simulate(local={"steps": 6, "optimizer": {"lr": 0.3}, "schedule": schedule})
    expected = values(name, 8 * 6, lr=0.3).reshape(8, 6)
    np.testing.assert_allclose(run.history["lr"], expected.mean(1), rtol=EXACT)
    # For plain SGD the sum over a client's steps is the same rates once more.
    sums = run.clients.groupby("round")["lr_sum"]
    np.testing.assert_allclose(sums.min(), expected.sum(1), rtol=EXACT)
    np.testing.assert_allclose(sums.max(), expected.sum(1), rtol=EXACT)


def test_the_column_lr_is_the_mean_over_a_cycle_within_the_round() -> None:
    local = {"steps": 6, "optimizer": {"lr": 0.3}, "schedule": "one_cycle"}
    run = simulate(local=local)
    np.testing.assert_allclose(run.history["lr"], values("one_cycle", 6, lr=0.3).mean(), rtol=EXACT)


def test_unequal_clients_go_through_the_same_stretch_of_a_schedule() -> None:
    """In scope across, S steps of a client are spread over the N that a round counts for."""
    nominal, rounds = 10, 8
    schedule = {"name": "cosine", "scope": "across"}
    local = {"epochs": 2, "batch_size": 5, "schedule": schedule, "nominal_steps": nominal}
    run = simulate(local=local, clients_per_round="all")
    assert run.clients["steps"].nunique() > 3
    form = make_schedule("cosine", 0.1)
    for row in run.clients.itertuples():
        times = (row.round - 1) * nominal + np.arange(row.steps) * nominal / row.steps
        expected = form.lr(times, rounds * nominal).sum()
        assert row.lr_sum == pytest.approx(expected, rel=EXACT), row
        assert times[-1] + nominal / row.steps == pytest.approx(row.round * nominal)


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy", "train_loss"])
@pytest.mark.parametrize("every", [1, 2])
def test_plateau_is_torchs_scheduler_fed_with_the_metric(metric: str, every: int) -> None:
    options = {"factor": 0.5, "patience": 0, "threshold": 0.02, "cooldown": 1, "min_lr": 0.2}
    run = fedopt.simulate(
        rounds=14,
        clients_per_round=4,
        data={"validation_fraction": 0.3},
        partition={"clients": 8},
        model="logistic",
        evaluation={"validation_clients": 8, "every": every},
        engine={"name": "inline"},
        local={
            "epochs": 1,
            "optimizer": {"lr": 1.5},  # too high: the loss stalls
            "schedule": {"name": "plateau", "metric": metric, **options},
        },
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.5)
    mode = "max" if metric.endswith("accuracy") else "min"
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, **options)
    expected = []
    for row in run.history.itertuples():
        expected.append(optimizer.param_groups[0]["lr"])
        seen = getattr(row, metric)
        if metric == "train_loss" or row.round % every == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the optimizer never steps
                scheduler.step(seen)
    np.testing.assert_allclose(run.history["lr"], expected, rtol=EXACT)
    assert run.history["lr"].iloc[-1] < 1.5


# Clients' columns ---------------------------------------------------------------------------------


def test_gradients_and_skipped_steps_are_counted() -> None:
    local = {
        "steps": 4,
        "sam": {"rho": 0.05},
        "gradient": {"penalty": 0.01, "skip_norm": 1.0},
    }
    history, rows = (run := simulate(local=local)).history, run.clients
    assert (history["client_steps"] == 12 * history["round"]).all()
    assert (history["client_gradients"] == 4 * history["client_steps"]).all()
    per_round = rows.groupby("round")["skipped_steps"].sum().tolist()
    assert history["skipped_steps"].tolist() == per_round
    assert 0 < sum(per_round) < 12 * 8
    applied = rows["steps"] - rows["skipped_steps"]
    np.testing.assert_allclose(rows["lr_sum"], 0.1 * applied, rtol=EXACT)


def test_momentum_of_zero_may_not_be_cycled_halfway_through() -> None:
    """By default nothing is cycled where there is no momentum, and the run ends well."""
    plain = simulate(local={"steps": 3, "schedule": "one_cycle"})
    asked = simulate(local={"steps": 3, "schedule": {"name": "one_cycle", "cycle_momentum": False}})
    assert plain.summary["model_sha256"] == asked.summary["model_sha256"]
