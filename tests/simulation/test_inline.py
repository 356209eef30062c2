"""Strategies as Flower's: driven message by message, through grids of our own and of Flower's."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import nn

import fedopt
from fedopt.analysis.progress import SilentProgress
from fedopt.client.app import client_app
from fedopt.config import load
from fedopt.errors import ConfigError, RunError
from fedopt.experiment import Experiment
from fedopt.models.layout import ParameterLayout
from fedopt.recorder import Recorder, make_strategy, model_state
from fedopt.records import from_record, to_record
from fedopt.run import execute, in_memory, train
from fedopt.server.checkpoint import digest
from fedopt.server.strategy import FederatedStrategy
from fedopt.simulation.grid import DirectGrid
from fedopt.simulation.inline import InlineGrid

NONE = ConfigRecord({})
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 0.5},
    "scaffold": {"name": "scaffold"},
    "scaffold_I": {"name": "scaffold", "option": "I"},
}


def population(clients: int = 12) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    return [(rng.normal(size=(5 + c, 4)), rng.integers(0, 3, 5 + c)) for c in range(clients)]


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def experiment(strategy: str = "fedavg", model: Any = None, **tables: Any) -> Experiment:
    settings: dict[str, Any] = {
        "rounds": 4,
        "clients_per_round": 5,
        "strategy": STRATEGIES[strategy],
        "local": {"epochs": 2, "batch_size": 4},
        "engine": {"name": "inline", "block_size": 2},
        "model": "mlp",
        **tables,
    }
    return in_memory(load(None, **settings), model, None, population())


def initial(setup: Experiment) -> ArrayRecord:
    model = setup.build_model()
    layout = ParameterLayout.of(model)
    return to_record(layout.named(model_state(model, layout)))


class Nodes(DirectGrid):
    """Several nodes in this process, which answer in a random order."""

    def __init__(self, setup: Experiment, nodes: int, seed: int) -> None:
        super().__init__(nodes)
        self._random = random.Random(seed)
        self._apps = {node: client_app(setup) for node in self.get_node_ids()}

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        shuffled = self._random.sample(list(messages), len(messages))
        return [self._answer(message) for message in shuffled]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return self._random.sample(replies, len(replies))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(1, node, {}, RecordDict(), {})
        return self._apps[node](message, context)


def run_on(setup: Experiment, grid: DirectGrid) -> fedopt.Run:
    with Recorder(setup, None, SilentProgress(), False, False) as recorder:
        train(setup, recorder, grid)
        return recorder.finish()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("nodes", [1, 2, 3, 7])
def test_nodes_and_the_order_of_replies_do_not_matter(strategy: str, nodes: int) -> None:
    """In float64, where another order of the sums shows; in float32 it rounds away."""
    tables: dict[str, Any] = {
        "dtype": "float64",
        "clients_per_round": 11,
        "engine": {"name": "inline", "block_size": 1},
    }
    reference = execute(experiment(strategy, **tables), None, SilentProgress())
    setup = experiment(strategy, **tables)
    run = run_on(setup, Nodes(setup, nodes, seed=nodes))
    assert run.summary["model_sha256"] == reference.summary["model_sha256"]
    columns = [c for c in run.history if c != "wall_seconds"]
    assert run.history[columns].equals(reference.history[columns])
    assert run.clients.equals(reference.clients)


@pytest.mark.parametrize("nodes", [2, 3, 7])
@pytest.mark.parametrize("wanted", [7, 1.0])
def test_sums_over_training_data_are_the_same_on_any_nodes(nodes: int, wanted: float) -> None:
    evaluation = {"training_clients": wanted, "gradients": True}
    for dtype in ("float32", "float64"):
        reference = execute(
            experiment(dtype=dtype, model=batch_norm, evaluation=evaluation), None, SilentProgress()
        )
        setup = experiment(dtype=dtype, model=batch_norm, evaluation=evaluation)
        run = run_on(setup, Nodes(setup, nodes, seed=nodes))
        columns = ["objective", "gradient_variance", "gradient_dissimilarity"]
        assert run.history[columns].equals(reference.history[columns])
        assert run.history[columns].notna().all(axis=None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_flowers_own_loop_gives_the_same_model(strategy: str) -> None:
    setup = experiment(strategy, evaluation={"validation_clients": 0})
    reference = execute(setup, None, SilentProgress())
    mine = make_strategy(setup, None)
    with InlineGrid(setup) as grid:
        result = mine.start(grid=grid, initial_arrays=initial(setup), num_rounds=4)
    assert digest(from_record(result.arrays)) == reference.summary["model_sha256"]
    losses = [result.train_metrics_clientapp[r]["train_loss"] for r in range(1, 5)]
    assert losses == reference.history["train_loss"].tolist()


def test_strategies_are_flowers() -> None:
    from flwr.serverapp.strategy import Strategy

    for name in ("FedAvg", "FedProx", "Scaffold"):
        strategy = getattr(fedopt.server, name)
        assert issubclass(strategy, FederatedStrategy)
        assert issubclass(strategy, Strategy)


# Rounds that are lost -----------------------------------------------------------------------------


def gap(strategy: FederatedStrategy, clients: int) -> float:
    """Largest |c - mean c_i|."""
    store = strategy.store
    assert store is not None
    c = strategy.vectors()["control_variate"]
    total = torch.zeros_like(c)
    for client in store.clients():
        total += store.read(client)["control_variate"].double()
    return float((c - total / clients).abs().max())


def test_a_lost_round_leaves_the_controls_alone() -> None:
    setup = experiment("scaffold")
    strategy, arrays = make_strategy(setup, None), initial(setup)
    with InlineGrid(setup) as grid:
        for round in range(1, 9):
            messages = list(strategy.configure_train(round, arrays, NONE, grid))
            replies = grid.send_and_receive(messages)
            if round % 2:  # the clients trained and wrote, but nobody heard of it
                with pytest.raises(RunError, match="no reply for blocks"):
                    strategy.aggregate_train(round, replies[:0])
                continue
            new, _ = strategy.aggregate_train(round, replies)
            assert new is not None
            arrays = new
            # Float64 sums of differences that are exact.
            assert gap(strategy, 12) < 1e-14
    assert float(strategy.vectors()["control_variate"].abs().max()) > 1e-3


def test_a_round_done_again_gives_the_same_bits() -> None:
    setup = experiment("scaffold")
    plain, retried = make_strategy(setup, None), make_strategy(setup, None)
    with InlineGrid(setup) as grid:
        arrays = dict.fromkeys((plain, retried), initial(setup))
        for round in range(1, 5):
            for strategy in (plain, retried):
                for _ in range(1 if strategy is plain else 2):
                    messages = strategy.configure_train(round, arrays[strategy], NONE, grid)
                    replies = grid.send_and_receive(messages)
                new, _ = strategy.aggregate_train(round, replies)
                assert new is not None
                arrays[strategy] = new
    assert digest(from_record(arrays[plain])) == digest(from_record(arrays[retried]))
    assert torch.equal(plain.vectors()["control_variate"], retried.vectors()["control_variate"])


def test_a_missing_block_is_an_error() -> None:
    setup = experiment()
    strategy = make_strategy(setup, None)
    grid = Nodes(setup, 3, seed=0)
    messages = strategy.configure_train(1, initial(setup), NONE, grid)
    replies = grid.send_and_receive(messages)
    assert len(replies) == 3
    with pytest.raises(RunError, match="round 1: no reply for blocks"):
        strategy.aggregate_train(1, replies[1:])


def test_an_error_reply_is_an_error() -> None:
    from flwr.app import Error

    setup = experiment()
    strategy = make_strategy(setup, None)
    grid = InlineGrid(setup)
    (message,) = strategy.configure_train(1, initial(setup), NONE, grid)
    reply = Message(Error(code=2, reason="out of memory"), reply_to=message)
    with pytest.raises(RunError, match="out of memory"):
        strategy.aggregate_train(1, [reply])


def test_other_arrays_become_the_model() -> None:
    """A caller may change the model between rounds, as Flower's strategies allow."""
    setup = experiment()
    strategy = make_strategy(setup, None)
    with InlineGrid(setup) as grid:
        first = initial(setup)
        replies = grid.send_and_receive(strategy.configure_train(1, first, NONE, grid))
        strategy.aggregate_train(1, replies)
        zeros = to_record({k: torch.zeros_like(v) for k, v in from_record(first).items()})
        strategy.configure_train(2, zeros, NONE, grid)
        assert not strategy.state.parameters.any()


def test_no_nodes_is_an_error() -> None:
    setup = experiment()
    with pytest.raises(RunError, match="no node"):
        make_strategy(setup, None).configure_train(1, initial(setup), NONE, Nodes(setup, 0, 0))


# Buffers ------------------------------------------------------------------------------------------


def test_buffers_are_averaged_and_counters_stay_integers() -> None:
    """Batches of one example are what BatchNorm cannot take, so each client takes all of its."""
    tables = {"local": {"steps": 3, "batch_size": "full"}, "clients_per_round": "all"}
    setup = experiment("fedavg", batch_norm, **tables)
    run = execute(setup, None, SilentProgress())
    arrays = run.parameters()
    counter = arrays["1.num_batches_tracked"]
    assert (int(counter), counter.dtype) == (3 * 4, torch.int64)
    # One round by hand: the example-weighted mean of the clients' running means.
    one = execute(
        experiment("fedavg", batch_norm, rounds=1, **tables), None, SilentProgress()
    ).parameters()
    means, sizes = [], []
    for client in range(12):
        alone = in_memory(
            load(None, rounds=1, strategy="fedavg", engine="inline", **tables),
            batch_norm,
            None,
            [population()[client]],
        )
        means.append(execute(alone, None, SilentProgress()).parameters()["1.running_mean"])
        sizes.append(5 + client)
    expected = sum(n * m.double() for n, m in zip(sizes, means, strict=True)) / sum(sizes)
    # Float32 buffers.
    torch.testing.assert_close(one["1.running_mean"].double(), expected, rtol=1e-5, atol=1e-7)


# Grids --------------------------------------------------------------------------------------------


def test_a_grid_answers_each_message_once() -> None:
    setup = experiment()
    grid = Nodes(setup, 2, seed=1)
    messages = list(make_strategy(setup, None).configure_train(1, initial(setup), NONE, grid))
    ids = grid.push_messages(messages)
    assert len(set(ids)) == len(messages) == 2
    replies = grid.pull_messages(reversed(ids))
    assert [r.metadata.reply_to_message_id for r in replies] == list(reversed(ids))
    assert grid.pull_messages(ids) == []


def test_the_inline_grid_needs_no_ray() -> None:
    import subprocess

    program = (
        "import sys, torch, fedopt\n"
        "data = [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))] * 2\n"
        "fedopt.simulate(clients=data, rounds=1, clients_per_round=None, model='logistic',\n"
        "                engine='inline')\n"
        "sys.exit('ray was imported' if 'ray' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Resuming -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(
    strategy: str, damaged: bool, tmp_path: Path
) -> None:
    tables = {"checkpoint": {"every": 2, "keep": 2}, "system": {"stragglers": 0.4}}
    whole = execute(experiment(strategy, rounds=7, **tables), tmp_path / "whole", SilentProgress())
    short = tmp_path / "short"
    execute(experiment(strategy, rounds=5, **tables), short, SilentProgress())
    if damaged:
        newest = max((short / "checkpoints").iterdir())
        newest.write_bytes(newest.read_bytes()[:-8])
    resumed = execute(
        experiment(strategy, rounds=7, **tables), short, SilentProgress(), resume=True
    )
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    columns = [c for c in whole.history if c != "wall_seconds"]
    assert resumed.history[columns].equals(whole.history[columns])
    assert resumed.clients.equals(whole.clients)
    for name, vectors in whole.state().items():
        assert digest_of(vectors) == digest_of(resumed.state()[name])


def digest_of(tree: Any) -> Any:
    """The digests of the tensors in nested dictionaries."""
    if all(isinstance(v, torch.Tensor) for v in tree.values()):
        return digest(tree)
    return {key: digest_of(value) for key, value in tree.items()}


def test_only_a_run_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no rounds\.csv"):
        execute(experiment(), tmp_path, SilentProgress(), resume=True)
