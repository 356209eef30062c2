"""What a step of architecture search costs, by the form of the architecture gradient.

`python -m benchmarks.search` times one architecture step on the cell supernet (digits, batches of
32) with the exact second-order gradient, the paper's finite difference and the first order, and,
to compare, the gradient of the weights alone. They take turns in one process with one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.functional import cross_entropy

from benchmarks.measuring import (
    Row,
    interleave,
    machine,
    quartiles,
    show,
    warn_if_busy,
    write_csv,
)
from fedopt.data.catalogue import DigitsOptions
from fedopt.data.embedded import load_digits
from fedopt.search.bilevel import Bilevel, SearchSettings
from fedopt.search.cells import CellSupernet

BATCH, RATE = 32, 0.025
WEIGHTS = "weight gradient alone"
FORMS = {"first order": "first", "second order, finite": "finite", "second order": "second"}


class Step:
    """Does the same thing again and again.

    Args:
        name: for the table.
        do: what is timed.
    """

    def __init__(self, name: str, do: Callable[[], object]) -> None:
        self.name = name
        self._do = do

    def round(self) -> None:
        """Do it once."""
        self._do()

    def close(self) -> None:
        """Release nothing."""


def steps_of(cells: int, channels: int) -> list[Step]:
    """Return what is compared, on one supernet and the same two batches."""
    torch.manual_seed(0)
    data = load_digits(DigitsOptions(test_fraction=0.0), seed=0)
    x = torch.from_numpy(data.x[: 2 * BATCH]).float()
    y = torch.from_numpy(data.y[: 2 * BATCH])
    train, val = (x[:BATCH], y[:BATCH]), (x[BATCH:], y[BATCH:])
    model = CellSupernet((1, 8, 8), 10, channels=channels, cells=cells)
    weights = [p for name, p in model.named_parameters() if not name.startswith("alphas.")]
    bilevels = {name: Bilevel(model, cross_entropy, SearchSettings(f)) for name, f in FORMS.items()}

    def weight_gradient() -> object:
        return torch.autograd.grad(cross_entropy(model(train[0]), train[1]), weights)

    def architecture(bilevel: Bilevel) -> Callable[[], object]:
        return lambda: bilevel.architecture_gradient(train, val, RATE)

    return [
        Step(WEIGHTS, weight_gradient),
        *(Step(name, architecture(bilevel)) for name, bilevel in bilevels.items()),
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small supernet, few turns")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console(width=120)
    warn_if_busy(console)
    facts = machine()
    rows: list[Row] = []
    for cells, channels in [(1, 2)] if options.quick else [(2, 4), (3, 8)]:
        steps = steps_of(cells, channels)
        seconds, foreign = interleave(steps, 2 if options.quick else 15, 2)
        medians = {name: quartiles(times)[1] for name, times in seconds.items()}
        found: list[Row] = [
            {
                "cells": cells,
                "channels": channels,
                "step": name,
                "ms": took * 1e3,
                "x": took / medians[WEIGHTS],
                "others, cores": foreign,
            }
            for name, took in medians.items()
        ]
        show(console, f"{cells} cells, {channels} channels, batches of {BATCH}", found)
        rows += found
    write_csv(options.out / "search.csv", rows, facts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
