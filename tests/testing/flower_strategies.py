"""Flower strategies of the tests: SCAFFOLD with its client, and some with one mistake each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx, FedTrimmedAvg

import fedopt.testing as ft


def record(values: Any) -> ArrayRecord:
    return ArrayRecord({"values": Array(np.asarray(values, dtype=np.float64))})


def values(content: Any, key: str) -> Any:
    return content[key]["values"].numpy()


class Scaffold(FedAvg):
    """SCAFFOLD, option II, in the form of Flower's strategies."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.c: Any = None
        self.population = 0

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self.population = len(list(grid.get_node_ids()))
        if self.c is None:
            self.c = self.first_control(ft.model_vector(arrays))
        for message in messages:
            message.content["control"] = record(self.c)
        return messages

    def first_control(self, x):
        return np.zeros_like(x)

    def aggregate_train(self, server_round, replies):
        contents = [reply.content for reply in replies]
        models = [ft.model_vector(content["arrays"]) for content in contents]
        steps = np.sum([content["metrics"]["steps"] for content in contents])
        changes = np.array([values(content, "change") for content in contents])
        self.c = self.c + self.control_step(changes)
        new = ft.model_record(contents[0]["arrays"], np.mean(models, axis=0))
        return new, MetricRecord({"steps": int(steps)})

    def control_step(self, changes):
        return changes.sum(0) / self.population


class ForgetsThePopulation(Scaffold):
    """c <- c + mean over the cohort, without |S| / N."""

    def control_step(self, changes):
        return changes.mean(0)


class ControlFromWeights(Scaffold):
    """c begins with the model's weights instead of zero."""

    def first_control(self, x):
        return x


def scaffold_app(forgets_rate: bool = False) -> ClientApp:
    """Return SCAFFOLD's client; or one that leaves the learning rate out of c_i."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = ft.client_of(context)
        arrays = message.content["arrays"]
        x, c = ft.model_vector(arrays), values(message.content, "control")
        kept = context.state.get("control")
        c_i = np.zeros_like(x) if kept is None else kept["values"].numpy()
        y = x.copy()
        for _ in range(client.steps):
            y = y - client.lr * (client.gradient(y) - c_i + c)
        new = c_i - c + (x - y) / (client.steps * (1.0 if forgets_rate else client.lr))
        context.state["control"] = record(new)
        reply = {
            "arrays": ft.model_record(arrays, y, client.steps),
            "change": record(new - c_i),
            "metrics": MetricRecord({"num-examples": client.examples, "steps": client.steps}),
        }
        return Message(RecordDict(reply), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = ft.client_of(context)
        loss = client.loss(ft.model_vector(message.content["arrays"]))
        metrics = MetricRecord({"num-examples": client.examples, "loss": loss})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def scaffold_state(strategy: Any, contexts: Any) -> dict[str, Any]:
    """Read the control variates of server and clients."""
    size = len(strategy.c)
    rows = [
        c.state["control"]["values"].numpy() if "control" in c.state else np.zeros(size)
        for c in contexts
    ]
    return {"control_variate": strategy.c, "client_control_variate": np.array(rows)}


def scaffold(strategy: Any = Scaffold, app: ClientApp | None = None) -> ft.FlowerSubject:
    return ft.FlowerSubject(
        strategy, app or scaffold_app(), kind="scaffold", read_state=scaffold_state
    )


class Unweighted(FedAvg):
    """The plain mean of the clients, whatever their examples."""

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        for reply in replies:
            reply.content["metrics"]["num-examples"] = 1
        return super().aggregate_train(server_round, replies)


class LastReplyWins(FedAvg):
    """Each reply is mixed into what the ones before it gave."""

    def aggregate_train(self, server_round, replies):
        contents = [reply.content for reply in replies]
        x = ft.model_vector(contents[0]["arrays"])
        for content in contents[1:]:
            x = 0.5 * x + 0.5 * ft.model_vector(content["arrays"])
        return ft.model_record(contents[0]["arrays"], x), MetricRecord({})


class KeepsIntegers(FedAvg):
    """Flower's FedAvg, whose integer arrays are rounded back to their own type."""

    def configure_train(self, server_round, arrays, config, grid):
        self.dtypes = {name: array.numpy().dtype for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        for name, array in list(arrays.items()):
            value, dtype = array.numpy(), self.dtypes[name]
            rounded = np.rint(value) if np.issubdtype(dtype, np.integer) else value
            arrays[name] = Array(np.asarray(rounded, dtype=dtype))
        return arrays, metrics


class LeaksState(FedAvg):
    """Rounds are counted in the class: a second run goes on from the first."""

    rounds: ClassVar[int] = 0

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        LeaksState.rounds += 1
        step = ft.model_vector(arrays) * (1 + 1 / LeaksState.rounds)
        return ft.model_record(arrays, step), metrics


class DoesNotTrim(FedTrimmedAvg):
    """A trimmed mean that trims nothing."""

    def __init__(self, *, beta: float = 0.2, **keywords: Any) -> None:
        super().__init__(beta=0.0, **keywords)


class IgnoresMu(FedProx):
    """FedProx whose clients never hear of mu."""

    def configure_train(self, server_round, arrays, config, grid):
        messages = list(super().configure_train(server_round, arrays, config, grid))
        config["proximal-mu"] = 0.0
        return messages


class WaitsForMore(FedAvg):
    """Waits for more clients than there are."""

    def __init__(self) -> None:
        super().__init__(min_available_nodes=50)


def unsquared_prox(task: ft.Task) -> ClientApp:
    """Return clients with the term mu/2 |w - x|, not squared: a pull of constant length."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = ft.client_of(context)
        arrays = message.content["arrays"]
        mu = float(message.content["config"].get("proximal-mu", 0.0))
        x = ft.model_vector(arrays)
        w = x.copy()
        for _ in range(client.steps):
            away = w - x
            pull = away / max(float(np.linalg.norm(away)), 1e-12)
            w = w - client.lr * (client.gradient(w) + mu / 2 * pull)
        metrics = MetricRecord({"num-examples": client.examples})
        record = ft.model_record(arrays, w, client.steps)
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client = ft.client_of(context)
        metrics = MetricRecord({"num-examples": client.examples})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app
