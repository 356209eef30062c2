"""What the runs of a study came to: numbers of each, means with intervals, differences in pairs.

A run that diverged has the worst value there is of what has a better direction: it is counted,
never left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from fedopt.analysis.intervals import MeanInterval, mean_interval
from fedopt.analysis.paired import PairedInterval, paired_interval
from fedopt.studies.runner import Record
from fedopt.studies.study import Arm, Finding, Measure, Study
from fedopt.studies.tasks import Form, RunTask, Scores, worst


@dataclass(frozen=True)
class Outcome:
    """A run that counts.

    Args:
        task: the run.
        record: how it ended.
        history: its rounds; empty where it diverged.
    """

    task: RunTask
    record: Record
    history: pd.DataFrame

    @property
    def is_diverged(self) -> bool:
        """Whether the loss or the model became infinite."""
        return self.record.status == "diverged"


@dataclass(frozen=True)
class Results:
    """All runs of a study that count.

    Args:
        form: the study in the form in which it was run.
        outcomes: by condition, arm and seed; without runs that failed.
        chosen: words of the alternative of each condition and arm.
        scores: what the alternatives scored.
    """

    form: Form
    outcomes: Mapping[tuple[str, str, int], Outcome]
    chosen: Mapping[tuple[str, str], tuple[str, ...]]
    scores: Scores

    @property
    def study(self) -> Study:
        """The study, cut to what was run."""
        return self.form.study

    def has(self, condition: str, *arms: str) -> bool:
        """Return whether a condition was run with all of these arms, on every seed."""
        return all(
            (condition, arm, seed) in self.outcomes for arm in arms for seed in self.study.seeds
        )

    def conditions(self, *arms: str) -> list[str]:
        """Return the names of the conditions that were run with all of these arms."""
        return [c.name for c in self.study.conditions if self.has(c.name, *arms)]

    def value(self, condition: str, arm: str, measure: str, seed: int) -> float | None:
        """Return the number of a run; None where there is none, as of a target not reached.

        A run that diverged has the worst value there is: infinity of what is better lower.
        """
        outcome = self.outcomes[condition, arm, seed]
        wanted = self.measure(measure)
        if outcome.is_diverged:
            return None if wanted.missing == "not reached" else worst(wanted.better)
        value = wanted.of(outcome.history, self._arm(arm))
        return None if value is None or math.isnan(value) else value

    def values(self, condition: str, arm: str, measure: str) -> list[float | None]:
        """Return the numbers of an arm's runs, in the order of the seeds; see `value`."""
        return [self.value(condition, arm, measure, seed) for seed in self.study.seeds]

    def mean(self, condition: str, arm: str, measure: str) -> MeanInterval | None:
        """Return the mean over the seeds; None where a run has no finite number."""
        values = self.values(condition, arm, measure)
        known = [v for v in values if v is not None and math.isfinite(v)]
        return mean_interval(known) if values and len(known) == len(values) else None

    def means(self, condition: str, arms: Sequence[str], measure: str) -> dict[str, float]:
        """Return the means of those arms that were run and have one; see `mean`."""
        found = {
            arm: self.mean(condition, arm, measure) for arm in arms if self.has(condition, arm)
        }
        return {arm: mean.mean for arm, mean in found.items() if mean is not None}

    def pairs(self, condition: str, arm: str, other: str, measure: str) -> PairedInterval | None:
        """Return the mean difference to another arm in pairs of equal seed.

        None where there are fewer than two pairs, or a run has no finite number.
        """
        a, b = self.values(condition, arm, measure), self.values(condition, other, measure)
        both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
        if len(both) < max(2, len(a)) or not all(math.isfinite(x + y) for x, y in both):
            return None
        return paired_interval([x for x, _ in both], [y for _, y in both])

    def cell(self, condition: str, arm: str, measure: Measure) -> str:
        """Return a cell of a table: the mean, and half of its 95 % interval."""
        values = self.values(condition, arm, measure.name)
        bad = sum(self.outcomes[condition, arm, s].is_diverged for s in self.study.seeds)
        lost = sum(v is None for v in values)
        if bad:
            return f"{bad} of {len(values)} diverged"
        if lost == len(values):
            return measure.missing
        if lost:
            known = [v for v in values if v is not None]
            low = format(min(known), measure.form)
            return f"{lost} of {len(values)} {measure.missing}; best {low}"
        mean = mean_interval([v for v in values if v is not None])
        half = "" if mean.half is None else f" ± {format(mean.half, measure.form)}"
        return f"{format(mean.mean, measure.form)}{half}"

    def measure(self, name: str) -> Measure:
        """Return a measure by its name."""
        return next(m for m in self.study.measures if m.name == name)

    def _arm(self, name: str) -> Arm:
        return next(a for a in self.study.arms if a.name == name)


# Checks that claims share -----------------------------------------------------------------------

NOT_RUN = Finding("not shown", "no such runs")
"""What is said of a claim none of whose runs were made."""


def decided(holds: bool, here: str) -> Finding:
    """Return a finding that is decided.

    Args:
        holds: whether the claim holds.
        here: the numbers that say so.
    """
    return Finding("holds" if holds else "does not hold", here)


def better_on_every_seed(
    results: Results, condition: str, arm: str, other: str, measure: str
) -> Finding:
    """Return whether an arm is better than another on every seed."""
    if not results.has(condition, arm, other):
        return absent(condition, arm, other)
    mine, theirs = (results.values(condition, a, measure) for a in (arm, other))
    return seed_by_seed(mine, theirs, results.measure(measure))


def seed_by_seed(
    mine: Sequence[float | None], theirs: Sequence[float | None], measure: Measure
) -> Finding:
    """Return whether numbers are better than others, each than that of its seed."""
    sign = -1.0 if measure.better == "lower" else 1.0
    pairs = list(zip(mine, theirs, strict=True))
    wins = sum(_order(a, sign) > _order(b, sign) for a, b in pairs)
    shown = "; ".join(f"{_text(a, measure)} against {_text(b, measure)}" for a, b in pairs)
    return decided(wins == len(pairs), f"better on {wins} of {len(pairs)} seeds: {shown}")


def better_by_interval(
    results: Results, condition: str, arm: str, other: str, measure: str
) -> Finding:
    """Return whether the 95 % interval of the paired difference lies on the better side of 0."""
    if not results.has(condition, arm, other):
        return absent(condition, arm, other)
    pairs = results.pairs(condition, arm, other, measure)
    wanted = results.measure(measure)
    if pairs is None:
        return Finding(
            "not shown",
            f"{arm}: {results.cell(condition, arm, wanted)}; "
            f"{other}: {results.cell(condition, other, wanted)}",
        )
    text = difference_text(pairs, wanted)
    if not pairs.excludes_zero:
        return Finding("not shown", text)
    return decided((pairs.mean > 0) == (wanted.better == "higher"), text)


def difference_text(found: PairedInterval, measure: Measure) -> str:
    """Return a paired difference with its interval in words."""
    form = f"+{measure.form}"
    return (
        f"difference {format(found.mean, form)} "
        f"(95 % {format(found.low, form)} to {format(found.high, form)}, {found.pairs} seeds)"
    )


@dataclass(frozen=True)
class Ratio:
    """How many times as many rounds one arm needs as another.

    Args:
        value: of the means over the seeds.
        is_bound: whether it is a lower bound: a run did not reach the target in the rounds it had.
    """

    value: float
    is_bound: bool

    def __str__(self) -> str:
        return f"{'at least ' if self.is_bound else ''}{self.value:.2f}x"


def ratio_to_target(
    results: Results, condition: str, arm: str, other: str, measure: str
) -> Ratio | None:
    """Return how many times as many rounds another arm needs to a target.

    Args:
        results: of the study.
        condition: in which they are compared.
        arm: the arm.
        other: the other arm.
        measure: name of one of rounds to a target.

    Returns:
        None where the arm itself did not reach it on every seed, or one of them was not run.
    """
    if not results.has(condition, arm, other):
        return None
    mine, theirs = (results.values(condition, a, measure) for a in (arm, other))
    if any(v is None for v in mine):
        return None
    most = [
        float(results.outcomes[condition, other, seed].task.rounds) for seed in results.study.seeds
    ]
    is_bound = any(v is None for v in theirs)
    filled = [m if v is None else v for v, m in zip(theirs, most, strict=True)]
    total = math.fsum(v for v in mine if v is not None)
    return Ratio(math.fsum(filled) / total, is_bound)


def every_arm_above(results: Results, condition: str, measure: str, least: float) -> Finding:
    """Return whether every arm that was run is above a value on every seed."""
    arms = [arm.name for arm in results.study.arms if results.has(condition, arm.name)]
    if not arms:
        return NOT_RUN
    lows = {
        arm: min(-math.inf if v is None else v for v in results.values(condition, arm, measure))
        for arm in arms
    }
    text = ", ".join(f"{arm} {_text(low, results.measure(measure))}" for arm, low in lows.items())
    return decided(min(lows.values()) > least, text)


def absent(condition: str, *arms: str) -> Finding:
    """Return what is said of a claim whose runs were not made, or failed."""
    return Finding("not shown", f"{condition} was not run with {' and '.join(arms)}")


def all_of(findings: Sequence[tuple[str, Finding]]) -> Finding:
    """Return a finding that holds where all of several do.

    Args:
        findings: what each is about, and what came of it.
    """
    if not findings:
        return NOT_RUN
    verdicts = [part.verdict for _, part in findings]
    text = "; ".join(f"{name}: {part.here}" for name, part in findings)
    if "not shown" in verdicts and "does not hold" not in verdicts:
        return Finding("not shown", text)
    return decided("does not hold" not in verdicts, text)


def in_every_condition(
    results: Results,
    arm: str,
    other: str,
    measure: str,
    check: Callable[[Results, str, str, str, str], Finding] = better_by_interval,
) -> Finding:
    """Return whether an arm is better than another in every condition that has both.

    Args:
        results: of the study.
        arm: the arm.
        other: the other arm.
        measure: what is compared.
        check: of one condition.
    """
    conditions = results.conditions(arm, other)
    return all_of([(c, check(results, c, arm, other, measure)) for c in conditions])


def _order(value: float | None, sign: float) -> float:
    return -math.inf if value is None or math.isnan(value) else sign * value


def _text(value: float | None, measure: Measure) -> str:
    if value is None:
        return "none"
    return format(value, measure.form) if math.isfinite(value) else "diverged"
