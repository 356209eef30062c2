"""What is raced: the plain loop, fedopt on its grids, and the two-process reference."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ConfigRecord
from flwr.serverapp import Grid
from torch import Tensor

from benchmarks.measuring import Contender
from benchmarks.two_processes import TwoProcesses
from benchmarks.workloads import SEED, BareLoop, Workload
from fedopt.analysis.progress import SilentProgress
from fedopt.experiment import Experiment
from fedopt.memory import keep_freed_memory
from fedopt.recorder import Recorder
from fedopt.registry import get
from fedopt.server.evaluation import Evaluator

BARE = "bare torch loop"


class Racer(Contender, Protocol):
    """A contender whose mathematics can be checked."""

    def first_round(self) -> list[Tensor]:
        """Do fedopt's first round; return the model after it."""


class Bare:
    """The plain loop.

    Args:
        workload: the task.
        device: where it runs.
        compiled: mode of `torch.compile`, or None.
        name: name in the tables.
    """

    def __init__(
        self,
        workload: Workload,
        device: str = "cpu",
        compiled: str | None = None,
        name: str = BARE,
    ) -> None:
        self.name = name
        self._workload = workload
        self._loop = BareLoop(workload, device, compiled)
        self._values = self._loop.initial()
        self._rng = np.random.default_rng(SEED)

    def first_round(self) -> list[Tensor]:
        """Do fedopt's first round; return the model after it."""
        cohort = self._workload.cohort_of(1)
        self._values = self._loop.round(self._values, cohort, self._workload.orders(1, cohort))
        return self._values

    def round(self) -> None:
        """Do one round."""
        cohort = self._rng.choice(self._workload.clients, self._workload.cohort, replace=False)
        self._values = self._loop.round(self._values, cohort.tolist())

    def close(self) -> None:
        """Nothing to release."""


class Fedopt:
    """fedopt's rounds, driven by hand as `fedopt.run.train` does them.

    Args:
        name: name in the tables.
        experiment: the experiment, which names the grid.
    """

    def __init__(self, name: str, experiment: Experiment) -> None:
        keep_freed_memory()
        self.name = name
        self.experiment = experiment
        self.recorder = Recorder(experiment, None, SilentProgress(), False, False)
        self.grid: Grid = get("engines", experiment.config.engine.name).load()(experiment)
        self._arrays, self._round = self.recorder.start(Evaluator(experiment))
        self._config = ConfigRecord()

    def first_round(self) -> list[Tensor]:
        """Do the first round; return the model after it."""
        self.round()
        strategy = self.recorder.strategy
        return list(strategy.layout.named(strategy.state).values())

    def round(self) -> None:
        """Do one round, with all that a run does but evaluation and files."""
        strategy, grid = self.recorder.strategy, self.grid
        messages = strategy.configure_train(self._round, self._arrays, self._config, grid)
        replies = grid.send_and_receive(messages)
        self._arrays, _ = strategy.aggregate_train(self._round, replies)
        list(strategy.configure_evaluate(self._round, self._arrays, self._config, grid))
        assert strategy.record is not None
        self.recorder.record(strategy.record, {})
        self._round += 1

    def close(self) -> None:
        """Stop the grid."""
        close: Any = getattr(self.grid, "close", None)
        close()
        self.recorder.__exit__(None, None, None)


class Reference:
    """Two processes with nothing around them."""

    name = "two-process reference"

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._processes = TwoProcesses(workload)
        self._rng = np.random.default_rng(SEED)

    def first_round(self) -> list[Tensor]:
        """Do fedopt's first round; return the model after it."""
        cohort = self._workload.cohort_of(1)
        self._processes.round(cohort, self._workload.orders(1, cohort))
        return self._processes.parameters()

    def round(self) -> None:
        """Do one round."""
        cohort = self._rng.choice(self._workload.clients, self._workload.cohort, replace=False)
        self._processes.round(cohort.tolist())

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    """Return the largest absolute difference between two models."""
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def is_stackable(workload: Workload) -> bool:
    """Return whether fedopt would stack the clients of a workload."""
    return workload.experiment(name="inline").engine_choice.name == "stacked"


def start_ray(cores: int) -> None:
    """Start one Ray for all grids of this process; idle actors cost nothing."""
    import logging

    import ray

    ray.init(
        address="local",
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    torch.set_num_threads(1)


def stop_ray() -> None:
    """Stop it."""
    import ray

    ray.shutdown()
