"""The three studies as data: arms, measures and grids. How they are run is in run.py.

An arm is the study's TOML with a few `key=value` words, as on the command line of `fedopt run`.
The first arm of a study is the reference that the others are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Arm:
    """What one line of the table is about.

    Args:
        name: name for people.
        overrides: words `key=value` that make the arm from the study's TOML.
        model: which model is measured: "last", the server's, or "averaged" (`server.swa`). Arms
            with the same overrides are two models of one run.
    """

    name: str
    overrides: tuple[str, ...] = ()
    model: Literal["last", "averaged"] = "last"

    def column(self, metric: str) -> str:
        """Return the column of `rounds.csv` that holds a metric of the arm's model."""
        return f"swa_{metric}" if self.model == "averaged" else metric


@dataclass(frozen=True)
class Measure:
    """A number that a run comes to.

    Args:
        name: name for people.
        metric: column of `rounds.csv`, of the last model.
        better: which direction is better.
        of: from the values of the rounds that were measured, indexed by round, to the number.
    """

    name: str
    metric: str
    better: Better
    of: Callable[[pd.Series[float]], float]

    def measure(self, history: pd.DataFrame, arm: Arm) -> float:
        """Return the number of an arm's model in a run."""
        values = history.set_index("round")[arm.column(self.metric)].dropna()
        return float(self.of(values))


def last(values: pd.Series[float]) -> float:
    """Return the value of the last round."""
    return float(values.iloc[-1])


def last_quarter(values: pd.Series[float]) -> pd.Series[float]:
    """Return the values of the last quarter of the rounds."""
    return values[values.index > 0.75 * values.index.max()]


FINAL_ACCURACY = Measure("final accuracy", "test_accuracy", "higher", last)
BEST_ACCURACY = Measure("best accuracy", "test_accuracy", "higher", lambda v: float(v.max()))
FINAL_NLL = Measure("final NLL", "test_loss", "lower", last)
FINAL_ECE = Measure("final ECE", "test_ece", "lower", last)
SHARPNESS = Measure("sharpness", "test_sharpness", "lower", last)
LATE_ACCURACY = Measure(
    "late accuracy",
    "test_accuracy",
    "higher",
    lambda v: float(last_quarter(v).mean()),
)
LATE_NLL = Measure("late NLL", "test_loss", "lower", lambda v: float(last_quarter(v).mean()))
LATE_DEVIATION = Measure(
    "late deviation",
    "test_accuracy",
    "lower",
    lambda v: float(last_quarter(v).std()),
)


@dataclass(frozen=True)
class Study:
    """A question, and how it is asked.

    Args:
        name: name on the command line, and of the TOML.
        title: what is compared, one line.
        arms: the first is the reference.
        measures: what is reported.
        rates: grid of learning rates, rising.
        tuned_by: what chooses a rate, on the tuning seeds.
        tuned_arms: "each" chooses a rate for each arm; "reference" uses the reference's for all.
        quick: overrides of all arms under `--quick`.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    rates: tuple[float, ...]
    tuned_by: Measure
    tuned_arms: Literal["each", "reference"]
    quick: tuple[str, ...]


SAM = Study(
    name="sam",
    title="SAM against SGD under 40 % symmetric label noise",
    arms=(
        Arm("SGD"),
        Arm("SGD, 2x epochs", ("local.epochs=10",)),
        Arm("SAM, rho 0.02", ("local.sam.rho=0.02",)),
        Arm("SAM, rho 0.05", ("local.sam.rho=0.05",)),
        Arm("SAM, rho 0.1", ("local.sam.rho=0.1",)),
        Arm("ASAM, rho 0.5", ("local.sam.rho=0.5", "local.sam.adaptive=true")),
    ),
    measures=(FINAL_ACCURACY, BEST_ACCURACY, FINAL_NLL, FINAL_ECE, SHARPNESS),
    rates=(0.00625, 0.0125, 0.025, 0.05, 0.1),
    tuned_by=FINAL_ACCURACY,
    tuned_arms="each",
    quick=("rounds=4", "evaluation.sharpness_examples=50"),
)

CYCLIC = ("local.schedule.name=swa_cyclic", "local.schedule.start=0.75", "local.schedule.cycle=5")

SWA = Study(
    name="swa",
    title="averaged server models against the last, one class a client",
    arms=(
        Arm("last, constant rate"),
        Arm("averaged, constant rate", model="averaged"),
        Arm("last, cyclic rate", CYCLIC),
        Arm("averaged, cyclic rate", CYCLIC, model="averaged"),
    ),
    measures=(LATE_DEVIATION, LATE_ACCURACY, LATE_NLL, FINAL_ACCURACY, FINAL_NLL, FINAL_ECE),
    rates=(0.1, 0.2, 0.4, 0.8, 1.6),
    tuned_by=LATE_ACCURACY,
    tuned_arms="reference",
    quick=("rounds=12", "server.swa.start=9", "server.swa.every=2"),
)


def _schedule(name: str, scope: str, *options: str) -> tuple[str, ...]:
    """Return the words of a schedule."""
    words = (f"name={name}", f"scope={scope}", *options)
    return tuple(f"local.schedule.{word}" for word in words)


SCHEDULES = Study(
    name="schedules",
    title="1Cycle and cyclical rates against constant and step decay",
    arms=(
        Arm("constant"),
        Arm("step decay", _schedule("step", "round", "step_size=34", "gamma=0.3")),
        Arm("1Cycle, across", _schedule("one_cycle", "across")),
        Arm("1Cycle, within", _schedule("one_cycle", "within")),
        Arm("cyclical, across", _schedule("cyclical", "across", "step_size_up=100")),
        Arm("cyclical, within", _schedule("cyclical", "within")),
    ),
    measures=(FINAL_ACCURACY, BEST_ACCURACY, FINAL_NLL, FINAL_ECE),
    rates=(0.05, 0.1, 0.2, 0.4, 0.8),
    tuned_by=FINAL_ACCURACY,
    tuned_arms="each",
    quick=("rounds=4",),
)

STUDIES = {study.name: study for study in (SAM, SWA, SCHEDULES)}
