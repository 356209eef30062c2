"""Workloads, data, starting parameters, cohorts and the bare loop that every peer is held to.

Imported inside each peer's own environment, so it needs numpy only; torch is imported by the
functions that use it. What a peer does with these lives in `run_<peer>.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = list[np.ndarray]

SEED = 20

_kept_libraries: list[object] = []  # a torch library unregisters its operators when collected


@dataclass(frozen=True)
class Workload:
    """One federated job: a model, a population and how each client trains.

    Args:
        model: "mlp", "cnn" or "logistic".
        clients: size of the population.
        examples: examples of each client.
        cohort: clients a round.
        shape: shape of one example.
        rounds: rounds measured by default.
        warmup: rounds left out first; enough of them that every client has taken part once.
    """

    name: str
    model: str
    clients: int
    examples: int
    cohort: int
    shape: tuple[int, ...]
    rounds: int
    warmup: int
    batch_size: int = 10
    classes: int = 10
    learning_rate: float = 0.05

    @property
    def steps(self) -> int:
        """Local steps of a client: one epoch."""
        return -(-self.examples // self.batch_size)


WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload("W1", "mlp", 100, 60, 20, (784,), rounds=40, warmup=10),
        Workload("W2", "cnn", 100, 60, 10, (1, 28, 28), rounds=10, warmup=10),
        Workload("W3", "logistic", 1000, 20, 100, (60,), rounds=40, warmup=10),
    )
}


def data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Features [K, N, ...] float32 and labels [K, N] int64 of K clients with N examples each."""
    rng = np.random.default_rng([SEED, 1])
    size = int(np.prod(workload.shape))
    centres = rng.normal(size=(workload.classes, size)).astype(np.float32) * 0.3
    labels = rng.integers(workload.classes, size=(workload.clients, workload.examples))
    features = rng.standard_normal((workload.clients, workload.examples, size), dtype=np.float32)
    features += centres[labels]
    return features.reshape(workload.clients, workload.examples, *workload.shape), labels


def cohort(workload: Workload, round_number: int) -> list[int]:
    """Clients of a round (from 0): the next slice of a shuffled population, again and again."""
    order = np.random.default_rng([SEED, 2]).permutation(workload.clients)
    start = round_number * workload.cohort
    return [int(order[(start + i) % workload.clients]) for i in range(workload.cohort)]


def parameter_shapes(workload: Workload) -> list[tuple[int, ...]]:
    """Shapes of the parameters, weight and bias of each layer in order, as torch lays them out."""
    features, classes = int(np.prod(workload.shape)), workload.classes
    return {
        "mlp": [(200, features), (200,), (200, 200), (200,), (classes, 200), (classes,)],
        "cnn": [
            (32, 1, 5, 5),
            (32,),
            (64, 32, 5, 5),
            (64,),
            (512, 3136),
            (512,),
            (classes, 512),
            (classes,),
        ],
        "logistic": [(classes, features), (classes,)],
    }[workload.model]


def starting_parameters(workload: Workload) -> Arrays:
    """Parameters at round 0: uniform within one over the root of each layer's fan-in."""
    rng = np.random.default_rng([SEED, 3])
    values: Arrays = []
    bound = 1.0
    for shape in parameter_shapes(workload):
        if len(shape) > 1:
            bound = 1.0 / float(np.sqrt(np.prod(shape[1:])))
        values.append(rng.uniform(-bound, bound, size=shape).astype(np.float32))
    return values


def build_model(workload: Workload) -> torch.nn.Module:
    """Build the torch model; it holds the starting parameters."""
    import torch
    from torch import nn

    layers: dict[str, list[nn.Module]] = {
        "mlp": [
            nn.Linear(int(np.prod(workload.shape)), 200),
            nn.ReLU(),
            nn.Linear(200, 200),
            nn.ReLU(),
            nn.Linear(200, workload.classes),
        ],
        "cnn": [
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, workload.classes),
        ],
        "logistic": [nn.Linear(int(np.prod(workload.shape)), workload.classes)],
    }
    model = nn.Sequential(*layers[workload.model])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), starting_parameters(workload), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model


def parameters_of(model: torch.nn.Module) -> Arrays:
    """Copy a torch model's parameters."""
    return [p.detach().cpu().numpy().copy() for p in model.parameters()]


class BareLoop:
    """FedAvg with nothing around it: for each client load, train one epoch, add to the mean."""

    def __init__(self, workload: Workload) -> None:
        import torch

        self.workload = workload
        features, labels = data(workload)
        self.features, self.labels = torch.from_numpy(features), torch.from_numpy(labels)
        self.model = build_model(workload)
        self.parameters = list(self.model.parameters())
        self.globals = [p.detach().clone() for p in self.parameters]

    def round(self, clients: Sequence[int]) -> float:
        """Train the clients, replace the global parameters by the mean; returns seconds."""
        import torch
        from torch.nn import functional as F

        start = time.perf_counter()
        w = self.workload
        mean = [torch.zeros_like(g) for g in self.globals]
        weight = 1.0 / len(clients)  # all clients hold the same number of examples
        for client in clients:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, self.globals, strict=True):
                    parameter.copy_(value)
            optimizer = torch.optim.SGD(self.parameters, lr=w.learning_rate)
            x, y = self.features[client], self.labels[client]
            for first in range(0, w.examples, w.batch_size):
                batch = slice(first, first + w.batch_size)
                optimizer.zero_grad()
                F.cross_entropy(self.model(x[batch]), y[batch]).backward()
                optimizer.step()
            with torch.no_grad():
                for total, parameter in zip(mean, self.parameters, strict=True):
                    total.add_(parameter, alpha=weight)
        self.globals = mean
        return time.perf_counter() - start

    def values(self) -> Arrays:
        """Copy the global parameters."""
        return [g.numpy().copy() for g in self.globals]


class Reference(Protocol):
    """What a peer is timed beside: the bare loop here, or one in a process of its own."""

    def round(self, clients: Sequence[int]) -> float:
        """Run one round, return its seconds."""

    def values(self) -> Arrays:
        """Global parameters now."""


class BareProcess:
    """The bare loop in a process of its own, under the Python given."""

    def __init__(self, python: str, workload: Workload) -> None:
        if not python:
            raise ValueError("the bare loop needs a Python with torch: give --reference-python")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.reference", workload.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; said aloud, since forked workers may hold its input open."""
        with contextlib.suppress(OSError):
            self.send({"stop": True})
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def send(self, request: dict[str, object]) -> None:
        """Ask for something, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Wait for the answer to the oldest open request."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process of the bare loop ended")
        return float(json.loads(line))

    def round(self, clients: Sequence[int]) -> float:
        """Run one round there; its own clock gives the seconds."""
        self.send({"clients": list(clients)})
        return self.answer()

    def values(self) -> Arrays:
        """Copy the global parameters."""
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "values.npz")
            self.send({"save": path})
            count = int(self.answer())
            with np.load(path) as saved:
                return [saved[f"arr_{i}"] for i in range(count)]


class BarePair:
    """Two bare loops in two processes, half of the cohort each: a bound for two-process peers.

    The two means are not brought together, so the time holds no exchange between the processes.
    """

    def __init__(self, python: str, workload: Workload) -> None:
        self._pair = (BareProcess(python, workload), BareProcess(python, workload))

    def close(self) -> None:
        """End both processes."""
        for process in self._pair:
            process.close()

    def round(self, clients: Sequence[int]) -> float:
        """Run both halves at once; returns seconds until both are done."""
        half = len(clients) // 2
        start = time.perf_counter()
        for process, part in zip(self._pair, (clients[:half], clients[half:]), strict=True):
            process.send({"clients": list(part)})
        for process in self._pair:
            process.answer()
        return time.perf_counter() - start


@dataclass
class Row:
    """One measurement of one peer on one workload."""

    peer: str
    mode: str
    workload: str
    repeat: int = 0
    processes: int = 1
    rounds: int = 0
    clients_per_s: float | None = None
    bare_clients_per_s: float | None = None
    ratio: float | None = None
    two_bare_clients_per_s: float | None = None
    ratio_to_two: float | None = None
    best_clients_per_s: float | None = None
    steps_per_client: float | None = None
    max_abs_difference: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    error: str = ""


class Referee:
    """Times the peer's rounds and the reference's rounds in turn, and compares round 1.

    A runner calls `start` once, right before the peer's first round, and `round_done` after each;
    the time in between is the peer's.
    """

    def __init__(
        self,
        workload: Workload,
        rounds: int,
        warmup: int,
        reference: Reference | None = None,
        pair: BarePair | None = None,
        count_steps: bool = True,
        server_steps: int = 0,
    ) -> None:
        self.workload = workload
        self.total = rounds + warmup
        self.warmup = warmup
        self.reference: Reference = reference or BareLoop(workload)
        self.peer_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.pair = pair
        self.pair_seconds: list[float] = []
        self.difference: float | None = None
        self.steps_per_client: float | None = None
        self._server_steps = server_steps
        self._counter = _StepCounter() if count_steps else None
        self._start = 0.0

    def start(self) -> None:
        """Begin the clock of the first round."""
        self._start = time.perf_counter()

    def round_done(self, parameters: Callable[[], Arrays]) -> bool:
        """Close the peer's round, run the reference's; returns whether all rounds are done."""
        self.peer_seconds.append(time.perf_counter() - self._start)
        if self._counter is not None:
            steps = self._counter.close() - self._server_steps
            self.steps_per_client = steps / self.workload.cohort
            self._counter = None
        clients = cohort(self.workload, len(self.bare_seconds))
        self.bare_seconds.append(self.reference.round(clients))
        if self.difference is None:
            pairs = zip(parameters(), self.reference.values(), strict=True)
            self.difference = max(float(np.abs(a - b).max()) for a, b in pairs)
        if self.pair is not None:
            self.pair_seconds.append(self.pair.round(clients))
        self._start = time.perf_counter()
        return len(self.peer_seconds) >= self.total

    def fill(self, row: Row) -> Row:
        """Write the medians into a row."""
        peer = statistics.median(self.peer_seconds[self.warmup :])
        bare = statistics.median(self.bare_seconds[self.warmup :])
        row.rounds = len(self.peer_seconds) - self.warmup
        row.clients_per_s = self.workload.cohort / peer
        row.best_clients_per_s = self.workload.cohort / min(self.peer_seconds[self.warmup :])
        row.bare_clients_per_s = self.workload.cohort / bare
        row.ratio = bare / peer
        if self.pair_seconds:
            pair = statistics.median(self.pair_seconds[self.warmup :])
            row.two_bare_clients_per_s = self.workload.cohort / pair
            row.ratio_to_two = pair / peer
        row.max_abs_difference = self.difference
        if row.steps_per_client is None:
            row.steps_per_client = self.steps_per_client
        return row


class _StepCounter:
    """Counts the steps of every torch optimiser of this process until closed."""

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._steps = 0
        self._handle = register_optimizer_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self._steps += 1

    def close(self) -> int:
        self._handle.remove()
        return self._steps


def one_thread() -> None:
    """Hold torch to one thread in this process."""
    import torch

    torch.set_num_threads(1)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of the named distributions, those that are there."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Options:
    """Arguments every runner takes."""

    workload: Workload
    rounds: int
    warmup: int
    mode: str
    out: Path
    reference_python: str

    def write(self, row: Row) -> None:
        """Hand the row to the driver."""
        self.out.write_text(json.dumps(asdict(row)))


def options(modes: Sequence[str]) -> Options:
    """Parse a runner's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--mode", choices=modes, default=modes[0])
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reference-python", default="")
    given = parser.parse_args()
    return Options(
        WORKLOADS[given.workload],
        given.rounds,
        given.warmup,
        given.mode,
        given.out,
        given.reference_python,
    )


def declare_torchvision_operators() -> None:
    """Declare the operators of torchvision's compiled part, which a CPU torch may not load.

    Some peers import torchvision and use none of them in training.
    """
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_libraries.append(library)
