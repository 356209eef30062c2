"""How round time and memory grow: registered clients, sampled clients, workers, model size.

`python -m benchmarks.scaling` prints the tables and writes `scaling.csv` and `scaling.png`. Times
are of rounds that take turns in one process; memory is of a fresh process a point, because a
process's peak never comes down.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.contenders import Fedopt, start_ray, stop_ray
from benchmarks.measuring import (
    COLOURS,
    Row,
    interleave,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from benchmarks.pooled_population import PooledPopulation
from benchmarks.quiet import descendants
from fedopt.config import Choice, load
from fedopt.experiment import Experiment, load_loss, model_factory
from fedopt.registry import Options

WARM_UP = 2
MEMORY_ROUNDS = 5
STRATEGIES = ("fedavg", "scaffold")
LOGISTIC: dict[str, Any] = {"name": "logistic"}


def experiment(
    population: PooledPopulation,
    cohort: int,
    strategy: str = "fedavg",
    model: Mapping[str, Any] = LOGISTIC,
    **engine: Any,
) -> Experiment:
    """Return an experiment over a pooled population: one epoch of batches of 10, SGD."""
    config = load(
        None,
        rounds=10**6,
        clients_per_round=min(cohort, population.clients),
        model=dict(model),
        strategy={"name": strategy},
        local={"epochs": 1, "batch_size": 10, "optimizer": {"name": "sgd", "lr": 0.05}},
        engine={"name": "inline", **engine},
        evaluation={"every": 10**6},
        checkpoint={"every": 0},
    )
    own = Choice("in_memory", Options())
    config = replace(config, data=own, partition=own)
    return Experiment(config, population, model_factory(config, population), load_loss(config))


def timed(points: Mapping[str, Experiment], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a round of each experiment; they take turns."""
    runs = [Fedopt(name, made) for name, made in points.items()]
    seconds, _ = interleave(runs, rounds, WARM_UP)
    for run in runs:
        run.close()
    return {name: 1e3 * quartiles(times)[1] for name, times in seconds.items()}


def registered(counts: Sequence[int], cohort: int, rounds: int) -> list[Row]:
    """Round time and memory against the clients in the population."""
    points = {
        f"{strategy} {count}": experiment(PooledPopulation(count), cohort, strategy)
        for strategy in STRATEGIES
        for count in counts
    }
    milliseconds = timed(points, rounds)
    rows: list[Row] = []
    for strategy in STRATEGIES:
        peaks = {n: memory("registered", n, cohort, strategy)["peak_rss_mib"] for n in counts}
        for count in counts:
            more = count - counts[0]
            added = peaks[count] - peaks[counts[0]]
            rows.append(
                {
                    "strategy": strategy,
                    "registered": count,
                    "sampled": min(cohort, count),
                    "ms a round": milliseconds[f"{strategy} {count}"],
                    "peak MiB": peaks[count],
                    "bytes a client more": added * 2**20 / more if count >= 10**6 else None,
                }
            )
    return rows


def ratio(rows: Sequence[Row], strategy: str, many: int, few: int) -> float | None:
    """Return round time with `many` registered clients over that with `few`."""
    found = {row["registered"]: float(str(row["ms a round"])) for row in rows
             if row["strategy"] == strategy}  # fmt: skip
    return found[many] / found[few] if many in found and few in found else None


def sampled(population: int, cohorts: Sequence[int], rounds: int) -> list[Row]:
    """Round time against the clients sampled."""
    pool = PooledPopulation(population)
    points = {
        f"{strategy} {cohort}": experiment(pool, cohort, strategy)
        for strategy in STRATEGIES
        for cohort in cohorts
    }
    milliseconds = timed(points, rounds)
    return [
        {
            "strategy": strategy,
            "registered": population,
            "sampled": cohort,
            "ms a round": milliseconds[f"{strategy} {cohort}"],
            "us a client": 1e3 * milliseconds[f"{strategy} {cohort}"] / cohort,
        }
        for strategy in STRATEGIES
        for cohort in cohorts
    ]


def models(widths: Sequence[int], rounds: int) -> list[Row]:
    """Round time against the size of the model: 784-width-10, 20 clients of 60 examples."""
    pool = PooledPopulation(100, examples=60, features=784)
    points = {
        str(width): experiment(pool, 20, model={"name": "mlp", "hidden": [width]})
        for width in widths
    }
    milliseconds = timed(points, rounds)
    rows: list[Row] = []
    for width in widths:
        choice = points[str(width)].engine_choice
        flops = 6 * choice.parameters * 60 * 20
        rows.append(
            {
                "hidden width": width,
                "parameters": choice.parameters,
                "engine": f"{choice.name}, {choice.group_size} at once",
                "ms a round": milliseconds[str(width)],
                "GFLOP/s": flops / milliseconds[str(width)] / 1e6,
            }
        )
    return rows


def workers(population: int, cohort: int, counts: Sequence[int], rounds: int) -> list[Row]:
    """Round time and memory against the Ray workers, for a small and for a larger model."""
    tasks: dict[str, tuple[PooledPopulation, int, Mapping[str, Any]]] = {
        "logistic": (PooledPopulation(population), cohort, LOGISTIC),
        "mlp 784-200-200-10": (
            PooledPopulation(1000, examples=60, features=784),
            100,
            {"name": "mlp", "hidden": [200, 200]},
        ),
    }
    rows: list[Row] = []
    for task, (pool, size, model) in tasks.items():
        start_ray(cores=sum(counts))
        points = {"inline": experiment(pool, size, model=model)} | {
            str(n): experiment(pool, size, model=model, name="ray", workers=n) for n in counts
        }
        milliseconds = timed(points, rounds)
        stop_ray()
        for name in points:
            used = memory(task, pool.clients, size, "fedavg", 0 if name == "inline" else int(name))
            rows.append(
                {
                    "task": task,
                    "workers": "inline" if name == "inline" else f"{name} (Ray)",
                    "registered": pool.clients,
                    "sampled": size,
                    "ms a round": milliseconds[name],
                    "x inline": milliseconds["inline"] / milliseconds[name],
                    "driver peak MiB": used["peak_rss_mib"],
                    "tree PSS MiB": used["tree_pss_mib"],
                }
            )
    return rows


def memory(task: str, clients: int, cohort: int, strategy: str, count: int = 0) -> dict[str, float]:
    """Return the memory of a few rounds in a fresh process."""
    job = json.dumps([task, clients, cohort, strategy, count])
    command = [sys.executable, "-m", "benchmarks.scaling", "--memory-of", job]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{job} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def memory_of(task: str, clients: int, cohort: int, strategy: str, count: int) -> dict[str, float]:
    """Do a few rounds here, and return peak RSS of this process and PSS of its tree, in MiB."""
    engine: dict[str, Any] = {"name": "ray", "workers": count} if count else {}
    wide = task.startswith("mlp")
    pool = PooledPopulation(clients, 60, 784) if wide else PooledPopulation(clients)
    model = {"name": "mlp", "hidden": [200, 200]} if wide else LOGISTIC
    run = Fedopt(task, experiment(pool, cohort, strategy, model, **engine))
    for _ in range(MEMORY_ROUNDS):
        run.round()
    pss = tree_pss_mib(os.getpid())
    run.close()
    return {"peak_rss_mib": peak_rss_mib(), "tree_pss_mib": pss}


def peak_rss_mib() -> float:
    """Return the peak resident set of this process, in MiB (Linux).

    `getrusage` would give that of the process that started this one, where it was larger.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def tree_pss_mib(root: int) -> float:
    """Return the proportional set size of a process and all its descendants, in MiB (Linux)."""
    total = 0
    for pid, _ in descendants(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def draw(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Draw round time against registered and against sampled clients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (name, column) in zip(
        axes, (("registered", "registered"), ("sampled", "sampled")), strict=True
    ):
        for strategy, colour, marker in zip(STRATEGIES, COLOURS, "os", strict=False):
            mine = [row for row in tables[name] if row["strategy"] == strategy]
            x = [int(str(row[column])) for row in mine]
            y = [float(str(row["ms a round"])) for row in mine]
            axis.plot(x, y, color=colour, marker=marker, markersize=4, label=strategy)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(1, 1000)
        axis.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel("ms a round")
    axes[0].set_xlabel("registered clients (1,000 sampled)")
    axes[1].set_xlabel("sampled clients a round (of 100,000)")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small numbers, no Ray")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory_of:
        print(json.dumps(memory_of(*json.loads(options.memory_of))))
        return 0
    console = Console(width=150)
    facts = machine()
    warn_if_busy(console)
    tables: dict[str, list[Row]] = {}
    if options.quick:
        tables["registered"] = registered([10_000], 10, 2)
        tables["sampled"] = sampled(1000, [10, 100], 2)
        tables["model"] = models([16, 64], 2)
    else:
        tables["registered"] = registered([10**n for n in range(3, 8)], 1000, options.rounds)
        tables["sampled"] = sampled(100_000, [10, 100, 1000, 10_000], options.rounds)
        tables["model"] = models([16, 64, 256, 1024, 2048], options.rounds)
        tables["workers"] = workers(100_000, 1000, [1, 2], options.rounds)
    for name, rows in tables.items():
        show(console, f"round time against {name}", rows)
    for strategy in STRATEGIES:
        found = ratio(tables["registered"], strategy, 10**6, 10**4)
        if found is not None:
            console.print(f"{strategy}: 1,000 of 1,000,000 takes {found:.2f} x 1,000 of 10,000")
    everything = [{"table": name, **row} for name, rows in tables.items() for row in rows]
    write_csv(options.out / "scaling.csv", everything, facts)
    draw(tables, options.out / "scaling.png")
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
