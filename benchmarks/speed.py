"""Speed of a round: fedopt against a plain torch loop, stock Flower, and a two-process limit.

`python -m benchmarks.speed` prints the tables and writes `speed.csv`, `speed_rounds.csv` and
`speed.png`. Contenders of one process take turns; stock Flower, which needs a process of its own,
runs before and after them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks import contenders as parts
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
from benchmarks.quiet import FOREIGN_CORES
from benchmarks.workloads import WORKLOADS, Workload, find

ROUNDS = {"W1": 45, "W2": 10, "W3": 150}
FLOWER = "stock Flower 1.42, Ray, 2 actors"
QUICKSTART = "the same, app as in its quickstart"
FLOWERS = {FLOWER: "kept", QUICKSTART: "quickstart"}
"""Stock Flower: model and data kept in the actors, or made for each message as in its example."""
FLOWER_ROUNDS = {"W1": 16, "W2": 12, "W3": 10}
FLOWER_WARM_UP = 2
WARM_UP = 3
TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
Timed = tuple[float, float]
TOLERANCE = {"W1": 1e-6, "W2": 1e-4, "W3": 1e-6}
"""Largest difference of the mean parameters after one round that float32 sums in another order,
and for W2 another convolution kernel, can explain."""


def raced(workload: Workload, without: Sequence[str]) -> list[parts.Racer]:
    """Return the contenders that share this process."""
    made: list[parts.Racer] = [parts.Bare(workload)]
    stacks = parts.is_stackable(workload)
    for training in ("loop", "stacked") if stacks else ("loop",):
        experiment = workload.experiment(name="inline", training=training)
        made.append(parts.Fedopt(f"fedopt, inline, {training}", experiment))
    if "ray" not in without:
        for workers in (1, 2):
            plural = "s" if workers > 1 else ""
            experiment = workload.experiment(name="ray", workers=workers)
            made.append(parts.Fedopt(f"fedopt, Ray, {workers} worker{plural}", experiment))
    if "reference" not in without:
        made.append(parts.Reference(workload))
    return made


def stock_flower(
    workload: Workload, rounds: int, quick: bool, style: str
) -> tuple[list[Timed], float]:
    """Return (cores used by others, seconds) a round and distance from the plain loop."""
    command = [sys.executable, "-m", "benchmarks.stock_flower", workload.name, "--style", style]
    command += ["--rounds", str(rounds), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"stock Flower failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    times = list(zip(found["foreign_cores"], found["seconds"], strict=True))
    return times[min(FLOWER_WARM_UP, len(times) - 1) :], found["difference"]


def quiet_ones(times: Sequence[Timed]) -> list[Timed]:
    """Return the rounds in which nothing else ran, or the quietest third, in that order."""
    ordered = sorted(times)
    quiet = sum(foreign <= FOREIGN_CORES for foreign, _ in ordered)
    return ordered[: max(quiet, -(-len(ordered) // 3))]


def race(
    workload: Workload, rounds: int, flower_rounds: int, quick: bool, without: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Race the contenders.

    Returns:
        By contender: seconds of each round, distance from the plain loop after one round, and the
        most that other processes used in a round that counts, in cores.
    """
    stock: dict[str, list[Timed]] = {}
    distances: dict[str, float] = {}
    if "flower" not in without:
        for name, style in FLOWERS.items():
            found = stock_flower(workload, flower_rounds, quick, style)
            stock[name], distances[name] = found
    if "ray" not in without:
        parts.start_ray(cores=4)
    made = raced(workload, without)
    models = {contender.name: contender.first_round() for contender in made}
    distances |= {name: parts.distance(m, models[made[0].name]) for name, m in models.items()}
    seconds, foreign = interleave(made, rounds, WARM_UP, workload.burst)
    others = dict.fromkeys(seconds, foreign)
    for contender in made:
        contender.close()
    if "ray" not in without:
        parts.stop_ray()
    for name, times in stock.items():
        again, other = stock_flower(workload, flower_rounds, quick, FLOWERS[name])
        distances[name] = max(distances[name], other)
        kept = quiet_ones([*times, *again])
        seconds[name] = [time for _, time in kept]
        others[name] = kept[-1][0]
    return seconds, distances, others


def table(
    workload: Workload,
    seconds: dict[str, list[float]],
    far: dict[str, float],
    others: dict[str, float],
) -> list[Row]:
    """Return a row a contender: speed, ratios, time added, distance from the plain loop."""
    middle = {name: quartiles(times)[1] for name, times in seconds.items()}
    bare, stock = middle[parts.BARE], middle.get(FLOWER)
    quickstart, reference = middle.get(QUICKSTART), middle.get(parts.Reference.name)
    rows: list[Row] = []
    for name, times in seconds.items():
        low, median, high = quartiles(times)
        rows.append(
            {
                "contender": name,
                "clients/s": workload.cohort / median,
                "x bare": bare / median,
                "x stock Flower": stock / median if stock else None,
                "x quickstart": quickstart / median if quickstart else None,
                "ms a round": 1e3 * median,
                "quartiles": f"{1e3 * low:.3g}-{1e3 * high:.3g}",
                "ms over reference": 1e3 * (median - reference) if reference else None,
                "max difference": far[name],
                "rounds": len(times),
                "others, cores": others[name],
            }
        )
    return rows


def draw(tables: dict[str, list[Row]], path: Path) -> None:
    """Draw the ratios to the plain loop, one panel a workload; bars begin at the loop's speed."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(str(r["contender"]) for rows in tables.values() for r in rows))
    places = {name: -position for position, name in enumerate(names)}
    figure = Figure(figsize=(3.2 * len(tables) + 2.4, 3.3), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
    for axis, (workload, rows) in zip(axes, tables.items(), strict=True):
        ratios = {str(row["contender"]): float(str(row["x bare"])) for row in rows}
        for name, ratio in ratios.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            axis.barh(places[name], ratio - 1, left=1, color=colour, height=0.7)
            axis.annotate(
                f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x",
                (ratio, places[name]),
                xytext=(4 if ratio >= 1 else -4, 0),
                textcoords="offset points",
                ha="left" if ratio >= 1 else "right",
                va="center",
                fontsize=9,
            )
        axis.set_xscale("log")
        axis.set_xlim(min(ratios.values()) / 4, max(ratios.values()) * 4)
        low, high = axis.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        axis.axvline(1, color="0.3", linewidth=0.8)
        axis.set_yticks(list(places.values()), names)
        axis.tick_params(axis="y", length=0)
        axis.set_title(f"{workload}: {WORKLOADS[workload].title}", fontsize=10)
        axis.set_xlabel("speed relative to a plain loop", fontsize=9)
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return 1 where some contender does not do the same sums."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, help="rounds that count (default: by workload)")
    parser.add_argument("--flower-rounds", type=int, help="rounds of stock Flower, twice")
    parser.add_argument("--quick", action="store_true", help="few clients and rounds")
    parser.add_argument("--without", nargs="+", choices=["ray", "flower", "reference"], default=[])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    console = Console(width=170)
    torch.set_num_threads(1)
    facts = machine()
    warn_if_busy(console)
    tables, raw, differs = {}, [], False
    for name in options.workloads:
        workload = find(name, options.quick)
        rounds = options.rounds or (4 if options.quick else ROUNDS[name])
        flower_rounds = options.flower_rounds or (3 if options.quick else FLOWER_ROUNDS[name])
        seconds, far, others = race(workload, rounds, flower_rounds, options.quick, options.without)
        rows = tables[name] = table(workload, seconds, far, others)
        show(console, f"{name}: {workload.description}", rows)
        raw += [
            {"workload": name, "contender": contender, "round": number, "seconds": time}
            for contender, times in seconds.items()
            for number, time in enumerate(times)
        ]
        if max(far.values()) > TOLERANCE[name]:
            console.print(f"[red]{name}: not the same mathematics: {far}")
            differs = True
    everything = [{"workload": name, **row} for name, rows in tables.items() for row in rows]
    write_csv(options.out / "speed.csv", everything, facts)
    write_csv(options.out / "speed_rounds.csv", raw, facts)
    draw(tables, options.out / "speed.png")
    console.print(", ".join(f"{key} {value}" for key, value in facts.items()))
    console.print(f"written to {options.out}")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
