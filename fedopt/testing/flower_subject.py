"""Any Flower strategy as a subject: it runs its own `start` on a grid in memory.

The client is a ClientApp. The one that is used by default trains in the conventional form: arrays
under the key they came by, `num-examples` and `train_loss` as metrics, a proximal term where the
config has `proximal-mu`. A ClientApp of your own finds its task with `client_of(context)`.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fedopt.errors import RunError
from fedopt.simulation.grid import DirectGrid
from fedopt.testing.kinds import claims_of, with_default
from fedopt.testing.ordering import ordered
from fedopt.testing.subject import keywords_of, name_of, translated
from fedopt.testing.task import (
    NotApplicableError,
    QuadraticClient,
    Task,
    Trajectory,
    Vector,
)

COUNTER = "num_batches_tracked"
"""Name of the model's integer array, as in BatchNorm."""

QUADRATIC = "quadratic"
"""Key of the node config that holds a client's task, as JSON."""

PATIENCE = 6
"""How often a strategy may ask for the nodes before it sends something: it may be waiting."""

StateReader = Callable[[Any, Sequence[Context]], Mapping[str, Vector]]
"""From the strategy and the clients' contexts, in order, to `[P]` and `client_...` `[N, P]`."""


def client_of(context: Context) -> QuadraticClient:
    """Return the quadratic client that a node is, for a ClientApp of your own.

    Args:
        context: that a ClientApp is called with.

    Raises:
        KeyError: the node is not one of a certification.
    """
    known: dict[str, Any] = json.loads(str(context.node_config[QUADRATIC]))
    known["curvature"], known["optimum"] = np.array(known["curvature"]), np.array(known["optimum"])
    return QuadraticClient(**known)


def model_vector(arrays: ArrayRecord) -> Vector:
    """Return the trained arrays of a record as one vector `[P]`: all but the counter."""
    kept = [array.numpy().reshape(-1) for name, array in arrays.items() if name != COUNTER]
    return np.concatenate(kept).astype(np.float64)


def model_record(like: ArrayRecord, w: Vector, steps: int = 0) -> ArrayRecord:
    """Return a record with the names, shapes and dtypes of another.

    Args:
        like: the other.
        w: values of the trained arrays, `[P]`.
        steps: added to the counter, where there is one.
    """
    found, first = {}, 0
    for name, array in like.items():
        old = array.numpy()
        if name == COUNTER:
            found[name] = Array(np.asarray(old + steps, dtype=old.dtype))
            continue
        part = w[first : first + old.size]
        first += old.size
        found[name] = Array(part.reshape(old.shape).astype(old.dtype))
    return ArrayRecord(found)


def _proximal_mu(content: RecordDict) -> float:
    """Return the weight of the proximal term that Flower's FedProx sends, or 0."""
    for config in content.config_records.values():
        if "proximal-mu" in config:
            return float(cast(float, config["proximal-mu"]))
    return 0.0


def sgd_app() -> ClientApp:
    """Return the client that is used by default: plain local gradient descent."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = client_of(context)
        key, arrays = next(iter(message.content.array_records.items()))
        x = model_vector(arrays)
        configs = message.content.config_records.values()
        mu = next(
            (float(cast(float, c["proximal-mu"])) for c in configs if "proximal-mu" in c), 0.0
        )
        w = x.copy()
        for _ in range(client.steps):
            w = w - client.lr * (client.gradient(w) + mu * (w - x))
        metrics = MetricRecord({"num-examples": client.examples, "train_loss": client.loss(x)})
        record = model_record(arrays, w, client.steps)
        return Message(RecordDict({key: record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = client_of(context)
        arrays = next(iter(message.content.array_records.values()))
        loss = client.loss(model_vector(arrays))
        metrics = MetricRecord({"num-examples": client.examples, "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class ClientGrid(DirectGrid):
    """One node a client, in this process; contexts last over the rounds.

    Args:
        task: the task.
        app: the clients' ClientApp.
    """

    def __init__(self, task: Task, app: ClientApp) -> None:
        super().__init__(task.population.clients)
        self._app, self._order = app, task.order
        self._asked = 0
        self.contexts: list[Context] = []
        for client, node in zip(task.clients(), super().get_node_ids(), strict=True):
            known = vars(client) | {
                "curvature": client.curvature.tolist(),
                "optimum": client.optimum.tolist(),
            }
            config: dict[str, bool | float | int | str] = {
                "partition-id": client.id,
                "num-partitions": task.population.clients,
                QUADRATIC: json.dumps(known),
            }
            self.contexts.append(Context(1, node, config, RecordDict(), {}))

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes, ascending.

        Raises:
            RunError: the strategy asks again and again: it waits for nodes that never come.
        """
        self._asked += 1
        if self._asked > PATIENCE:
            raise RunError(f"the strategy waits for more nodes than the {len(self.contexts)} there")
        return super().get_node_ids()

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Return the clients' replies; nothing is shared between messages, as on a network."""
        self._asked = 0
        return [self._answer(message) for message in messages]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies in the task's order."""
        return ordered(super().send_and_receive(messages, timeout=timeout), self._order)

    def _answer(self, message: Message) -> Message:
        place = super().get_node_ids().index(message.metadata.dst_node_id)
        return copy.deepcopy(self._app(copy.deepcopy(message), self.contexts[place]))


class FlowerSubject:
    """A strategy of anyone's, with any ClientApp.

    What the suite sets (numbers of nodes, mu, server rates) goes by the constructor's keywords; a
    check that sets what there is no keyword for does not apply. What takes any keyword is given
    Flower's own for the numbers of nodes.

    Args:
        make_strategy: class of the strategy, or a function that returns one.
        client_app: of the clients, or a function of the task that returns it; None: plain SGD.
        kind: what it claims to be.
        name: what it is called; None: the name of class or function.
        options: the suite's names of options -> the constructor's keywords, where they differ from
            the usual ones.
        read_state: reads control variates and the like for the checks of them.

    Raises:
        ValueError: a claim is not known.
    """

    promises_bits = False

    def __init__(
        self,
        make_strategy: Callable[..., Strategy],
        client_app: ClientApp | Callable[[Task], ClientApp] | None = None,
        *,
        kind: str | Sequence[str] = (),
        name: str | None = None,
        options: Mapping[str, str] | None = None,
        read_state: StateReader | None = None,
    ) -> None:
        self._make, self._app, self._read = make_strategy, client_app, read_state
        self._names = dict(options or {})
        self.name = name or name_of(make_strategy)
        self.claims = with_default(claims_of(kind))
        self._taken, self._takes_any = keywords_of(make_strategy)

    def __repr__(self) -> str:
        return f"FlowerSubject({self.name})"

    def fedavg(self) -> FlowerSubject:
        """Return Flower's own FedAvg with the default client."""
        return FlowerSubject(FedAvg, kind="fedavg")

    def run(self, task: Task) -> Trajectory:
        """Do a task by the strategy's `start`.

        Raises:
            NotApplicableError: the constructor has no keyword for an option.
        """
        app = self._client_app(task)
        grid = ClientGrid(task, app)
        keywords = self._keywords(task)
        first = initial_record(task)
        models: list[Vector] = []
        states: list[dict[str, Vector]] = []
        last = first

        with _quiet(task.seed):
            strategy = self._make(**keywords)

        def observe(round: int, arrays: ArrayRecord) -> MetricRecord | None:
            nonlocal last
            models.append(model_vector(arrays))
            last = arrays
            if round and self._read is not None:
                read = self._read(strategy, grid.contexts)
                states.append({key: np.array(value) for key, value in read.items()})
            return None

        with _quiet(task.seed):
            strategy.start(grid, first, num_rounds=task.rounds, evaluate_fn=observe)
        counter = last[COUNTER].numpy() if task.counter else None
        return Trajectory(models, counter, states if self._read is not None else None)

    def _client_app(self, task: Task) -> ClientApp:
        if self._app is None:
            return sgd_app()
        return self._app if isinstance(self._app, ClientApp) else self._app(task)

    def _keywords(self, task: Task) -> dict[str, Any]:
        """Return what the strategy is made with: all clients, or as many as the cohort."""
        clients = task.population.clients
        cohort = clients if task.cohort is None else task.cohort
        wanted = {
            "fraction_train": cohort / clients,
            "min_train_nodes": cohort,
            "min_evaluate_nodes": 1,
            "min_available_nodes": clients,
        }
        can_be_told = self._takes_any or {"fraction_train", "min_train_nodes"} <= self._taken
        if not can_be_told and (task.cohort is not None or clients == 1):
            raise NotApplicableError(f"{self.name} cannot be told how many clients train: {cohort}")
        known = {k: v for k, v in wanted.items() if k in self._taken or self._takes_any}
        if "client_learning_rate" in self._taken:
            known["client_learning_rate"] = task.lr
        return known | translated(task.options, self._taken, self._names, self.name)


def initial_record(task: Task) -> ArrayRecord:
    """Return the first model of a task as arrays."""
    x = task.first
    arrays = {"weight": x}
    if task.head:
        arrays = {"body.weight": x[: -task.head], "head.weight": x[-task.head :]}
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    if task.counter:
        record[COUNTER] = Array(np.asarray(0, dtype=np.int64))
    return record


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Keep Flower's log silent, and what it samples by Python's generator the same each time."""
    flower = logging.getLogger("flwr")
    level, state = flower.level, random.getstate()
    flower.setLevel(logging.CRITICAL)
    random.seed(seed)
    # Reading an array may collect garbage (`keep_input=False`): not in what is there already.
    is_frozen = gc.get_freeze_count() > 0
    if not is_frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()
        flower.setLevel(level)
        random.setstate(state)
