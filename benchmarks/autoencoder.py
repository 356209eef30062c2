"""Steps and seconds to a training loss on a deep autoencoder: K-FAC, EKFAC, SGD and Adam.

`python -m benchmarks.autoencoder` trains 64-32-16-4-16-32-64 with tanh on the digits, minibatches
of 256, squared error. Each optimizer is tuned on a grid of the same size (seven learning rates
times two values of a second number), on a seed of its own, by the steps that it needs; then it is
run on other seeds. The loss is measured on all examples every five steps, outside of the clock.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measuring import Row, machine, warn_if_busy, write_csv
from fedopt.data.catalogue import DigitsOptions
from fedopt.data.embedded import load_digits
from fedopt.optim import EKFAC, KFAC

WIDTHS = (64, 32, 16, 4, 16, 32, 64)
BATCH, EVERY = 256, 5
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TARGET = 0.02
TUNING_SEED = 1000

Make = Callable[[nn.Module, float, float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Contender:
    """An optimizer and its grid.

    Args:
        name: for people.
        second: what the second number of the grid is.
        values: its two values.
        make: from model, learning rate and second number.
    """

    name: str
    second: str
    values: tuple[float, float]
    make: Make


CONTENDERS = (
    Contender(
        "SGD with momentum",
        "momentum",
        (0.9, 0.99),
        lambda model, lr, momentum: torch.optim.SGD(model.parameters(), lr, momentum=momentum),
    ),
    Contender(
        "Adam",
        "beta1",
        (0.9, 0.99),
        lambda model, lr, beta: torch.optim.Adam(model.parameters(), lr, betas=(beta, 0.999)),
    ),
    Contender(
        "K-FAC",
        "damping",
        (1e-3, 1e-4),
        lambda model, lr, damping: KFAC(model, lr, damping, fisher="mc", kl_clip=1e-2, loss="mse"),
    ),
    Contender(
        "EKFAC",
        "damping",
        (1e-3, 1e-4),
        lambda model, lr, damping: EKFAC(model, lr, damping, fisher="mc", kl_clip=1e-2, loss="mse"),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to: steps to the target (one more than the most if never), and seconds."""

    steps: int
    seconds: float
    loss: float


def autoencoder() -> nn.Sequential:
    """Return the network."""
    layers: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
        layers.append(nn.Linear(inputs, outputs))
        # The code and the output are linear.
        if place not in (2, len(WIDTHS) - 2):
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def run(contender: Contender, lr: float, second: float, seed: int, most: int, x: Tensor) -> Outcome:
    """Train until the loss over all examples is at the target, or for the most steps."""
    torch.manual_seed(seed)
    model = autoencoder()
    optimizer = contender.make(model, lr, second)
    generator = torch.Generator().manual_seed(seed)
    seconds, loss = 0.0, math.inf
    for step in range(1, most + 1):
        batch = x[torch.randint(0, len(x), (BATCH,), generator=generator)]
        started = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch), batch).backward()
        optimizer.step()
        seconds += time.perf_counter() - started
        if step % EVERY == 0:
            with torch.no_grad():
                loss = float(nn.functional.mse_loss(model(x), x))
            if loss <= TARGET:
                return Outcome(step, seconds, loss)
            if not math.isfinite(loss):
                break
    return Outcome(most + 1, seconds, loss)


def tune(contender: Contender, most: int, x: Tensor) -> tuple[float, float, Outcome]:
    """Return rate, second number and outcome of the fewest steps on the tuning seed."""
    found = [
        (lr, second, run(contender, lr, second, TUNING_SEED, most, x))
        for lr in RATES
        for second in contender.values
    ]
    return min(found, key=lambda entry: (entry[2].steps, entry[2].loss))


def digits() -> Tensor:
    """Return the images, `[1797, 64]` in [0, 1]."""
    data = load_digits(DigitsOptions(test_fraction=0.0), seed=0)
    return torch.as_tensor(data.x / 16, dtype=torch.float32).reshape(len(data.x), -1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds reported (default: 5)")
    parser.add_argument("--steps", type=int, default=2000, help="the most steps (default: 2000)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    x = digits()
    console = Console(stderr=True, highlight=False)
    warn_if_busy(console)
    rows: list[Row] = []
    table = Table(box=SIMPLE)
    for heading in (
        "optimizer",
        "rate",
        "second",
        "steps",
        "least",
        "most",
        "ms a step",
        "seconds",
    ):
        table.add_column(heading, justify="left" if heading == "optimizer" else "right")
    for contender in CONTENDERS:
        lr, second, _ = tune(contender, given.steps, x)
        console.print(f"{contender.name}: rate {lr:g}, {contender.second} {second:g}")
        outcomes = [run(contender, lr, second, seed, given.steps, x) for seed in range(given.seeds)]
        steps = [outcome.steps for outcome in outcomes]
        mean = math.fsum(steps) / len(steps)
        seconds = math.fsum(outcome.seconds for outcome in outcomes) / len(outcomes)
        taken = sum(min(s, given.steps) for s in steps) / len(steps)
        table.add_row(
            contender.name,
            f"{lr:g}",
            f"{contender.second} {second:g}",
            f"{mean:.0f}",
            f"{min(steps)}",
            f"{max(steps)}" + (" (not reached)" if max(steps) > given.steps else ""),
            f"{1000 * seconds / taken:.2f}",
            f"{seconds:.2f}",
        )
        rows.extend(
            {
                "optimizer": contender.name,
                "lr": lr,
                "second": second,
                "seed": seed,
                "steps": outcome.steps,
                "seconds": outcome.seconds,
                "loss": outcome.loss,
            }
            for seed, outcome in enumerate(outcomes)
        )
    print(f"steps to a training loss of {TARGET:g}, mean of {given.seeds} seeds")
    Console(width=110, highlight=False).print(table)
    given.out.mkdir(parents=True, exist_ok=True)
    write_csv(given.out / "autoencoder.csv", rows, machine())
    return 0


if __name__ == "__main__":
    sys.exit(main())
