"""A long run of small rounds, and what grows in it that should not.

    python -m benchmarks.soak --rounds 5000 --engine inline
    python -m benchmarks.soak --rounds 5000 --engine ray

Prints resident memory of the driver and of its workers at round 100 and at the last one, and open
file descriptors, segments in /dev/shm and processes before, during and after.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fedopt.analysis.progress import SilentProgress

EARLY = 100
"""The round with which the last one is compared: by then everything has been used once."""

SETTINGS = [
    "strategy=scaffold",
    "clients_per_round=10",
    "partition.clients=40",
    "model=logistic",
    "local.epochs=1",
    "checkpoint.every=50",
]


@dataclass(frozen=True)
class Usage:
    """What a process and its children use.

    Args:
        rss: resident bytes of this process.
        workers_rss: resident bytes of the workers.
        descriptors: open file descriptors of this process.
        segments: files in /dev/shm.
        children: processes below this one.
    """

    rss: int
    workers_rss: int
    descriptors: int
    segments: int
    children: int

    def __str__(self) -> str:
        return (
            f"driver {self.rss / 2**20:.1f} MiB, workers {self.workers_rss / 2**20:.1f} MiB, "
            f"{self.descriptors} descriptors, {self.segments} in /dev/shm, "
            f"{self.children} children"
        )


def usage(workers: Sequence[int] = ()) -> Usage:
    """Measure this process."""
    me = psutil.Process()
    return Usage(
        me.memory_info().rss,
        sum(psutil.Process(pid).memory_info().rss for pid in workers),
        me.num_fds(),
        sum(len(files) for folder, _, files in os.walk("/dev/shm") if is_ours(folder)),
        len(living_children()),
    )


def is_ours(folder: str) -> bool:
    """Return whether a folder in /dev/shm is not that of another driver."""
    name = Path(folder).name
    return not name.startswith("fedopt-slots-") or name.startswith(f"fedopt-slots-{os.getpid()}-")


def living_children() -> list[psutil.Process]:
    """Return the processes below this one, but for those that have ended and are not buried."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


class Watch(SilentProgress):
    """Measures at some rounds.

    Args:
        last: the last round.
    """

    def __init__(self, last: int) -> None:
        self.rounds = {EARLY, *range(1000, last, 1000), last}
        self.grid: Any = None
        self.seen: dict[int, Usage] = {}

    def update(self, row: Mapping[str, object]) -> None:
        """Measure where the round is one of those."""
        number = row["round"]
        assert isinstance(number, int)
        if number in self.rounds:
            pids = getattr(self.grid, "worker_pids", list)()
            self.seen[number] = usage(pids)
            print(f"round {number:>6}: {self.seen[number]}", flush=True)


def soak(rounds: int, engine: str, words: Sequence[str] = ()) -> dict[str, Usage]:
    """Run, and return what was used before, at round 100, at the last and after."""
    from fedopt.config import load
    from fedopt.experiment import Experiment
    from fedopt.memory import keep_freed_memory
    from fedopt.recorder import Recorder
    from fedopt.registry import get
    from fedopt.run import train
    from fedopt.single_thread import single_thread

    settings = [*SETTINGS, f"rounds={rounds}", f"engine.name={engine}", *words]
    if engine == "ray":
        settings.append("engine.workers=2")
    experiment = Experiment.from_config(load(None, settings))
    before = usage()
    print(f"before:       {before}", flush=True)
    watch = Watch(rounds)
    began = time.monotonic()
    keep_freed_memory()
    with (
        tempfile.TemporaryDirectory(prefix="fedopt-soak-") as folder,
        single_thread(),
        Recorder(experiment, Path(folder) / "run", watch, False, False) as recorder,
    ):
        with get("engines", engine).load()(experiment) as grid:
            watch.grid = grid
            train(experiment, recorder, grid)
        recorder.finish()
    seconds = time.monotonic() - began
    gc.collect()
    deadline = time.monotonic() + 20
    while living_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    after = usage()
    print(f"after:        {after}", flush=True)
    grown = (watch.seen[rounds].rss - watch.seen[EARLY].rss) / 2**20
    print(f"{engine}: {rounds} rounds in {seconds:.0f} s; the driver grew by {grown:.1f} MiB after")
    print(f"round {EARLY}, {1024 * grown / (rounds - EARLY):.2f} KiB a round", flush=True)
    return {
        "before": before,
        "early": watch.seen[EARLY],
        "last": watch.seen[rounds],
        "after": after,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; return the exit code: 1 where something is left over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5000, help=f"> {EARLY}")
    parser.add_argument("--engine", choices=("inline", "ray"), default="inline")
    parser.add_argument("words", nargs="*", help="key=value words of the configuration")
    given = parser.parse_args(arguments)
    if given.rounds <= EARLY:
        parser.error(f"--rounds must be > {EARLY}")
    found = soak(given.rounds, given.engine, given.words)
    left = found["after"].segments > found["before"].segments or found["after"].children > 0
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
