"""Several runs beside each other: what they reached, what it cost them, how they differ.

Only computed here; `comparison_tables.py` says it in tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedopt.analysis.groups import Group
from fedopt.analysis.intervals import LEVEL, MeanInterval, mean_interval
from fedopt.analysis.paired import PairedInterval, paired_interval
from fedopt.analysis.targets import COSTS, Target, cost_to_target, is_higher_better
from fedopt.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class RunRow:
    """What one run came to.

    Args:
        name: of the run.
        label: of its group.
        seed: None where it is not known.
        rounds: the last one recorded.
        final: by metric, the value measured last.
        best: by metric, the best value.
        best_round: by metric, the first round that had it.
        costs: up to the target, by the names of `COSTS`; None where it is not reached.
    """

    name: str
    label: str
    seed: int | None
    rounds: int
    final: dict[str, float]
    best: dict[str, float]
    best_round: dict[str, int]
    costs: dict[str, float] | None


@dataclass(frozen=True)
class Difference:
    """A group less the reference, seed by seed.

    Args:
        label: of the group.
        quantity: `final NAME`, `best NAME`, or one of `COSTS`.
        is_higher_better: which way is better.
        interval: of the mean difference; None for less than two pairs.
        mean: mean difference over the pairs; None without one.
        pairs: seeds that both have.
        left_out: further common seeds, of which one or both did not reach the target.
    """

    label: str
    quantity: str
    is_higher_better: bool
    interval: PairedInterval | None
    mean: float | None
    pairs: int
    left_out: int

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.interval is None:
            return "no interval: one pair" if self.pairs else "no pair"
        if not self.interval.excludes_zero:
            return "no difference shown"
        return "better" if (self.interval.mean > 0) == self.is_higher_better else "worse"


@dataclass(frozen=True)
class Comparison:
    """Runs in groups, compared.

    Args:
        groups: at least one.
        metrics: columns of `rounds.csv`, the first the one that counts.
        target: a value to be reached, or None.
        reference: the group that others are compared with.
        rows: a row a run, by group.
        differences: of every other group to the reference.
    """

    groups: tuple[Group, ...]
    metrics: tuple[str, ...]
    target: Target | None
    reference: Group
    rows: tuple[tuple[RunRow, ...], ...]
    differences: tuple[Difference, ...]

    @property
    def has_repetitions(self) -> bool:
        """Whether a group has several runs."""
        return any(group.n > 1 for group in self.groups)

    def mean_of(self, index: int, quantity: str) -> MeanInterval | None:
        """Return the mean of a quantity over the runs of a group.

        Args:
            index: of the group.
            quantity: as in `Difference`.

        Returns:
            None where a run did not reach the target, or did not measure it.
        """
        values = [value_of(row, quantity) for row in self.rows[index]]
        known = [value for value in values if value is not None]
        return mean_interval(known) if len(known) == len(values) else None

    def _repr_html_(self) -> str:
        """Return the tables for a notebook."""
        from fedopt.analysis.comparison_tables import sections_of

        return "\n".join(section.html() for section in sections_of(self))


def comparison(
    groups: Sequence[Group],
    metrics: Sequence[str],
    target: Target | None = None,
    reference: str | None = None,
) -> Comparison:
    """Compare groups of runs.

    Args:
        groups: from `group_runs`, at least one.
        metrics: columns of `rounds.csv` that have a better direction, at least one.
        target: a value to be reached; its metric is compared too.
        reference: label of the group that others are compared with; None: the first.

    Raises:
        ConfigError: no run; a metric is not known, has no better direction or was not measured;
            there is no such reference.
    """
    if not groups:
        raise ConfigError("there is no run to compare.")
    names = list(dict.fromkeys([*metrics, *([target.metric] if target else [])]))
    for name in names:
        is_higher_better(name)
    rows = tuple(
        tuple(
            run_row(run.name, group.label, run.seed, run.history, names, target)
            for run in group.runs
        )
        for group in groups
    )
    base = _index(groups, reference)
    quantities = [f"{kind} {name}" for name in names for kind in ("final", "best")]
    if target is not None:
        quantities += [cost.name for cost in COSTS]
    differences = [
        found
        for index in range(len(groups))
        if index != base
        for quantity in quantities
        if (found := difference(groups[index].label, rows[index], rows[base], quantity))
    ]
    return Comparison(tuple(groups), tuple(names), target, groups[base], rows, tuple(differences))


def run_row(
    name: str,
    label: str,
    seed: int | None,
    history: pd.DataFrame,
    metrics: Sequence[str],
    target: Target | None,
) -> RunRow:
    """Return what a run came to.

    Raises:
        ConfigError: it did not measure a metric.
    """
    final, best, best_round = {}, {}, {}
    for metric in metrics:
        known = history[["round", metric]].dropna() if metric in history else history[:0]
        if known.empty:
            raise ConfigError(f'"{name}" did not measure it', key=f"--metric {metric}")
        values = known[metric].to_numpy(np.float64)
        at = int(values.argmax() if is_higher_better(metric) else values.argmin())
        final[metric], best[metric] = float(values[-1]), float(values[at])
        best_round[metric] = int(known["round"].iloc[at])
    costs = cost_to_target(history, target) if target is not None else None
    return RunRow(name, label, seed, int(history["round"].iloc[-1]), final, best, best_round, costs)


def value_of(row: RunRow, quantity: str) -> float | None:
    """Return a quantity of a run; None where it is not known. See `Difference`."""
    kind, _, metric = quantity.partition(" ")
    if metric:
        return (row.final if kind == "final" else row.best)[metric]
    value = None if row.costs is None else row.costs[quantity]
    return None if value is None or value != value else value


def difference(
    label: str, rows: Sequence[RunRow], base: Sequence[RunRow], quantity: str
) -> Difference | None:
    """Return how runs differ from others in a quantity, in pairs of equal seed.

    Args:
        label: of the runs.
        rows: the runs.
        base: the others.
        quantity: see `Difference`.

    Returns:
        None where they have no seed in common, or nobody measured the quantity.
    """
    mine = {row.seed: value_of(row, quantity) for row in rows if row.seed is not None}
    theirs = {row.seed: value_of(row, quantity) for row in base if row.seed is not None}
    common = [seed for seed in mine if seed in theirs]
    pairs = [
        (a, b)
        for seed in common
        if (a := mine[seed]) is not None and (b := theirs[seed]) is not None
    ]
    is_measured = any(v is not None for v in (*mine.values(), *theirs.values()))
    if not common or not is_measured:
        return None
    metric = quantity.partition(" ")[2]
    higher = is_higher_better(metric) if metric else False
    ours, others = [a for a, _ in pairs], [b for _, b in pairs]
    interval = paired_interval(ours, others, LEVEL) if len(pairs) > 1 else None
    mean = interval.mean if interval else (ours[0] - others[0] if pairs else None)
    return Difference(label, quantity, higher, interval, mean, len(pairs), len(common) - len(pairs))


def _index(groups: Sequence[Group], reference: str | None) -> int:
    if reference is None:
        return 0
    labels = [group.label for group in groups]
    if reference in labels:
        return labels.index(reference)
    inside = [i for i, group in enumerate(groups) if reference in {run.name for run in group.runs}]
    if inside:
        return inside[0]
    known = "; ".join(labels)
    raise ConfigError(
        f'"{reference}" is not a group.{did_you_mean(reference, labels)} One of: {known}.',
        key="--reference",
    )
