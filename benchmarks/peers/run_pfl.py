"""pfl: `FederatedAveraging` over `SimulatedBackend`, in one process or, by torchrun, in two."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional as F

from benchmarks.peers import common


class _Net(torch.nn.Module):
    def __init__(self, body: torch.nn.Module) -> None:
        super().__init__()
        self.body = body

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.body(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"examples": Weighted(0, len(y))}


class _AfterRound(TrainingProcessCallback):
    """Hands each finished round to the referee; with two processes the other one waits."""

    def __init__(self, referee: common.Referee | None, distributed: bool) -> None:
        self.referee = referee
        self.distributed = distributed

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        if self.referee is not None:
            self.referee.start()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        if self.distributed:
            torch.distributed.barrier()
        if self.referee is not None:
            self.referee.round_done(lambda: common.parameters_of(model.pytorch_model))
        if self.distributed:
            torch.distributed.barrier()
            if self.referee is not None:
                self.referee.start()
        return False, Metrics()


def _user_ids(workload: common.Workload) -> Iterator[int]:
    round_number = 0
    while True:
        yield from common.cohort(workload, round_number)
        round_number += 1


def main() -> None:
    """Measure one mode on one workload."""
    options = common.options(["one process", "two processes"])
    common.one_thread()
    logging.disable(logging.INFO)
    workload = options.workload
    distributed = options.mode == "two processes"
    rank = int(os.environ.get("RANK", 0))
    features, labels = common.data(workload)
    users = [
        Dataset((torch.from_numpy(features[k]), torch.from_numpy(labels[k])), user_id=str(k))
        for k in range(workload.clients)
    ]
    ids = _user_ids(workload)
    population = FederatedDataset(users.__getitem__, lambda: next(ids))
    model = _Net(common.build_model(workload))
    referee = pair = None
    if rank == 0:
        if distributed:
            pair = common.BarePair(options.reference_python, workload)
        referee = common.Referee(
            workload,
            options.rounds,
            options.warmup,
            pair=pair,
            count_steps=not distributed,
            server_steps=1,  # the server applies the mean update by one step of its optimiser
        )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=options.rounds + options.warmup,
            evaluation_frequency=options.rounds + options.warmup + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(population, population, postprocessors=[WeightByDatapoints()]),
        PyTorchModel(model, torch.optim.SGD, torch.optim.SGD(model.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=workload.learning_rate,
            local_batch_size=workload.batch_size,
        ),
        callbacks=[_AfterRound(referee, distributed)],
        send_metrics_to_platform=False,
    )
    if referee is not None:
        row = common.Row("pfl", options.mode, workload.name, processes=1 + distributed)
        row.versions = common.versions("pfl", "torch", "numpy")
        options.write(referee.fill(row))
    if pair is not None:
        pair.close()
    if distributed:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
