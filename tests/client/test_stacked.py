"""The stacked engine trains every client as the loop engine does."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedopt
from fedopt.client import handwritten, softmax_steps, stacked, stacked_batches, stacked_layers
from fedopt.client.algorithm import LocalTerms
from fedopt.client.dense_steps import DenseSteps
from fedopt.client.engines import choose_engine
from fedopt.client.loop import LoopEngine
from fedopt.client.plan import LocalWork, plan_clients
from fedopt.client.rates import constant_rates
from fedopt.client.recipe import Recipe
from fedopt.client.softmax_steps import SoftmaxSteps
from fedopt.client.stacked import NotStackableError, check_stackable
from fedopt.data.population import Examples
from fedopt.errors import ConfigError
from fedopt.models.residual import Residual, resnet
from fedopt.optim.curvature import KroneckerRule
from fedopt.optim.rules import Adam, Sgd

# Float64 sums of a few products in another order: some 1e-15 a step, over a hundred steps.
TOLERANCE = 1e-12


def ragged_clients(features: int = 6, classes: int = 3) -> list[tuple[Any, Any]]:
    """Clients of very different sizes, so that batches are padded and prefixes shrink."""
    rng = np.random.default_rng(5)
    sizes = (1, 2, 7, 7, 10, 11, 23, 40)
    return [(rng.normal(size=(n, features)), rng.integers(0, classes, n)) for n in sizes]


def model(kind: str) -> nn.Module:
    """A model of some layers, over six features and three classes."""
    layers: dict[str, list[nn.Module]] = {
        "logistic": [nn.Linear(6, 3)],
        "unbiased": [nn.Flatten(), nn.Linear(6, 3, bias=False)],
        "mlp": [nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)],
        "wide": [  # enough for torch to leave its products to a library
            nn.Linear(6, 64),
            nn.ReLU(),
            nn.Linear(64, 33),
            nn.ReLU(),
            nn.Linear(33, 3),
        ],
        "nested": [nn.Sequential(nn.Linear(6, 8), nn.Tanh()), nn.Sequential(nn.Linear(8, 3))],
        "layer_norm": [nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)],
        "group_norm": [nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 3)],
        "norm_first": [nn.LayerNorm(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)],
        "dropout": [nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3)],
        "residual": [
            Residual(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6)), nn.Sequential()),
            nn.ReLU(),
            Residual(
                nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.2)),
                nn.Sequential(nn.Linear(6, 3, bias=False)),
            ),
        ],
    }
    return nn.Sequential(*layers[kind])


def train(training: str, kind: str = "mlp", **tables: Any) -> fedopt.Run:
    local = {"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
    local |= tables.pop("local", {})
    return fedopt.simulate(
        model=lambda: model(kind),
        clients=ragged_clients(),
        rounds=3,
        clients_per_round=6,
        dtype="float64",
        local=local,
        engine={"name": "inline", "training": training, "block_size": 4},
        **tables,
    )


def assert_agree(one: fedopt.Run, other: fedopt.Run) -> None:
    mine, yours = one.parameters(), other.parameters()
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, yours[name], rtol=TOLERANCE, atol=TOLERANCE)
    columns = ["client", "status", "examples", "steps", "planned_steps", "weight"]
    keys = ["round", "client"]
    first, second = one.clients.sort_values(keys), other.clients.sort_values(keys)
    assert first[columns].reset_index(drop=True).equals(second[columns].reset_index(drop=True))
    for column in ("train_loss", "update_norm"):
        np.testing.assert_allclose(first[column], second[column], rtol=TOLERANCE)


@pytest.mark.parametrize(
    "kind",
    [
        "logistic",
        "unbiased",
        "mlp",
        "nested",
        "layer_norm",
        "group_norm",
        "norm_first",
        "dropout",
        "residual",
    ],
)
def test_every_layer_agrees_with_the_loop(kind: str) -> None:
    assert_agree(train("stacked", kind), train("loop", kind))


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.1, "weight_decay": 0.05},
        {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        {"name": "adam", "lr": 0.01},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_every_rule_agrees_with_the_loop(kind: str, optimizer: dict[str, Any], mu: float) -> None:
    tables: dict[str, Any] = {
        "kind": kind,
        "local": {"optimizer": optimizer},
        "strategy": {"name": "fedprox", "mu": mu},
        "system": {"stragglers": 0.5},
    }
    assert_agree(train("stacked", **tables), train("loop", **tables))


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_scaffold_agrees_with_the_loop(kind: str, option: str, momentum: float) -> None:
    tables: dict[str, Any] = {
        "kind": kind,
        "strategy": {"name": "scaffold", "option": option},
        "local": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": momentum}},
        "system": {"stragglers": 0.5},
    }
    stacked, loop = train("stacked", **tables), train("loop", **tables)
    assert_agree(stacked, loop)
    for name, mine in stacked.state()["control_variate"].items():
        yours = loop.state()["control_variate"][name]
        torch.testing.assert_close(mine, yours, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("amount", [{"steps": 5}, {"steps": 3, "batch_size": None}])
@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_steps_and_full_batches_agree_with_the_loop(kind: str, amount: dict[str, Any]) -> None:
    local = {"epochs": None, **amount}
    assert_agree(train("stacked", kind, local=local), train("loop", kind, local=local))


@pytest.mark.parametrize("kind", ["logistic", "mlp", "wide"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_dense_models_are_stepped_by_hand_to_the_same_bits_in_any_group(
    kind: str, dtype: str, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bits of a client do not depend on how many are beside it, where no batch is padded."""
    rng = np.random.default_rng(5)
    sizes = (4, 8, 8, 12, 24, 24, 32, 40)
    clients = [(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in sizes]
    taken = []
    steps = SoftmaxSteps if kind == "logistic" else DenseSteps
    take = steps.take
    monkeypatch.setattr(steps, "take", lambda self, stretch: taken.append(1) or take(self, stretch))
    losses = []
    for size in (2, blocks):
        run = fedopt.simulate(
            model=lambda: model(kind),
            clients=clients,
            rounds=1,
            clients_per_round=None,
            dtype=dtype,
            strategy={"name": "fedprox", "mu": 0.3},
            local={
                "epochs": 3,
                "batch_size": 4,
                "optimizer": {"name": "sgd", "lr": 0.1},
                "schedule": {"name": "one_cycle"},
            },
            engine={"name": "inline", "training": "stacked", "block_size": size},
        )
        losses.append(run.clients.set_index("client")[["train_loss", "update_norm"]].sort_index())
    assert taken
    assert losses[0].equals(losses[1])


def test_large_products_stay_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax_steps, "MOST_PRODUCTS", 6 * 3 * 4 - 1)
    monkeypatch.setattr(SoftmaxSteps, "take", None)
    assert_agree(train("stacked", "logistic"), train("loop", "logistic"))


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
@pytest.mark.parametrize(
    "work", [{"epochs": 3, "batch_size": 4}, {"epochs": 4, "batch_size": "full"}]
)
def test_where_a_stretch_of_steps_ends_changes_no_bit(
    kind: str, work: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    local = {"optimizer": {"lr": 0.1, "weight_decay": 0.01}, **work}
    tables = {"local": local, "strategy": {"name": "scaffold"}, "system": {"stragglers": 0.5}}
    whole = train("stacked", kind, **tables)
    for examples in (1, 7, 40):
        monkeypatch.setattr(stacked_batches, "_STRETCH_EXAMPLES", examples)
        monkeypatch.setattr(handwritten, "_STAGE_OUTPUTS", 5 * examples)
        found = train("stacked", kind, **tables)
        assert found.summary["model_sha256"] == whole.summary["model_sha256"], examples
        assert found.history["train_loss"].equals(whole.history["train_loss"])


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_divergence_is_told_once_and_not_by_numpy(kind: str) -> None:
    with pytest.raises(fedopt.ClientError, match="diverged"):
        train("stacked", kind, local={"optimizer": {"name": "sgd", "lr": 1e300}})


def test_a_loss_of_the_user_agrees_with_the_loop() -> None:
    def focal(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p = output.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        return (-((1 - log_p.exp()) ** 2) * log_p).mean()

    assert_agree(train("stacked", loss=focal), train("loop", loss=focal))


@pytest.mark.parametrize("kind", ["mlp", "logistic"])
def test_stacked_steps_are_the_clients_own_whoever_is_beside_them(kind: str) -> None:
    """A diverging neighbour must not leak into a client's norm, step or loss."""
    clients = ragged_clients()
    wild = [(x * 1e6, y) if i == 3 else (x, y) for i, (x, y) in enumerate(clients)]
    norms = []
    for population in (clients, wild):
        run = fedopt.simulate(
            model=lambda: model(kind),
            clients=population,
            rounds=1,
            clients_per_round=None,
            dtype="float64",
            local={"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.01}},
            engine={"name": "inline", "training": "stacked", "block_size": 8},
        )
        norms.append(run.clients.set_index("client")["update_norm"])
    others = [c for c in range(len(clients)) if c != 3]
    np.testing.assert_array_equal(norms[0][others], norms[1][others])
    assert norms[1][3] > 1e3 * norms[0][3]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding="same")), "Conv2d with padding"),
        (nn.Linear(3, 2).requires_grad_(False), "frozen parameters"),
        (nn.Sequential(nn.Flatten(2)), "Flatten of some axes"),
        (nn.BatchNorm1d(3), "BatchNorm1d has no stacked form"),
    ],
)
def test_what_cannot_be_stacked_is_named(layer: nn.Module, words: str) -> None:
    with pytest.raises(NotStackableError, match=words):
        check_stackable(layer)


def test_tied_weights_are_not_stacked() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(NotStackableError, match="tied"):
        check_stackable(tied)


def test_the_engine_is_chosen_by_a_fixed_rule() -> None:
    cpu = torch.device("cpu")
    dense = nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    assert choose_engine("auto", dense, Recipe(Sgd()), cpu).name == "stacked"
    assert choose_engine("auto", dense, Recipe(Adam()), cpu).name == "stacked"
    assert choose_engine("auto", dense, Recipe(Sgd(), penalty=0.1), cpu).name == "loop"
    small = nn.Linear(60, 10)
    assert choose_engine("auto", small, Recipe(Sgd(), penalty=0.1), cpu).name == "stacked"
    huge = nn.Linear(3000, 1000)  # two of them do not fit into the cache
    assert choose_engine("auto", huge, Recipe(Sgd()), cpu).name == "loop"
    assert choose_engine("auto", nn.Linear(60, 10), Recipe(Adam()), cpu).name == "stacked"
    chosen = choose_engine("auto", conv, Recipe(Sgd()), cpu)
    assert (chosen.name, chosen.reason.split()[0]) == ("loop", "convolutions")
    assert choose_engine("auto", conv, Recipe(Sgd()), torch.device("cuda")).name == "stacked"
    with pytest.raises(ConfigError, match=r"engine\.training.*BatchNorm1d"):
        choose_engine(
            "stacked", nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), Recipe(Sgd()), cpu
        )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 2)])
def test_stacked_convolutions_agree_with_the_loop(stride: int, groups: int) -> None:
    rng = np.random.default_rng(2)
    clients = [(rng.normal(size=(n, 2, 8, 8)), rng.integers(0, 3, n)) for n in (3, 5, 9)]

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=stride, padding=1, groups=groups),
            nn.GroupNorm(2, 4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    runs = [
        fedopt.simulate(
            model=network,
            clients=clients,
            rounds=2,
            clients_per_round=None,
            dtype="float64",
            strategy="scaffold",
            local={"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
            engine={"name": "inline", "training": training, "block_size": 3},
        )
        for training in ("stacked", "loop")
    ]
    assert_agree(*runs)


class Scale(nn.Module):
    """A layer of the user's: multiplies by a learned vector."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_a_registered_layer_is_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_layers, "STACKED_FORMS", dict(stacked_layers.STACKED_FORMS))
    monkeypatch.setattr(stacked, "STACKED_FORMS", stacked_layers.STACKED_FORMS)
    scaled = nn.Sequential(nn.Linear(6, 8), Scale(), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(NotStackableError, match="Scale"):
        check_stackable(scaled)

    stacked_layers.register_stacked(
        Scale,
        lambda layer, parameters, own, draws: stacked_layers.StackedModule(
            lambda mine, x: x * mine[0].unsqueeze(1), parameters, list(own.values())
        ),
    )
    runs = [
        fedopt.simulate(
            model=scaled,
            clients=ragged_clients(),
            rounds=2,
            clients_per_round=None,
            dtype="float64",
            local={"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.1}},
            engine={"name": "inline", "training": training},
        )
        for training in ("stacked", "loop")
    ]
    assert_agree(*runs)


@pytest.mark.parametrize(
    "tables",
    [
        {"strategy": {"name": "fedprox", "mu": 0.1}},
        {"strategy": "scaffold"},
        {
            "local": {
                "optimizer": {"name": "adam", "lr": 0.01},
                "sam": {"rho": 0.05},
                "gradient": {"clip_norm": 1.0, "penalty": 0.01},
            }
        },
    ],
    ids=["proximal", "corrected", "twice differentiated"],
)
def test_a_residual_network_agrees_with_the_loop(tables: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    sizes = (1, 3, 8, 9)
    clients = [(rng.normal(size=(n, 2, 8, 8)), rng.integers(0, 3, n)) for n in sizes]
    local = {"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.05}}
    runs = [
        fedopt.simulate(
            model=lambda: resnet((2, 8, 8), 3, width=4),
            clients=clients,
            rounds=2,
            clients_per_round=3,
            dtype="float64",
            engine={"name": "inline", "training": training},
            **(tables | {"local": local | tables.get("local", {})}),
        )
        for training in ("stacked", "loop")
    ]
    assert_agree(*runs)


def test_what_is_inside_a_residual_block_is_looked_at() -> None:
    def block(*body: nn.Module) -> nn.Sequential:
        return nn.Sequential(Residual(nn.Sequential(*body), nn.Sequential()), nn.Linear(4, 3))

    twice = nn.Linear(4, 4)
    for model_, words in (
        (block(nn.Linear(4, 4), nn.BatchNorm1d(4)), "BatchNorm1d has no stacked form"),
        (block(twice, nn.ReLU(), twice), "tied parameters"),
        (block(nn.Linear(4, 4).requires_grad_(False)), "frozen parameters"),
    ):
        with pytest.raises(NotStackableError, match=words):
            check_stackable(model_)
    recipe = Recipe(KroneckerRule())
    with pytest.raises(ConfigError, match="inside residual blocks"):
        choose_engine("stacked", block(nn.Linear(4, 4)), recipe, torch.device("cpu"))
    assert choose_engine("auto", block(nn.Linear(4, 4)), recipe, torch.device("cpu")).name == "loop"


@pytest.mark.parametrize("kind", ["mlp", "logistic"])
@pytest.mark.parametrize("rule", [Sgd(), Sgd(momentum=0.9, weight_decay=0.1), Adam()])
def test_learning_rates_may_differ_between_clients(rule: Any, kind: str) -> None:
    """Each client at its own rates is the loop at those rates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layered = model(kind).double()
    rng = np.random.default_rng(0)
    work = LocalWork(epochs=2, steps=None, batch_size=4)
    sizes, steps = [9, 9, 5], [6, 6, 4]
    plans = [
        replace(plan, learning_rates=plan.learning_rates * (1 + 0.5 * i) / np.arange(1, k + 1))
        for i, (plan, k) in enumerate(
            zip(
                plan_clients(work, 0, 1, [4, 7, 9], sizes, constant_rates(0.01), steps),
                steps,
                strict=True,
            )
        )
    ]
    examples = [Examples(rng.normal(size=(n, 6)), rng.integers(0, 3, n)) for n in sizes]
    cpu, loss = torch.device("cpu"), nn.functional.cross_entropy
    stacked_engine = stacked.StackedEngine(copy.deepcopy(layered), loss, Recipe(rule), 0, cpu)
    loop_engine = LoopEngine(copy.deepcopy(layered), loss, Recipe(rule), 0, cpu)
    start = loop_engine.layout.state({n: p.detach() for n, p in layered.named_parameters()})
    terms = LocalTerms(proximal=0.3)
    joined = Examples(*(np.concatenate(part) for part in zip(*examples, strict=True)))
    together = stacked_engine.train(start, 1, plans, joined, terms).delta
    for i, (plan, data) in enumerate(zip(plans, examples, strict=True)):
        alone = loop_engine.train(start, 1, [plan], data, terms).delta[0]
        torch.testing.assert_close(together[i], alone, rtol=TOLERANCE, atol=TOLERANCE)


def test_rates_of_those_beside_change_no_bit() -> None:
    """In float32, where a factor that is rounded otherwise shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layered = model("logistic")
    rng = np.random.default_rng(0)
    work = LocalWork(epochs=3, steps=None, batch_size=4)
    sizes, steps = [12, 12, 8], [9, 9, 6]
    plans = [
        replace(plan, learning_rates=plan.learning_rates * (1.1 + 0.37 * i))
        for i, plan in enumerate(
            plan_clients(work, 0, 1, [4, 7, 9], sizes, constant_rates(0.1), steps)
        )
    ]
    examples = [
        Examples(rng.normal(size=(n, 6)).astype(np.float32), rng.integers(0, 3, n)) for n in sizes
    ]
    engine = stacked.StackedEngine(
        layered, nn.functional.cross_entropy, Recipe(Sgd()), 0, torch.device("cpu")
    )
    start = engine.layout.state({n: p.detach() for n, p in layered.named_parameters()})
    pull = torch.from_numpy(rng.normal(size=(1, engine.layout.size)).astype(np.float32))
    terms = LocalTerms(proximal=0.3, correction=pull)
    joined = Examples(*(np.concatenate(part) for part in zip(*examples, strict=True)))
    together = engine.train(start, 1, plans, joined, terms).delta.clone()
    for i, (plan, data) in enumerate(zip(plans, examples, strict=True)):
        assert torch.equal(engine.train(start, 1, [plan], data, terms).delta[0], together[i]), i


class Pooled(nn.Module):
    """The mean over positions, `[B, T, D]` to `[B, D]`; its stacked form is registered below."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(-2)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_embeddings_agree_with_the_loop(
    padding: int | None, penalty: float, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, of which a client has few, looked up, embedded again and averaged."""
    forms = dict(stacked_layers.STACKED_FORMS)
    monkeypatch.setattr(stacked_layers, "STACKED_FORMS", forms)
    monkeypatch.setattr(stacked, "STACKED_FORMS", forms)
    stacked_layers.register_stacked(
        Pooled,
        lambda layer, parameters, own, draws: stacked_layers.StackedModule(
            lambda mine, x: x.mean(-2), parameters, []
        ),
    )
    rng = np.random.default_rng(3)
    clients = [(rng.integers(0, 7, (n, 5)), rng.integers(0, 3, n)) for n in (3, 9, 14)]

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Embedding(7, 4, padding_idx=padding), nn.Linear(4, 6), nn.Tanh(), Pooled(),
            nn.Linear(6, 3),
        )  # fmt: skip

    runs = [
        fedopt.simulate(
            model=network,
            clients=clients,
            test=clients[1],
            rounds=3,
            clients_per_round=None,
            dtype="float64",
            local={
                "epochs": 2,
                "batch_size": 4,
                "optimizer": {"name": optimizer, "lr": 0.05},
                "gradient": {"penalty": penalty},
            },
            engine={"name": "inline", "training": training},
        )
        for training in ("stacked", "loop")
    ]
    assert_agree(*runs)
    assert runs[0].summary["engine"]["training"] == "stacked"
    start = fedopt.simulate(
        model=network, clients=clients, rounds=1, clients_per_round=None, dtype="float64",
        local={"steps": 1, "optimizer": {"name": "sgd", "lr": 1e-30}}, engine={"name": "inline"},
    )  # fmt: skip
    moved = runs[0].parameters()["0.weight"] - start.parameters()["0.weight"]
    assert bool((moved[0] == 0).all()) == (padding == 0)


def test_inputs_that_are_no_integers_cannot_be_looked_up() -> None:
    clients = [(np.full((4, 2), 0.5), np.array([0, 1, 0, 1]))]
    with pytest.raises(fedopt.FedoptError, match="not whole numbers"):
        fedopt.simulate(
            model=lambda: nn.Sequential(nn.Embedding(3, 2), nn.Flatten(), nn.Linear(4, 2)),
            clients=clients,
            rounds=1,
            clients_per_round=None,
            engine={"name": "inline"},
        )


@pytest.mark.parametrize("token", [7, -1])
def test_a_token_outside_the_table_is_its_own_clients_error(token: int) -> None:
    """It must not read the table of the client beside."""
    rng = np.random.default_rng(3)
    clients = [(rng.integers(0, 7, (6, 3)), rng.integers(0, 2, 6)) for _ in range(3)]
    clients[1][0][4, 1] = token
    with pytest.raises(fedopt.ClientError, match=r"client 1.*(?s:.*)index out of range"):
        fedopt.simulate(
            model=lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2)),
            clients=clients,
            clients_per_round=None,
            rounds=1,
            engine={"name": "inline", "training": "stacked"},
        )
