"""Strategies where the answer is known in closed form, and what must hold between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import quadratics
import torch
from quadratics import LR, OPTIMUM, STEPS, A, B, clients, simulate, weight
from torch import nn

import fedopt
from fedopt.errors import ClientError, ConfigError, DivergenceError, RunError
from fedopt.schedules import momenta, values

# The iterations contract by a factor < 1 a round; after 80 rounds roundings of 1e-16 are left,
# divided by one minus the factor. The issue is convergence to the right point, not the last bit.
EXACT = 1e-9

ENGINES = ["loop", "stacked"]
SKIP = {"training": "loop", "on_client_error": "skip"}


def scaffold(**options: Any) -> dict[str, Any]:
    return {"name": "scaffold", **options}


def mean_control_gap(run: fedopt.Run, round: int, population: int) -> float:
    """Largest |c - mean_i c_i| over all arrays; clients that never trained have c_i = 0."""
    state = run.state(round)
    rows = state["client_control_variate"].values()
    gap = 0.0
    for name, c in state["control_variate"].items():
        total = sum((row[name].double() for row in rows), torch.zeros_like(c))
        gap = max(gap, float((c - total / population).abs().max()))
    return gap


# Fixed points -------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", ENGINES)
def test_fedavg_goes_to_its_own_fixed_point(training: str) -> None:
    """K local steps move a client s_i = 1 - (1 - lr a_i)^K of its way to b_i."""
    s = [1 - (1 - LR * a) ** STEPS for a in A]
    expected = sum(si * bi for si, bi in zip(s, B, strict=True)) / sum(s)
    run = simulate({"name": "fedavg"}, engine={"training": training})
    assert weight(run) == pytest.approx(expected, abs=EXACT)
    assert abs(expected - OPTIMUM) > 0.1, "client drift is there to be seen"


@pytest.mark.parametrize("training", ENGINES)
@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
def test_fedprox_goes_to_its_own_fixed_point(training: str, mu: float) -> None:
    """The local optimum is (a b + mu x) / (a + mu), approached by 1 - lr (a + mu) a step.

    So a client's change is s_i a_i / (a_i + mu) (b_i - x) with s_i = 1 - (1 - lr (a_i + mu))^K,
    and the changes cancel at the mean of the b_i under the weights s_i a_i / (a_i + mu).
    """
    pull = [(1 - (1 - LR * (a + mu)) ** STEPS) * a / (a + mu) for a in A]
    expected = sum(p * b for p, b in zip(pull, B, strict=True)) / sum(pull)
    run = simulate({"name": "fedprox", "mu": mu}, engine={"training": training})
    assert weight(run) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("training", ENGINES)
@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_goes_to_the_optimum(training: str, option: str) -> None:
    run = simulate(scaffold(option=option), engine={"training": training}, rounds=150)
    assert weight(run) == pytest.approx(OPTIMUM, abs=EXACT)
    controls = run.state()["client_control_variate"]
    for client, (a, b) in enumerate(zip(A, B, strict=True)):
        gradient = a * (OPTIMUM - b)
        assert float(controls[client]["weight"]) == pytest.approx(gradient, abs=1e-7)
    assert float(run.state()["control_variate"]["weight"]) == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.02, "momentum": 0.5},
        {"name": "sgd", "lr": 0.02, "momentum": 0.5, "nesterov": True},
        {"name": "sgd", "lr": 0.02, "momentum": 0.5, "dampening": 0.5},
    ],
    ids=["heavy_ball", "nesterov", "dampened"],
)
@pytest.mark.parametrize("training", ENGINES)
def test_option_two_reads_the_gradient_under_momentum(
    optimizer: dict[str, Any], training: str
) -> None:
    """Dividing by K lr instead of the true sum of coefficients would end elsewhere, or diverge."""
    local = {"optimizer": optimizer}
    run = simulate(scaffold(option="II"), local=local, engine={"training": training}, rounds=250)
    assert weight(run) == pytest.approx(OPTIMUM, abs=EXACT)


CYCLE = {"name": "one_cycle", "base_momentum": 0.4, "max_momentum": 0.6}


@pytest.mark.parametrize("training", ENGINES)
def test_scaffold_divides_by_the_effective_sum_under_one_cycle(training: str) -> None:
    """Rates and momenta change in every step; c_i is still the mean gradient of the round.

    A gradient g_j moves the parameters by the sum over k >= j of lr_k times the momenta of the
    steps j + 1..k, so L adds these coefficients up over all j.
    """
    local = {"optimizer": {"lr": 0.04, "momentum": 0.5}, "schedule": CYCLE}
    run = simulate(
        scaffold(), local=local, engine={"training": training}, rounds=12, keep_parameters=True
    )
    options = {k: v for k, v in CYCLE.items() if k != "name"}
    rates = values("one_cycle", STEPS, lr=0.04, **options)
    moments = momenta("one_cycle", STEPS, lr=0.04, **options)
    assert moments is not None
    effective = sum(
        rates[k] * np.prod(moments[j + 1 : k + 1]) for j in range(STEPS) for k in range(j, STEPS)
    )
    np.testing.assert_allclose(run.clients["lr_sum"], effective, rtol=1e-12)
    x, c, c_i = 0.0, 0.0, [0.0, 0.0]
    for round in range(1, 13):
        moved, changes = [], []
        for i, (a, b) in enumerate(zip(A, B, strict=True)):
            y, v = x, 0.0
            for lr, momentum in zip(rates, moments, strict=True):
                v = momentum * v + a * (y - b) - c_i[i] + c
                y -= lr * v
            new = c_i[i] - c + (x - y) / effective
            moved.append(y - x)
            changes.append(new - c_i[i])
            c_i[i] = new
        x, c = x + float(np.mean(moved)), c + float(np.mean(changes))
        # Some hundred roundings of numbers around ten.
        assert weight(run, round) == pytest.approx(x, abs=1e-12)
        controls = run.state(round)["client_control_variate"]
        assert [float(controls[i]["weight"]) for i in (0, 1)] == pytest.approx(c_i, abs=1e-11)
        assert mean_control_gap(run, round, population=2) < 1e-13


def test_scaffold_goes_to_the_optimum_under_one_cycle() -> None:
    local = {"optimizer": {"lr": 0.04, "momentum": 0.5}, "schedule": CYCLE}
    run = simulate(scaffold(), local=local, rounds=300)
    assert weight(run) == pytest.approx(OPTIMUM, abs=EXACT)


def test_unequal_numbers_of_steps_do_not_move_scaffolds_optimum() -> None:
    run = simulate(scaffold(), system={"stragglers": 0.5}, rounds=300)
    assert set(run.clients["status"]) == {"trained", "partial"}
    assert weight(run) == pytest.approx(OPTIMUM, abs=EXACT)


# Against plain optimisation -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_with_one_step_is_gradient_descent(option: str) -> None:
    run = simulate(scaffold(option=option), local={"steps": 1}, rounds=40, keep_parameters=True)
    w = 0.0
    for round in range(1, 41):
        w -= LR * np.mean([a * (w - b) for a, b in zip(A, B, strict=True)])
        # 40 steps of a few roundings each, of numbers around one.
        assert weight(run, round) == pytest.approx(w, abs=1e-13)


@pytest.mark.parametrize("training", ENGINES)
@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_one_client_and_round_is_plain_training(name: str, training: str) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    run = fedopt.simulate(
        model=model,
        clients=[(x, y)],
        rounds=1,
        clients_per_round="all",
        dtype="float64",
        strategy=name,
        local={"steps": 7, "batch_size": "full", "optimizer": {"lr": 0.3, "momentum": 0.9}},
        engine={"name": "inline", "training": training},
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(7):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for key, parameter in model.named_parameters():
        # Seven float64 steps whose products may be summed in another order.
        torch.testing.assert_close(run.parameters()[key], parameter.data, rtol=1e-12, atol=1e-12)
    assert run.history["train_loss"][0] == pytest.approx(np.mean(losses), rel=1e-12)


# Against each other -------------------------------------------------------------------------------


def on_digits(strategy: dict[str, Any], **changes: Any) -> fedopt.Run:
    tables = {
        "rounds": 3,
        "clients_per_round": 6,
        "partition": {"clients": 20},
        "local": {"epochs": 2},
        "engine": {"name": "inline"},
        "system": {"stragglers": 0.3},
        **changes,
    }
    return fedopt.simulate(strategy=strategy, **tables)


@pytest.mark.parametrize("partial_work", ["drop", "keep"])
def test_fedprox_without_its_term_is_fedavg_to_the_bit(partial_work: str) -> None:
    one = on_digits({"name": "fedavg", "partial_work": partial_work})
    other = on_digits({"name": "fedprox", "mu": 0, "partial_work": partial_work})
    assert one.summary["model_sha256"] == other.summary["model_sha256"]
    with_term = on_digits({"name": "fedprox", "mu": 1, "partial_work": partial_work})
    assert with_term.summary["model_sha256"] != one.summary["model_sha256"]


@pytest.mark.parametrize("model", ["mlp", {"name": "cnn", "channels": [4, 8], "hidden": 16}])
def test_scaffolds_first_round_is_fedavg_to_the_bit(model: Any) -> None:
    shared = {"weighting": "uniform", "partial_work": "keep"}
    one = on_digits({"name": "fedavg", **shared}, rounds=1, model=model)
    other = on_digits({"name": "scaffold", **shared}, rounds=1, model=model)
    assert one.summary["model_sha256"] == other.summary["model_sha256"]


def test_a_server_rate_scales_the_mean_change() -> None:
    full = simulate({"name": "fedavg"}, rounds=1)
    half = simulate({"name": "fedavg", "server_lr": 0.5}, rounds=1)
    assert weight(half) == pytest.approx(0.5 * weight(full), rel=1e-15)


def test_weighting() -> None:
    """A client's examples repeated weigh more, unless the mean is uniform."""
    first, second = clients()
    population = [(first[0].repeat(3, 1), first[1].repeat(3, 1)), second]
    own = [weight(simulate({"name": "fedavg"}, [client], rounds=1)) for client in clients()]
    by_examples = simulate({"name": "fedavg"}, population, rounds=1)
    uniform = simulate({"name": "fedavg", "weighting": "uniform"}, population, rounds=1)
    assert weight(by_examples) == pytest.approx((3 * own[0] + own[1]) / 4, rel=1e-12)
    assert weight(uniform) == pytest.approx((own[0] + own[1]) / 2, rel=1e-12)


# SCAFFOLD's invariant -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_controls_mean_is_the_servers_under_partial_sampling(option: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    sizes = [0 if c == 4 else 3 + c for c in range(15)]
    population = [(rng.normal(size=(n, 4)), rng.integers(0, 3, n)) for n in sizes]
    run = fedopt.simulate(
        model={"name": "mlp", "hidden": [5]},
        clients=population,
        rounds=8,
        clients_per_round=4,
        dtype=dtype,
        strategy=scaffold(option=option),
        local={"epochs": 2, "batch_size": 4},
        system={"stragglers": 0.5},
        engine={"name": "inline"},
        keep_parameters=True,
    )
    seen: set[int] = set()
    for round in range(1, 9):
        seen |= set(run.clients.query("round == @round")["client"])
        state = run.state(round)
        assert set(state["client_control_variate"]) == seen
        # The server's sum is in float64, of differences that are exact: 8 rounds of roundings.
        assert mean_control_gap(run, round, population=14) < 1e-14
    assert 4 < len(seen) < 14
    assert float(run.state()["control_variate"]["1.weight"].abs().max()) > 1e-3


def test_scaffold_weighted_by_examples_is_refused_unless_forced() -> None:
    with pytest.raises(ConfigError, match=r'strategy\.weighting.*"uniform".*force'):
        simulate(scaffold(weighting="examples"), rounds=1)
    simulate(scaffold(weighting="examples", force=True), rounds=1)


def test_option_two_needs_updates_linear_in_the_gradients() -> None:
    adam = {"optimizer": {"name": "adam", "lr": 0.01}}
    with pytest.raises(ConfigError, match=r'strategy\.option.*Adam.*"I"'):
        simulate(scaffold(option="II"), local=adam, rounds=1)
    run = simulate(scaffold(option="I"), local=adam, rounds=60, keep_parameters=True)
    assert mean_control_gap(run, 60, population=2) < 1e-12
    assert abs(weight(run) - weight(run, 1)) > 0.1


# Partial work and failures ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("partial_work", "status", "counted"), [("drop", "dropped", 3), ("keep", "partial", 6)]
)
def test_stragglers_are_dropped_or_kept(partial_work: str, status: str, counted: int) -> None:
    run = on_digits({"name": "fedavg", "partial_work": partial_work}, system={"stragglers": 0.5})
    for round, rows in run.clients.groupby("round"):
        slow = rows[rows["steps"] < rows["planned_steps"]]
        assert set(slow["status"]) <= {status}
        assert set(rows["status"]) <= {status, "trained"}
        history = run.history.set_index("round").loc[round]
        assert history["clients"] == (rows["status"] != "dropped").sum()
        assert history["dropped_clients"] == (rows["status"] == "dropped").sum()
        assert history["failed_clients"] == 0
    assert (run.clients["status"] == status).any()
    dropped = run.clients[run.clients["status"] == "dropped"]
    assert (dropped["weight"] == 0).all()
    kept = run.clients[run.clients["status"] == "partial"]
    assert (kept["weight"] == kept["examples"]).all()


def choosy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss, for all but the clients whose target is negative (and for evaluation)."""
    if output.requires_grad and bool((target < 0).any()):
        raise ValueError("a negative target")
    return quadratics.half_square(output, target)


def test_a_failing_client_ends_the_run_with_its_name() -> None:
    with pytest.raises(ClientError, match=r"(?s)client 1 failed in round 1.*a negative") as caught:
        simulate({"name": "fedavg"}, loss=choosy, engine={"training": "loop"})
    assert (caught.value.client, caught.value.round) == (1, 1)
    assert not isinstance(caught.value, DivergenceError)


def test_a_failing_client_can_be_skipped() -> None:
    run = simulate({"name": "fedavg"}, loss=choosy, rounds=3, engine=SKIP)
    assert run.history["failed_clients"].tolist() == [1, 1, 1]
    assert run.history["clients"].tolist() == [1, 1, 1]
    rows = run.clients.set_index(["round", "client"])["status"]
    assert (rows.xs(1, level="client") == "failed").all()
    assert (rows.xs(0, level="client") == "trained").all()
    alone = simulate({"name": "fedavg"}, clients()[:1], rounds=3)
    assert weight(run) == weight(alone)


def test_scaffolds_invariant_survives_skipped_clients() -> None:
    run = simulate(
        scaffold(),
        loss=choosy,
        rounds=5,
        engine=SKIP,
        keep_parameters=True,
    )
    for round in range(1, 6):
        assert set(run.state(round)["client_control_variate"]) == {0}
        assert mean_control_gap(run, round, population=2) < 1e-15


def test_all_clients_failing_is_an_error() -> None:
    for population in ([clients()[1]], [clients()[1]] * 3):
        with pytest.raises(RunError, match="round 1: no client's update is left"):
            simulate({"name": "fedavg"}, population, loss=choosy, engine=SKIP)


def test_all_clients_dropped_is_an_error() -> None:
    with pytest.raises(RunError, match="no client's update is left"):
        simulate({"name": "fedavg"}, system={"stragglers": 1.0})


def test_divergence_names_client_and_round_and_keeps_the_files(tmp_path: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(DivergenceError, match="diverged") as caught:
        simulate({"name": "fedavg"}, local={"optimizer": {"lr": 3.0}}, out=out)
    error = caught.value
    assert error.client == 1, "the steeper one"
    assert error.round > 1
    from fedopt.analysis.store import read_history, read_summary

    assert len(read_history(out)) == error.round - 1
    summary = read_summary(out)
    assert summary["status"] == "failed"
    assert "client 1" in summary["error"]
    assert (out / "config.toml").exists()
