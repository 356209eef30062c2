"""Pacing, order and weights as their formulas say; the same in every engine, with any workers."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.client.curriculum import restrict
from fedopt.client.plan import LocalWork, plan_clients
from fedopt.client.rates import constant_rates
from fedopt.config import load
from fedopt.curriculum import (
    PACINGS,
    SELF_PACED,
    CurriculumSampler,
    difficulty_order,
    pacing_share,
    self_paced_regulariser,
    self_paced_weights,
)
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.run import execute
from fedopt.server.client_curriculum import ClientCurriculum

SIZES = (9, 23, 14, 30, 5, 1)


# Pacing -------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(sorted(PACINGS)),
    start=st.floats(0.01, 1),
    full_at=st.floats(0.01, 1),
    times=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)
def test_pacing_grows_from_start_to_all(
    name: str, start: float, full_at: float, times: list[float]
) -> None:
    shares = [pacing_share(name, t, start, full_at) for t in sorted(times)]
    assert shares == sorted(shares)
    assert all(start <= share <= 1 for share in shares)
    assert pacing_share(name, 0.0, start, full_at) == pytest.approx(start)
    for t, share in zip(sorted(times), shares, strict=True):
        if t >= full_at:
            assert share == 1


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("linear", lambda x: x),
        ("quadratic", lambda x: x**2),
        ("root", lambda x: math.sqrt(x)),
        ("exponential", lambda x: (math.exp(10 * x) - 1) / (math.exp(10) - 1)),
        ("logarithmic", lambda x: 1 + 0.1 * math.log(x + math.exp(-10))),
        ("step", lambda x: 0.0),
    ],
)
def test_pacing_is_the_papers_form(name: str, formula: Any) -> None:
    for t in (0.0, 0.1, 0.25, 0.39):
        assert pacing_share(name, t, 0.3, 0.4) == pytest.approx(0.3 + 0.7 * formula(t / 0.4))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("liner", 0.5), 'pacing: "liner" is not known. Did you mean "linear"'),
        (("linear", 0.5, 0.0), "start must be in"),
        (("linear", 0.5, 0.2, 1.5), "never reaches all data"),
        (("linear", 1.5), "progress must be in"),
    ],
)
def test_pacing_out_of_range_is_refused(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pacing_share(*arguments)


def test_the_sampler_goes_from_the_easiest_to_all() -> None:
    scores = [3.0, 1.0, 2.0, 0.0, 4.0]
    sampler = CurriculumSampler(scores, epochs=5, start=0.4, full_at=0.8)
    seen = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert len(drawn) == len(sampler) == len(set(drawn))
        seen.append(set(drawn))
    assert seen[0] == {3, 1}
    assert seen[-1] == set(range(5))
    assert all(a <= b for a, b in itertools.pairwise(seen))
    hard = CurriculumSampler(scores, epochs=5, start=0.4, order="anti")
    assert set(hard) == {4, 0}
    with pytest.raises(ValueError, match="never reaches all data"):
        CurriculumSampler(scores, epochs=2, full_at=0.8)
    with pytest.raises(ValueError, match="scores must be finite"):
        difficulty_order([0.0, math.nan])


# Weights ------------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(SELF_PACED),
    loss=st.floats(1e-3, 6),
    threshold=st.floats(0.05, 5),
    ratio=st.floats(0.05, 0.95),
)
def test_weights_minimise_their_objective(
    name: str, loss: float, threshold: float, ratio: float
) -> None:
    grid = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    objective = grid * loss + self_paced_regulariser(grid, threshold, name, ratio)
    found = self_paced_weights(torch.tensor([loss], dtype=torch.float64), threshold, name, ratio)
    own = found * loss + self_paced_regulariser(found, threshold, name, ratio)
    assert own <= objective.min() + 1e-12
    if abs(loss - threshold) > 1e-3:  # where the minimiser is unique
        # The objective is flat at its minimum: half a step of the grid, and some slack.
        assert abs(float(found) - float(grid[objective.argmin()])) <= 1e-4


def test_infinite_thresholds_take_everything_and_bad_ones_are_refused() -> None:
    losses = torch.tensor([0.0, 1.0, 1e9])
    for name in SELF_PACED:
        assert torch.equal(self_paced_weights(losses, math.inf, name), torch.ones(3))
    with pytest.raises(ValueError, match=r"threshold must be > 0, got 0\.0"):
        self_paced_weights(losses, 0.0)
    with pytest.raises(ValueError, match='got "soft"'):
        self_paced_weights(losses, 1.0, "soft")
    with pytest.raises(ValueError, match="ratio must be in"):
        self_paced_weights(losses, 1.0, "mixture", ratio=1.0)


# Plans --------------------------------------------------------------------------------------------


@given(
    examples=st.integers(1, 20),
    batch=st.integers(1, 8),
    epochs=st.integers(1, 3),
    share=st.floats(0.05, 1),
)
def test_restricted_plans_take_only_what_is_available(
    examples: int, batch: int, epochs: int, share: float
) -> None:
    (plan,) = plan_clients(
        LocalWork(epochs, None, batch),
        0,
        1,
        [3],
        [examples],
        constant_rates(0.1),
        [LocalWork(epochs, None, batch).planned_steps(examples)],
    )
    count = max(1, math.ceil(share * examples))
    order = np.random.default_rng(0).permutation(examples)
    counts = np.full(plan.steps, count)
    found = restrict(plan, order, counts, np.random.default_rng(1))
    assert found.steps == plan.steps
    if count == examples:
        assert found is plan
        return
    assert found.order is not None
    assert set(found.order.tolist()) <= set(order[:count].tolist())
    sizes = np.diff(found.offsets)
    assert (sizes >= 1).all()
    assert (sizes <= min(batch, examples)).all()
    # Whole passes take each available example once.
    if plan.order is not None:
        first_pass = found.order[:count]
        taken = np.bincount(first_pass, minlength=examples)
        assert len(first_pass) < count or taken.max() == 1


def test_random_order_takes_each_example_as_often_in_expectation() -> None:
    """The control: over all orders of the data, each example is in the same share of them."""
    counts = np.zeros(4)
    for order in itertools.permutations(range(4)):
        counts[list(order[:2])] += 1
    assert (counts == counts[0]).all()
    drawn = np.zeros(5)
    for seed in range(4000):
        drawn[difficulty_order(np.zeros(5), "random", np.random.default_rng(seed))[:2]] += 1
    # 4,000 draws of probability 0.4: a standard error of 0.008.
    assert np.abs(drawn / 4000 - 0.4).max() < 0.04


# In runs ------------------------------------------------------------------------------------------


def clients() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in SIZES]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def simulate(model: Any = network, **tables: Any) -> fedopt.Run:
    local = {"epochs": 2, "batch_size": 5, **tables.pop("local", {})}
    defaults: dict[str, Any] = {
        "rounds": 4,
        "clients_per_round": 5,
        "dtype": "float64",
        "local": local,
        "engine": {"name": "inline"},
    }
    data = clients()
    return fedopt.simulate(model=model, clients=data, test=data[1], **(defaults | tables))


def vector(run: fedopt.Run) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in run.parameters().values()])


MOMENTUM = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
KFAC = {"name": "kfac", "lr": 0.05, "damping": 0.1, "fisher": "mc", "adapt_damping": True}
CASES: dict[str, dict[str, Any]] = {
    "curriculum": {"curriculum": {"name": "curriculum", "full_at": 0.5}},
    "anti, margin, sam": {
        "curriculum": {"name": "anti", "full_at": 0.5, "score": "margin"},
        "sam": {"rho": 0.1},
    },
    "local reference": {
        "curriculum": {"name": "curriculum", "full_at": 0.5, "reference": "local"},
        "optimizer": MOMENTUM,
    },
    "random, within": {
        "curriculum": {"name": "random", "full_at": 0.5, "scope": "within", "pacing": "root"},
    },
    "hard": {"self_paced": {"name": "hard", "threshold": 1.0}, "optimizer": MOMENTUM},
    "linear, sam": {
        "self_paced": {"name": "linear", "quantile": 0.3},
        "sam": {"rho": 0.1},
        "gradient": {"clip_norm": 0.5, "noise_eta": 1e-4},
    },
    "log, penalty": {
        "self_paced": {"name": "log", "quantile": 0.5, "scope": "shared"},
        "gradient": {"penalty": 0.1},
    },
    "mixture, kfac": {"self_paced": {"name": "mixture", "quantile": 0.5}, "optimizer": KFAC},
    "empty": {"self_paced": {"name": "hard", "threshold": 0.9, "growth": 1.0}},
    "both, ekfac": {
        "self_paced": {"name": "linear", "quantile": 0.5},
        "curriculum": {"name": "curriculum", "full_at": 0.5},
        "optimizer": {"name": "ekfac", "lr": 0.05, "damping": 0.3, "fisher": "type-2"},
        "swa": {"last_steps": 2},
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_engines_agree(name: str) -> None:
    one, other = (
        simulate(local=CASES[name], engine={"name": "inline", "training": training})
        for training in ("loop", "stacked")
    )
    torch.testing.assert_close(vector(one), vector(other), rtol=1e-8, atol=1e-8)
    columns = ["skipped_steps", "available_share", "selected_share"]
    for run in (one, other):
        assert run.summary["engine"]["training"] in ("loop", "stacked")
    np.testing.assert_allclose(one.history[columns], other.history[columns], rtol=1e-12)
    if "self_paced" in CASES[name]:
        assert (one.history["selected_share"] < 1).any()
    if "curriculum" in CASES[name]:
        assert (one.history["available_share"] < 1).any()
        if CASES[name]["curriculum"].get("scope") != "within":
            assert one.history["available_share"].iloc[-1] == 1
    if name == "empty":
        assert one.history["skipped_steps"].sum() > 0


def huber(output: Tensor, target: Tensor) -> Tensor:
    """A loss of one's own that is a mean over examples."""
    wanted = nn.functional.one_hot(target, 3).to(output.dtype)
    return nn.functional.huber_loss(output, wanted)


def test_a_loss_of_ones_own_is_told_for_each_example() -> None:
    one, other = (
        simulate(
            loss=huber,
            local={"self_paced": {"name": "linear", "quantile": 0.5}},
            engine={"name": "inline", "training": training},
        )
        for training in ("loop", "stacked")
    )
    torch.testing.assert_close(vector(one), vector(other), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedprox"])
def test_taking_everything_is_plain_training(strategy: str) -> None:
    plain = simulate(strategy=strategy)
    full = {"name": "curriculum", "start": 1.0}
    assert torch.equal(
        vector(simulate(strategy=strategy, local={"curriculum": full})), vector(plain)
    )
    for name in SELF_PACED:
        pace = {"name": name, "quantile": 1.0}
        paced = simulate(strategy=strategy, local={"self_paced": pace})
        # sum v l / sum v with v = 1: the mean, added up in another order.
        torch.testing.assert_close(vector(paced), vector(plain), rtol=1e-12, atol=1e-12)
        assert (paced.history["selected_share"] == 1).all()


def batch_normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


def test_a_step_without_examples_leaves_everything_as_it_was() -> None:
    pace = {"name": "hard", "threshold": 1e-9, "growth": 1.0}
    data = [part for part in clients() if len(part[1]) % 5 != 1]
    run = fedopt.simulate(
        model=batch_normalised,
        clients=data,
        test=data[0],
        rounds=2,
        clients_per_round="all",
        engine={"name": "inline"},
        local={
            "epochs": 2,
            "batch_size": 5,
            "optimizer": MOMENTUM,
            "optimizer_state": "keep",
            "self_paced": pace,
        },
        keep_parameters=True,
    )
    first, last = run.parameters(1), run.parameters(2)
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert (
        run.history["skipped_steps"].tolist()
        == run.clients.groupby("round")["steps"].sum().tolist()
    )
    assert (run.history["selected_share"] == 0).all()


@pytest.mark.parametrize(
    "local",
    [
        pytest.param(
            {"self_paced": {"name": "linear", "quantile": 0.4, "scope": "shared"}},
            marks=pytest.mark.exhaustive,
        ),
        {"curriculum": {"name": "curriculum", "full_at": 0.5}},
    ],
    ids=["shared threshold", "curriculum"],
)
def test_neither_workers_nor_blocks_change_a_bit(local: dict[str, Any]) -> None:
    tables: dict[str, Any] = {
        "rounds": 3,
        "clients_per_round": 6,
        "model": {"name": "mlp", "hidden": [8]},
        "local": {"epochs": 1, **local},
        "server": {"curriculum": {"name": "curriculum", "full_at": 0.5}},
    }
    alone, shared = (
        fedopt.simulate(tables, engine={**engine, "block_size": 2})
        for engine in ({"name": "inline"}, {"name": "ray", "workers": 2})
    )
    assert torch.equal(vector(alone), vector(shared))


class Interruption(SilentProgress):
    """Ends a run after a round, as Ctrl-C does."""

    def update(self, row: Any) -> None:
        if row["round"] == 3:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "rounds": 6,
        "clients_per_round": 4,
        "partition": {"name": "iid", "clients": 8},
        "model": "logistic",
        "local": {
            "epochs": 1,
            "self_paced": {"name": "hard", "quantile": 0.5, "scope": "shared"},
            "curriculum": {"name": "random", "full_at": 0.8},
        },
        "server": {"curriculum": {"name": "anti", "full_at": 0.8}},
        "engine": {"name": "inline"},
        "checkpoint": {"every": 1},
    }
    experiment = Experiment.from_config(load(None, **tables))
    whole = execute(experiment, tmp_path / "whole", SilentProgress())
    with pytest.raises(KeyboardInterrupt):
        execute(experiment, tmp_path / "broken", Interruption())
    resumed = execute(experiment, tmp_path / "broken", SilentProgress(), resume=True)
    assert torch.equal(vector(resumed), vector(whole))


def test_the_shared_threshold_costs_one_number() -> None:
    own = simulate(local={"self_paced": {"name": "hard", "quantile": 0.5}})
    pace = {"name": "hard", "quantile": 0.5, "scope": "shared"}
    shared = simulate(local={"self_paced": pace})
    for way in ("bytes_up", "bytes_down"):
        more = shared.history[way] - own.history[way]
        assert more.tolist() == [8 * 5 * round for round in (1, 2, 3, 4)]


def test_examples_become_available_easiest_first(tmp_path: Path) -> None:
    """With scores of a file that say which examples are which."""
    scores = np.concatenate([np.arange(n, dtype=float) for n in SIZES])
    np.save(tmp_path / "scores.npy", scores)
    table = {"full_at": 0.75, "start": 0.2, "score": str(tmp_path / "scores.npy")}
    easy, hard = (
        simulate(local={"curriculum": {"name": n, **table}}) for n in ("curriculum", "anti")
    )
    assert not torch.allclose(vector(easy), vector(hard))
    expected = [0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0]
    for round, share in enumerate(expected, start=1):
        rows = easy.clients[easy.clients["round"] == round]
        wanted = [max(1, math.ceil(share * n - 1e-9)) / n for n in rows["examples"]]
        assert rows["available_share"].tolist() == pytest.approx(wanted)


def test_a_teacher_of_the_same_values_scores_as_the_global_model(tmp_path: Path) -> None:
    """In the first round the server's model is the initial one, which a file may hold too."""
    tables: dict[str, Any] = {
        "rounds": 2,
        "model": {"name": "mlp", "hidden": [8]},
        "partition": {"name": "iid", "clients": 8},
        "clients_per_round": 4,
        "engine": {"name": "inline"},
    }
    out = tmp_path / "teacher"
    fedopt.simulate(tables, out=out)
    curriculum = {"name": "curriculum", "full_at": 0.5}
    teacher = {"reference": "teacher", "teacher": str(out / "model.safetensors")}
    run = fedopt.simulate(tables, local={"epochs": 1, "curriculum": curriculum | teacher})
    plain = fedopt.simulate(tables, local={"epochs": 1, "curriculum": curriculum})
    assert not torch.equal(vector(run), vector(plain))
    with pytest.raises(ConfigError, match=r"local\.curriculum\.teacher: .* is of another model"):
        fedopt.simulate(
            {**tables, "model": {"name": "mlp", "hidden": [9]}},
            local={"curriculum": curriculum | teacher},
        )


# Clients ------------------------------------------------------------------------------------------


def test_clients_become_available_easiest_first() -> None:
    difficulties = np.array([3.0, 1.0, np.nan, 2.0, 0.5])
    easy = ClientCurriculum("curriculum", start=0.4, full_at=0.8, rounds=10)
    assert easy.pool(1, difficulties, 1, 0).tolist() == [2, 4]
    assert easy.pool(1, difficulties, 3, 0).tolist() == [1, 2, 4]
    assert easy.pool(9, difficulties, 1, 0).tolist() == [0, 1, 2, 3, 4]
    hard = ClientCurriculum("anti", start=0.4, full_at=0.8, rounds=10)
    assert hard.pool(1, difficulties, 1, 0).tolist() == [0, 2]
    control = ClientCurriculum("random", start=0.4, full_at=0.8, rounds=10)
    pools = [set(control.pool(t, difficulties, 1, 0).tolist()) for t in range(1, 10)]
    assert all(a <= b for a, b in itertools.pairwise(pools))


def test_a_run_samples_from_the_clients_that_are_available() -> None:
    table = {"name": "random", "start": 0.34, "full_at": 0.75}
    run = simulate(clients_per_round=2, server={"curriculum": table})
    first = set(run.clients[run.clients["round"] == 1]["client"])
    control = ClientCurriculum("random", start=0.34, full_at=0.75, rounds=4)
    assert first <= set(control.pool(1, np.full(len(SIZES), np.nan), 2, 0).tolist())


def test_the_servers_model_measures_all_clients_when_it_is_due() -> None:
    """Round 1 trains the client with the lowest loss of the initial model, whatever the nodes."""
    torch.manual_seed(3)
    start = network().double()
    losses = []
    for x, y in clients():
        with torch.no_grad():
            output = start(torch.from_numpy(x))
            losses.append(float(nn.functional.cross_entropy(output, torch.from_numpy(y))))
    table = {"name": "curriculum", "start": 0.2, "full_at": 0.75, "measure_every": 2}
    runs = [
        simulate(
            model=start,
            clients_per_round=1,
            server={"curriculum": table},
            engine={"name": name, "workers": 2} if name == "ray" else {"name": name},
        )
        for name in ("inline", "ray")
    ]
    first = runs[0].clients[runs[0].clients["round"] == 1]
    # Six clients, of which the first pacing leaves the two easiest.
    assert set(first["client"]) <= set(np.argsort(losses)[:2])
    assert torch.equal(vector(runs[0]), vector(runs[1]))
    model = sum(p.numel() for p in start.parameters()) * 8
    down, up = runs[0].history["bytes_down"].tolist(), runs[0].history["bytes_up"].tolist()
    assert np.diff([0, *down])[-4:].tolist() == [7 * model, model, 7 * model, model]
    assert np.diff([0, *up])[-4:].tolist() == [model + 48, model, model + 48, model]


def test_a_curriculum_over_clients_that_all_train_is_refused() -> None:
    says = r'server\.curriculum\.name: got "anti".* all 6 clients train in every round'
    with pytest.raises(ConfigError, match=says):
        simulate(clients_per_round="all", server={"curriculum": {"name": "anti", "full_at": 0.5}})


# Label noise --------------------------------------------------------------------------------------


def test_self_paced_selection_prefers_clean_examples() -> None:
    """40 % of the labels are wrong; what is below the threshold is cleaner than the data."""
    from fedopt.data.label_noise import flip_labels

    rng = np.random.default_rng(0)
    centres = 3 * rng.normal(size=(4, 8))
    data, wrong = [], []
    for client in range(6):
        labels = rng.integers(0, 4, 60)
        noisy = flip_labels(labels, 4, 0.4, 0, client)
        data.append((centres[labels] + rng.normal(size=(60, 8)), noisy))
        wrong.append(noisy != labels)
    model = nn.Linear(8, 4)
    run = fedopt.simulate(
        model=model,
        clients=data,
        rounds=8,
        clients_per_round="all",
        engine={"name": "inline"},
        local={
            "epochs": 2,
            "batch_size": 10,
            "self_paced": {"name": "hard", "quantile": 0.5, "quantile_step": 0.0},
        },
    )
    weights = run.parameters()
    kept = total = 0
    for (x, y), flags in zip(data, wrong, strict=True):
        logits = torch.from_numpy(x).float() @ weights["weight"].T + weights["bias"]
        losses = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="none")
        chosen = self_paced_weights(losses, losses.quantile(0.5).item()).bool().numpy()
        kept += int((chosen & ~flags).sum())
        total += int(chosen.sum())
    assert kept / total > 0.9  # 0.6 of all labels are right


# Bad input ----------------------------------------------------------------------------------------


def median_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="none").median() * len(target)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"curriculum": "curiculum"}, r'local\.curriculum\.name: .*"curriculum"'),
        ({"curriculum": {"name": "anti", "pacing": "cubic"}}, r"local\.curriculum\.pacing"),
        ({"curriculum": {"name": "anti", "full_at": 1.2}}, r"local\.curriculum\.full_at: .*1\.2"),
        (
            {"curriculum": {"name": "anti", "full_at": 0.9}},
            r'local\.curriculum\.full_at: got 0\.9: the pacing "linear" never reaches all data',
        ),
        (
            {"curriculum": {"name": "anti", "scope": "within"}},
            r"local\.curriculum\.full_at: .*never reaches all data",
        ),
        ({"curriculum": {"name": "anti", "start": 0.0}}, r"local\.curriculum\.start"),
        ({"curriculum": {"score": "margin"}}, r"local\.curriculum\.name: missing, so that score"),
        (
            {"curriculum": {"name": "anti", "full_at": 0.5, "score": "entropy"}},
            r'local\.curriculum\.score: got "entropy"; use "loss", "margin"',
        ),
        (
            {"curriculum": {"name": "anti", "full_at": 0.5, "score": "missing.npy"}},
            r'local\.curriculum\.score: "missing\.npy" cannot be read',
        ),
        (
            {"curriculum": {"name": "anti", "full_at": 0.5, "reference": "teacher"}},
            r"local\.curriculum\.teacher: got nothing",
        ),
        (
            {
                "curriculum": {
                    "name": "anti",
                    "full_at": 0.5,
                    "reference": "teacher",
                    "teacher": "none.safetensors",
                }
            },
            r'local\.curriculum\.teacher: "none\.safetensors" is not a file',
        ),
        ({"self_paced": "soft"}, r"local\.self_paced\.name"),
        ({"self_paced": "hard"}, r"local\.self_paced\.threshold: give either .* got neither"),
        ({"self_paced": {"name": "hard", "threshold": 0.0}}, r"local\.self_paced\.threshold"),
        ({"self_paced": {"threshold": 1.0}}, r"local\.self_paced\.threshold: needs name"),
        (
            {"self_paced": {"name": "hard", "threshold": 1.0, "scope": "shared"}},
            r"local\.self_paced\.scope: shared needs quantile",
        ),
        ({"self_paced": {"name": "hard", "quantile": 1.5}}, r"local\.self_paced\.quantile"),
        ({"self_paced": {"name": "mixture", "quantile": 0.5, "ratio": 1.0}}, "ratio"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(local=changes)


def test_losses_that_are_no_means_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"local\.self_paced\.name: .*mean over its examples"):
        simulate(loss=median_loss, local={"self_paced": {"name": "hard", "threshold": 1.0}})
