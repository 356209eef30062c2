"""How a study that prints one table over seeds is run; the scripts beside this file say which."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from fedopt.analysis import default_directory
from fedopt.atomic import write_atomically
from fedopt.errors import FedoptError

WIDTH = 120  # characters


@dataclass(frozen=True)
class TableStudy:
    """A table over seeds.

    Args:
        name: of the results' folder.
        description: one line, for `--help`.
        results: (seeds, further words of all runs, console) -> a line a run.
        table: (these lines, seeds) -> the table.
        heading: what stands above it; `{seeds}` is their number.
        quick: words of all runs under `--quick`.
    """

    name: str
    description: str
    results: Callable[[Sequence[int], Sequence[str], Console], pd.DataFrame]
    table: Callable[[pd.DataFrame, Sequence[int]], Table]
    heading: str
    quick: tuple[str, ...]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the study that the command line describes; return the exit code."""
        parser = argparse.ArgumentParser(description=self.description)
        parser.add_argument("--seeds", type=int, default=3, help="seeds, >= 1 (default: 3)")
        parser.add_argument("--out", type=Path, help="folder of the results (default: a new one)")
        parser.add_argument("--quick", action="store_true", help="a few rounds: whether it works")
        given = parser.parse_args(arguments)
        if given.seeds < 1:
            parser.error(f"--seeds: must be >= 1, got {given.seeds}")
        directory = given.out or default_directory("runs", ["study", self.name])
        seeds, extra = range(given.seeds), self.quick if given.quick else ()
        try:
            found = self.results(seeds, extra, Console(stderr=True, highlight=False))
        except FedoptError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        directory.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        found.to_csv(text, index=False)
        write_atomically(directory / "results.csv", text.getvalue().encode())
        shown = io.StringIO()
        Console(file=shown, width=WIDTH, highlight=False).print(self.table(found, seeds))
        lines = [line.rstrip() for line in shown.getvalue().splitlines()]
        print(self.heading.format(seeds=given.seeds) + "\n")
        print("\n".join(line for line in lines if line))
        print(f"results in {directory}", file=sys.stderr)
        return 0
