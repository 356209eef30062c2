"""Second-order training in whole federated runs: averaged factors, preconditioned mixing, bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedopt
from fedopt.errors import ConfigError
from fedopt.optim.kronecker import KroneckerModel

SIZES = (9, 23, 14, 30, 5)

# Double precision: sums of products in another order, through a solve or an inverse.
EXACT = 1e-9


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def clients(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in SIZES]


def simulate(model: Any = network, data: Any = None, **tables: Any) -> fedopt.Run:
    defaults: dict[str, Any] = {
        "rounds": 3,
        "clients_per_round": "all",
        "dtype": "float64",
        "local": local({}),
        "engine": {"name": "inline"},
    }
    data = clients() if data is None else data
    return fedopt.simulate(model=model, clients=data, test=data[0], **(defaults | tables))


def local(optimizer: dict[str, Any], **more: Any) -> dict[str, Any]:
    kfac = {"name": "kfac", "lr": 0.1, "damping": 0.1, **optimizer}
    return {"epochs": 2, "batch_size": 5, "optimizer": kfac, **more}


def vector(run: fedopt.Run) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in run.parameters().values()])


# Averaged factors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("fallback", ["sgd", "adam"])
def test_the_average_over_one_client_is_what_it_keeps(momentum: float, fallback: str) -> None:
    options = {"momentum": momentum, "fallback": fallback, "adapt_damping": True}
    runs = [
        simulate(data=clients()[3:4], rounds=4, local=local(options, optimizer_state=kept))
        for kept in ("average", "keep", "reset")
    ]
    torch.testing.assert_close(vector(runs[0]), vector(runs[1]), rtol=EXACT, atol=EXACT)
    assert not torch.allclose(vector(runs[0]), vector(runs[2]), rtol=1e-3)


def test_factors_on_their_way_are_counted_as_triangles() -> None:
    reset = simulate()
    averaged = simulate(local=local({"momentum": 0.9}, optimizer_state="average"))
    mixed = simulate(strategy="fedpm")
    sizes = KroneckerModel.of(network()).sizes
    assert sizes == {
        "input_factors": 7 * 8 // 2 + 9 * 10 // 2,
        "gradient_factors": 8 * 9 // 2 + 3 * 4 // 2,
    }
    parameters = vector(reset).numel()
    sent = len(SIZES) * 8 * np.arange(1, 4)  # float64, every round
    for way in ("bytes_up", "bytes_down"):
        assert reset.history[way].tolist() == (sent * parameters).tolist()
        more = parameters + sum(sizes.values())  # velocity and factors
        assert averaged.history[way].tolist() == (sent * (parameters + more)).tolist()
    assert mixed.history["bytes_down"].tolist() == (sent * parameters).tolist()
    up = parameters + sizes["input_factors"]
    assert mixed.history["bytes_up"].tolist() == (sent * up).tolist()


# Preconditioned mixing ----------------------------------------------------------------------------


def regressions() -> list[tuple[np.ndarray, np.ndarray]]:
    """Linear regressions whose clients disagree on where features lie and what they mean."""
    rng = np.random.default_rng(1)
    data = []
    for n in SIZES:
        x = rng.normal(size=(n + 8, 6)) * 10 ** rng.uniform(-1, 1, 6)
        w = rng.normal(size=(6, 1))
        data.append((x, x @ w + rng.normal(size=(len(x), 1))))
    return data


def linear() -> nn.Module:
    return nn.Linear(6, 1)


def pooled_solution(data: list[tuple[np.ndarray, np.ndarray]]) -> Tensor:
    x, y = (torch.from_numpy(np.concatenate(part)) for part in zip(*data, strict=True))
    augmented = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    return torch.linalg.lstsq(augmented, y).solution.flatten()


def one_round(strategy: str, damping: float = 1e-12) -> fedopt.Run:
    optimizer = {"name": "kfac", "lr": 1.0, "damping": damping, "fisher": "type-2"}
    return simulate(
        linear,
        regressions(),
        rounds=1,
        strategy=strategy,
        local={"steps": 1, "batch_size": None, "optimizer": optimizer, "loss": "mse"},
    )


def test_mixing_solves_heterogeneous_regressions_in_one_round() -> None:
    expected = pooled_solution(regressions())
    # Damping of 1e-12 moves each client's solution by about its root, relative to A >= 1e-2.
    torch.testing.assert_close(vector(one_round("fedpm")), expected, rtol=1e-3, atol=1e-3)
    averaged = vector(one_round("fedavg"))
    assert torch.linalg.vector_norm(averaged - expected) > 0.1


def test_parameters_without_factors_are_averaged_plainly() -> None:
    mixed, averaged = (simulate(strategy=name, rounds=1) for name in ("fedpm", "fedavg"))
    for name in ("1.weight", "1.bias"):
        torch.testing.assert_close(
            mixed.parameters()[name], averaged.parameters()[name], rtol=EXACT, atol=EXACT
        )
    assert not torch.allclose(mixed.parameters()["0.weight"], averaged.parameters()["0.weight"])


def test_mixing_one_client_is_its_own_model() -> None:
    one = clients()[3:4]
    mixed, averaged = (simulate(data=one, strategy=name) for name in ("fedpm", "fedavg"))
    torch.testing.assert_close(vector(mixed), vector(averaged), rtol=EXACT, atol=EXACT)


# The same everywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tables",
    [
        {"local": local({"fisher": "mc"}, optimizer_state="average")},
        {"strategy": "fedpm"},
        {"strategy": {"name": "scaffold", "option": "I"}},
        {"strategy": "fedprox", "local": local({"name": "ekfac"}, optimizer_state="keep")},
    ],
    ids=["averaged", "fedpm", "scaffold", "fedprox"],
)
def test_engines_agree_in_whole_runs(tables: dict[str, Any]) -> None:
    one, other = (
        simulate(**tables, engine={"name": "inline", "training": training})
        for training in ("loop", "stacked")
    )
    torch.testing.assert_close(vector(one), vector(other), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("state", ["reset", pytest.param("average", marks=pytest.mark.exhaustive)])
def test_workers_do_not_change_a_bit(state: str) -> None:
    tables: dict[str, Any] = {
        "rounds": 2,
        "model": {"name": "mlp", "hidden": [8]},
        "clients_per_round": 6,
        "local": local({"fisher": "mc"}, optimizer_state=state),
        "strategy": "fedpm",
    }
    alone, shared = (
        fedopt.simulate(tables, engine={**engine, "block_size": 2})
        for engine in ({"name": "inline"}, {"name": "ray", "workers": 2})
    )
    assert torch.equal(vector(alone), vector(shared))


# Bad input ----------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Two layers that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.outer = nn.Linear(6, 6, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))


class Twice(nn.Module):
    """A layer that is used twice in a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def lonely() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(6))


def own_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output.sum(1) - target).abs().mean()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"local": local({"damping": 0.0})}, r"local\.optimizer\.damping: .*0.*> 0"),
        ({"local": local({"damping": -1.0})}, r"local\.optimizer\.damping"),
        ({"local": local({"fisher": "empiric"})}, r'fisher: .*"empirical"'),
        ({"local": local({"dampin": 0.1})}, r'local\.optimizer\.dampin: .*"?damping"?'),
        ({"local": local({"name": "ekfac", "damping_style": "factored"})}, "damping_style"),
        ({"local": local({"factor_every": 0})}, r"factor_every: .*>= 1"),
        ({"local": local({"inverse_every": [[3, 1]]})}, r"inverse_every: .*from step 0"),
        ({"local": local({"kl_clip": 0.0})}, "kl_clip"),
        ({"model": Tied}, r"inner\.weight and outer\.weight are one tied parameter"),
        ({"model": Twice}, "layer layer is called twice"),
        ({"model": lonely}, "no layer of the model has Kronecker factors"),
        (
            {"local": local({"fisher": "mc"}), "loss": own_loss},
            r"local\.optimizer\.fisher: .*Hessian of the loss",
        ),
        ({"strategy": {"name": "scaffold", "option": "II"}}, r'strategy\.option: .*"II"'),
        (
            {"strategy": "fedpm", "local": {"epochs": 1}},
            r'strategy\.name: got "fedpm".*local\.optimizer\.name = "kfac" or "ekfac"',
        ),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(**changes)


def test_a_run_says_which_parameters_have_no_factors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="fedopt"):
        run = simulate()
    facts = run.summary["second_order"]
    assert facts["layers"] == ["0", "3"]
    assert facts["fallback"] == {
        "1.weight": "LayerNorm has no Kronecker factors",
        "1.bias": "LayerNorm has no Kronecker factors",
    }
    assert "1.weight" in caplog.text
