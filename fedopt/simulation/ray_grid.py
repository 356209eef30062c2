"""The `ray` grid: clients train in single-threaded Ray actors, one a core.

Data lie once in Ray's shared memory; a round's arrays are put there once, however many workers
read them; nothing sleeps or polls. A worker that dies is replaced and its message is sent again:
blocks give the same bits anywhere and client state is written to the same rows, so nothing of it
shows in the results.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedopt.errors import ConfigError, FedoptError, RunError
from fedopt.experiment import Experiment
from fedopt.simulation.grid import DirectGrid, identify_process

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp

log = logging.getLogger("fedopt")

MAX_DEATHS = 5
"""Deaths of workers on one message, after which the run is given up."""

CONNECT_SECONDS = 10.0
"""How long the machine at `engine.address` may take to answer."""

SHARED_NBYTES = 64 * 1024
"""Records from this size on are put in shared memory once; smaller ones travel in the message."""


class Worker:
    """A Ray actor that runs the ClientApp, single-threaded.

    Args:
        experiment: the run's experiment; its arrays are views into shared memory.
        node_id: the node that the actor is.
        path: the driver's module search path.
    """

    def __init__(self, experiment: Experiment, node_id: int, path: list[str]) -> None:
        import torch

        from fedopt.client.app import client_app

        torch.set_num_threads(1)
        sys.path.extend(p for p in path if p not in sys.path)
        identify_process()
        self._app: ClientApp = client_app(experiment)
        self._context = Context(
            run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
        )

    def handle(self, message: Message, names: list[str], *records: ArrayRecord) -> Message:
        """Answer a message, whose large records come from shared memory."""
        for name, record in zip(names, records, strict=True):
            message.content[name] = record
        return self._app(message, self._context)


class RayGrid(DirectGrid):
    """One node a worker.

    A Ray that the calling process already uses is used and left running; otherwise a private one
    is started (or the cluster at `engine.address` joined) and shut down when the grid is closed.

    Args:
        experiment: the run's experiment.

    Raises:
        ConfigError: the cluster cannot be reached, or has no GPU where one is asked for.
    """

    def __init__(self, experiment: Experiment) -> None:
        engine = experiment.config.engine
        self._owns_ray = start_ray(experiment)
        import ray

        self._ray = ray
        resources = ray.cluster_resources()
        workers = engine.workers or _default_workers(experiment, resources)
        super().__init__(nodes=workers)
        gpus = 0.0
        if engine.device.startswith("cuda"):
            gpus = resources.get("GPU", 0.0) / workers
            if not gpus:
                self.close()
                raise ConfigError("Ray sees no GPU", key="engine.device")
        self._options = {"num_cpus": 1, "num_gpus": min(gpus, 1.0)}
        self._experiment = ray.put(experiment)
        self._workers = {node: self._spawn(node) for node in self.get_node_ids()}

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Refuse a cluster's address that nobody listens at: Ray itself would wait on and on.

        Raises:
            ConfigError: nobody answers at `engine.address`.
        """
        address = experiment.config.engine.address
        host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
        if not colon or not port.isdigit():  # none, "auto", or for Ray to judge
            return
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f'no Ray cluster at "{address}": {error}', key="engine.address"
            ) from error

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Have the workers answer; replace those that die and send their messages again.

        Raises:
            FedoptError: a worker raised it.
            RunError: the ClientApp failed otherwise, or workers die again and again.
        """
        ray = self._ray
        shared = self._share(messages)
        pending = {self._submit(m, shared): (m, 0) for m in messages}
        replies = []
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            message, deaths = pending.pop(ready)
            try:
                replies.append(ray.get(ready))
            except ray.exceptions.RayActorError as error:
                if error.actor_init_failed:
                    raise RunError(f"a worker cannot start:\n{error}") from error
                if deaths + 1 >= MAX_DEATHS:
                    raise RunError(
                        f"workers died {MAX_DEATHS} times on the same blocks: {error}"
                    ) from error
                node = message.metadata.dst_node_id
                log.warning("worker %d died; it is replaced and its blocks are run again", node)
                self._workers[node] = self._spawn(node)
                pending[self._submit(message, shared)] = (message, deaths + 1)
            except ray.exceptions.RayTaskError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, FedoptError):
                    raise cause from None
                raise RunError(f"a worker failed:\n{error}") from error
        return replies

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers, in the order of the nodes."""
        calls = [w.__ray_call__.remote(_pid) for w in self._workers.values()]
        pids: list[int] = self._ray.get(calls)
        return pids

    def close(self) -> None:
        """Stop the workers, and Ray where this grid started it."""
        for worker in getattr(self, "_workers", {}).values():
            self._ray.kill(worker)
        self._workers = {}
        if self._owns_ray:
            self._ray.shutdown()
            self._owns_ray = False

    def _spawn(self, node: int) -> Any:
        actor = self._ray.remote(Worker).options(**self._options)
        return actor.remote(self._experiment, node, sys.path)

    def _share(self, messages: Sequence[Message]) -> dict[int, Any]:
        """Put each large record that the messages hold into shared memory, once."""
        shared: dict[int, Any] = {}
        for message in messages:
            for record in message.content.array_records.values():
                size = sum(array.numpy().nbytes for array in record.values())
                if size >= SHARED_NBYTES and id(record) not in shared:
                    shared[id(record)] = self._ray.put(record)
        return shared

    def _submit(self, message: Message, shared: dict[int, Any]) -> Any:
        """Send a message, with references in the place of shared records."""
        content, names, records = message.content, [], []
        light = RecordDict()
        for name, record in content.items():
            if id(record) in shared:
                names.append(name)
                records.append(shared[id(record)])
            else:
                light[name] = record
        envelope = copy.copy(message)  # Flower's constructor takes no metadata
        envelope.content = light
        worker = self._workers[message.metadata.dst_node_id]
        return worker.handle.remote(envelope, names, *records)


def _pid(_worker: Any) -> int:
    return os.getpid()


def start_ray(experiment: Experiment) -> bool:
    """Start or join Ray; return whether it is ours to shut down."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    engine = experiment.config.engine
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if engine.address is None:
        cores = len(os.sched_getaffinity(0))
        options |= {
            "address": "local",
            "num_cpus": max(cores, engine.workers or 1),
            "include_dashboard": False,
        }
    else:
        options["address"] = engine.address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f'no Ray cluster at "{engine.address}": {error}', key="engine.address"
        ) from error
    return True


def _default_workers(experiment: Experiment, resources: dict[str, float]) -> int:
    """Return one worker a GPU, or one a core but no more than the round has blocks."""
    config = experiment.config
    if config.engine.device.startswith("cuda"):
        return max(1, int(resources.get("GPU", 0)))
    cohort = experiment.cohort_size()
    blocks = -(-cohort // experiment.block_size)
    return max(1, min(int(resources.get("CPU", 1)), blocks))
