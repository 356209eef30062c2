"""A study of runs that are not made: their rounds are written down."""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from fedopt.studies.results import Outcome, Results
from fedopt.studies.runner import Record
from fedopt.studies.study import Arm, Claim, Condition, Finding, Quick, Study, final
from fedopt.studies.tasks import Form, RunTask, Schedule

BASE = """\
rounds = 2
clients_per_round = 2

[partition]
clients = 4

[checkpoint]
every = 0
"""

ACCURACY = final("test_accuracy")


def study(**changes) -> Study:
    """Return a study of two arms in two conditions on three seeds."""
    given = {
        "name": "made-up",
        "title": "Made up",
        "source": "nobody",
        "question": "Which is better?",
        "differs": ("All of it.",),
        "base": BASE,
        "conditions": (Condition("few"), Condition("many", ("local.epochs=2",))),
        "arms": (Arm("plain"), Arm("prox", ("strategy=fedprox",))),
        "measures": (ACCURACY,),
        "seeds": (0, 1, 2),
        "claims": (Claim("it is", lambda results: Finding("holds", "1")),),
        "quick": Quick(seeds=(0,), conditions=("few",)),
    }
    return Study(**(given | changes))


def history(accuracy: float, rounds: int = 2) -> pd.DataFrame:
    """Return rounds that end with an accuracy."""
    steps = range(1, rounds + 1)
    return pd.DataFrame({"round": steps, "test_accuracy": [accuracy * r / rounds for r in steps]})


def outcome(task: RunTask, frame: pd.DataFrame | None) -> Outcome:
    """Return a run with these rounds; None: it diverged."""
    status = "diverged" if frame is None else "completed"
    empty = pd.DataFrame({"round": []})
    record = Record(task.label, status, "", 0.0, "", "")
    return Outcome(task, record, empty if frame is None else frame)


def results(form: Form, frame: Callable[[str, str, int], pd.DataFrame | None]) -> Results:
    """Return results whose rounds a function of condition, arm and seed says."""
    schedule = Schedule(form, lambda arm, runs: math.nan)
    outcomes = {key: outcome(task, frame(*key)) for key, task in schedule.reported.items()}
    return Results(form, outcomes, schedule.chosen, schedule.scores)
