"""Search on the digits over several seeds, against the median of random search.

    python simulations/search/run.py [--seeds 3] [--out DIR] [key=value ...]

Each seed is one `fedopt search` of digits.toml, in a folder of its own: it searches, retrains what
it found from scratch, and retrains random architectures of the same space for as many rounds.
Prints a line a seed and writes results.csv. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from fedopt.analysis.progress import SilentProgress
from fedopt.atomic import write_atomically
from fedopt.config import load
from fedopt.errors import FedoptError
from fedopt.search_command import SearchOutcome, run_search

HERE = Path(__file__).parent


def row(seed: int, outcome: SearchOutcome) -> dict[str, object]:
    """Return what a seed came to."""
    scores = [candidate.score for candidate in outcome.random]
    return {
        "seed": seed,
        "found": outcome.found.score,
        "random median": statistics.median(scores),
        "random best": max(scores),
        "random worst": min(scores),
        "rank": f"{outcome.rank} of {1 + len(scores)}",
        "parameters": outcome.found.parameters,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("overrides", nargs="*", help="key=value, as for fedopt search")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, >= 1 (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/study_search"))
    given = parser.parse_args(arguments)
    rows = []
    try:
        for seed in range(given.seeds):
            words = [*given.overrides, f"seed={seed}"]
            config = load(HERE / "digits.toml", words)
            outcome = run_search(config, given.out / f"seed_{seed}", SilentProgress())
            rows.append(row(seed, outcome))
            print(f"seed {seed} is done", file=sys.stderr)
    except FedoptError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    table = Table(box=SIMPLE)
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for values in rows:
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in values.values()]
        table.add_row(*cells)
    print("test accuracy after retraining from scratch, equal rounds")
    Console(width=100, highlight=False).print(table)
    above = sum(float(str(r["found"])) > float(str(r["random median"])) for r in rows)
    print(f"above the median of random search on {above} of {len(rows)} seeds")
    text = pd.DataFrame(rows).to_csv(index=False)
    write_atomically(given.out / "results.csv", text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
