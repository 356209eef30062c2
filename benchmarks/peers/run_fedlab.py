"""FedLab: `StandalonePipeline` with its FedAvg handler and serial trainer, in one process."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers import common

common.declare_torchvision_operators()

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.contrib.algorithm.basic_server import SyncServerHandler  # noqa: E402
from fedlab.contrib.dataset.basic_dataset import FedDataset  # noqa: E402
from fedlab.core.standalone import StandalonePipeline  # noqa: E402


class _Population(FedDataset):
    def __init__(self, workload: common.Workload) -> None:
        features, labels = common.data(workload)
        self.loaders = [
            DataLoader(
                TensorDataset(torch.from_numpy(features[k]), torch.from_numpy(labels[k])),
                batch_size=workload.batch_size,
            )
            for k in range(workload.clients)
        ]

    def get_dataset(self, id: int, type: str = "train") -> TensorDataset:
        return self.loaders[id].dataset

    def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> DataLoader:
        return self.loaders[id]


class _Handler(SyncServerHandler):
    """FedLab's handler, but for which clients take part."""

    workload: common.Workload

    def sample_clients(self) -> list[int]:
        return common.cohort(self.workload, self.round)


class _Pipeline(StandalonePipeline):
    referee: common.Referee

    def evaluate(self) -> None:
        self.referee.round_done(lambda: common.parameters_of(self.handler.model))


def main() -> None:
    """Measure one workload."""
    options = common.options(["one process"])
    common.one_thread()
    workload = options.workload
    referee = common.Referee(workload, options.rounds, options.warmup)
    handler = _Handler(
        common.build_model(workload), referee.total, workload.cohort / workload.clients
    )
    handler.workload = workload
    trainer = SGDSerialClientTrainer(common.build_model(workload), workload.clients)
    trainer.setup_dataset(_Population(workload))
    trainer.setup_optim(1, workload.batch_size, workload.learning_rate)
    pipeline = _Pipeline(handler, trainer)
    pipeline.referee = referee
    referee.start()
    pipeline.main()
    row = common.Row("fedlab", options.mode, workload.name)
    row.versions = common.versions("fedlab", "torch", "torchvision", "numpy")
    row.note = "its FedAvg averages clients without weights, the same here: all are equal in size"
    options.write(referee.fill(row))


if __name__ == "__main__":
    main()
