"""The tables of `docs/performance.md` and `secure-aggregation.md`, from `benchmarks/results/`.

`python -m benchmarks.report` replaces what stands between `<!-- NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.measuring import text

Row = dict[str, str]
END = "<!-- end -->"
FIGURES = ("speed.png", "scaling.png")


def read(path: Path) -> tuple[dict[str, str], list[Row]]:
    """Return the facts at the top of a file, and its rows."""
    lines = path.read_text(encoding="utf-8").splitlines()
    facts = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return facts, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def cell(value: str) -> str:
    """Return a number as it is shown, and anything else as it is."""
    try:
        number = float(value)
    except ValueError:
        return value
    return text(int(number) if value.isdigit() else number)


def markdown(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Return some columns of a table."""
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    lines += [f"| {' | '.join(cell(row[column]) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def machine_table(facts: dict[str, str]) -> str:
    """Return the machine in words."""
    shown = ("processor", "cores", "memory", "python", "torch", "numpy", "flwr", "ray", "fedopt")
    return ", ".join(f"{name} {facts[name]}" for name in shown) + "; no GPU."


def speed_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return a table a workload, and a line on what else ran."""
    columns = (
        "contender", "clients/s", "x bare", "x stock Flower", "x quickstart", "ms a round",
        "quartiles", "ms over reference", "max difference", "others, cores",
    )  # fmt: skip
    names = dict.fromkeys(row["workload"] for row in rows)
    return {name: markdown((r for r in rows if r["workload"] == name), columns) for name in names}


def scaling_tables(rows: Sequence[Row]) -> dict[str, str]:
    """Return a table a dimension, and the ratio of a million registered clients to ten thousand."""
    columns = {
        "registered": ("strategy", "registered", "sampled", "ms a round", "peak MiB"),
        "sampled": ("strategy", "sampled", "ms a round", "us a client"),
        "model": ("hidden width", "parameters", "engine", "ms a round", "GFLOP/s"),
        "workers": (
            "task", "sampled", "workers", "ms a round", "x inline", "driver peak MiB",
            "tree PSS MiB",
        ),
    }  # fmt: skip
    tables = {
        name: markdown((row for row in rows if row["table"] == name), shown)
        for name, shown in columns.items()
    }
    times = {
        (row["strategy"], int(row["registered"])): float(row["ms a round"])
        for row in rows
        if row["table"] == "registered"
    }
    more = {
        row["strategy"]: float(row["bytes a client more"])
        for row in rows
        if row["table"] == "registered" and int(row["registered"]) == 10**7
    }
    tables["registered in words"] = "\n".join(
        f"- {strategy}: a round with 1,000 of 1,000,000 clients takes "
        f"{times[strategy, 10**6] / times[strategy, 10**4]:.2f} times one with 1,000 of 10,000; "
        f"a registered client costs {bytes_more:.0f} bytes of the server's peak memory."
        for strategy, bytes_more in more.items()
    )
    return tables


def device_table(rows: Sequence[Row]) -> str:
    """Return the contenders of each workload on one device."""
    columns = (
        "workload", "clients a round", "contender", "clients/s", "x plain", "ms a round",
        "first round, s", "max difference", "others, cores",
    )  # fmt: skip
    return markdown(rows, columns)


def secure_table(rows: Sequence[Row]) -> str:
    """Return what a secure sum costs: a row a sum, over its stages."""
    columns = ("client, ms", "server, ms", "bytes up", "bytes down")
    sums: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        key = (row["coordinates"], row["clients"], row["neighbours"])
        total = sums.setdefault(key, dict.fromkeys(columns, 0.0))
        for column in columns:
            total[column] += float(row[column])
    names = ("coordinates", "clients", "neighbours")
    return markdown(
        (
            dict(zip(names, key, strict=True))
            | {c: f"{v:.0f}" if c.startswith("bytes") else f"{v:.3f}" for c, v in total.items()}
            for key, total in sums.items()
        ),
        (*names, *columns),
    )


def fill(document: str, tables: dict[str, str]) -> str:
    """Return a document with its tables replaced."""
    for name, table in tables.items():
        begin, found, rest = document.partition(f"<!-- {name} -->\n")
        if found:
            document = f"{begin}{found}\n{table}\n\n{END}{rest.partition(END)[2]}"
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the tables and figures into the documentation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--document", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(arguments)
    facts, speed = read(options.results / "speed.csv")
    tables = {"machine": machine_table(facts)} | speed_tables(speed)
    tables |= scaling_tables(read(options.results / "scaling.csv")[1])
    techniques = read(options.results / "techniques.csv")[1]
    columns = [c for c in techniques[0] if c != "workload"]
    for name in dict.fromkeys(row["workload"] for row in techniques):
        own = (row for row in techniques if row["workload"] == name)
        tables[f"techniques {name}"] = markdown(own, columns)
    tables["compiled"] = device_table(read(options.results / "compiled.csv")[1])
    for name in ("profile", "startup", "reading"):
        rows = read(options.results / f"{name}.csv")[1]
        tables[name] = markdown(rows, list(rows[0]))
    old = options.document.read_text(encoding="utf-8")
    options.document.write_text(fill(old, tables), encoding="utf-8")
    page = options.document.parent / "secure-aggregation.md"
    cost = {"cost": secure_table(read(options.results / "secure.csv")[1])}
    page.write_text(fill(page.read_text(encoding="utf-8"), cost), encoding="utf-8")
    images = options.document.parent / "images"
    images.mkdir(exist_ok=True)
    for figure in FIGURES:
        shutil.copyfile(options.results / figure, images / f"performance_{figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
