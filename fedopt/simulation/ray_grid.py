"""The `ray` grid: clients train in single-threaded Ray actors, one a core.

Data lie once in Ray's shared memory; a round's arrays are laid down once, however many workers
read them. On one machine Ray starts and watches the workers, messages travel through sockets and
arrays through slots of shared memory; on several Ray carries both. A worker that dies is replaced
and its message is sent again: blocks give the same bits anywhere and client state is written to the
same rows, so nothing of it shows in the results.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedopt.errors import ConfigError, FedoptError, RunError
from fedopt.experiment import Experiment
from fedopt.memory import keep_freed_memory
from fedopt.simulation.grid import DirectGrid, identify_process
from fedopt.simulation.lines import AnswerError, Line, Switchboard, serve
from fedopt.simulation.ray_processes import none_left_on_failure
from fedopt.simulation.shared_arrays import MappedSlots, Packed, SlotPool

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
        keep_freed_memory()
        sys.path.extend(p for p in path if p not in sys.path)
        identify_process()
        self._app: ClientApp = client_app(experiment)
        self._slots = MappedSlots()
        self._context = Context(
            run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={}
        )

    def handle(self, message: Message, names: list[str], *records: ArrayRecord) -> Message:
        """Answer a message, whose large records come from Ray's object store."""
        for name, record in zip(names, records, strict=True):
            message.content[name] = record
        return self._app(message, self._context)

    def serve(self, address: str, line: int) -> None:
        """Answer the messages that come through a line from the driver, until it is cut."""
        serve(address, line, self.handle_here)

    def handle_here(
        self, message: Message, packed: Packed | None, reply_slot: str
    ) -> tuple[Message, Packed | None]:
        """Answer a message on the driver's machine; large records lie in slots both ways."""
        if packed is not None:
            for name, record in self._slots.read(packed).items():
                message.content[name] = record
        reply = self._app(message, self._context)
        large = large_records(reply)
        if not large:
            return reply, None
        answer = self._slots.write(reply_slot, large)
        return _without(reply, large), answer


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
        self._slots: SlotPool | None = None
        self._lines: Switchboard | None = None
        self._workers: dict[int, _Worker] = {}
        self._died: set[int] = set()
        self._owns_ray = start_ray(experiment)
        import ray

        self._ray = ray
        try:
            self._begin(experiment)
        except BaseException:  # Ctrl-C too: nobody else knows yet what there is to be stopped
            self.close()
            raise

    def _begin(self, experiment: Experiment) -> None:
        """Start the workers.

        Raises:
            ConfigError: Ray has no GPU where one is asked for.
        """
        ray, engine = self._ray, experiment.config.engine
        resources = ray.cluster_resources()
        workers = engine.workers or _default_workers(experiment, resources)
        super().__init__(nodes=workers)
        gpus = 0.0
        if engine.device.startswith("cuda"):
            gpus = resources.get("GPU", 0.0) / workers
            if not gpus:
                raise ConfigError("Ray sees no GPU", key="engine.device")
        self._options = {"num_cpus": 1, "num_gpus": min(gpus, 1.0)}
        alone = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
        if alone:
            self._slots = SlotPool()
            self._lines = Switchboard(self._slots.folder / "driver")
        self._experiment = ray.put(experiment)
        for node in self.get_node_ids():
            self._worker(node)

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
        carrier: _Carrier = _ObjectStore(ray)
        if self._slots is not None and self._lines is not None:
            carrier = _Slots(ray, self._slots, self._lines)
        carrier.load(messages)
        # One message a node at a time: neither side then waits for the other to read.
        queues: dict[int, deque[Message]] = {}
        for message in messages:
            queues.setdefault(message.metadata.dst_node_id, deque()).append(message)
        pending: dict[Any, tuple[int, int]] = {}

        def send(node: int, deaths: int = 0) -> None:
            pending[carrier.send(self._worker(node), queues[node][0])] = (node, deaths)

        replies = []
        try:
            for node in queues:
                send(node)
            while pending:
                ticket = carrier.wait(list(pending))
                node, deaths = pending[ticket]
                try:
                    replies.append(carrier.receive(queues[node][0], ticket))
                    del pending[ticket]
                except ray.exceptions.RayActorError as error:
                    if error.actor_init_failed:
                        raise RunError(f"a worker cannot start:\n{error}") from error
                    if deaths + 1 >= MAX_DEATHS:
                        raise RunError(
                            f"workers died {MAX_DEATHS} times on the same blocks: {error}"
                        ) from error
                    log.warning("worker %d died; it is replaced and its blocks are run again", node)
                    del pending[ticket]
                    self._give_up(node)
                    send(node, deaths + 1)
                    continue
                except (ray.exceptions.RayTaskError, AnswerError) as error:
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, FedoptError):
                        raise cause from None
                    raise RunError(f"a worker failed:\n{error}") from error
                queues[node].popleft()
                if queues[node]:
                    send(node)
        except BaseException:
            for node, _ in pending.values():  # what they answer must not be taken for another reply
                self._give_up(node)
            raise
        carrier.close()
        return replies

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers, in the order of the nodes."""
        workers = [self._worker(node) for node in self.get_node_ids()]
        if self._lines is not None:
            return [self._lines.connect(w.line, w.has_ended).pid for w in workers if w.line]
        pids: list[int] = self._ray.get([w.actor.__ray_call__.remote(_pid) for w in workers])
        return pids

    def close(self) -> None:
        """Stop the workers, and Ray where this grid started it; what fails keeps no other part."""
        with ExitStack() as stack:  # its callbacks run from the last to the first, whatever fails
            if self._owns_ray:
                stack.callback(self._ray.shutdown)
                self._owns_ray = False
            if self._slots is not None:
                stack.callback(self._slots.close)
                self._slots = None
            if self._lines is not None:
                stack.callback(self._lines.close)
                self._lines = None
            for worker in self._workers.values():
                stack.callback(self._ray.kill, worker.actor)
            self._workers = {}

    @property
    def shares_files(self) -> bool:
        """Whether all workers are on the driver's machine."""
        return self._slots is not None

    def _give_up(self, node: int) -> None:
        """Make sure that nothing comes from a worker any more."""
        worker = self._workers.pop(node, None)
        if worker is None:
            return
        self._died.add(node)
        self._ray.kill(worker.actor)
        if self._lines is not None and worker.line is not None:
            self._lines.drop(worker.line)

    def _worker(self, node: int) -> _Worker:
        """Return the worker that is a node, started where there is none."""
        if node not in self._workers:
            # The place of a dead worker asks for no core: its Ray node may be gone, and with it the
            # core that it would wait for.
            options = {**self._options, "num_cpus": 0} if node in self._died else self._options
            actor = self._ray.remote(Worker).options(**options)
            handle = actor.remote(self._experiment, node, sys.path)
            self._workers[node] = _Worker(self._ray, handle, self._lines)
        return self._workers[node]


class _Worker:
    """A worker as the driver sees it.

    Args:
        ray: the module.
        actor: the handle of the Ray actor.
        lines: where it is to call, on the driver's machine.

    Attributes:
        line: its line, on the driver's machine.
    """

    def __init__(self, ray: Any, actor: Any, lines: Switchboard | None) -> None:
        self._ray = ray
        self.actor = actor
        self.line: Line | None = None
        if lines is not None:
            self.line = lines.expect()
            self._call = actor.serve.remote(lines.address, self.line.number)

    def has_ended(self) -> bool:
        """Return whether the worker answers no more."""
        return bool(self._ray.wait([self._call], timeout=0)[0])

    def raise_its_end(self) -> None:
        """Raise what ended the worker, once Ray knows it."""
        self._ray.get(self._call)
        raise RunError("a worker has hung up")


class _Carrier(Protocol):
    """How the large records of one exchange travel."""

    def load(self, messages: Sequence[Message]) -> None:
        """Lay down the large records of the messages, each once."""

    def send(self, worker: _Worker, message: Message) -> Any:
        """Send a message without its large records; return a ticket for its reply."""

    def wait(self, tickets: Sequence[Any]) -> Any:
        """Return a ticket whose reply is there, or will never be."""

    def receive(self, message: Message, ticket: Any) -> Message:
        """Return the whole reply to a message, or raise what came in its place."""

    def close(self) -> None:
        """End the exchange."""


class _Slots:
    """Through sockets and shared memory, where all workers are on the driver's machine."""

    def __init__(self, ray: Any, pool: SlotPool, lines: Switchboard) -> None:
        self._ray = ray
        self._pool = pool
        self._lines = lines
        self._down: dict[tuple[int, ...], Packed] = {}
        self._up: dict[str, str] = {}

    def load(self, messages: Sequence[Message]) -> None:
        for message in messages:
            large = large_records(message)
            if large and _key(large) not in self._down:
                self._down[_key(large)] = self._pool.memory.write(self._pool.lend(), large)

    def send(self, worker: _Worker, message: Message) -> _Worker:
        large = large_records(message)
        packed = self._down[_key(large)] if large else None
        key = message.metadata.message_id
        if key not in self._up:  # a message that is sent again keeps its slot
            self._up[key] = self._pool.lend()
        assert worker.line is not None
        line = self._lines.connect(worker.line, worker.has_ended)
        line.send((_without(message, large), packed, self._up[key]))
        return worker

    def wait(self, tickets: Sequence[_Worker]) -> _Worker:
        lines: dict[Line, Callable[[], bool]] = {w.line: w.has_ended for w in tickets if w.line}
        ready = self._lines.wait(lines)
        return next(worker for worker in tickets if worker.line is ready)

    def receive(self, message: Message, ticket: _Worker) -> Message:
        assert ticket.line is not None
        answer = ticket.line.receive()
        if answer is None:
            ticket.raise_its_end()
        whole, packed = answer
        if packed is not None:
            for name, record in self._pool.memory.read(packed).items():
                whole.content[name] = record
        found: Message = whole
        return found

    def close(self) -> None:
        for path in (*(packed.path for packed in self._down.values()), *self._up.values()):
            self._pool.take_back(path)


class _ObjectStore:
    """Through Ray's object store, where workers are on several machines."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._shared: dict[int, Any] = {}

    def load(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for record in large_records(message).values():
                if id(record) not in self._shared:
                    self._shared[id(record)] = self._ray.put(record)

    def send(self, worker: _Worker, message: Message) -> Any:
        large = large_records(message)
        references = [self._shared[id(record)] for record in large.values()]
        return worker.actor.handle.remote(_without(message, large), list(large), *references)

    def wait(self, tickets: Sequence[Any]) -> Any:
        (ready, *_), _ = self._ray.wait(list(tickets), num_returns=1)
        return ready

    def receive(self, message: Message, ticket: Any) -> Message:
        found: Message = self._ray.get(ticket)
        return found

    def close(self) -> None:
        self._shared = {}


def large_records(message: Message) -> dict[str, ArrayRecord]:
    """Return the records of a message that are worth more than a copy in its pickle."""
    return {
        name: record
        for name, record in message.content.array_records.items()
        if sum(array.numpy().nbytes for array in record.values()) >= SHARED_NBYTES
    }


def _key(records: dict[str, ArrayRecord]) -> tuple[int, ...]:
    return tuple(id(record) for record in records.values())


def _without(message: Message, records: dict[str, ArrayRecord]) -> Message:
    """Return a message without some of its records, which share nothing but metadata."""
    if not records:
        return message
    light = copy.copy(message)  # Flower's constructor takes no metadata
    light.content = RecordDict({k: v for k, v in message.content.items() if k not in records})
    return light


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
        with none_left_on_failure():
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
