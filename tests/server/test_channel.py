"""The channel through `simulate`: clipping, noise and its accountant, compression, bytes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
import quadratics
import torch
from dp_accounting.rdp import RdpAccountant
from quadratics import LR, STEPS, simulate, weight
from torch import nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.client.algorithm import PARAMETERS, ClientUpdate, PlainLocal, Senders
from fedopt.client.channel import (
    BELOW_NORM,
    CLIP_NORM,
    Channel,
    ChannelLocal,
    Clip,
    Noise,
    SentPart,
    clipped,
    row_norms,
)
from fedopt.compression import QSGD, TopK
from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.experiment import Experiment
from fedopt.models.layout import ParameterLayout
from fedopt.run import execute
from fedopt.server.channel import ServerChannel
from fedopt.server.privacy import Privacy
from fedopt.server.rounds import RoundSums

UNIFORM = {"name": "fedavg", "weighting": "uniform"}
ENGINES = ["loop", "stacked"]


def change(a: float, b: float, x: float) -> float:
    """What a quadratic client's parameter moves by in a round from x."""
    return (1 - (1 - LR * a) ** STEPS) * (b - x)


ON_DIGITS: dict[str, Any] = {
    "rounds": 3,
    "clients_per_round": 6,
    "data": "digits",
    "partition": {"name": "dirichlet", "clients": 20, "alpha": 0.5},
    "model": {"name": "mlp", "hidden": [8]},
    "strategy": UNIFORM,
    "local": {"epochs": 1.0},
    "engine": {"name": "inline"},
    "evaluation": {"every": 100},
}


def on_digits(**tables: Any) -> fedopt.Run:
    """A short run on digits."""
    return fedopt.simulate(**{**ON_DIGITS, **tables})


# Clipping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", ENGINES)
def test_clipping_is_per_client(training: str) -> None:
    """One huge client moves the mean by the norm over the number of clients, and no further."""
    a, b, norm = (1.0, 10.0, 1.0), (0.3, -1e6, -0.2), 0.5
    run = simulate(
        UNIFORM,
        quadratics.clients(a, b),
        rounds=1,
        uplink={"clip": {"norm": norm}},
        engine={"training": training},
    )
    moved = [change(ai, bi, 0.0) for ai, bi in zip(a, b, strict=True)]
    expected = np.mean([math.copysign(min(abs(d), norm), d) for d in moved])
    assert weight(run) == pytest.approx(expected, abs=1e-9)
    assert sorted(abs(d) > norm for d in moved) == [False, False, True]
    assert run.history["clip_norm"].tolist() == [norm]
    # What is reported is what the client did, not what arrived of it.
    assert run.clients["update_norm"].max() == pytest.approx(1e6 * change(10.0, 1.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_clipped_row_is_longer(dtype: torch.dtype) -> None:
    rows = torch.randn(200, 37, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 10
    rows[3] = 0
    limit = 7.3
    out = clipped(rows, row_norms(rows), limit)
    assert (row_norms(out) <= limit).all()
    short = row_norms(rows) <= limit
    assert torch.equal(out[short], rows[short])
    assert row_norms(out)[~short] == pytest.approx(limit, rel=1e-6)


def test_an_adaptive_norm_goes_to_the_quantile() -> None:
    """C <- C exp(-lr (share at most C - gamma)), written out on clients that never move."""
    norms = [abs(change(1.0, b, 0.0)) for b in (0.1, 0.2, 0.4, 0.8, 1.6)]
    signs = (1, -1, 1, -1, 1)
    b = [s * v for s, v in zip(signs, (0.1, 0.2, 0.4, 0.8, 1.6), strict=True)]
    clip = {"norm": 1.0, "quantile": 0.5, "lr": 0.3}
    run = simulate(
        {**UNIFORM, "server_lr": 1e-12},
        quadratics.clients((1.0,) * 5, b),
        rounds=120,
        uplink={"clip": clip},
    )
    norm = 1.0
    for found in run.history["clip_norm"]:
        assert found == pytest.approx(norm, rel=1e-9)
        share = np.mean([value <= norm for value in norms])
        norm *= math.exp(-0.3 * (share - 0.5))
    # Two or three of five are at most C, in turns: C stays about the median.
    assert norms[2] * 0.9 < norm < norms[2] * 1.1


# Noise --------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_dp_accounting() -> None:
    z, rounds = 0.8, 7
    privacy = {"noise_multiplier": z, "delta": 1e-3}
    run = on_digits(rounds=rounds, uplink={"clip": {"norm": 1.0}, "privacy": privacy})
    event = dp.PoissonSampledDpEvent(6 / 20, dp.GaussianDpEvent(z))
    for round in range(1, rounds + 1):
        accountant = RdpAccountant()
        accountant.compose(event, round)
        found = run.history["epsilon"].iloc[round - 1]
        assert found == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-12)
    assert run.summary["privacy"]["epsilon"] == pytest.approx(found)
    assert run.summary["privacy"]["sampling"] == "poisson"


def test_epsilon_of_fixed_cohorts_is_that_of_replacing_a_client() -> None:
    accountant = RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    # Two updates of norm C differ by up to 2 C, so that noise z C is z / 2 of the sensitivity.
    accountant.compose(dp.SampledWithoutReplacementDpEvent(50, 5, dp.GaussianDpEvent(2.0)), 10)
    found = Privacy(4.0, 1e-4, False, 50, 5).epsilon(10)
    assert found == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-12)
    assert found > Privacy(4.0, 1e-4, True, 50, 5).epsilon(10) > 0
    assert Privacy(4.0, 1e-4, True, 50, 5).epsilon(0) == 0


@pytest.mark.parametrize("count_noise", [0.6, 3.0])
def test_noise_on_updates_and_counts_costs_what_noise_on_updates_would(count_noise: float) -> None:
    """Two Gaussian releases of sensitivities 1 and 1/2 have 1/z^2 = 1/z_u^2 + (1/2)^2/s^2."""
    noise = Privacy(1.0, 1e-5, True, 100, 10, count_noise).noise
    together = noise.update**-2 + (0.5 / noise.count) ** 2
    assert together == pytest.approx(1.0, rel=1e-12)
    assert noise.update > 1


def rows_of(clients: int, size: int) -> tuple[ChannelLocal, ClientUpdate, dict[str, Any]]:
    """A channel with noise, an update of zeros, and a broadcast."""
    part = SentPart(None, ((size,),))
    channel = Channel(part, Clip(2.0, 0.5), Noise(0.7, 3.0))
    algorithm = ChannelLocal(PlainLocal(), channel, frozenset(channel.sizes))
    update = ClientUpdate({"delta": torch.zeros(clients, size, dtype=torch.float64)})
    norm = torch.tensor([2.0], dtype=torch.float64)
    return algorithm, update, {CLIP_NORM: norm, PARAMETERS: torch.zeros(size)}


def test_the_clients_noise_adds_up_to_that_of_the_sum() -> None:
    clients, size = 40, 20_000
    algorithm, update, broadcast = rows_of(clients, size)
    senders = Senders(0, 1, list(range(clients)), clients)
    delta = algorithm.send(update, broadcast, {}, senders).terms["delta"]
    # The deviation of 20000 estimates is known to 0.5 %, that of each client's part alike.
    assert float(delta.sum(0).std()) == pytest.approx(0.7 * 2.0, rel=0.025)
    assert delta.std(1).tolist() == pytest.approx([0.7 * 2.0 / clients**0.5] * clients, rel=0.03)
    counts = torch.cat(
        [
            algorithm.send(update, broadcast, {}, Senders(s, 1, senders.clients, clients)).terms[
                BELOW_NORM
            ]
            for s in range(200)
        ]
    )
    assert float(counts.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(counts.std()) == pytest.approx(3.0 / clients**0.5, rel=0.05)


@pytest.mark.parametrize("arrived", [0, 3, 10])
def test_the_server_adds_what_missing_clients_owe(arrived: int) -> None:
    """The variance of the sum is (z C)^2, whoever failed; a cohort may even be empty."""
    size = 20_000
    part = SentPart(None, ((size,),))
    channel = Channel(part, Clip(2.0), Noise(0.7))
    layout = ParameterLayout.of(nn.Linear(size, 1, bias=False).double())
    server = ServerChannel(channel, layout, seed=0, divisor=12)
    sums = RoundSums(
        {"delta": torch.zeros(size, dtype=torch.float64)}, torch.zeros(0), float(arrived), arrived
    )
    cohort = 10 if arrived else 0
    found = server.received(1, sums, cohort)
    missing = 1.0 if not arrived else 1 - arrived / 10
    assert float(found.terms["delta"].std()) == pytest.approx(1.4 * missing**0.5, rel=0.025)
    assert found.weight == 12


def test_poisson_cohorts_have_the_rate_and_empty_ones_only_noise() -> None:
    privacy = {"noise_multiplier": 1.0, "delta": 0.01}
    run = on_digits(
        rounds=60,
        clients_per_round=1,
        uplink={"clip": {"norm": 1e-3}, "privacy": privacy},
        local={"steps": 1},
    )
    counts = run.history["clients"].to_numpy()
    assert (counts == 0).any()
    assert counts.mean() == pytest.approx(1.0, abs=4 / 60**0.5)
    assert run.history.loc[counts == 0, "train_loss"].isna().all()
    assert run.history["epsilon"].is_monotonic_increasing


def test_runs_with_noise_resume_to_the_same_bits(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "uplink": {
            "clip": {"norm": 1.0, "quantile": 0.6},
            "privacy": {"noise_multiplier": 0.5, "delta": 0.01},
        },
    }
    assert_resumes(tmp_path, tables)


def test_error_feedback_resumes_to_the_same_bits(tmp_path: Path) -> None:
    compression = {"name": "top_k", "share": 0.05}
    assert_resumes(
        tmp_path,
        {
            "strategy": "scaffold",
            "uplink": {"compression": compression},
            "downlink": {"compression": {"name": "quantise", "bits": 6}},
        },
    )


def assert_resumes(folder: Path, tables: dict[str, Any]) -> None:
    """A run that goes on from its checkpoint ends where one that never stopped does."""

    def run(name: str, rounds: int, resume: bool = False) -> fedopt.Run:
        settings = {**ON_DIGITS, **tables, "rounds": rounds, "checkpoint": {"every": 2}}
        settings["evaluation"] = {"every": 1}
        experiment = Experiment.from_config(load(None, **settings))
        return execute(experiment, folder / name, SilentProgress(), resume=resume)

    whole = run("whole", 6)
    run("broken", 4)
    resumed = run("broken", 6, resume=True)
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    columns = [column for column in whole.history if column != "wall_seconds"]
    assert resumed.history[columns].equals(whole.history[columns])


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param(
            {
                "uplink": {
                    "clip": {"norm": 0.3},
                    "privacy": {"noise_multiplier": 0.5, "delta": 0.01},
                }
            },
            marks=pytest.mark.exhaustive,
        ),
        {"uplink": {"compression": {"name": "power_sgd"}}, "strategy": "scaffold"},
        pytest.param({"attack": {"name": "alie", "fraction": 0.5}}, marks=pytest.mark.exhaustive),
        {"attack": {"name": "alie", "fraction": 0.5}, "strategy": "trimmed_mean"},
    ],
    ids=["noise", "feedback", "alie", "alie_collected"],
)
def test_workers_do_not_change_a_bit(tables: dict[str, Any]) -> None:
    tables = {**tables, "rounds": 2}
    one = on_digits(**tables, engine={"name": "inline", "block_size": 2})
    two = on_digits(**tables, engine={"name": "ray", "workers": 2, "block_size": 2})
    assert one.summary["model_sha256"] == two.summary["model_sha256"]


# Compression --------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_encodings() -> None:
    part = ((8, 64), (8,), (10, 8), (10,))
    size = sum(math.prod(shape) for shape in part)
    plain = on_digits()
    assert plain.clients["bytes_up"].unique().tolist() == [4 * size]
    levels = QSGD(7)
    row = torch.randn(size, generator=torch.Generator().manual_seed(0))
    encoded = len(levels.encode(row, torch.Generator(), part))
    run = on_digits(
        strategy="scaffold",  # whose clients send two vectors
        uplink={"compression": {"name": "qsgd", "levels": 7}},
        downlink={"compression": {"name": "quantise", "bits": 5}},
    )
    assert run.clients["bytes_up"].unique().tolist() == [2 * encoded]
    assert run.clients["bytes_down"].unique().tolist() == [2 * (8 + math.ceil(5 * size / 8))]
    totals = run.clients[["bytes_up", "bytes_down"]].sum()
    assert run.history[["bytes_up", "bytes_down"]].iloc[-1].tolist() == totals.tolist()


def test_personal_arrays_are_neither_sent_nor_counted() -> None:
    run = on_digits(
        strategy="fedper",
        data={"name": "digits", "validation_fraction": 0.1},
        evaluation={"every": 100, "validation_clients": 3},
        uplink={"compression": {"name": "quantise", "bits": 8}},
        downlink={"compression": {"name": "quantise", "bits": 8}},
    )
    body = 8 * 64 + 8
    assert run.clients["bytes_up"].unique().tolist() == [8 + body]
    assert run.clients["bytes_down"].unique().tolist() == [8 + body]


def two_dimensions(compression: dict[str, Any]) -> list[float]:
    """The model after training towards b_1 = (10, 1) and b_2 = (-10, 1), from 0."""

    def model() -> nn.Module:
        line = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(line.weight)
        return line

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return 0.5 * (output - target).square().sum()

    one = torch.ones(1, 1, dtype=torch.float64)
    targets = (torch.tensor([[b, 1.0]], dtype=torch.float64) for b in (10.0, -10.0))
    run = simulate(
        UNIFORM,
        [(one, target) for target in targets],
        model=model,
        loss=loss,
        rounds=600,
        local={
            "steps": 1,
            "optimizer": {"lr": 0.05},
            "schedule": {"name": "cosine", "scope": "across"},
        },
        uplink={"compression": compression},
    )
    return run.parameters()["weight"].flatten().tolist()


def test_error_feedback_finds_the_optimum_and_compression_alone_does_not() -> None:
    """Of each gradient the first coordinate is the largest, and they cancel: the second rests.

    With error feedback what is left of it is at last the larger; how near the optimum that comes
    is up to the learning rate, which residuals are proportional to.
    """
    top = {"name": "top_k", "share": 0.5}
    assert two_dimensions({**top, "error_feedback": False}) == [0.0, 0.0]
    assert two_dimensions({**top, "error_feedback": True}) == pytest.approx([0.0, 1.0], abs=0.03)


def test_everything_kept_is_no_compression() -> None:
    plain = on_digits().summary["model_sha256"]
    for name in ("top_k", "random_k"):
        run = on_digits(uplink={"compression": {"name": name, "share": 1.0}})
        assert run.summary["model_sha256"] == plain


def test_a_quantised_download_does_not_drift() -> None:
    """Clients begin at what they decode, and the server adds their changes to the exact model."""
    fine = on_digits(downlink={"compression": {"name": "quantise", "bits": 16}})
    plain = on_digits()
    for name, array in plain.parameters().items():
        torch.testing.assert_close(fine.parameters()[name], array, atol=2e-3, rtol=0)


# What is refused ----------------------------------------------------------------------------------

NOISE = {"clip": {"norm": 1.0}, "privacy": {"noise_multiplier": 1.0}}


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"uplink": {"privacy": {"noise_multiplier": 1.0}}}, "set uplink.clip.norm"),
        ({"uplink": {"privacy": {"noise_multiplier": -1.0}}}, ">= 0"),
        ({"uplink": {"clip": {"norm": 0.0}}}, "uplink.clip.norm: got 0"),
        ({"uplink": {"clip": {"quantile": 0.5}}}, "needs the norm of the first round"),
        ({"uplink": {"clip": {"norm": 1.0, "quantile": 1.5}}}, r"in \[0, 1\]"),
        ({"uplink": NOISE, "strategy": "fedavg"}, 'strategy.weighting = "uniform"'),
        ({"uplink": NOISE, "strategy": "scaffold"}, "also send control_delta"),
        ({"uplink": NOISE, "strategy": "median"}, "sees each update, not their sum"),
        (
            {"uplink": NOISE, "strategy": {"name": "fednova", "weighting": "uniform"}},
            "what clients report of their steps",
        ),
        (
            {
                "uplink": NOISE,
                "strategy": {"name": "fedprox", "weighting": "uniform", "adaptive": True},
            },
            "what clients report",
        ),
        ({"uplink": {**NOISE, "compression": {"name": "top_k"}}}, "leave uplink.compression out"),
        (
            {
                "uplink": {
                    "clip": {"norm": 1.0, "quantile": 0.5},
                    "privacy": {"noise_multiplier": 1.0, "count_noise": 0.5},
                }
            },
            "must be more than 0.5",
        ),
        ({"uplink": {"compression": {"name": "quantise", "bits": 0}}}, "1..16"),
        ({"uplink": {"compression": {"name": "qsgd", "levels": 0}}}, "1..65535"),
        ({"uplink": {"compression": {"name": "top_k", "share": 0.0}}}, r"\(0, 1\]"),
        ({"uplink": {"compression": {"name": "power_sgd", "rank": 0}}}, ">= 1"),
        ({"uplink": {"compression": {"name": "topk"}}}, 'Did you mean "top_k"'),
        ({"downlink": {"compression": {"name": "top_k"}}}, "leaves little of a model"),
        ({"strategy": "centralised", "uplink": {"clip": {"norm": 1.0}}}, "send nothing"),
        ({"uplink": {"clap": {}}}, 'Did you mean "clip"'),
    ],
)
def test_bad_channels_are_refused_by_name(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        on_digits(**tables)


def test_batch_norms_statistics_are_refused_under_noise() -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))

    with pytest.raises(ConfigError, match="also send buffers"):
        on_digits(model=model, uplink=NOISE)


def test_a_codec_of_the_users_own() -> None:
    mine = on_digits(uplink={"compression": {"name": "fedopt.compression:TopK", "share": 0.1}})
    registered = {"name": "top_k", "share": 0.1, "error_feedback": False}
    ours = on_digits(uplink={"compression": registered})
    assert mine.summary["model_sha256"] == ours.summary["model_sha256"]
    assert TopK(0.1).share == 0.1


# What clients keep follows what has arrived -------------------------------------------------------


@pytest.mark.parametrize(
    "uplink",
    [
        {"compression": {"name": "qsgd", "levels": 3}},
        {"compression": {"name": "top_k", "share": 0.1, "error_feedback": False}},
    ],
    ids=["qsgd", "top_k"],
)
def test_the_controls_mean_stays_the_servers_under_compression(uplink: dict[str, Any]) -> None:
    run = on_digits(strategy="scaffold", uplink=uplink, rounds=12)
    state = run.state()
    rows = state["client_control_variate"].values()
    size = 0.0
    for name, c in state["control_variate"].items():
        total = sum((row[name].double() for row in rows), torch.zeros_like(c))
        size = max(size, float(c.abs().max()))
        # Each round the clients' sums are rounded to float32 once.
        torch.testing.assert_close(c, total / 20, atol=1e-6, rtol=0)
    assert size > 1e-3


@pytest.mark.parametrize(
    "uplink",
    [{"clip": {"norm": 0.2}}, {"compression": {"name": "qsgd", "levels": 3}}],
    ids=["clip", "qsgd"],
)
def test_the_regularisers_mean_stays_the_servers(uplink: dict[str, Any]) -> None:
    run = on_digits(strategy="feddyn", uplink=uplink, rounds=12)
    state = run.state()
    for name, h in state["h"].items():
        rows = (row[name].double() for row in state["client_linear"].values())
        torch.testing.assert_close(h, sum(rows, torch.zeros_like(h)) / 20, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": {"name": "krum", "hostile": 1}},
        {"strategy": "rfa"},
        {"uplink": {"clip": {"norm": 1.0}}},
    ],
    ids=["krum", "rfa", "clip"],
)
def test_hostile_numbers_that_are_not_finite_are_dropped(tables: dict[str, Any]) -> None:
    attack = {"name": "sign_flip", "scale": 1e39, "fraction": 0.1}
    run = on_digits(attack=attack, rounds=6, **tables)
    bad = run.clients[run.clients["hostile"] == 1]
    assert len(bad)
    assert set(bad["status"]) == {"dropped"}
    assert run.history["test_loss"].dropna().map(math.isfinite).all()


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            {
                "uplink": {"compression": {"name": "qsgd"}},
                "local": {"optimizer": {"name": "adam"}, "optimizer_state": "average"},
            },
            "moments are states, not changes",
        ),
        ({"uplink": NOISE, "system": {"stragglers": 0.3}}, "one client changes what others do"),
        ({"uplink": NOISE, "policy": {"name": "deadline"}}, "drawn from all clients"),
        ({"uplink": {"clip": {"norm": 1.0}}, "strategy": "qfedavg"}, "divides what clients send"),
        ({"uplink": {"privacy": {"delta": 1e-6}}}, "without noise there is no privacy"),
        ({"uplink": {"compression": {"name": "collections:OrderedDict"}}}, "has no nbytes"),
        ({"attack": {"name": "collections:OrderedDict", "fraction": 0.1}}, "not a subclass"),
    ],
)
def test_what_does_not_go_together_is_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        on_digits(**tables)


def test_counters_are_refused_under_noise_and_frozen_weights_are_not() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.register_buffer("seen", torch.zeros(10, dtype=torch.int64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(1))

    def frozen() -> nn.Module:
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        model[1].requires_grad_(False)
        return model

    with pytest.raises(ConfigError, match=r"buffers \(seen\)"):
        on_digits(model=Counting, uplink=NOISE)
    assert on_digits(model=frozen, uplink=NOISE, rounds=1).history["epsilon"].notna().all()
