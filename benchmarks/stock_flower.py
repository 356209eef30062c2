"""Stock Flower: its simulation, its FedAvg, one message a client, one core a client.

`python -m benchmarks.stock_flower W1` prints the seconds of each round, and how far the model is
from the plain loop's after one round, as JSON. It has a process of its own because Flower's
simulation owns Ray and its logs. The ClientApp trains exactly as the plain loop does, with data
and model kept in the actor, which is kinder than Flower's own examples.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.quiet import Watch
from benchmarks.workloads import BareLoop, Workload, find
from fedopt.experiment import ModelFactory

client_app = ClientApp()


@lru_cache(maxsize=1)
def cached_loop(name: str, quick: bool) -> tuple[Workload, BareLoop]:
    """Return a workload and its loop, made once a process."""
    workload = find(name, quick)
    return workload, BareLoop(workload)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train one client."""
    torch.set_num_threads(1)
    config: Any = message.content["config"]
    arrays: Any = message.content["arrays"]
    workload, loop = cached_loop(config["workload"], config["quick"])
    client = int(context.node_config["partition-id"])
    (order,) = workload.orders(config["server-round"], [client])
    if config["style"] == "quickstart":
        model, examples = train_as_quickstart(workload, client, order, arrays)
    else:
        loop.model.load_state_dict(arrays.to_torch_state_dict())
        model, examples = loop.model, loop.train(client, order)
    metrics = MetricRecord({"num-examples": examples, "client": client})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


@lru_cache(maxsize=1)
def cached_data(workload: Workload) -> tuple[ModelFactory, list[TensorDataset]]:
    """Return what makes the model, and the clients' data, made once a process."""
    tensors = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in workload.data()]
    return workload.experiment(name="inline").model_factory, [TensorDataset(*t) for t in tensors]


def train_as_quickstart(
    workload: Workload, client: int, order: torch.Tensor, arrays: ArrayRecord
) -> tuple[nn.Module, int]:
    """Train one client as Flower's PyTorch quickstart does, in the given order of examples."""
    make_model, data = cached_data(workload)
    model = make_model()
    model.load_state_dict(arrays.to_torch_state_dict())
    loader = DataLoader(data[client], workload.batch_size, sampler=order.tolist())
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.lr)
    model.train()
    running_loss = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return model, len(data[client])


class TimedFedAvg(FedAvg):
    """Flower's FedAvg, with a clock, and with the first round's cohort and result kept."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(
            fraction_train=(workload.cohort + 0.5) / workload.clients,
            fraction_evaluate=0.0,
            min_available_nodes=workload.clients,
        )
        self.seconds: list[float] = []
        self.foreign: list[float] = []
        self._watch = Watch()
        self.first: tuple[list[int], ArrayRecord] | None = None
        self._started = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the clock."""
        self._watch.restart()
        self._started = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Stop the clock."""
        answered = list(replies)
        result = super().aggregate_train(server_round, answered)
        self.seconds.append(time.perf_counter() - self._started)
        self.foreign.append(self._watch.foreign_cores())
        if self.first is None and result[0] is not None:
            metrics = [reply.content["metrics"] for reply in answered]
            self.first = (sorted(int(m["client"]) for m in metrics), result[0])
        return result


def measure(name: str, rounds: int, quick: bool, style: str) -> dict[str, Any]:
    """Run Flower's simulation; return seconds a round and the distance from the plain loop."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    workload, loop = cached_loop(name, quick)
    initial = loop.initial()
    strategy = TimedFedAvg(workload)
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(loop.model.state_dict()),
            num_rounds=rounds,
            train_config=ConfigRecord({"workload": name, "quick": quick, "style": style}),
        )

    began = time.perf_counter()
    run_simulation(
        server_app,
        client_app,
        workload.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False},
        },
    )
    total = time.perf_counter() - began
    assert strategy.first is not None
    cohort, arrays = strategy.first
    expected = loop.round(initial, cohort, workload.orders(1, cohort))
    got = arrays.to_torch_state_dict().values()
    difference = max(float((a - b).abs().max()) for a, b in zip(got, expected, strict=True))
    return {
        "seconds": strategy.seconds,
        "foreign_cores": strategy.foreign,
        "difference": difference,
        "total_seconds": total,
    }


def main() -> None:
    """Print the measurement as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--style", choices=["kept", "quickstart"], default="kept")
    options = parser.parse_args()
    found = measure(options.workload, options.rounds, options.quick, options.style)
    print(json.dumps(found))


if __name__ == "__main__":
    # The app must be found by import in the actors: in `__main__` it would be sent by value.
    from benchmarks import stock_flower

    stock_flower.main()
