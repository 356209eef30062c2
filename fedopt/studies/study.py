"""What a study is: conditions and arms, what is measured of a run, what is claimed of them.

A study is data. Nothing is run, measured or written here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from fedopt.analysis.targets import COSTS, Target, cost_to_target, is_higher_better

if TYPE_CHECKING:
    from fedopt.studies.results import Results

Words = tuple[str, ...]
"""Words `key=value`, as on the command line of `fedopt run`."""

Maker = Callable[[int], dict[str, Any]]
"""From a seed to keywords of `fedopt.simulate`: data, model or loss in memory."""

Better = Literal["higher", "lower"]
Verdict = Literal["holds", "does not hold", "not shown"]


@dataclass(frozen=True)
class Condition:
    """A setting in which all arms are compared, such as a data set or a share of stragglers.

    Args:
        name: for people.
        words: that set it.
        maker: makes data, model or loss in memory, which its runs need.
        needs: raises ConfigError where its data are not there: it is left out then, which is said.
    """

    name: str
    words: Words = ()
    maker: Maker | None = None
    needs: Callable[[], None] | None = None


@dataclass(frozen=True)
class Arm:
    """A method.

    Args:
        name: for people.
        words: that set it.
        grid: alternatives, each some more words; where there are several, one is chosen in every
            condition (see `Tuning`).
        is_averaged: whether the averaged model (`server.swa`) is measured rather than the last.
        conditions: names of those in which it is run; empty: all.
    """

    name: str
    words: Words = ()
    grid: tuple[Words, ...] = ((),)
    is_averaged: bool = False
    conditions: tuple[str, ...] = ()

    def column(self, metric: str) -> str:
        """Return the column of `rounds.csv` that holds a metric of the arm's model."""
        return f"swa_{metric}" if self.is_averaged else metric

    def shown(self, history: pd.DataFrame, metric: str) -> pd.DataFrame:
        """Return rounds in which a metric is that of the arm's model; without it, if it is not."""
        column = self.column(metric)
        if column == metric:
            return history
        if column not in history:
            return history.drop(columns=metric, errors="ignore")
        return history.assign(**{metric: history[column]})


@dataclass(frozen=True)
class Measure:
    """A number that a run comes to.

    Args:
        name: for people, unique in a study.
        better: which direction is better; None: neither.
        of: from a run's rounds and the arm to the number; None where there is none, as of a target
            that was not reached.
        form: format of the number.
        missing: what a table says where there is none.
    """

    name: str
    better: Better | None
    of: Callable[[pd.DataFrame, Arm], float | None]
    form: str = ".4f"
    missing: str = "none"


@dataclass(frozen=True)
class Rung:
    """A step of a successive halving.

    Args:
        words: of its runs, such as how many rounds they have.
        keep: alternatives that are left after it, >= 1.
    """

    words: Words = ()
    keep: int = 1


@dataclass(frozen=True)
class Tuning:
    """How one of an arm's alternatives is chosen: the best mean over seeds that are not reported.

    Args:
        by: what is compared.
        seeds: on which.
        rungs: one after another, each with the alternatives that the last one left.
    """

    by: Measure
    seeds: tuple[int, ...] = (1000,)
    rungs: tuple[Rung, ...] = (Rung(),)


@dataclass(frozen=True)
class Finding:
    """What came of a claim.

    Args:
        verdict: whether it holds here.
        here: the numbers that say so.
    """

    verdict: Verdict
    here: str


@dataclass(frozen=True)
class Claim:
    """Something that a paper says, or that is expected, and how it is checked.

    Args:
        text: what is claimed.
        check: from the results to what came of it.
        paper: the paper's own value, empty where it gives none.
        is_robust: whether it has to hold in the quick form too.
    """

    text: str
    check: Callable[[Results], Finding]
    paper: str = ""
    is_robust: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure of curves, a panel a condition.

    Args:
        name: of its files.
        metric: column of `rounds.csv`.
        caption: what it shows.
        x: what it is drawn against, of `fedopt.analysis.curves.X_AXES`.
        conditions: names of those that are drawn; empty: all.
        arms: names of those that are drawn; empty: all.
        target: a value of the metric that is marked.
    """

    name: str
    metric: str
    caption: str
    x: str = "rounds"
    conditions: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    target: float | None = None


@dataclass(frozen=True)
class Quick:
    """What is left of a study in its quick form.

    Args:
        words: added to every run.
        seeds: that are reported.
        conditions: names of those that are kept; empty: all.
        arms: names of those that are kept; empty: all.
        grids: name of an arm -> its grid; other arms keep theirs.
        tuning: in place of the study's; None: only the first alternative of each grid is run.
    """

    words: Words = ()
    seeds: tuple[int, ...] = (0, 1)
    conditions: tuple[str, ...] = ()
    arms: tuple[str, ...] = ()
    grids: Mapping[str, tuple[Words, ...]] = field(default_factory=dict)
    tuning: Tuning | None = None


@dataclass(frozen=True)
class Study:
    """A question, and how it is asked.

    Args:
        name: on the command line.
        title: one line.
        source: the paper, with its tables and figures.
        question: what is asked, a paragraph of Markdown.
        differs: what is not as in the paper, a list of Markdown points.
        base: the configuration that all runs begin with, as TOML.
        conditions: at least one.
        arms: the first is the one that others are compared with.
        measures: the first is the one that counts.
        seeds: that are reported.
        claims: what is checked.
        quick: its quick form.
        tuning: how alternatives are chosen; None where no arm has any.
        drawings: its figures.
        seconds: processor time of all runs in full and in quick form, as measured; where the full
            form was not run, extrapolated from the time of some rounds.
        needs: raises ConfigError where data that the study needs is not there.
        reading: what the results mean, a paragraph of Markdown for the page.
        follow_up: from the results to a study of what they turned up, such as an ablation of the
            best arm; None: there is none.
    """

    name: str
    title: str
    source: str
    question: str
    differs: tuple[str, ...]
    base: str
    conditions: tuple[Condition, ...]
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    seeds: tuple[int, ...]
    claims: tuple[Claim, ...]
    quick: Quick
    tuning: Tuning | None = None
    drawings: tuple[Drawing, ...] = ()
    seconds: tuple[float, float] = (math.nan, math.nan)
    needs: Callable[[], None] | None = None
    reading: str = ""
    follow_up: Callable[[Results], Study | None] | None = None

    @property
    def slug(self) -> str:
        """Its name, as files are called."""
        return self.name.replace(":", "-").replace(".", "-")

    def arms_of(self, condition: Condition) -> tuple[Arm, ...]:
        """Return the arms that are run in a condition."""
        return tuple(a for a in self.arms if not a.conditions or condition.name in a.conditions)


# Measures that studies share --------------------------------------------------------------------


def final(metric: str, name: str = "", form: str = ".4f", better: Better | None = None) -> Measure:
    """Return the measure: value of a metric after the last round; `better` as in `mean_over`."""

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        known = _known(history, arm.column(metric))
        return float(known.iloc[-1]) if len(known) else None

    return Measure(name or f"final {_words(metric)}", better or _way(metric), of, form)


def best(metric: str, name: str = "", form: str = ".4f") -> Measure:
    """Return the measure: best value of a metric over the rounds."""
    way = _way(metric)

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        known = _known(history, arm.column(metric))
        return _extreme(known, way) if len(known) else None

    return Measure(name or f"best {_words(metric)}", way, of, form)


def mean_over(
    metric: str,
    first: float,
    last: float = 1.0,
    name: str = "",
    form: str = ".4f",
    better: Better | None = None,
) -> Measure:
    """Return the measure: mean of a metric over a part of the rounds.

    Args:
        metric: column of `rounds.csv`.
        first: after which round the part begins; a float in [0, 1] is a share of the rounds.
        last: with which round it ends; a float in [0, 1] is a share of the rounds.
        name: of the measure.
        form: of the number.
        better: which direction is better; None: that of the metric.
    """

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        part = _part(history, arm.column(metric), first, last)
        return float(part.mean()) if len(part) else None

    return Measure(name or f"mean {_words(metric)}", better or _way(metric), of, form)


def worst_over(metric: str, first: float, name: str, form: str = ".4f") -> Measure:
    """Return the measure: worst value of a metric from a round on; see `mean_over`."""
    way = _way(metric)

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        part = _part(history, arm.column(metric), first)
        return _extreme(part, "lower" if way == "higher" else "higher") if len(part) else None

    return Measure(name, way, of, form)


def deviation_over(metric: str, first: float, name: str, form: str = ".4f") -> Measure:
    """Return the measure: standard deviation of a metric from a round on; see `mean_over`."""

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        part = _part(history, arm.column(metric), first)
        return float(part.std(ddof=1)) if len(part) > 1 else None

    return Measure(name, "lower", of, form)


def to_target(target: Target, cost: str = "rounds", name: str = "") -> Measure:
    """Return the measure: what it cost to reach a target, of `fedopt.analysis.targets.COSTS`."""
    factor = next(c.factor for c in COSTS if c.name == cost)

    def of(history: pd.DataFrame, arm: Arm) -> float | None:
        costs = cost_to_target(arm.shown(history, target.metric), target)
        if costs is None or not np.isfinite(costs[cost]):
            return None
        return costs[cost] * factor

    unit = {"bytes": "MB"}.get(cost, cost.replace("_", " "))
    return Measure(name or f"{unit} to {target}", "lower", of, ".1f", missing="not reached")


def _way(metric: str) -> Better:
    return "higher" if is_higher_better(metric) else "lower"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _extreme(values: pd.Series[float], way: Better) -> float:
    return float(values.max() if way == "higher" else values.min())


def _part(history: pd.DataFrame, column: str, first: float, last: float = 1.0) -> pd.Series[float]:
    """Return what was measured of a column in a part of the rounds; see `mean_over`."""
    known, rounds = _known(history, column), float(history["round"].max())
    low, high = (p * rounds if isinstance(p, float) else p for p in (first, last))
    return known[(known.index > low) & (known.index <= high)]


def _known(history: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return what was measured of a column, by round; finite values."""
    if column not in history:
        return pd.Series(dtype=float)
    values = history.set_index("round")[column].astype(float)
    return values[np.isfinite(values)]
