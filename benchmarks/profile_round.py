"""Where a round's time goes, inline and with Ray.

`python -m benchmarks.profile_round` puts clocks around the seams of a round and prints the median
milliseconds of each stage. In workers the longest share counts: the round waits for it. Stages of
a worker are parts of its total; "elsewhere" is what no clock saw.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from flwr.app import Message, MetricRecord
from rich.console import Console

from benchmarks.contenders import Fedopt
from benchmarks.measuring import (
    PATIENCE_SECONDS,
    Row,
    log,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from benchmarks.quiet import FOREIGN_CORES, Watch
from benchmarks.workloads import WORKLOADS, Workload, find
from fedopt.simulation import ray_grid
from fedopt.simulation.ray_grid import Worker
from fedopt.simulation.shared_arrays import Packed

ROUNDS = {"W1": 40, "W2": 8, "W3": 100}
WARM_UP = 5
TIMING = "timing"
STAGES = ("shared memory", "decode", "plan", "data", "training", "sums", "encode")


class Clocks:
    """Seconds by stage, since they were last taken."""

    seconds: ClassVar[defaultdict[str, float]] = defaultdict(float)
    placed: ClassVar[bool] = False

    @classmethod
    def around(cls, owner: Any, name: str, stage: str) -> None:
        """Put a clock around a function or method."""
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*arguments, **keywords)
            finally:
                cls.seconds[stage] += time.perf_counter() - began

        setattr(owner, name, timed)

    @classmethod
    def take(cls) -> dict[str, float]:
        """Return the seconds, and start again from zero."""
        taken = dict(cls.seconds)
        cls.seconds.clear()
        return taken

    @classmethod
    def place(cls) -> None:
        """Put clocks around what a node does, once a process."""
        if cls.placed:
            return
        cls.placed = True
        from fedopt.client import app
        from fedopt.client.loop import LoopEngine
        from fedopt.client.stacked import StackedEngine
        from fedopt.client.trainer import Trainer
        from fedopt.data.arrays import ArrayPopulation
        from fedopt.simulation.shared_arrays import MappedSlots

        cls.around(ray_grid._Slots, "load", "share arrays")
        cls.around(MappedSlots, "read", "shared memory")
        cls.around(MappedSlots, "write", "shared memory")
        cls.around(app, "decode_request", "decode")
        cls.around(app, "encode_outcome", "encode")
        cls.around(Trainer, "_plans", "plan")
        cls.around(Trainer, "_add", "sums")
        cls.around(ArrayPopulation, "train_many", "data")
        cls.around(LoopEngine, "train", "training")
        cls.around(StackedEngine, "train", "training")


class TimedWorker(Worker):
    """A worker that sends its clocks along with its reply."""

    def handle_here(
        self, message: Message, packed: Packed | None, reply_slot: str
    ) -> tuple[Message, Packed | None]:
        """Answer a message."""
        Clocks.place()
        Clocks.take()
        began = time.perf_counter()
        reply, answer = super().handle_here(message, packed, reply_slot)
        total = time.perf_counter() - began
        reply.content[TIMING] = MetricRecord({**Clocks.take(), "total": total})
        return reply, answer


def profile(workload: Workload, rounds: int, **engine: Any) -> dict[str, float]:
    """Return the median milliseconds of each stage of a round."""
    Clocks.place()
    is_ray = engine["name"] == "ray"
    if is_ray:
        ray_grid.Worker = TimedWorker  # type: ignore[misc]
    run = Fedopt("profiled", workload.experiment(**engine))
    grid: Any = run.grid
    Clocks.around(run.recorder.strategy, "configure_train", "sample and encode")
    Clocks.around(run.recorder.strategy, "aggregate_train", "aggregate")
    Clocks.around(run.recorder, "record", "record")
    Clocks.around(grid, "send_and_receive", "exchange")
    replies: list[Message] = []
    exchange = grid.exchange

    def kept(messages: Sequence[Message]) -> list[Message]:
        replies[:] = exchange(messages)
        return replies

    grid.exchange = kept
    turns: list[tuple[float, list[dict[str, float]]]] = []
    for _ in range(WARM_UP):
        run.round()
    watch, burst, began = Watch(), 5 * workload.burst, time.perf_counter()
    while sum(foreign <= FOREIGN_CORES for foreign, _ in turns) * burst < rounds:
        watch.restart()
        found = [one_round(run, replies, is_ray) for _ in range(burst)]
        turns.append((watch.foreign_cores(), found))
        if len(turns) * burst >= rounds and time.perf_counter() - began > PATIENCE_SECONDS:
            break
    run.close()
    kept = sorted(turns, key=lambda turn: turn[0])[: -(-rounds // burst)]
    log.info("others used at most %.2f cores in the rounds kept", kept[-1][0])
    every = [stages for _, found in kept for stages in found]
    return {
        stage: 1e3 * quartiles([stages.get(stage, 0.0) for stages in every])[1]
        for stage in every[0]
    }


def one_round(run: Fedopt, replies: Sequence[Message], is_ray: bool) -> dict[str, float]:
    """Do a round; return the seconds of its stages."""
    Clocks.take()
    began = time.perf_counter()
    run.round()
    total = time.perf_counter() - began
    stages = Clocks.take()
    if is_ray:
        shares: list[Any] = [reply.content[TIMING] for reply in replies]
        longest = max(shares, key=lambda share: float(share["total"]))
        node = float(longest["total"])
        inside = {stage: float(longest.get(stage, 0.0)) for stage in STAGES}
        stages["transport"] = stages["exchange"] - stages["share arrays"] - node
        stages |= inside
    else:
        node = stages["exchange"]
    stages["elsewhere in the node"] = node - sum(stages.get(stage, 0.0) for stage in STAGES)
    stages["round"] = total
    return stages


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="few clients and rounds")
    parser.add_argument("--without", nargs="+", choices=["ray"], default=[])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=150)
    facts = machine()
    warn_if_busy(console)
    columns: dict[str, dict[str, float]] = {}
    for name in options.workloads:
        workload = find(name, options.quick)
        rounds = options.rounds or (3 if options.quick else ROUNDS[name])
        columns[f"{name} inline"] = profile(workload, rounds, name="inline")
        if "ray" not in options.without:
            columns[f"{name} Ray x2"] = profile(workload, rounds, name="ray", workers=2)
    order = [
        "sample and encode", "share arrays", "transport", *STAGES, "elsewhere in the node",
        "aggregate", "record", "round",
    ]  # fmt: skip
    rows: list[Row] = [
        {"stage, ms": stage, **{name: column.get(stage) for name, column in columns.items()}}
        for stage in order
    ]
    show(console, "where a round's time goes", rows)
    write_csv(options.out / "profile.csv", rows, facts)
    return 0


if __name__ == "__main__":
    # Workers find their class by import: in `__main__` it would be sent by value.
    from benchmarks import profile_round

    sys.exit(profile_round.main())
