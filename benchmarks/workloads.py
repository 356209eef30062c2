"""The three workloads, and the plain torch loop that every speed is compared with.

W1 is bound by matrix products, W2 by convolutions, W3 by the cost of calling anything at all.
Inputs are standard normal and labels uniform: speed does not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedopt.client.plan import permutations
from fedopt.config import Config, load
from fedopt.experiment import Experiment
from fedopt.run import in_memory
from fedopt.server.sampling import UniformSampler

SEED = 0
CLASSES = 10
ENDLESS = 10**6
"""Rounds of a run that the benchmark, not the configuration, ends."""


@dataclass(frozen=True)
class Workload:
    """One task, the same for every engine and framework.

    Args:
        name: short name.
        title: a word or two, for figures.
        description: for people.
        clients: N, the population.
        cohort: K, clients a round.
        examples: training examples of each client.
        input_shape: shape of one input.
        model: fedopt's model table.
        burst: rounds that a contender does before it is the next one's turn.
        batch_size: examples a step.
        lr: learning rate of plain SGD.
    """

    name: str
    title: str
    description: str
    clients: int
    cohort: int
    examples: int
    input_shape: tuple[int, ...]
    model: Mapping[str, Any] = field(hash=False)
    burst: int = 1
    batch_size: int = 10
    lr: float = 0.05

    def data(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the (inputs, labels) of every client, the same in every process."""
        rng = np.random.default_rng(SEED)
        shape = (self.examples, *self.input_shape)
        return [
            (rng.standard_normal(shape, dtype=np.float32), rng.integers(0, CLASSES, self.examples))
            for _ in range(self.clients)
        ]

    def config(self, **engine: Any) -> Config:
        """Return fedopt's configuration: plain FedAvg, nothing evaluated, nothing written."""
        return load(
            None,
            seed=SEED,
            rounds=ENDLESS,
            clients_per_round=self.cohort,
            model=dict(self.model),
            strategy={"name": "fedavg"},
            local={
                "epochs": 1,
                "batch_size": self.batch_size,
                "optimizer": {"name": "sgd", "lr": self.lr},
            },
            engine=engine,
            evaluation={"every": ENDLESS},
            checkpoint={"every": 0},
        )

    def experiment(self, **engine: Any) -> Experiment:
        """Return fedopt's experiment over the data."""
        return in_memory(self.config(**engine), clients=self.data())

    def build_model(self) -> nn.Module:
        """Return the model with the initial values that all contenders start from."""
        return self.experiment(name="inline").build_model()

    def cohort_of(self, round: int) -> list[int]:
        """Return the clients that fedopt samples in a round."""
        sizes = np.full(self.clients, self.examples)
        sampled: list[int] = UniformSampler(sizes, SEED).sample(round, self.cohort).tolist()
        return sampled

    def orders(self, round: int, clients: Sequence[int]) -> list[Tensor]:
        """Return the order in which fedopt takes each client's examples in a round."""
        count = len(clients)
        made = permutations(SEED, round, clients, [self.examples] * count, [1] * count)
        return [torch.from_numpy(order) for order in made]

    def smaller(self) -> Workload:
        """Return the workload with few clients, to try the programs out."""
        return replace(self, clients=12, cohort=4, burst=1)


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "W1",
            "perceptron",
            "perceptron 784-200-200-10, 20 of 100 clients, 6 steps of 10",
            clients=100,
            cohort=20,
            examples=60,
            input_shape=(784,),
            model={"name": "mlp", "hidden": [200, 200]},
            burst=3,
        ),
        Workload(
            "W2",
            "convolutions",
            "CNN of McMahan et al. (2017), 1,663,370 parameters, 10 of 100 clients, 6 steps of 10",
            clients=100,
            cohort=10,
            examples=60,
            input_shape=(1, 28, 28),
            model={"name": "cnn"},
        ),
        Workload(
            "W3",
            "logistic regression",
            "logistic regression 60-10, 100 of 1,000 clients, 2 steps of 10",
            clients=1000,
            cohort=100,
            examples=20,
            input_shape=(60,),
            model={"name": "logistic"},
            burst=10,
        ),
    )
}


def find(name: str, quick: bool) -> Workload:
    """Return a workload by name, with few clients if `quick`."""
    workload = WORKLOADS[name]
    return workload.smaller() if quick else workload


class BareLoop:
    """What a careful user writes: one model, torch's optimizer, one client after another.

    Args:
        workload: the task.
        device: where the model and all data are.
        compiled: mode of `torch.compile`, or None for the model as it is.
    """

    def __init__(
        self, workload: Workload, device: str = "cpu", compiled: str | None = None
    ) -> None:
        self._workload = workload
        model = workload.build_model().to(device)
        self._parameters = list(model.parameters())
        self.model: Any = model if compiled is None else torch.compile(model, mode=compiled)
        self._data = [
            (torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
            for x, y in workload.data()
        ]

    def initial(self) -> list[Tensor]:
        """Return a copy of the model's values."""
        return [p.detach().clone() for p in self._parameters]

    def train(self, client: int, order: Tensor | None = None) -> int:
        """Train the model on a client's examples; return how many they are."""
        workload = self._workload
        inputs, targets = self._data[client]
        optimizer = torch.optim.SGD(self._parameters, lr=workload.lr)
        if order is None:
            order = torch.randperm(len(targets))
        order = order.to(inputs.device)
        for batch in order.split(workload.batch_size):
            optimizer.zero_grad()
            output = self.model(inputs[batch])
            nn.functional.cross_entropy(output, targets[batch]).backward()
            optimizer.step()
        return len(targets)

    def round(
        self,
        start: Sequence[Tensor],
        cohort: Sequence[int],
        orders: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Return the example-weighted mean of the cohort's trained parameters."""
        total = [torch.zeros_like(p) for p in start]
        seen = 0
        for position, client in enumerate(cohort):
            with torch.no_grad():
                for parameter, value in zip(self._parameters, start, strict=True):
                    parameter.copy_(value)
            examples = self.train(client, orders[position] if orders is not None else None)
            with torch.no_grad():
                for parameter, value in zip(self._parameters, total, strict=True):
                    value.add_(parameter, alpha=examples)
            seen += examples
        mean = [value / seen for value in total]
        if mean[0].is_cuda:
            torch.cuda.synchronize()
        return mean
