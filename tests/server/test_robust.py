"""Means that hostile clients cannot move far: against brute force, and in runs on quadratics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quadratics
import torch
from hypothesis import given
from hypothesis import strategies as st
from quadratics import LR, STEPS, half_squares, plane, plane_clients
from torch import Tensor, nn

import fedopt
from fedopt.errors import ConfigError, RunError
from fedopt.server.spool import Spool
from fedopt.server.updates import (
    Updates,
    geometric_median_weights,
    krum_scores,
    median,
    trimmed_mean,
)

# A few hundred roundings of numbers around one; Weiszfeld's algorithm goes on until there are left.
EXACT = 1e-9

TRAINING = pytest.mark.parametrize("training", ["loop", "stacked"])

# As functions -------------------------------------------------------------------------------------

FAR = [1e3, -1e9, 1e30]


@st.composite
def rows_of(draw: st.DrawFn, least: int = 1, most: int = 9) -> Tensor:
    """Draw changes of some clients, `[K, n]`; many are equal."""
    shape = draw(st.integers(least, most)), draw(st.integers(1, 4))
    values = st.one_of(st.integers(-2, 2).map(float), st.floats(-10, 10))
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=torch.float64).view(shape)


def attacked(rows: Tensor, share: float, far: float) -> tuple[Tensor, Tensor]:
    """Return the rows, of which the last ones are replaced by others far off, and the honest."""
    hostile = max(0, math.ceil(share * len(rows)) - 1)  # fewer than the share
    honest = rows[: len(rows) - hostile]
    bad = far * torch.arange(1, hostile + 1, dtype=torch.float64).unsqueeze(1)
    return torch.cat([honest, bad.expand(-1, rows.shape[1])]), honest


def updates_of(rows: Tensor, weights: Sequence[float] | None = None) -> Updates:
    count = len(rows)
    none = torch.zeros(0, dtype=torch.float64)
    own = [1.0] * count if weights is None else list(weights)
    return Updates(list(range(count)), own, list(rows), [none] * count)


def distances(rows: Tensor) -> Tensor:
    return torch.stack([torch.stack([(a - b).norm() for b in rows]) for a in rows])


def brute_krum(rows: Tensor, hostile: int) -> list[float]:
    """Each one's sum of squared distances to the nearest others."""
    between = distances(rows).tolist()
    found = []
    for i, line in enumerate(between):
        others = sorted(d**2 for j, d in enumerate(line) if j != i)
        found.append(sum(others[: len(rows) - hostile - 2]))
    return found


def geometric_median(
    rows: Tensor, weights: Sequence[float] | None = None, steps: int = 10_000
) -> Tensor:
    updates = updates_of(rows, weights)
    share = geometric_median_weights(updates.gram(), updates.weights, steps, 0.0, 1e-9)
    assert float(share.sum()) == pytest.approx(1)
    return updates.combined(share)[0]


@given(rows_of())
def test_the_median_is_numpys(rows: Tensor) -> None:
    np.testing.assert_array_equal(median(rows).numpy(), np.median(rows.numpy(), axis=0))


@given(rows_of(), st.floats(0, 0.4999))
def test_the_trimmed_mean_leaves_out_the_extremes(rows: Tensor, beta: float) -> None:
    cut = math.floor(beta * len(rows))
    expected = [
        math.fsum(sorted(column)[cut : len(rows) - cut]) / (len(rows) - 2 * cut)
        for column in rows.T.tolist()
    ]
    np.testing.assert_allclose(trimmed_mean(rows, beta).numpy(), expected, rtol=0, atol=1e-13)
    if cut == 0:
        torch.testing.assert_close(trimmed_mean(rows, beta), rows.mean(0))


@given(rows_of(3), st.data())
def test_krums_scores_are_the_nearest_squared_distances(rows: Tensor, data: st.DataObject) -> None:
    hostile = data.draw(st.integers(0, len(rows) - 3))
    scores = krum_scores(updates_of(rows).gram(), hostile)
    # Squares of numbers up to 20, from differences of such.
    np.testing.assert_allclose(scores.numpy(), brute_krum(rows, hostile), rtol=0, atol=1e-10)


@given(rows_of(2), st.data())
def test_no_point_nearby_is_a_better_geometric_median(rows: Tensor, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 5), min_size=len(rows), max_size=len(rows)))
    found = geometric_median(rows, weights)

    def objective(v: Tensor) -> float:
        return math.fsum(w * float((v - row).norm()) for w, row in zip(weights, rows, strict=True))

    rng = np.random.default_rng(0)
    nearby = [found + scale * torch.from_numpy(rng.normal(size=found.shape)) for scale in FINE]
    best = min(objective(v) for v in (*nearby, *rows, rows.mean(0), median(rows)))
    # Where the optimum is one of the changes, the steps towards it get slower and slower.
    assert objective(found) <= best + 1e-4


FINE = [1e-3, 1e-2, 0.1, 1.0, 10.0] * 5


@given(rows_of(3), st.randoms())
def test_the_order_of_clients_does_not_matter(rows: Tensor, random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    mixed = rows[order]
    assert torch.equal(median(mixed), median(rows))
    assert torch.equal(trimmed_mean(mixed, 0.3), trimmed_mean(rows, 0.3))
    one, other = (krum_scores(updates_of(r).gram(), 0) for r in (rows, mixed))
    torch.testing.assert_close(other, one[order], rtol=0, atol=1e-10)
    own = [1.0 + i for i in range(len(rows))]
    first = geometric_median(rows, own, 10)
    second = geometric_median(mixed, [own[i] for i in order], 10)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


@given(rows_of(), st.sampled_from(FAR))
def test_fewer_than_half_do_not_move_the_median_out_of_the_others(rows: Tensor, far: float) -> None:
    mixed, honest = attacked(rows, 0.5, far)
    found = median(mixed)
    assert (honest.amin(0) <= found).all()
    assert (found <= honest.amax(0)).all()


@given(rows_of(), st.sampled_from(FAR), st.floats(0, 0.49))
def test_beta_of_them_do_not_move_the_trimmed_mean_out_of_the_others(
    rows: Tensor, far: float, beta: float
) -> None:
    mixed, honest = attacked(rows, (math.floor(beta * len(rows)) + 1) / len(rows), far)
    found = trimmed_mean(mixed, beta)
    slack = 1e-14 * honest.abs().amax(0)  # the sum's rounding
    assert (honest.amin(0) - slack <= found).all()
    assert (found <= honest.amax(0) + slack).all()


@given(rows_of(5), st.sampled_from(FAR))
def test_krum_takes_the_honest_of_least_score_whatever_the_others_send(
    rows: Tensor, far: float
) -> None:
    """However far off they are: the honest ones' distances keep their digits."""
    hostile = (len(rows) - 3) // 2
    mixed, honest = attacked(rows, (hostile + 1) / len(rows), far)
    scores = krum_scores(updates_of(mixed).gram(), hostile)
    among = len(honest)
    expected = np.array(brute_krum(mixed, hostile))
    np.testing.assert_allclose(scores[:among].numpy(), expected[:among], rtol=1e-6, atol=1e-10)
    assert int(scores.argmin()) < among


@given(rows_of(3), st.sampled_from(FAR), st.sampled_from([10, 1000]))
def test_fewer_than_half_do_not_move_the_geometric_median_far(
    rows: Tensor, far: float, steps: int
) -> None:
    """With the share a of the weight they move it by 2 (1 - a) / (1 - 2 a) radii at most.

    That holds for the default number of steps as well, though these begin with all changes.
    """
    mixed, honest = attacked(rows, 0.5, far)
    share = 1 - len(honest) / len(mixed)
    centre = median(honest)
    radius = float((honest - centre).norm(dim=1).max())
    found = geometric_median(mixed, steps=steps)
    assert float((found - centre).norm()) <= 2 * (1 - share) / (1 - 2 * share) * radius + 1e-5


@pytest.mark.parametrize("far", FAR)
def test_the_geometric_median_next_to_hostile_changes_is_accurate(far: float) -> None:
    """Far off they are nothing but a pull of length one: the steps go on until that is met."""
    rng = np.random.default_rng(5)
    honest = torch.from_numpy(rng.normal(size=(8, 3)))
    direction = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64) / 3
    found = geometric_median(torch.cat([honest, far * direction.unsqueeze(0)]), steps=1000)
    pulls = torch.nn.functional.normalize(honest - found, dim=1).sum(0)
    other = torch.nn.functional.normalize(far * direction - found, dim=0)
    torch.testing.assert_close(pulls, -other, rtol=0, atol=1e-8)


@given(rows_of(2))
def test_pieces_of_coordinates_make_no_difference(rows: Tensor) -> None:
    with pytest.MonkeyPatch.context() as patched:
        whole = updates_of(rows)
        expected = whole.coordinates(median)[0], whole.gram()
        patched.setattr("fedopt.server.updates.PIECE_SCALARS", 1)
        assert torch.equal(whole.coordinates(median)[0], expected[0])
        torch.testing.assert_close(whole.gram(), expected[1], rtol=0, atol=1e-12)


# In runs ------------------------------------------------------------------------------------------

SLOPES = (1.0, 4.0, 2.0, 10.0, 0.5, 3.0, 6.0)
CENTRES = torch.tensor(
    [[1, 3], [-1, 0.5], [0.2, -2], [2, 2.5], [-0.7, 1], [0.9, 1.4], [0.1, -0.3]],
    dtype=torch.float64,
)
SIZES = [2, 1, 3, 3, 1, 1, 3]
ROUNDS = 6


def population(centres: Tensor = CENTRES) -> list[Any]:
    """Seven clients in the plane, with some copies of their example."""
    pairs = plane_clients(centres, SLOPES)
    return [(x.repeat(n, 1), y.repeat(n, 1)) for (x, y), n in zip(pairs, SIZES, strict=True)]


def simulate(strategy: Any, clients: Any = None, **changes: Any) -> fedopt.Run:
    changes = {"model": plane, "loss": half_squares, "rounds": ROUNDS, **changes}
    clients = population() if clients is None else clients
    return quadratics.simulate(strategy, clients, keep_parameters=True, **changes)


def moves(x: Tensor, mu: float = 0.0) -> Tensor:
    """The clients' changes from x, `[7, 2]`: steps towards (a b + mu x) / (a + mu)."""
    a = torch.tensor(SLOPES, dtype=torch.float64)
    share = (1 - (1 - LR * (a + mu)) ** STEPS) * a / (a + mu)
    return share.unsqueeze(1) * (CENTRES - x)


STEPS_TO_THE_END = 3000
TO_THE_END: dict[str, Any] = {
    "name": "rfa",
    "iterations": STEPS_TO_THE_END,
    "tolerance": 0.0,
    "smoothing": 1e-12,
}


def plain_krum(rows: Tensor, hostile: int, selected: int) -> Tensor:
    scores = brute_krum(rows, hostile)
    chosen = sorted(range(len(rows)), key=lambda i: scores[i])[:selected]
    return rows[chosen].mean(0)


def plain_weiszfeld(rows: Tensor, weights: Sequence[float]) -> Tensor:
    """The geometric median by steps from the mean; none of the changes is it."""
    a = torch.tensor(weights, dtype=torch.float64)
    v = rows.mean(0)
    for _ in range(STEPS_TO_THE_END):
        share = a / (rows - v).norm(dim=1)
        v = share @ rows / share.sum()
    return v


CASES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "median": (
        {"name": "median"},
        lambda rows: torch.from_numpy(np.median(rows.numpy(), axis=0)),
    ),
    "trimmed_mean": (
        {"name": "trimmed_mean", "beta": 0.3},
        lambda rows: torch.from_numpy(np.sort(rows.numpy(), axis=0)[2:-2].mean(0)),
    ),
    "krum": ({"name": "krum", "hostile": 2}, lambda rows: plain_krum(rows, 2, 1)),
    "multi_krum": (
        {"name": "krum", "hostile": 1, "selected": 4},
        lambda rows: plain_krum(rows, 1, 4),
    ),
    "rfa": (
        TO_THE_END,
        lambda rows: plain_weiszfeld(rows, SIZES),
    ),
    "rfa_uniform": (
        {**TO_THE_END, "weighting": "uniform"},
        lambda rows: plain_weiszfeld(rows, [1] * 7),
    ),
}


@TRAINING
@pytest.mark.parametrize("mu", [0.0, 2.0])
@pytest.mark.parametrize("case", CASES)
def test_each_round_is_the_robust_mean(case: str, mu: float, training: str) -> None:
    strategy, mean = CASES[case]
    run = simulate({**strategy, "mu": mu, "server_lr": 0.8}, engine={"training": training})
    x = torch.zeros(2, dtype=torch.float64)
    for round in range(1, ROUNDS + 1):
        x = x + 0.8 * mean(moves(x, mu))
        found = run.parameters(round)["weight"].squeeze(-1)
        torch.testing.assert_close(found, x, rtol=0, atol=EXACT)


ROBUST: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "trimmed_mean"},
    {"name": "krum", "hostile": 2},
    {"name": "krum", "hostile": 2, "selected": 3},
    {"name": "rfa"},
]


@pytest.mark.parametrize("far", [1e4, 1e12])
@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: "_".join(str(v) for v in s.values()))
def test_a_hostile_client_does_not_move_the_model_out_of_the_others(
    strategy: dict[str, Any], far: float
) -> None:
    """Starting among the honest clients' optima, the model stays among them."""
    centres = CENTRES.clone()
    centres[3] = torch.tensor([far, -far])
    honest = torch.cat([CENTRES[:3], CENTRES[4:]])
    x = simulate(strategy, population(centres), rounds=15).parameters()["weight"].squeeze(-1)
    assert (honest.amin(0) <= x).all()
    assert (x <= honest.amax(0)).all()
    moved = simulate({"name": "fedavg"}, population(centres), rounds=1).parameters()["weight"]
    assert float(moved.abs().max()) > far / 100


@pytest.mark.parametrize("strategy", ROBUST, ids=lambda s: "_".join(str(v) for v in s.values()))
def test_blocks_make_no_difference_to_the_bits(strategy: dict[str, Any]) -> None:
    one, other = (
        simulate(strategy, engine={"training": "loop", "block_size": size}) for size in (1, 4)
    )
    assert one.summary["model_sha256"] == other.summary["model_sha256"]


def test_a_server_optimizer_steps_along_the_robust_mean() -> None:
    one = simulate({"name": "median", "server_lr": 0.5})
    other = simulate({"name": "median"}, server={"optimizer": {"name": "sgd", "lr": 0.5}})
    assert one.summary["model_sha256"] == other.summary["model_sha256"]


@pytest.mark.parametrize("state", ["keep", "average"])
def test_of_one_client_they_are_fedavg_under_any_optimizer_state(state: str) -> None:
    local = {"optimizer": {"lr": LR, "momentum": 0.5}, "optimizer_state": state}
    alone = population()[3:4]
    other = simulate({"name": "fedavg"}, alone, local=local)
    for name in ("median", "trimmed_mean", "rfa"):
        one = simulate({"name": name}, alone, local=local)
        torch.testing.assert_close(one.parameters(), other.parameters(), rtol=0, atol=1e-15)


def test_bytes_are_those_of_fedavg() -> None:
    one, other = simulate({"name": "rfa"}), simulate({"name": "fedavg"})
    for column in ("bytes_up", "bytes_down"):
        assert one.history[column].tolist() == other.history[column].tolist()


# Buffers ------------------------------------------------------------------------------------------


def normalised() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()


def labelled() -> list[Any]:
    rng = np.random.default_rng(8)
    return [(rng.normal(c, 1 + c, (6 + c, 3)), rng.integers(0, 3, 6 + c)) for c in range(5)]


def once(strategy: dict[str, Any], clients: Any) -> dict[str, Tensor]:
    """The arrays of a model with BatchNorm after a round."""
    run = fedopt.simulate(
        model=normalised(),
        clients=clients,
        rounds=1,
        clients_per_round="all",
        dtype="float64",
        strategy=strategy,
        local={"steps": 3, "batch_size": "full", "optimizer": {"lr": 0.2}},
        engine={"name": "inline"},
    )
    return run.parameters()


def test_buffers_have_the_robust_mean_of_their_changes() -> None:
    """Krum's and RFA's with the weights that they give to the parameters."""
    alone = [once({"name": "fedavg"}, [client]) for client in labelled()]
    first = dict(normalised().named_parameters())
    flat = [torch.cat([(own[n] - p.data).flatten() for n, p in first.items()]) for own in alone]
    rows = torch.stack(flat)
    weights = [len(y) for _, y in labelled()]
    share = torch.tensor(weights, dtype=torch.float64)
    v = plain_weiszfeld(rows, weights)
    share = share / (rows - v).norm(dim=1)
    share = share / share.sum()
    best = int(np.argmin(brute_krum(rows, 1)))
    expected: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
        "median": ({"name": "median"}, lambda values: values.median(0).values),
        "trimmed_mean": (
            {"name": "trimmed_mean", "beta": 0.2},
            lambda values: values.sort(0).values[1:-1].mean(0),
        ),
        "krum": ({"name": "krum", "hostile": 1}, lambda values: values[best]),
        "rfa": (TO_THE_END, lambda values: torch.tensordot(share, values, 1)),
    }
    for strategy, mean in expected.values():
        found = once(strategy, labelled())
        assert "1.running_var" in found
        for name, array in found.items():
            if array.is_floating_point():
                wanted = mean(torch.stack([own[name] for own in alone]))
                torch.testing.assert_close(array, wanted, rtol=0, atol=EXACT, msg=name)


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ({"name": "trimmed_mean", "beta": 0.5}, r"strategy\.beta: .*\[0, 0\.5\)"),
        ({"name": "trimmed_mean", "beta": -0.1}, r"strategy\.beta: .*\[0, 0\.5\)"),
        ({"name": "krum", "hostile": 3}, r"strategy\.hostile: got 3.*9 clients.*use at most 2"),
        ({"name": "krum", "hostile": -1}, r"strategy\.hostile"),
        ({"name": "krum", "hostile": 2, "selected": 6}, r"strategy\.selected: got 6.*only 5 of 7"),
        ({"name": "krum", "selected": 0}, r"strategy\.selected: .*>= 1"),
        ({"name": "median", "weighting": "examples"}, r"strategy\.weighting: .*uniform only"),
        ({"name": "rfa", "iterations": 0}, r"strategy\.iterations: .*>= 1"),
        ({"name": "rfa", "smoothing": 0.0}, r"strategy\.smoothing: .*> 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(strategy: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        simulate(strategy)


def test_krum_with_two_clients_a_round_withstands_nobody() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.hostile: .*use more clients_per_round"):
        simulate({"name": "krum", "hostile": 0}, clients_per_round=2)


def test_krum_says_when_too_few_updates_arrive() -> None:
    strategy = {"name": "krum", "hostile": 2}
    with pytest.raises(RunError, match=r"krum needs 7 updates .* but 5 arrived"):
        simulate(strategy, system={"stragglers": 0.3})


# The file of changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["inline", "ray"])
@pytest.mark.parametrize("strategy", ["median", pytest.param("rfa", marks=pytest.mark.exhaustive)])
def test_changes_through_a_file_are_those_of_the_replies(
    strategy: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> fedopt.Run:
        return fedopt.simulate(
            strategy=strategy,
            rounds=2,
            clients_per_round=6,
            partition={"name": "dirichlet", "clients": 12, "alpha": 0.5},
            engine={"name": engine, "workers": 2, "block_size": 2},
            attack={"name": "alie", "fraction": 0.5},
            evaluation={"every": 10},
            out=tmp_path / name,
        )

    through_replies = run("replies")
    made: list[Spool] = []

    class Watched(Spool):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr("fedopt.server.spool.SPOOLED_NBYTES", 0)
    monkeypatch.setattr("fedopt.server.strategy.Spool", Watched)
    through_file = run("file")
    assert len(made) == 2
    assert (made[-1].rows != 0).any(1).all()
    assert through_file.summary["model_sha256"] == through_replies.summary["model_sha256"]
    assert not list(tmp_path.rglob("changes.bin"))


def test_what_a_strategy_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"strategy\.hostile"):
        fedopt.simulate(
            strategy={"name": "krum", "hostile": 10},
            rounds=1,
            out=tmp_path / "run",
            engine="inline",
        )
    assert not (tmp_path / "run").exists()
