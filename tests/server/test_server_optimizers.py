"""The server's optimizers: every round is what their papers' updates give, written out here.

The clients are quadratics in the plane, f_i(w) = a_i / 2 |w - b_i|^2, so that K local steps move
client i by s_i (b_i - x) with s_i = 1 - (1 - lr a_i)^K.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import quadratics
import torch
from quadratics import LR, STEPS, A, half_squares, plane, plane_clients
from resuming import assert_resumes
from torch import Tensor, nn

import fedopt
from fedopt.errors import ConfigError
from fedopt.server import FedAvg, FedDyn, Scaffold
from fedopt.server.rounds import RoundSums

CENTRES = torch.tensor([[1.0, 3.0], [-1.0, 0.5]], dtype=torch.float64)
MOVED = torch.tensor([1 - (1 - LR * a) ** STEPS for a in A], dtype=torch.float64)
ROUNDS = 12

# A few hundred roundings of numbers around one, divided by small roots.
EXACT = 1e-9

TRAINING = pytest.mark.parametrize("training", ["loop", "stacked"])


PLANE: dict[str, Any] = {
    "model": plane,
    "loss": half_squares,
    "population": plane_clients(CENTRES),
}


def simulate(strategy: Any, **changes: Any) -> fedopt.Run:
    changes = {**PLANE, "rounds": ROUNDS, "keep_parameters": True, **changes}
    return quadratics.simulate(strategy, **changes)


def path(run: fedopt.Run) -> Tensor:
    """The server's weights after each round, `[R, 2]`."""
    rounds = [run.parameters(round)["weight"] for round in run.history["round"]]
    return torch.stack(rounds).squeeze(-1)


def written_out(step: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The weights that a server's step makes of the mean updates, `[R, 2]`."""
    x, found = torch.zeros(2, dtype=torch.float64), []
    for _ in range(ROUNDS):
        update = (MOVED.unsqueeze(1) * (CENTRES - x)).mean(0)
        x = step(x, update)
        found.append(x)
    return torch.stack(found)


def assert_close(run: fedopt.Run, expected: Tensor) -> None:
    torch.testing.assert_close(path(run), expected, rtol=0, atol=EXACT)


# The papers' --------------------------------------------------------------------------------------


@TRAINING
@pytest.mark.parametrize(("momentum", "server_lr"), [(0.9, 1.0), (0.5, 0.3)])
def test_fedavgm_is_server_momentum(momentum: float, server_lr: float, training: str) -> None:
    m = torch.zeros(2, dtype=torch.float64)

    def step(x: Tensor, update: Tensor) -> Tensor:
        m.copy_(momentum * m + update)
        return x + server_lr * m

    strategy = {"name": "fedavgm", "momentum": momentum, "server_lr": server_lr}
    assert_close(simulate(strategy, engine={"training": training}), written_out(step))


GROWTH: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "fedadagrad": lambda v, d, _: v + d**2,
    "fedadam": lambda v, d, beta2: beta2 * v + (1 - beta2) * d**2,
    "fedyogi": lambda v, d, beta2: v - (1 - beta2) * d**2 * torch.sign(v - d**2),
}


@TRAINING
@pytest.mark.parametrize("name", GROWTH)
@pytest.mark.parametrize(
    ("beta1", "beta2", "tau", "server_lr"), [(0.9, 0.99, 1e-3, 0.1), (0.0, 0.5, 0.1, 0.02)]
)
def test_adaptive_servers_are_algorithm_2(
    name: str, beta1: float, beta2: float, tau: float, server_lr: float, training: str
) -> None:
    """Reddi et al. 2021: v starts at tau^2, and neither moment is corrected for a bias."""
    m = torch.zeros(2, dtype=torch.float64)
    v = torch.full((2,), tau**2, dtype=torch.float64)

    def step(x: Tensor, update: Tensor) -> Tensor:
        m.copy_(beta1 * m + (1 - beta1) * update)
        v.copy_(GROWTH[name](v, update, beta2))
        return x + server_lr * m / (v.sqrt() + tau)

    options = {"beta1": beta1, "tau": tau, "server_lr": server_lr}
    options |= {} if name == "fedadagrad" else {"beta2": beta2}
    run = simulate({"name": name, **options}, engine={"training": training})
    assert_close(run, written_out(step))


def test_their_defaults() -> None:
    given = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "server_lr": 0.1}
    for name in ("fedadam", "fedyogi"):
        assert torch.equal(path(simulate(name)), path(simulate({"name": name, **given})))
    given = {"beta1": 0.0, "tau": 1e-3, "server_lr": 0.1}
    one, other = simulate("fedadagrad"), simulate({"name": "fedadagrad", **given})
    assert torch.equal(path(one), path(other))


# Any update rule ----------------------------------------------------------------------------------


def with_optimizer(name: str, strategy: Any = "fedavg", **options: Any) -> dict[str, Any]:
    return {"strategy": strategy, "server": {"optimizer": {"name": name, **options}}}


def test_plain_sgd_with_rate_one_is_fedavg_to_the_bit() -> None:
    for strategy in ("fedavg", {"name": "fedprox", "mu": 0.5}, "scaffold", "fednova"):
        alone = path(simulate(strategy))
        assert torch.equal(path(simulate(**with_optimizer("sgd", strategy))), alone)


def test_sgd_with_momentum_is_fedavgm_to_the_bit() -> None:
    one = simulate(**with_optimizer("sgd", lr=0.7, momentum=0.8))
    other = simulate({"name": "fedavgm", "momentum": 0.8, "server_lr": 0.7})
    assert torch.equal(path(one), path(other))


@pytest.mark.parametrize(
    ("name", "options", "cls", "own"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, None),
        ("adam", {"lr": 0.05}, torch.optim.Adam, None),
        ("adam", {"lr": 0.05, "beta1": 0.5}, torch.optim.Adam, {"betas": (0.5, 0.999)}),
        ("adamw", {"lr": 0.05, "weight_decay": 0.1}, torch.optim.AdamW, None),
        ("adagrad", {"lr": 0.2}, torch.optim.Adagrad, None),
        ("rmsprop", {"lr": 0.05, "momentum": 0.5}, torch.optim.RMSprop, None),
        ("nadam", {"lr": 0.05}, torch.optim.NAdam, None),
        ("adafactor", {"lr": 0.1}, torch.optim.Adafactor, None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_it_is_torchs_optimizer_on_the_pseudo_gradient(
    name: str, options: dict[str, Any], cls: Any, own: dict[str, Any] | None
) -> None:
    options = {"lr": 1.0, **options}
    parameter = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
    passed = {k: v for k, v in options.items() if k != "beta1"} | (own or {})
    optimizer = cls([parameter], **passed)

    def step(_x: Tensor, update: Tensor) -> Tensor:
        parameter.grad = -update.unsqueeze(1)
        optimizer.step()
        return parameter.detach().squeeze(1).clone()

    assert_close(simulate(**with_optimizer(name, **options)), written_out(step))


@TRAINING
def test_scaffold_takes_a_server_optimizer(training: str) -> None:
    """The controls are those of SCAFFOLD; only x moves along Adam's step."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    c = torch.zeros(2, dtype=torch.float64)
    controls = torch.zeros(2, 2, dtype=torch.float64)
    rates = torch.tensor(A, dtype=torch.float64).unsqueeze(1)
    expected = []
    for _ in range(ROUNDS):
        x = parameter.detach().clone()
        y = x.expand(2, 2)
        for _ in range(STEPS):
            y = y - LR * (rates * (y - CENTRES) - controls + c)
        new = controls - c + (x - y) / (STEPS * LR)
        c, controls = c + (new - controls).mean(0), new
        parameter.grad = -(y - x).mean(0)
        optimizer.step()
        expected.append(parameter.detach().clone())
    run = simulate(
        **with_optimizer("adam", {"name": "scaffold"}, lr=0.1), engine={"training": training}
    )
    assert_close(run, torch.stack(expected))
    assert_close_controls(run, controls)


def assert_close_controls(run: fedopt.Run, expected: Tensor) -> None:
    rows = run.state()["client_control_variate"]
    found = torch.stack([rows[i]["weight"].squeeze(-1) for i in range(2)])
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


def test_scaffold_with_a_server_optimizer_goes_to_the_optimum() -> None:
    weights = torch.tensor(A, dtype=torch.float64)
    optimum = (weights @ CENTRES) / weights.sum()
    run = simulate(**with_optimizer("sgd", "scaffold", momentum=0.5), rounds=150)
    torch.testing.assert_close(path(run)[-1], optimum, rtol=0, atol=EXACT)


# Resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        ("fedavgm", None),
        ("fedadam", None),
        ("fedyogi", None),
        ("fedavg", {"name": "adam", "lr": 0.1, "amsgrad": True}),
        ("scaffold", {"name": "sgd", "lr": 0.9, "momentum": 0.9}),
        ("fedavg", {"name": "adafactor", "lr": 0.1}),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(
    strategy: str, optimizer: dict[str, Any] | None, tmp_path: Path
) -> None:
    """The moments and the counter of steps are in the checkpoints; Adam's bias needs it."""
    server = {} if optimizer is None else {"server": {"optimizer": optimizer}}
    assert_resumes(tmp_path, {"name": strategy}, **PLANE, **server)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy",
    ["fedavgm", "fedadagrad", "fedadam", "fedyogi", "feddyn", "mimelite", "qfedavg"],
)
def test_a_strategy_with_a_server_step_of_its_own_takes_no_optimizer(strategy: str) -> None:
    with pytest.raises(ConfigError, match=rf'server\.optimizer\.name: got "adam", but {strategy}'):
        simulate(**with_optimizer("adam", strategy))


def test_two_server_rates_are_refused() -> None:
    strategy = {"name": "fedavg", "server_lr": 0.5}
    with pytest.raises(ConfigError, match=r"strategy\.server_lr: got 0\.5.*server\.optimizer\.lr"):
        simulate(**with_optimizer("sgd", strategy))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"name": "kfac"}, r'server\.optimizer\.name: "kfac" is not known'),
        ({"name": "sgd", "lr": 0.0}, r"server\.optimizer\.lr: .*> 0"),
        ({"name": "sgd", "nesterov": True}, r"server\.optimizer.*nesterov: needs momentum > 0"),
        ({"name": "adam", "betas": [0.9, 0.99]}, r"server\.optimizer\.betas: .*beta1"),
    ],
)
def test_bad_server_optimizers_are_refused_by_name(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate("fedavg", server={"optimizer": table})


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ({"name": "fedavgm", "momentum": 1.0}, r"strategy\.momentum: .*\(0, 1\)"),
        ({"name": "fedadam", "tau": 0.0}, r"strategy\.tau: .*> 0"),
        ({"name": "fedyogi", "beta2": 1.0}, r"strategy\.beta2: .*\[0, 1\)"),
        ({"name": "fedadagrad", "beta2": 0.5}, r"strategy\.beta2: "),
    ],
)
def test_options_out_of_range_are_refused(strategy: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(strategy)


def test_a_server_step_of_the_users_own_does_not_lose_a_server_optimizer_silently() -> None:
    class Own(FedAvg):
        def server_step(self, parameters: Tensor, sums: RoundSums) -> Tensor:
            return parameters

    class Following(FedAvg):
        def mean_update(self, sums: RoundSums) -> Tensor:
            return super().mean_update(sums) / 2

    assert not Own.follows_server_optimizer()
    assert Following.follows_server_optimizer()
    assert Scaffold.follows_server_optimizer()
    assert not FedDyn.follows_server_optimizer()
