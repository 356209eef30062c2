"""Local training on one device: fedopt's engines, a plain torch loop, and the same compiled.

`python -m benchmarks.accelerator` measures on the GPU, `--device cpu` on one core. Besides the
three workloads there is R8, a ResNet-8 with GroupNorm on 32 x 32 x 3. A GPU gets 100 and 1,000
clients a round. It prints the tables and writes `accelerator.csv`, on a CPU `compiled.csv`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import contenders as parts
from benchmarks import speed
from benchmarks.measuring import (
    Row,
    interleave,
    log,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from benchmarks.workloads import WORKLOADS, Workload

RESNET = Workload(
    "R8",
    "residual network",
    "ResNet-8 with GroupNorm (78,042 parameters) on 32 x 32 x 3, 10 of 100 clients, 2 steps of 10",
    clients=100,
    cohort=10,
    examples=20,
    input_shape=(3, 32, 32),
    model={"name": "resnet"},
)
TASKS = {**WORKLOADS, "R8": RESNET}
COHORTS = (100, 1000)
"""Clients a round on a GPU."""
ROUNDS = {"cpu": {"W1": 20, "W2": 5, "W3": 60, "R8": 5}, "cuda": {}}
GPU_ROUNDS = 5
WARM_UP = 2
PLAIN = "plain torch loop"
COMPILED = "plain loop, compiled"
GRAPHS = "plain loop, compiled with CUDA graphs"
TOLERANCE = {**speed.TOLERANCE, "R8": 1e-4}
"""Largest difference after one round that float32 sums in another order can explain."""

Build = Callable[[], parts.Racer]


def raced(workload: Workload, device: str, without: Sequence[str]) -> dict[str, Build]:
    """Return what makes each contender, by name."""

    def fedopt(name: str, training: str, precision: str = "full") -> Build:
        options = {"training": training, "device": device, "precision": precision}
        return lambda: parts.Fedopt(name, workload.experiment(name="inline", **options))

    def loop(name: str, mode: str | None = None) -> Build:
        return lambda: parts.Bare(workload, device, mode, name)

    made: dict[str, Build] = {PLAIN: loop(PLAIN)}
    if "compiled" not in without:
        made[COMPILED] = loop(COMPILED, "default")
        if device != "cpu":
            made[GRAPHS] = loop(GRAPHS, "reduce-overhead")
    for training in ("loop", "stacked"):
        name = f"fedopt, {training}"
        made[name] = fedopt(name, training)
    if device != "cpu":
        for training in ("loop", "stacked"):
            name = f"fedopt, {training}, bf16"
            made[name] = fedopt(name, training, "bf16")
    return made


def race(workload: Workload, device: str, rounds: int, without: Sequence[str]) -> list[Row]:
    """Return a row a contender; one that cannot run says why and is left out."""
    ready: list[parts.Racer] = []
    first_seconds: dict[str, float] = {}
    models: dict[str, list[torch.Tensor]] = {}
    for name, build in raced(workload, device, without).items():
        try:
            began = time.perf_counter()
            contender = build()
            models[name] = contender.first_round()
            first_seconds[name] = time.perf_counter() - began
        except RuntimeError as error:
            if name == PLAIN:
                raise
            log.warning(f"{workload.name}, {name}: left out: {str(error).splitlines()[0]}")
            continue
        ready.append(contender)
    seconds, foreign = interleave(ready, rounds, WARM_UP, workload.burst)
    for contender in ready:
        contender.close()
    plain = quartiles(seconds[PLAIN])[1]
    rows = []
    for name, times in seconds.items():
        low, middle, high = quartiles(times)
        far = parts.distance([p.cpu() for p in models[name]], [p.cpu() for p in models[PLAIN]])
        rows.append(
            {
                "workload": workload.name,
                "clients a round": workload.cohort,
                "contender": name,
                "clients/s": workload.cohort / middle,
                "x plain": plain / middle,
                "ms a round": middle * 1e3,
                "quartiles": f"{low * 1e3:.3g}-{high * 1e3:.3g}",
                "first round, s": first_seconds[name],
                "max difference": far,
                "others, cores": foreign,
            }
        )
    return rows


def cohorts(workload: Workload, device: str, quick: bool) -> list[Workload]:
    """Return a workload with the cohorts that are measured on a device."""
    if quick:
        return [workload.smaller()]
    if device == "cpu":
        return [workload]
    return [replace(workload, clients=1000, cohort=cohort, burst=1) for cohort in COHORTS]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--workloads", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--without", nargs="+", choices=["compiled"], default=[])
    parser.add_argument("--rounds", type=int, help="rounds that count (default: by workload)")
    parser.add_argument("--quick", action="store_true", help="few clients and rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu measures on one core", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    console = Console(width=150)
    warn_if_busy(console)
    facts = machine()
    facts["device"] = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    rows: list[Row] = []
    for name in options.workloads:
        for workload in cohorts(TASKS[name], device, options.quick):
            rounds = 2 if options.quick else ROUNDS[device].get(name, GPU_ROUNDS)
            found = race(workload, device, options.rounds or rounds, options.without)
            shown = [{k: v for k, v in row.items() if k != "workload"} for row in found]
            show(console, f"{name} on {facts['device']}, {TASKS[name].description}", shown)
            rows += found
            gc.collect()
    write_csv(options.out / f"{'compiled' if device == 'cpu' else 'accelerator'}.csv", rows, facts)
    exact = [row for row in rows if "bf16" not in str(row["contender"])]
    wrong = [
        f"{row['workload']}, {row['contender']}: {row['max difference']:.1e}"
        for row in exact
        if float(str(row["max difference"])) > TOLERANCE[str(row["workload"])]
    ]
    for line in wrong:
        console.print(f"[red]not the same mathematics: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
