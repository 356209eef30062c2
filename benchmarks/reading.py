"""What reading ahead brings, where examples lie in a file that is not in memory.

`python -m benchmarks.reading` writes a file of examples, drops it from the system's memory before
every round, and does the same rounds with and without asking for the next block's rows while one is
trained. It prints the table and writes `reading.csv`.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

from benchmarks.contenders import Fedopt
from benchmarks.measuring import (
    Row,
    interleave,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from benchmarks.workloads import ENDLESS, SEED
from fedopt.config import load
from fedopt.data.mapped import ReadAhead
from fedopt.experiment import Experiment

EXAMPLES, FEATURES = 60_000, 3_072
CLIENTS, COHORT = 300, 20
ROUNDS, WARM_UP = 15, 1


class Reader(Fedopt):
    """fedopt's rounds over a file.

    Args:
        name: name in the table.
        folder: where the file is.
        clients: number of clients.
        asks: whether rows are asked for before they are used.
        drops: whether the file is dropped from memory before each round.
    """

    mappings: ClassVar[list[mmap.mmap]] = []

    def __init__(self, name: str, folder: Path, clients: int, asks: bool, drops: bool) -> None:
        config = load(
            None,
            seed=SEED,
            rounds=ENDLESS,
            clients_per_round=min(COHORT, clients),
            data={"name": "files", "path": str(folder), "test_fraction": 0.01},
            partition={"name": "iid", "clients": clients},
            model={"name": "mlp", "hidden": [64]},
            local={"epochs": 1, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.01}},
            engine={"name": "inline"},
            evaluation={"every": ENDLESS},
            checkpoint={"every": 0},
        )
        super().__init__(name, Experiment.from_config(config))
        self._drops, self._file = drops, folder / "x.npy"
        population: Any = self.experiment.population
        self._ahead: ReadAhead = population._ahead
        if not asks:
            population.read_ahead = lambda clients: None
        self.waits: list[int] = []
        assert self._ahead._mapping is not None
        self.mappings.append(self._ahead._mapping)

    def round(self) -> None:
        """Do one round."""
        if self._drops:
            for mapping in self.mappings:  # pages that some mapping holds are not dropped
                mapping.madvise(mmap.MADV_DONTNEED)
            with self._file.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        super().round()
        self.waits.append(resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before)


def measure(folder: Path, clients: int, rounds: int) -> list[Row]:
    """Return a row a way of reading."""
    contenders = [
        Reader("read as touched", folder, clients, asks=False, drops=True),
        Reader("read ahead", folder, clients, asks=True, drops=True),
        Reader("in memory", folder, clients, asks=False, drops=False),
        Reader("in memory, asked for all the same", folder, clients, asks=True, drops=False),
    ]
    seconds, foreign = interleave(contenders, rounds, WARM_UP)
    for contender in contenders:
        contender.close()
    touched = quartiles(seconds["read as touched"])[1]
    rows: list[Row] = []
    for contender in contenders:
        low, middle, high = quartiles(seconds[contender.name])
        rows.append(
            {
                "examples": contender.name,
                "ms a round": middle * 1e3,
                "quartiles": f"{low * 1e3:.3g}-{high * 1e3:.3g}",
                "x read as touched": touched / middle,
                "waits for the disk a round": float(np.median(contender.waits)),
                "others, cores": foreign,
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small file, few rounds")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: temporary)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if not hasattr(mmap, "MADV_WILLNEED") or not hasattr(os, "posix_fadvise"):
        print("this system cannot be asked to read ahead", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    console = Console(width=120)
    warn_if_busy(console)
    examples, clients = (600, 10) if options.quick else (EXAMPLES, CLIENTS)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, rng = Path(name), np.random.default_rng(SEED)
        np.save(folder / "x.npy", rng.integers(0, 256, (examples, FEATURES), dtype=np.uint8))
        np.save(folder / "y.npy", rng.integers(0, 10, examples))
        os.sync()
        rows = measure(folder, clients, 2 if options.quick else ROUNDS)
    show(console, f"{min(COHORT, clients)} clients of {examples // clients} examples", rows)
    write_csv(options.out / "reading.csv", rows, machine())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
