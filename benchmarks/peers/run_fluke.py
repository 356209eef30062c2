"""fluke: `FedAVG` in one process, everything in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.peers import common

common.declare_torchvision_operators()

from fluke import DDict, FlukeENV  # noqa: E402
from fluke.algorithms.fedavg import FedAVG  # noqa: E402
from fluke.client import Client  # noqa: E402
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader  # noqa: E402
from fluke.server import Server  # noqa: E402
from fluke.utils import FederationObserver  # noqa: E402


class _RoundsAreOverError(Exception):
    """Leaves fluke's loop before its final evaluation of every client."""


class _AfterRound(FederationObserver):
    def __init__(self, referee: common.Referee, model: torch.nn.Module) -> None:
        self.referee = referee
        self.model = model

    def end_round(self, round: int) -> None:
        if self.referee.round_done(lambda: common.parameters_of(self.model)):
            raise _RoundsAreOverError


def _server_for(workload: common.Workload) -> type[Server]:
    class ScheduledServer(Server):
        """fluke's server, but for which clients take part."""

        scheduled = 0

        def get_eligible_clients(self, eligible_perc: float) -> Sequence[Client]:
            clients = common.cohort(workload, self.scheduled)
            self.scheduled += 1
            return [self.clients[k] for k in clients]

    return ScheduledServer


def main() -> None:
    """Measure one workload."""
    options = common.options(["one process"])
    common.one_thread()
    workload = options.workload
    features, labels = common.data(workload)
    loaders = [
        FastDataLoader(
            torch.from_numpy(features[k]),
            torch.from_numpy(labels[k]),
            num_labels=workload.classes,
            batch_size=workload.batch_size,
            shuffle=False,
        )
        for k in range(workload.clients)
    ]
    environment: Any = FlukeENV()
    environment.set_seed(common.SEED)
    environment.set_device("cpu")
    environment.set_inmemory(True)
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    server_class = _server_for(workload)

    class Scheduled(FedAVG):
        def get_server_class(self) -> type[Server]:
            return server_class

    model = common.build_model(workload)
    algorithm = Scheduled(
        workload.clients,
        DataSplitter(
            DummyDataContainer(loaders, [None] * workload.clients, None, workload.classes)
        ),
        DDict(
            model=model,
            client=DDict(
                batch_size=workload.batch_size,
                local_epochs=1,
                loss="CrossEntropyLoss",
                optimizer=DDict(name="SGD", lr=workload.learning_rate),
                scheduler=DDict(name="StepLR", step_size=1, gamma=1),
            ),
            server=DDict(weighted=True),
        ),
    )
    referee = common.Referee(workload, options.rounds, options.warmup)
    algorithm.set_callbacks(_AfterRound(referee, algorithm.server.model))
    referee.start()
    try:
        algorithm.run(referee.total, workload.cohort / workload.clients, finalize=False)
    except _RoundsAreOverError:
        environment.close_cache()
    row = common.Row("fluke", options.mode, workload.name)
    row.versions = common.versions("fluke-fl", "torch", "numpy")
    row.note = "each client keeps its own model and optimizer, fluke's default"
    options.write(referee.fill(row))


if __name__ == "__main__":
    main()
