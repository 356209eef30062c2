"""BlazeFL: its FedAvg handler with the serial trainer, the process pool or the thread pool.

The loop is the one of its documentation. Its pools send the data set and build a model for every
client: here the data set travels as a name and the model is a copy, the cheapest its API allows.
"""

from __future__ import annotations

import copy
import functools
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import IPCMode, ModelSelector, PartitionedDataset
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.peers import common

Trainer = FedAvgBaseClientTrainer | FedAvgProcessPoolClientTrainer | FedAvgThreadPoolClientTrainer


@functools.cache
def _loaders(name: str) -> list[DataLoader]:
    """One loader a client; forked workers inherit what the parent has built."""
    workload = common.WORKLOADS[name]
    features, labels = common.data(workload)
    return [
        DataLoader(
            TensorDataset(torch.from_numpy(features[k]), torch.from_numpy(labels[k])),
            batch_size=workload.batch_size,
        )
        for k in range(workload.clients)
    ]


@functools.cache
def _model(name: str) -> torch.nn.Module:
    return common.build_model(common.WORKLOADS[name])


class _Population(PartitionedDataset[FedAvgPartitionType]):
    def __init__(self, name: str) -> None:
        self.name = name

    def get_dataset(self, type_: FedAvgPartitionType, cid: int | None) -> Dataset:
        return _loaders(self.name)[cid or 0].dataset

    def set_dataset(self, type_: FedAvgPartitionType, cid: int | None, dataset: Dataset) -> None:
        return

    def get_dataloader(
        self,
        type_: FedAvgPartitionType,
        cid: int | None,
        batch_size: int | None,
        generator: torch.Generator | None,
    ) -> DataLoader:
        return _loaders(self.name)[cid or 0]


class _Models(ModelSelector):
    def select_model(self, model_name: str) -> torch.nn.Module:
        return copy.deepcopy(_model(model_name))


class _Handler(FedAvgBaseServerHandler):
    """BlazeFL's handler, but for which clients take part."""

    def sample_clients(self) -> list[int]:
        return common.cohort(common.WORKLOADS[self.dataset.name], self.round)


def _trainer(mode: str, workload: common.Workload, folder: Path) -> Trainer:
    shared = {
        "model_selector": _Models(),
        "model_name": workload.name,
        "dataset": _Population(workload.name),
        "device": "cpu",
        "num_clients": workload.clients,
        "epochs": 1,
        "batch_size": workload.batch_size,
        "lr": workload.learning_rate,
        "seed": common.SEED,
    }
    if mode == "one process":
        return FedAvgBaseClientTrainer(**shared)
    if mode == "two threads":
        return FedAvgThreadPoolClientTrainer(**shared, num_parallels=2)
    return FedAvgProcessPoolClientTrainer(
        **shared,
        share_dir=folder / "share",
        state_dir=folder / "state",
        num_parallels=2,
        ipc_mode=IPCMode.SHARED_MEMORY,
    )


def main() -> None:
    """Measure one mode on one workload."""
    options = common.options(["one process", "two processes", "two threads"])
    common.one_thread()
    workload = options.workload
    _loaders(workload.name)
    pair = None
    if options.mode != "one process":
        pair = common.BarePair(options.reference_python, workload)
    referee = common.Referee(
        workload,
        options.rounds,
        options.warmup,
        pair=pair,
        count_steps=options.mode != "two processes",
    )
    handler = _Handler(
        model_selector=_Models(),
        model_name=workload.name,
        dataset=_Population(workload.name),
        global_round=referee.total,
        num_clients=workload.clients,
        sample_ratio=workload.cohort / workload.clients,
        device="cpu",
        batch_size=workload.batch_size,
        seed=common.SEED,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(options.mode, workload, Path(folder))
        referee.start()
        while not handler.if_stop():
            chosen = handler.sample_clients()
            trainer.local_process(handler.downlink_package(), chosen)
            for package in trainer.uplink_package():
                handler.load(package)
            referee.round_done(lambda: common.parameters_of(handler.model))
    if pair is not None:
        pair.close()
    row = common.Row("blazefl", options.mode, workload.name)
    row.processes = 2 if options.mode == "two processes" else 1
    row.versions = common.versions("blazefl", "torch", "numpy")
    row.note = {
        "one process": "",
        "two processes": "shared memory; its pool starts new processes every round",
        "two threads": "two threads of one interpreter, one torch thread each",
    }[options.mode]
    options.write(referee.fill(row))


if __name__ == "__main__":
    main()
