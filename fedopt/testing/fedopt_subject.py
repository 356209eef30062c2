"""fedopt's strategies as subjects: a run of `fedopt.simulate` on quadratic clients."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from pydantic import ValidationError
from torch import Tensor, nn

from fedopt.client.app import client_app
from fedopt.config import load
from fedopt.experiment import Experiment, load_strategy
from fedopt.results import Run
from fedopt.simulation.grid import DirectGrid
from fedopt.single_thread import single_thread
from fedopt.testing.kinds import KINDS, claims_of, with_default
from fedopt.testing.ordering import ordered
from fedopt.testing.task import NotApplicableError, Order, Quadratics, Task, Trajectory, Vector

COUNTER = "num_batches_tracked"
"""Name of the model's integer buffer, as in BatchNorm."""


class Counter(nn.Module):
    """Hands its input on, and counts the batches of training in an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer(COUNTER, torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return x."""
        if self.training:
            self.get_buffer(COUNTER).add_(1)
        return x


class Scale(nn.Module):
    """w * x, elementwise: the gradient of the loss is a (w - b) for x = sqrt(a), target x b.

    Args:
        start: w at first, `[P]`.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return w * x, `[B, P]`."""
        return x * self.weight


class NormScale(nn.LayerNorm):
    """As `Scale`, but counted among the normalisation layers, though it normalises nothing.

    Args:
        start: w at first, `[P]`.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__(len(start), bias=False)
        self.weight = nn.Parameter(start.clone())

    def forward(self, input: Tensor) -> Tensor:
        """Return w * x, `[B, P]`."""
        return input * self.weight


class BodyAndHead(nn.Module):
    """The first parameters as `body.weight`, the last as `head.weight`.

    Args:
        start: all of them at first, `[P]`.
        head: how many are the head's.
    """

    def __init__(self, start: Tensor, head: int) -> None:
        super().__init__()
        self.body = Scale(start[:-head])
        self.head = NormScale(start[-head:])

    def forward(self, x: Tensor) -> Tensor:
        """Return w * x, `[B, P]`."""
        split = len(self.body.weight)
        return torch.cat([self.body(x[:, :split]), self.head(x[:, split:])], dim=1)


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the batch of |output - target|^2 / 2."""
    return 0.5 * (output - target).square().sum(1).mean()


def examples_of(population: Quadratics) -> list[tuple[Tensor, Tensor]]:
    """Return the clients' examples, all of a client the same: sqrt(a) and sqrt(a) b, `[n, P]`."""
    roots = np.sqrt(population.curvature)
    rows = zip(roots, roots * population.optimum, population.examples, strict=True)
    return [(_repeated(x, n), _repeated(y, n)) for x, y, n in rows]


def _repeated(row: Vector, count: int) -> Tensor:
    return torch.from_numpy(np.tile(row, (count, 1)))


def model_of(task: Task) -> nn.Module:
    """Return the model of a task: a linear layer for one parameter, which all engines train."""
    start = torch.from_numpy(task.first)
    model: nn.Module
    if task.head:
        model = BodyAndHead(start, task.head)
    elif len(start) > 1:
        model = Scale(start)
    else:
        model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        model.weight.data.copy_(start.reshape(1, 1))
    return nn.Sequential(Counter(), model) if task.counter else model


class OrderedGrid(DirectGrid):
    """Several nodes in this process, whose replies reach the server in an order of choice.

    Args:
        experiment: the run's experiment.
        nodes: number of nodes.
        order: of the replies.
    """

    def __init__(self, experiment: Experiment, nodes: int, order: Order) -> None:
        super().__init__(nodes)
        self._order = order
        self._apps = {node: client_app(experiment) for node in self.get_node_ids()}

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies."""
        return [self._answer(message) for message in messages]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies in the order of choice."""
        return ordered(super().send_and_receive(messages, timeout=timeout), self._order)

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        return self._apps[node](message, Context(1, node, {}, RecordDict(), {}))


class FedoptSubject:
    """A strategy of fedopt, by name, by table or by class.

    Args:
        strategy: a registered name, a table (`{"name": "scaffold", "option": "I"}`), or a subclass
            of `fedopt.server.FederatedStrategy` at the top level of an imported module.
        kind: what it claims to be; None: its name, if that is a kind.
        name: what it is called; None: the strategy's name.
        tables: other keys of the configuration, as for `fedopt.simulate`:
            `local={"sam": {"rho": 0.05}}`.

    Raises:
        ValueError: a claim is not known.
        ConfigError: the strategy is not known.
    """

    promises_bits = True

    def __init__(
        self,
        strategy: str | Mapping[str, Any] | type,
        *,
        kind: str | Sequence[str] | None = None,
        name: str | None = None,
        **tables: Any,
    ) -> None:
        if isinstance(strategy, type):
            strategy = f"{strategy.__module__}:{strategy.__qualname__}"
        table = {"name": strategy} if isinstance(strategy, str) else dict(strategy)
        self._table, self._tables = table, tables
        self.name = name or str(table["name"]).rpartition(":")[2]
        if kind is None:
            kind = (table["name"],) if table["name"] in KINDS else ()
        self.claims = with_default(claims_of(kind))
        self._options = load_strategy(table["name"]).options_type

    def __repr__(self) -> str:
        return f"FedoptSubject({self.name})"

    def fedavg(self) -> FedoptSubject:
        """Return federated averaging with the same other tables."""
        tables = {k: v for k, v in self._tables.items() if k != "server"}
        return FedoptSubject("fedavg", **tables)

    def run(self, task: Task) -> Trajectory:
        """Do a task with `fedopt.simulate`, or on several nodes where the replies are reordered.

        Raises:
            NotApplicableError: the strategy has no such option, or does not take the value.
            FedoptError: the run fails.
        """
        tables = self._configuration(task)
        with _quiet():
            run = _run(tables, task)
        names = [name for name, _ in model_of(task).named_parameters()]
        rounds = range(1, task.rounds + 1)
        after = [run.parameters(round) for round in rounds]
        counters = [array for name, array in after[-1].items() if name.endswith(COUNTER)]
        return Trajectory(
            [task.first, *(_flat(arrays, names) for arrays in after)],
            counters[0].numpy() if counters else None,
            [self._state(run.state(round), names, task) for round in rounds],
        )

    def _configuration(self, task: Task) -> dict[str, Any]:
        """Return the tables of a run.

        Raises:
            NotApplicableError: an option is not the strategy's, or not allowed.
        """
        work: dict[str, Any] = {"steps": task.steps, "batch_size": None}
        if task.per_example:
            work = {"epochs": 1, "batch_size": 1}
        base: dict[str, Any] = {
            "rounds": task.rounds,
            "clients_per_round": "all" if task.cohort is None else task.cohort,
            "dtype": "float64",
            "seed": task.seed,
            "local": {**work, "optimizer": {"name": "sgd", "lr": task.lr}},
            "engine": {"name": "inline", "block_size": 1},
            "evaluation": {"every": 1000},
        }
        tables = merged(base, self._tables)
        options = dict(task.options)
        optimizer = tables.get("server", {}).get("optimizer")
        if optimizer is not None:
            _move(options, optimizer, {"server_lr": "lr", "momentum": "momentum"})
        codec = tables.get("uplink", {}).get("compression")
        if codec is not None:
            codec["error_feedback"] = task.feedback
        elif task.feedback:
            raise NotApplicableError(f"{self.name} compresses nothing")
        tables["strategy"] = {**self._table, **self._checked(options)}
        return tables

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        table = {k: v for k, v in self._table.items() if k != "name"}
        try:
            self._options.model_validate({**table, **options})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "options"
            reason = f"{self.name}: {where}: {first['msg']}"
            raise NotApplicableError(reason) from None
        return options

    def _state(self, state: Mapping[str, Any], names: list[str], task: Task) -> dict[str, Vector]:
        """Return a run's state as vectors `[P]` and `[N, P]`; clients without any have zeros."""
        found: dict[str, Vector] = {}
        for key, value in state.items():
            if not key.startswith("client_"):
                found[key] = _flat(value, names)
                continue
            rows = {client: _flat(row, names) for client, row in value.items()}
            size = len(next(iter(rows.values()))) if rows else 0
            table = np.zeros((task.population.clients, size))
            for client, row in rows.items():
                table[client] = row
            found[key] = table
        return found


def _run(tables: Mapping[str, Any], task: Task) -> Run:
    """Do a run by `fedopt.simulate`, or message by message where that offers no way."""
    from fedopt.run import in_memory, simulate

    model = partial(model_of, task)
    loss = None if "loss" in tables["local"] else half_squares
    clients = examples_of(_with_held_out(task.population, tables))
    if task.order == "sent":
        return simulate(model=model, loss=loss, clients=clients, **tables, keep_parameters=True)
    return _run_ordered(in_memory(load(None, **tables), model, loss, clients), task)


def _with_held_out(population: Quadratics, tables: Mapping[str, Any]) -> Quadratics:
    """Return clients with so many examples that n_i are left once the others are held out."""
    fraction = tables.get("data", {}).get("validation_fraction", 0.0)
    counts = tuple(round(n / (1 - fraction)) for n in population.examples)
    return replace(population, examples=counts)


def _run_ordered(experiment: Experiment, task: Task) -> Run:
    """Do a run on as many nodes as clients, whose replies are put into an order."""
    from fedopt.analysis.progress import SilentProgress
    from fedopt.recorder import Recorder
    from fedopt.run import train

    with (
        single_thread(),
        Recorder(experiment, None, SilentProgress(), True, False) as recorder,
        OrderedGrid(experiment, task.population.clients, task.order) as grid,
    ):
        train(experiment, recorder, grid)
        return recorder.finish()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep fedopt's log to errors."""
    log = logging.getLogger("fedopt")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _flat(arrays: Mapping[str, Tensor], names: Sequence[str]) -> Vector:
    """Return the model's arrays, or whatever else there is, as one vector."""
    keys = names if all(name in arrays for name in names) else list(arrays)
    parts = [arrays[key].detach().double().reshape(-1) for key in keys]
    return torch.cat(parts).numpy().copy()


def _move(options: dict[str, Any], table: dict[str, Any], names: Mapping[str, str]) -> None:
    """Move options of the server's optimizer into its own table."""
    for option, key in names.items():
        if option in options:
            table[key] = options.pop(option)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested tables with changes; a table whose `name` changes is replaced."""
    out = {key: merged(v, {}) if isinstance(v, Mapping) else v for key, v in base.items()}
    for key, value in changes.items():
        old = out.get(key)
        if not isinstance(value, Mapping) or not isinstance(old, dict):
            out[key] = merged(value, {}) if isinstance(value, Mapping) else value
        elif value.get("name", old.get("name")) != old.get("name"):
            out[key] = dict(value)
        else:
            out[key] = merged(old, value)
    return out
