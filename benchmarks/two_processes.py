"""The reference limit: two processes and a hand-written engine, with nothing around them.

No Flower, no Ray, no records, no reports, no failures handled. Parameters and sums are in shared
memory; pipes carry client ids. Clients have equally many examples here, so means need no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload

CHUNKS = {"W1": 5, "W3": 50}
"""Clients trained at once by the hand-written dense engine, the quickest of those tried."""


class Sums(Protocol):
    """Trains clients and sums their parameters."""

    def add(self, total: Tensor, start: Tensor, clients: Sequence[int], orders: Tensor) -> None:
        """Add the clients' trained parameters to `total` `[P]`; orders `[K, examples]`."""


def views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return a flat vector as the arrays of a model."""
    pieces = flat.split([shape.numel() for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


class FusedDense:
    """Dense layers with ReLU between them, a chunk of clients at once, all written by hand.

    The product that makes a weight's gradient is accumulated into the weight, so that no gradient
    is ever stored.

    Args:
        workload: the task, whose model is dense.
        chunk: clients trained at once.
    """

    def __init__(self, workload: Workload, chunk: int) -> None:
        data = workload.data()
        self._inputs = torch.from_numpy(np.concatenate([x for x, _ in data]))
        self._targets = torch.from_numpy(np.concatenate([y for _, y in data]))
        self._shapes = [p.shape for p in workload.build_model().parameters()]
        self._chunk, self._lr = chunk, workload.lr
        self._examples, self._batch_size = workload.examples, workload.batch_size
        self._stacked = [torch.empty(chunk, *shape) for shape in self._shapes]

    def add(self, total: Tensor, start: Tensor, clients: Sequence[int], orders: Tensor) -> None:
        """Add the clients' trained parameters to `total`."""
        rows = torch.tensor(clients).mul_(self._examples).unsqueeze(1) + orders
        begin, sums = views(start, self._shapes), views(total, self._shapes)
        for first in range(0, len(clients), self._chunk):
            mine = rows[first : first + self._chunk]
            stacked = [p[: len(mine)] for p in self._stacked]
            for parameter, value in zip(stacked, begin, strict=True):
                parameter.copy_(value)
            for batch in mine.split(self._batch_size, dim=1):
                self._step(stacked[::2], stacked[1::2], batch)
            for parameter, value in zip(stacked, sums, strict=True):
                value.add_(parameter.sum(0) if len(mine) > 1 else parameter[0])

    def _step(self, weights: Sequence[Tensor], biases: Sequence[Tensor], batch: Tensor) -> None:
        flat = batch.flatten()
        x = self._inputs.index_select(0, flat).unflatten(0, batch.shape)
        below = []
        for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            below.append(x)
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            if depth < len(weights) - 1:
                x.relu_()
        gradient = x.softmax(-1)
        targets = self._targets.index_select(0, flat).view(*batch.shape, 1)
        gradient.scatter_add_(-1, targets, torch.full(targets.shape, -1.0))
        gradient /= batch.shape[1]
        for depth in range(len(weights) - 1, -1, -1):
            inner = gradient @ weights[depth] if depth else gradient
            weights[depth].baddbmm_(gradient.mT, below[depth], alpha=-self._lr)
            biases[depth].sub_(gradient.sum(1), alpha=self._lr)
            gradient = inner.mul_(below[depth] > 0) if depth else inner


class LeanLoop:
    """One client after another: channels-last, no optimizer object, no gradient kept.

    Args:
        workload: the task.
    """

    def __init__(self, workload: Workload) -> None:
        self._model = workload.build_model().to(memory_format=torch.channels_last)
        self._parameters = list(self._model.parameters())
        self._shapes = [p.shape for p in self._parameters]
        self._data = [
            (torch.from_numpy(x).to(memory_format=torch.channels_last), torch.from_numpy(y))
            for x, y in workload.data()
        ]
        self._lr, self._batch_size = workload.lr, workload.batch_size

    def add(self, total: Tensor, start: Tensor, clients: Sequence[int], orders: Tensor) -> None:
        """Add the clients' trained parameters to `total`."""
        parameters = self._parameters
        begin, sums = views(start, self._shapes), views(total, self._shapes)
        for client, order in zip(clients, orders, strict=True):
            with torch.no_grad():
                torch._foreach_copy_(parameters, begin)
            inputs, targets = self._data[client]
            for batch in order.split(self._batch_size):
                loss = nn.functional.cross_entropy(self._model(inputs[batch]), targets[batch])
                gradients = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, gradients, alpha=-self._lr)
            with torch.no_grad():
                torch._foreach_add_(sums, parameters)


class TwoProcesses:
    """Worker processes that train halves of a cohort.

    Args:
        workload: the task.
        workers: number of processes.
    """

    def __init__(self, workload: Workload, workers: int = 2) -> None:
        context = torch.multiprocessing.get_context("spawn")
        model = workload.build_model()
        self._workload = workload
        self._shapes = [p.shape for p in model.parameters()]
        start = nn.utils.parameters_to_vector(model.parameters()).detach()
        self._shared = torch.zeros(1 + workers, len(start)).share_memory_()
        self._shared[0] = start
        self._pipes: list[Connection] = []
        self._processes = []
        for worker in range(workers):
            ours, theirs = context.Pipe()
            arguments = (theirs, self._shared, 1 + worker, workload)
            process = context.Process(target=serve, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def round(self, cohort: Sequence[int], orders: Sequence[Tensor] | None = None) -> None:
        """Train a cohort and put the mean in the place of the parameters."""
        count = len(self._pipes)
        for worker, pipe in enumerate(self._pipes):
            mine = None if orders is None else torch.stack(list(orders[worker::count])).numpy()
            pipe.send((cohort[worker::count], mine))
        for pipe in self._pipes:
            pipe.recv()
        torch.sum(self._shared[1:], 0, out=self._shared[0])
        self._shared[0] /= len(cohort)

    def parameters(self) -> list[Tensor]:
        """Return a copy of the model's arrays."""
        return views(self._shared[0].clone(), self._shapes)

    def close(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def serve(pipe: Connection, shared: Tensor, slot: int, workload: Workload) -> None:
    """Answer the cohorts that come through a pipe, until None comes."""
    torch.set_num_threads(1)
    chunk = CHUNKS.get(workload.name)
    engine: Sums = FusedDense(workload, chunk) if chunk else LeanLoop(workload)
    total = shared[slot]
    pipe.send(None)
    while (job := pipe.recv()) is not None:
        clients, given = job
        if given is None:
            orders = torch.rand(len(clients), workload.examples).argsort(dim=1)
        else:
            orders = torch.from_numpy(given)
        total.zero_()
        engine.add(total, shared[0], clients, orders)
        pipe.send(None)
