"""Kills runs at random moments and compares what becomes of them with an undisturbed run.

    python -m benchmarks.kills --kills 100
    python -m benchmarks.kills --kills 20 --strategies scaffold --seed 3

A run is started in a process group of its own, the whole group is sent SIGKILL at a random moment,
and `fedopt resume` goes on, to be killed again or not. Moments are random times, and random calls
of the places where a crash would hurt: in the midst of a block, of a row, of writing a checkpoint,
before and after its renaming, before an old one is removed. At the end the model, every round's
digest and every client's state must have the bits of the undisturbed run. Then one Ray worker is
killed in every round of a run. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STRATEGIES: dict[str, list[str]] = {
    "fedavg": ["strategy=fedavg"],
    "scaffold": ["strategy=scaffold"],
    "adam on the server": ["strategy=fedavg", "server.optimizer=adam"],
    "fedbuff": ["policy=fedbuff", "policy.buffer=5", "system.devices=classes"],
}
"""What is killed, by name: the words of its configuration. A new one is a line here."""

ROUNDS = 12
SETTINGS = [
    "engine=inline",
    f"rounds={ROUNDS}",
    "clients_per_round=20",
    "partition.clients=40",
    "model.hidden=[32]",
    "local.epochs=2",
    "checkpoint.every=3",
]

POINTS = ("time", "block", "row", "write", "before rename", "after rename", "removal")
"""Where a run is killed: at a time, or at a call."""

LONGEST_CHAIN = 3
"""A run is killed at most so often before it may end."""

PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Args:
        model: digest of the final model.
        rounds: digest of the model after each round.
        clients: digest of each client's state.
    """

    model: str
    rounds: tuple[str, ...]
    clients: Mapping[int, str]


def outcome(folder: Path) -> Outcome:
    """Read what a finished run left."""
    from fedopt.client.state import RowFile
    from fedopt.rerun import Rerun, read_run

    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed", summary["status"]
    with open(folder / "rounds.csv", newline="") as file:
        rounds = [(int(row["round"]), row["model_sha256"]) for row in csv.DictReader(file)]
    assert [number for number, _ in rounds] == list(range(1, ROUNDS + 1)), "a round is lost"
    clients: dict[int, str] = {}
    with Rerun(read_run(folder), ROUNDS) as server:
        store = server.strategy.store
        if store is not None:
            assert server.round == ROUNDS, "the last round has a checkpoint"
            file_of_rows: RowFile = store.file
            for client, row in zip(store.clients(), store.rows(store.clients()), strict=True):
                values = file_of_rows.read([row])
                sha = hashlib.sha256()
                for name in sorted(values):
                    sha.update(values[name].contiguous().numpy().tobytes())
                clients[client] = sha.hexdigest()
    return Outcome(summary["model_sha256"], tuple(digest for _, digest in rounds), clients)


# Places -----------------------------------------------------------------------------------------


class Places:
    """Counts the calls of the places in this process, and kills the process group at one of them.

    Args:
        point: the place, or None to count alone.
        call: which call of it, from 1.
    """

    def __init__(self, point: str | None = None, call: int = 0) -> None:
        self._point = point
        self._call = call
        self.counts: Counter[str] = Counter()

    def is_here(self, point: str) -> bool:
        """Count a call; return whether it is the one."""
        self.counts[point] += 1
        return point == self._point and self.counts[point] == self._call

    def install(self) -> None:
        """Put the places into the code of this process, which must be one that may be spoilt."""
        from fedopt import atomic
        from fedopt.analysis.tables import Table
        from fedopt.client import trainer

        train, append, replace, unlink = (
            trainer.train_thriftily,
            Table._append,
            os.replace,
            Path.unlink,
        )

        def train_and_die(*arguments: Any) -> Any:
            result = train(*arguments)
            if self.is_here("block"):
                die()
            return result

        def append_and_die(table: Any, text: str) -> None:
            if self.is_here("row"):
                append(table, text[: len(text) // 2])
                die()
            append(table, text)

        def open_and_die(path: Path, mode: str) -> Any:
            file = open(path, mode)  # noqa: SIM115 (whoever asked for it closes it)
            if self.is_here("write"):
                return HalfFile(file)
            return file

        def replace_and_die(old: Path, new: Path) -> None:
            if self.is_here("before rename"):
                die()
            replace(old, new)
            if self.is_here("after rename"):
                die()

        def unlink_and_die(path: Path, missing_ok: bool = False) -> None:
            if path.name.startswith("round_") and self.is_here("removal"):
                die()
            unlink(path, missing_ok)

        trainer.train_thriftily = train_and_die
        Table._append = append_and_die  # type: ignore[method-assign]
        atomic.open = open_and_die  # type: ignore[attr-defined]
        os.replace = replace_and_die  # type: ignore[assignment]
        Path.unlink = unlink_and_die  # type: ignore[method-assign]


class HalfFile:
    """A file of which half is written before the process dies.

    Args:
        file: the file.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> HalfFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def write(self, payload: bytes) -> None:
        """Write half, and die."""
        self._file.write(payload[: len(payload) // 2])
        self._file.flush()
        die()


def die() -> None:
    """Send SIGKILL to this process's whole group."""
    os.killpg(0, signal.SIGKILL)
    time.sleep(PATIENCE_SECONDS)


# Processes --------------------------------------------------------------------------------------


def start(words: Sequence[str], places: Places, log: Path) -> int:
    """Start `fedopt` in a process group of its own, a fork of this process; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        places.install()
        code = command(words)
        counts = log.with_suffix(".counts")
        counts.write_text(json.dumps(places.counts))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: Sequence[str]) -> int:
    """Run the `fedopt` command in this process and return its exit code."""
    from fedopt.cli import app

    try:
        app(list(words), standalone_mode=True)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def wait(pid: int, seconds: float = PATIENCE_SECONDS) -> int | None:
    """Wait for a process; return its exit code (negative: its signal), None where it goes on."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.001)


class Killer:
    """Runs one configuration and kills it.

    Args:
        words: of the configuration.
        folder: where runs are written.
        seed: of the moments.
    """

    def __init__(self, words: Sequence[str], folder: Path, seed: int) -> None:
        self._words = [*SETTINGS, *words]
        self._folder = folder
        self._random = random.Random(seed)
        self._log = folder / "log.txt"
        began = time.monotonic()
        code = wait(start(self._run(folder / "whole"), Places(), self._log))
        self._seconds = time.monotonic() - began
        if code != 0:
            raise SystemExit(f"the undisturbed run ended with {code}: {self._log.read_text()}")
        self._counts = json.loads(self._log.with_suffix(".counts").read_text())
        self.expected = outcome(folder / "whole")
        self.hits: Counter[str] = Counter()

    def chain(self, length: int) -> tuple[int, str | None]:
        """Kill a run some times; return how often it was, and what it lost, or None."""
        target = self._folder / "broken"
        shutil.rmtree(target, ignore_errors=True)
        kills = 0
        for _ in range(length):
            killed = self._killed_once(target)
            if killed is None:
                break  # it was over before
            if killed:
                return kills, killed
            kills += 1
        code = wait(start(self._words_now(target), Places(), self._log))
        if code != 0:
            return kills, f"the resumed run ended with {code}: {self._log.read_text()[-2000:]}"
        found = outcome(target)
        left = [p.name for p in target.rglob(".*.tmp")]
        if left:
            return kills, f"left behind: {left}"
        if found.model != self.expected.model:
            return kills, "the final model differs"
        if found.rounds != self.expected.rounds:
            return kills, "a round's model differs"
        if found.clients != self.expected.clients:
            return kills, "a client's state differs"
        return kills, None

    def _killed_once(self, target: Path) -> str | None:
        """Start or resume the run and kill it: "" where it was, None where it ended before."""
        point = self._random.choice(POINTS)
        if point != "time" and not self._counts.get(point):
            point = "time"
        if point == "time":
            pid = start(self._words_now(target), Places(), self._log)
            code = wait(pid, self._random.uniform(0, self._seconds))
            if code is None:
                os.killpg(os.getpgid(pid), signal.SIGKILL)
                code = wait(pid)
        else:
            call = self._random.randint(1, self._counts[point])
            code = wait(start(self._words_now(target), Places(point, call), self._log))
        if code == 0:
            return None
        if code != -signal.SIGKILL:
            return f"ended with {code} before it was killed: {self._log.read_text()[-2000:]}"
        self.hits[point] += 1
        return ""

    def _run(self, target: Path) -> list[str]:
        return ["run", *self._words, "--out", str(target), "--quiet"]

    def _words_now(self, target: Path) -> list[str]:
        """Return the command that goes on: a new run where no configuration was written yet."""
        self._log.write_text("")
        if (target / "config.toml").exists():
            return ["resume", str(target), "--quiet"]
        return self._run(target)


# Workers of Ray ---------------------------------------------------------------------------------


def is_alive(pid: int) -> bool:
    """Return whether a process is there and not merely unburied."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


@contextmanager
def killing_workers(grid: Any, seed: int) -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Give a function that kills a worker some milliseconds after it is called, and who died."""
    draws, killed, threads = random.Random(seed), [], []

    def kill(pid: int, seconds: float) -> None:
        time.sleep(seconds)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        killed.append(pid)

    def begin() -> None:
        for thread in threads:
            thread.join()  # so that every round has a death of its own
        alive = [pid for pid in grid.worker_pids() if is_alive(pid)]
        if not alive:  # both are to be replaced in this round: their deaths came after the last
            return
        pid = draws.choice(alive)
        thread = threading.Thread(target=kill, args=(pid, draws.uniform(0, 0.02)))
        thread.start()
        threads.append(thread)

    yield killed, begin
    for thread in threads:
        thread.join()


def kill_workers(words: Sequence[str], folder: Path, seed: int) -> tuple[int, bool]:
    """Kill one of two workers in every round; return the deaths, and whether the bits stay."""
    from fedopt.analysis.progress import SilentProgress
    from fedopt.config import load
    from fedopt.experiment import Experiment
    from fedopt.recorder import Recorder
    from fedopt.run import simulate, train
    from fedopt.simulation.ray_grid import RayGrid
    from fedopt.single_thread import single_thread

    settings = [*SETTINGS, *words]
    expected = simulate(load(None, settings)).summary["model_sha256"]
    experiment = Experiment.from_config(load(None, [*settings, "engine=ray", "engine.workers=2"]))

    class Watch(SilentProgress):
        begin: Callable[[], None] = staticmethod(lambda: None)

        def start(self, rounds: int, header: str) -> None:
            self.begin()

        def update(self, row: Mapping[str, object]) -> None:
            if row["round"] != ROUNDS:
                self.begin()

    watch = Watch()
    with (
        single_thread(),
        Recorder(experiment, folder / "workers", watch, False, False) as recorder,
        RayGrid(experiment) as grid,
        killing_workers(grid, seed) as (killed, begin),
    ):
        watch.begin = begin  # type: ignore[method-assign]
        train(experiment, recorder, grid)
        run = recorder.finish()
    rounds = list(run.history["round"])
    is_same = run.summary["model_sha256"] == expected and rounds == list(range(1, ROUNDS + 1))
    return len(killed), is_same


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="kills a strategy, >= 1")
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--without-ray", action="store_true", help="kill no workers of Ray")
    given = parser.parse_args(arguments)
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    import torch

    torch.set_num_threads(1)
    lost = False
    for name in given.strategies:
        with tempfile.TemporaryDirectory(prefix="fedopt-kills-") as folder:
            killer = Killer(STRATEGIES[name], Path(folder), given.seed)
            draws = random.Random(given.seed)
            tried = survived = 0
            while tried < given.kills:
                length = min(draws.randint(1, LONGEST_CHAIN), given.kills - tried)
                kills, problem = killer.chain(length)
                tried += kills
                survived += 0 if problem else kills
                if problem:
                    lost = True
                    print(f"{name}: {problem}", file=sys.stderr)
                    if not kills:
                        break
            where = ", ".join(f"{point} {killer.hits[point]}" for point in POINTS)
            print(f"{name}: {survived} of {tried} kills survived ({where})", flush=True)
    if not given.without_ray:
        for name in given.strategies:
            with tempfile.TemporaryDirectory(prefix="fedopt-kills-") as folder:
                deaths, is_same = kill_workers(STRATEGIES[name], Path(folder), given.seed)
            lost = lost or not is_same
            says = "the same bits, no round lost" if is_same else "OTHER BITS"
            print(f"{name}: a Ray worker killed in each round, {deaths} in all: {says}", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
