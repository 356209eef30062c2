"""FedBN, FedPer, FedRep and Ditto, clients that train alone, and training without federation.

Every run is compared with the same thing written out in torch: a copy of the model a client.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quadratics
import torch
from quadratics import LR, STEPS, A, B, half_square, line
from resuming import assert_same_bits, digests
from torch import Tensor, nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.client.algorithm import Phases
from fedopt.config import load
from fedopt.data.arrays import ArrayPopulation
from fedopt.data.dataset import Dataset
from fedopt.data.partitioners import Partition
from fedopt.errors import ConfigError, DivergenceError
from fedopt.experiment import Experiment, load_loss, population_for
from fedopt.models.layout import ParameterLayout
from fedopt.run import execute

# Some hundred float64 steps whose products may be summed in another order.
EXACT = 1e-10

TRAINING = pytest.mark.parametrize("training", ["loop", "stacked"])
ROUNDS = 6
SIZES = [10, 12, 4, 16, 6]

Clients = Sequence[tuple[Tensor, Tensor]]


def labelled() -> Clients:
    """Five clients of three classes, whose inputs are of different scales."""
    rng = np.random.default_rng(8)
    return [
        (torch.from_numpy(rng.normal(c, 1 + c, (n, 3))), torch.from_numpy(rng.integers(0, 3, n)))
        for c, n in enumerate(SIZES)
    ]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3))


def held_out(clients: Clients, fraction: float) -> ArrayPopulation:
    """The clients, with a share of their examples held out for validation."""
    x, y = (np.concatenate([pair[i].numpy() for pair in clients]) for i in (0, 1))
    sizes = [len(pair[1]) for pair in clients]
    classes = None if y.dtype.kind == "f" else 3
    dataset = Dataset(name="tests", x=x, y=y, classes=classes, source="in memory")
    offsets = np.cumsum([0, *sizes], dtype=np.int64)
    partition = Partition(offsets, np.arange(offsets[-1], dtype=np.int64))
    return ArrayPopulation(dataset, partition, fraction, dtype="float64")


def make(
    strategy: str | dict[str, Any],
    clients: Any = None,
    model: Any = plain,
    loss: Any = None,
    fraction: float = 0.5,
    engine: Any = None,
    **tables: Any,
) -> Experiment:
    """Return an experiment whose clients hold half of their examples out."""
    data = held_out(labelled() if clients is None else clients, fraction)
    settings: dict[str, Any] = {
        "rounds": ROUNDS,
        "clients_per_round": "all",
        "dtype": "float64",
        "strategy": strategy,
        "local": {"steps": 5, "batch_size": "full", "optimizer": {"lr": 0.1}},
        "engine": {"name": "inline", **(engine or {})},
        "evaluation": {"validation_clients": len(data.sizes) if fraction else 0},
        **tables,
    }
    config = load(None, **settings)
    population = population_for(config, data)
    made = Experiment(config, population, model, loss or load_loss(config))
    made.check()
    return made


def simulate(strategy: Any, *given: Any, **changes: Any) -> fedopt.Run:
    experiment = make(strategy, *given, **changes)
    return execute(experiment, None, SilentProgress(), keep_parameters=True)


def first_model(model: Any = plain) -> nn.Module:
    """The model that a run begins with."""
    return make("fedavg", model=model).build_model()


def personal(run: fedopt.Run, client: int, field: str = "personal") -> Tensor:
    """What a client kept after the last round."""
    found: Tensor = run.state()[f"client_{field}"][client][field]
    return found


def flat(arrays: Sequence[Tensor]) -> Tensor:
    return torch.cat([array.detach().flatten() for array in arrays])


def sgd_steps(
    model: nn.Module,
    pair: tuple[Tensor, Tensor],
    steps: int,
    trained: Sequence[str] | None = None,
    anchor: Sequence[Tensor] = (),
    lam: float = 0.0,
    lr: float = 0.1,
) -> None:
    """Take steps of gradient descent on all examples, of some of the parameters."""
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(pair[0]), pair[1])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for place, (name, p) in enumerate(model.named_parameters()):
                pull = lam * (p - anchor[place]) if lam else 0.0
                if trained is None or name in trained:
                    p -= lr * (gradients[place] + pull)


class Written:
    """Federated averaging of what is not kept, one copy of the model a client.

    Args:
        model: makes the model.
        kept: what the names of the arrays that stay with the clients begin with.
        head_steps: steps that train these alone before the others train the rest; None: all all.
    """

    def __init__(self, model: Any, kept: tuple[str, ...], head_steps: int | None = None) -> None:
        self.server = first_model(model)
        self.kept = kept
        self.head_steps = head_steps
        self.data = make("fedavg", model=model).population
        self.own: dict[int, nn.Module] = {}

    def is_kept(self, name: str) -> bool:
        return name.startswith(self.kept)

    def round(self, clients: Sequence[int], steps: int = 5) -> None:
        shared = {k: v for k, v in self.server.state_dict().items() if not self.is_kept(k)}
        sums = {name: torch.zeros_like(value) for name, value in shared.items()}
        total = 0
        for client in clients:
            own = self.own.setdefault(client, copy.deepcopy(self.server))
            own.load_state_dict(shared, strict=False)
            x, y = (torch.from_numpy(part) for part in self.data.train(client))
            names = [name for name, _ in own.named_parameters()]
            head = self.head_steps
            if head is None:
                sgd_steps(own, (x, y), steps)
            else:
                sgd_steps(own, (x, y), head, [n for n in names if self.is_kept(n)])
                sgd_steps(own, (x, y), steps - head, [n for n in names if not self.is_kept(n)])
            total += len(y)
            for name in sums:
                sums[name] += len(y) * own.state_dict()[name]
        new = {name: value / total for name, value in sums.items()}
        self.server.load_state_dict(new, strict=False)

    def kept_by(self, client: int, kind: str = "parameters") -> Tensor:
        named = getattr(self.own[client], f"named_{kind}")()
        return flat([v for n, v in named if self.is_kept(n) and v.is_floating_point()])

    def validation(self, clients: Sequence[int]) -> tuple[float, float]:
        """Loss and accuracy of the clients' own models on all their held-out examples."""
        shared = {k: v for k, v in self.server.state_dict().items() if not self.is_kept(k)}
        loss, right, seen = 0.0, 0, 0
        for client in clients:
            own = copy.deepcopy(self.own.get(client, self.server)).eval()
            own.load_state_dict(shared, strict=False)
            x, y = (torch.from_numpy(part) for part in self.data.validation(client))
            output = own(x).detach()
            loss += float(nn.functional.cross_entropy(output, y, reduction="sum"))
            right += int((output.argmax(1) == y).sum())
            seen += len(y)
        return loss / seen, right / seen


def assert_arrays(found: dict[str, Tensor], model: nn.Module, **close: Any) -> None:
    for name, array in model.state_dict().items():
        if array.is_floating_point():
            torch.testing.assert_close(found[name], array, rtol=0, atol=EXACT, **close)


# A part of the model ------------------------------------------------------------------------------

PARTS: dict[str, tuple[Any, Any, tuple[str, ...], int | None]] = {
    "fedper": ("fedper", plain, ("2.",), None),
    "fedper, named": ({"name": "fedper", "personal": ["0", "2.bias"]}, plain, ("0.", "2.b"), None),
    "fedrep": ("fedrep", plain, ("2.",), 2),
    "fedrep, mostly head": ({"name": "fedrep", "head_share": 0.8}, plain, ("2.",), 4),
    "fedbn, layer norm": ("fedbn", layer_norm, ("1.",), None),
}


@pytest.mark.parametrize("sampled", ["all", 3])
@TRAINING
@pytest.mark.parametrize("case", PARTS)
def test_what_is_personal_stays_and_the_rest_is_averaged(
    case: str, training: str, sampled: Any
) -> None:
    strategy, model, kept, head_steps = PARTS[case]
    run = simulate(strategy, None, model, engine={"training": training}, clients_per_round=sampled)
    written = Written(model, kept, head_steps)
    for _, rows in run.clients.groupby("round"):
        written.round(rows["client"].tolist())
    assert_arrays(run.parameters(), written.server)
    assert set(run.state()["client_personal"]) == set(written.own)
    for client in written.own:
        wanted = written.kept_by(client)
        torch.testing.assert_close(personal(run, client), wanted, rtol=0, atol=EXACT)
    first = dict(first_model(model).named_parameters())
    for name, array in run.parameters().items():
        if written.is_kept(name):
            assert torch.equal(array, first[name].data), "the server's own never changes"
    loss, accuracy = written.validation(range(5))
    assert run.history["validation_loss"].iloc[-1] == pytest.approx(loss, abs=EXACT)
    assert run.history["validation_accuracy"].iloc[-1] == accuracy


@pytest.mark.parametrize("sampled", ["all", 3])
def test_fedbn_keeps_batch_norms_statistics_with_the_clients(sampled: Any) -> None:
    run = simulate("fedbn", None, batch_norm, clients_per_round=sampled)
    written = Written(batch_norm, ("1.",))
    for _, rows in run.clients.groupby("round"):
        written.round(rows["client"].tolist())
    assert_arrays(run.parameters(), written.server)
    for client in written.own:
        for field, kind in (("personal", "parameters"), ("personal_buffers", "buffers")):
            kept = personal(run, client, field)[: 8 if kind == "buffers" else None]
            torch.testing.assert_close(kept, written.kept_by(client, kind), rtol=0, atol=EXACT)
    assert torch.equal(run.parameters()["1.running_var"], torch.ones(4, dtype=torch.float64))
    loss, accuracy = written.validation(range(5))
    assert run.history["validation_loss"].iloc[-1] == pytest.approx(loss, abs=EXACT)
    assert run.history["validation_accuracy"].iloc[-1] == accuracy


def test_fedrep_trains_the_head_first() -> None:
    """In a round of one step of each, the head's gradient is at x, the body's at the new head."""
    run = simulate("fedrep", local={"steps": 2, "batch_size": "full"}, rounds=1)
    written = Written(plain, ("2.",), 1)
    written.round(range(5), steps=2)
    assert_arrays(run.parameters(), written.server)


def test_a_straggler_that_is_dropped_keeps_its_old_values() -> None:
    run = simulate("fedper", system={"stragglers": 0.4})
    written = Written(plain, ("2.",))
    for _, rows in run.clients.groupby("round"):
        assert (rows["status"] == "dropped").sum() == 2
        written.round(rows[rows["status"] == "trained"]["client"].tolist())
    assert_arrays(run.parameters(), written.server)
    for client in written.own:
        wanted = written.kept_by(client)
        torch.testing.assert_close(personal(run, client), wanted, rtol=0, atol=EXACT)


# Ditto --------------------------------------------------------------------------------------------


@TRAINING
@pytest.mark.parametrize("sampled", ["all", 2])
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_ditto_pulls_personal_models_towards_the_servers(
    lam: float, sampled: Any, training: str
) -> None:
    """V_k goes on from its last value, or from x where there is none, towards the x sent."""
    run = simulate(
        {"name": "ditto", "lam": lam}, engine={"training": training}, clients_per_round=sampled
    )
    shared = Written(plain, ())
    shared.is_kept = lambda _name: False  # type: ignore[method-assign]
    own: dict[int, nn.Module] = {}
    for _, rows in run.clients.groupby("round"):
        x = [p.detach().clone() for p in shared.server.parameters()]
        for client in rows["client"]:
            v = own.setdefault(client, copy.deepcopy(shared.server))
            pair = tuple(torch.from_numpy(part) for part in shared.data.train(client))
            sgd_steps(v, pair, 5, None, x, lam)  # type: ignore[arg-type]
        shared.round(rows["client"].tolist())
    assert_arrays(run.parameters(), shared.server)
    for client, v in own.items():
        wanted = flat(list(v.parameters()))
        torch.testing.assert_close(personal(run, client), wanted, rtol=0, atol=EXACT)


MINI = {"epochs": 2, "batch_size": 3, "optimizer": {"lr": 0.1, "momentum": 0.5}}


@pytest.mark.parametrize("local", [MINI, {**MINI, "optimizer_state": "keep"}])
@pytest.mark.parametrize("model", [plain, batch_norm])
def test_dittos_shared_model_is_fedavgs_to_the_bit(local: Any, model: Any) -> None:
    one, other = (
        simulate(name, None, model, local=local, clients_per_round=3)
        for name in ("ditto", "fedavg")
    )
    for name, array in one.parameters().items():
        assert torch.equal(array, other.parameters()[name])
    gradients = [run.history["client_gradients"].iloc[-1] for run in (one, other)]
    assert gradients[0] == 2 * gradients[1]


def test_without_its_pull_dittos_personal_models_are_those_of_clients_alone() -> None:
    one, other = (
        simulate(strategy, local=MINI) for strategy in ({"name": "ditto", "lam": 0.0}, "local_only")
    )
    for client in range(5):
        mine, yours = (personal(run, client) for run in (one, other))
        # Ditto's are kept by their difference from an x that moves.
        torch.testing.assert_close(mine, yours, rtol=0, atol=1e-14)


# Clients alone ------------------------------------------------------------------------------------


@TRAINING
def test_clients_alone_go_to_their_own_optima(training: str) -> None:
    """After R rounds of K steps 1 - (1 - lr a)^(R K) of the way is done, and nothing was sent."""
    population = [(x.repeat(4, 1), y.repeat(4, 1)) for x, y in quadratics.clients()]
    local = {"steps": STEPS, "batch_size": "full", "optimizer": {"lr": LR}}
    run = simulate(
        "local_only", population, line, half_square, local=local, engine={"training": training}
    )
    far = [1 - (1 - LR * a) ** (STEPS * ROUNDS) for a in A]
    for client in range(2):
        wanted = far[client] * B[client]
        assert float(personal(run, client)) == pytest.approx(wanted, abs=1e-12)
    losses = [a / 2 * ((1 - f) * b) ** 2 for a, f, b in zip(A, far, B, strict=True)]
    assert run.history["validation_loss"].iloc[-1] == pytest.approx(np.mean(losses), abs=1e-12)
    assert float(run.parameters()["weight"]) == 0
    assert run.history["bytes_up"].tolist() == run.history["bytes_down"].tolist() == [0] * ROUNDS
    long = simulate("local_only", population, line, half_square, local=local, rounds=100)
    assert [float(personal(long, c)) for c in (0, 1)] == pytest.approx(B, abs=1e-12)


def test_statistics_of_clients_alone_are_their_own() -> None:
    run = simulate("local_only", None, batch_norm)
    first = first_model(batch_norm)
    data = make("fedavg").population
    for client in range(5):
        own = copy.deepcopy(first)
        x, y = (torch.from_numpy(part) for part in data.train(client))
        sgd_steps(own, (x, y), 5 * ROUNDS)
        wanted = flat(list(own.parameters()))
        torch.testing.assert_close(personal(run, client), wanted, rtol=0, atol=EXACT)
        kept = personal(run, client, "personal_buffers")[:8]
        wanted = flat([b for b in own.buffers() if b.is_floating_point()])
        torch.testing.assert_close(kept, wanted, rtol=0, atol=EXACT)
    assert torch.equal(run.parameters()["1.running_mean"], torch.zeros(4, dtype=torch.float64))


# Without federation -------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["reset", "keep"])
@pytest.mark.parametrize(("options", "steps"), [({}, 3 * 5), ({"steps": 7}, 7)])
def test_centralised_is_training_on_the_pooled_data(
    options: dict[str, int], steps: int, state: str
) -> None:
    """As many steps a round as the cohort would take together, or so many as are asked for."""
    run = simulate(
        {"name": "centralised", **options},
        clients_per_round=3,
        local={
            "steps": 5,
            "batch_size": "full",
            "optimizer": {"lr": 0.1, "momentum": 0.9},
            "optimizer_state": state,
        },
        fraction=0.0,
    )
    model = first_model()
    x, y = (torch.cat([pair[i] for pair in labelled()]) for i in (0, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(ROUNDS):
        if state == "reset":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert_arrays(run.parameters(), model)
    assert run.history["train_loss"].iloc[-1] == pytest.approx(np.mean(losses), abs=EXACT)
    assert run.clients["client"].tolist() == [0] * ROUNDS
    assert run.clients["examples"].tolist() == [sum(SIZES)] * ROUNDS
    assert run.clients["steps"].tolist() == [steps] * ROUNDS
    assert run.history["bytes_up"].tolist() == run.history["bytes_down"].tolist() == [0] * ROUNDS


def test_centralised_steps_cost_as_many_gradients_as_the_federations() -> None:
    local = {"epochs": 2, "batch_size": 2}
    one, other = (
        simulate(name, local=local, fraction=0.0, clients_per_round=5)
        for name in ("centralised", "fedavg")
    )
    steps = [run.history["client_steps"].iloc[-1] for run in (one, other)]
    assert steps[0] == pytest.approx(steps[1], rel=0.1)


# Bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "model", "kept"),
    [
        ("fedper", plain, ("2.",)),
        ({"name": "fedrep", "personal": ["0"]}, plain, ("0.",)),
        ("fedbn", batch_norm, ("1.",)),
        ("ditto", batch_norm, ()),
    ],
)
def test_what_is_personal_is_not_sent(strategy: Any, model: Any, kept: tuple[str, ...]) -> None:
    run = simulate(strategy, None, model, clients_per_round=3)
    whole = ParameterLayout.of(first_model(model))
    specs = [*whole.parameters, *whole.buffers]
    own = sum(spec.nbytes for spec in specs if kept and spec.name.startswith(kept))
    each = whole.nbytes - own
    rounds = np.arange(1, ROUNDS + 1)
    for column in ("bytes_up", "bytes_down"):
        assert run.history[column].tolist() == (3 * each * rounds).tolist()


# The same bits ------------------------------------------------------------------------------------

ALL: list[tuple[Any, Any]] = [
    ("fedbn", batch_norm),
    ("fedper", plain),
    ({"name": "fedrep", "head_share": 0.4}, plain),
    ("ditto", batch_norm),
    ("local_only", batch_norm),
]


@pytest.mark.parametrize(("strategy", "model"), [*ALL, ("centralised", plain)])
def test_a_resumed_run_is_the_undisturbed_one(strategy: Any, model: Any, tmp_path: Path) -> None:
    def made(rounds: int) -> Experiment:
        fraction = 0.0 if strategy == "centralised" else 0.5
        changes = {"clients_per_round": 3, "checkpoint": {"every": 1}, "local": MINI}
        return make(strategy, None, model, fraction=fraction, rounds=rounds, **changes)

    assert_same_bits(tmp_path, made)


@pytest.mark.parametrize(("strategy", "model"), [*ALL[1:3], ("fedbn", layer_norm)])
def test_stacked_clients_train_as_those_in_a_loop(strategy: Any, model: Any) -> None:
    """With minibatches of unequal clients and momentum, in blocks of two."""
    one, other = (
        simulate(strategy, None, model, local=MINI, engine={"training": training, "block_size": 2})
        for training in ("loop", "stacked")
    )
    for name, array in one.parameters().items():
        torch.testing.assert_close(other.parameters()[name], array, rtol=0, atol=EXACT)
    for client in range(5):
        mine, yours = (personal(run, client) for run in (one, other))
        torch.testing.assert_close(mine, yours, rtol=0, atol=EXACT)


def test_workers_make_no_difference_to_the_bits() -> None:
    """What clients keep is read and written by whichever worker trains them.

    Both strategies share one Ray: the changes that the median is of arrive in any order as well.
    """
    import ray

    assert not ray.is_initialized()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for strategy in ("fedbn", "median"):
            template = partial(copy.deepcopy, batch_norm())  # workers cannot import this file
            one, two = (
                simulate(
                    strategy,
                    None,
                    template,
                    local=MINI,
                    rounds=3,
                    engine={"training": "loop", "block_size": 1, **engine},
                )
                for engine in ({"name": "inline"}, {"name": "ray", "workers": 2})
            )
            assert two.summary["model_sha256"] == one.summary["model_sha256"]
            measured = [run.history["validation_loss"].tolist() for run in (one, two)]
            assert measured[0] == measured[1]
            assert digests(one.state()) == digests(two.state())
    finally:
        ray.shutdown()


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes", "says"),
    [
        ("fedbn", {}, r'strategy\.name: got "fedbn", but the model has no normalisation layer'),
        ({"name": "fedper", "personal": ["1"]}, {}, r'strategy\.personal: got "1", which no array'),
        ({"name": "fedper", "personal": ["2.wieght"]}, {}, r'Did you mean "2\.weight"\?'),
        ({"name": "fedper", "personal": ["0", "2"]}, {}, r"strategy\.personal: leaves nothing"),
        ({"name": "fedrep", "head_share": 1.0}, {}, r"strategy\.head_share: .*\(0, 1\)"),
        ({"name": "ditto", "lam": -0.1}, {}, r"strategy\.lam: .*>= 0"),
        ({"name": "centralised", "steps": 0}, {}, r"strategy\.steps: got 0"),
        (
            "local_only",
            {"fraction": 0.0},
            r"evaluation\.validation_clients: got 0 with local_only",
        ),
        (
            "local_only",
            {"server": {"optimizer": {"name": "adam"}}},
            r'server\.optimizer\.name: got "adam", but local_only has a server step',
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    strategy: Any, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        make(strategy, **changes)


def test_a_head_of_one_layer_leaves_nothing_to_share() -> None:
    with pytest.raises(ConfigError, match=r'leaves nothing to share.*"local_only"'):
        make("fedper", quadratics_held_out(), line, half_square)


def quadratics_held_out() -> Clients:
    return [(x.repeat(4, 1), y.repeat(4, 1)) for x, y in quadratics.clients()]


def test_unmeasured_personal_models_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="fedopt"):
        make("fedper", fraction=0.0)
    assert "evaluation.validation_clients is 0 with fedper" in caplog.text


# What cannot be trained ---------------------------------------------------------------------------


def test_a_personal_model_that_diverges_ends_the_run_with_the_clients_name() -> None:
    local = {"optimizer": {"lr": 0.1}}
    with pytest.raises(DivergenceError, match="the personal model is not finite"):
        quadratics.simulate({"name": "ditto", "lam": 1e4}, local=local, rounds=40)


@pytest.mark.parametrize("steps", range(2, 12))
@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_both_parts_are_trained(steps: int, share: float) -> None:
    first = Phases((True, False), share).steps(steps)
    assert 0 < first < steps
    assert abs(first - share * steps) <= 1


def test_one_step_cannot_train_two_parts() -> None:
    model = lambda: nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))  # noqa: E731
    with pytest.raises(ConfigError, match=r"local\.steps: fedrep trains head and body"):
        quadratics.simulate({"name": "fedrep"}, model=model, local={"steps": 1})


def test_clients_in_memory_can_hold_examples_out() -> None:
    x = np.linspace(-1, 1, 20)[:, None]
    run = fedopt.simulate(
        clients=[(x, 2 * x), (x, -x)],
        model=lambda: nn.Linear(1, 1),
        loss=half_square,
        data={"validation_fraction": 0.25},
        evaluation={"validation_clients": 2},
        strategy="local_only",
        rounds=3,
        clients_per_round="all",
        engine="inline",
    )
    assert run.clients["examples"].unique().tolist() == [15]
    assert run.history["validation_loss"].is_monotonic_decreasing
    assert run.config.data.dump()["validation_fraction"] == 0.25
    with pytest.raises(ConfigError, match=r"data\.label_noise: got 0\.5"):
        fedopt.simulate(clients=[(x, x)], data={"label_noise": 0.5})
