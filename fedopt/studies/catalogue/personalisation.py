"""One model for all, one for each, or something between: people with a smart watch."""

from __future__ import annotations

from fedopt.studies.data import needs_watch, watch_people
from fedopt.studies.results import Results, better_by_interval
from fedopt.studies.study import (
    Arm,
    Claim,
    Condition,
    Drawing,
    Finding,
    Quick,
    Study,
    Tuning,
    mean_over,
)

BASE = """\
rounds = 60
clients_per_round = "all"

[data]
validation_fraction = 0.5

[model]
name = "mlp"
hidden = [32]

[local]
epochs = 2.0
batch_size = 10

[local.optimizer]
name = "sgd"
lr = 0.05

[evaluation]
validation_clients = 10

[checkpoint]
every = 0
"""

MEAN = mean_over("validation_accuracy_mean", 0.9, 1.0, "mean accuracy of a person")
WORST = mean_over("validation_accuracy_worst10", 0.9, 1.0, "accuracy of the worst person")
RATES = tuple((f"local.optimizer.lr={rate}",) for rate in (0.02, 0.05, 0.1))
WHO = "10 people"


def _better(results: Results, arm: str, other: str, measure: str) -> Finding:
    return better_by_interval(results, WHO, arm, other, measure)


STUDY = Study(
    name="personalisation",
    title="Personal models of exercises",
    source="Arivazhagan et al. 2019 (FedPer), figure 4; Li et al. 2021 (Ditto), table 1; "
    "data: Burns et "
    "al. 2018, shoulder physiotherapy with a smart watch (package seglearn)",
    question="""
Ten people did seven shoulder exercises with a smart watch. All do the same exercises, each in a
way of their own. Half of each person's windows are held out. Who recognises them best: a model of
each person's own, FedAvg's one for all, FedPer with a personal last layer, or Ditto with a
personal model that is pulled towards the common one?
""",
    differs=(
        "Other data than both papers': ten real people with 14 recordings each.",
        "Windows of 2.56 s that do not overlap; held-out windows may be of the same recording as "
        "training windows, so that all methods look better than on a recording of another day.",
    ),
    base=BASE,
    conditions=(Condition(WHO, (), watch_people),),
    arms=(
        Arm("FedAvg", ("strategy=fedavg",), RATES),
        Arm("local only", ("strategy=local_only",), RATES),
        Arm("FedPer", ("strategy=fedper",), RATES),
        Arm(
            "Ditto",
            ("strategy=ditto",),
            tuple((*rate, f"strategy.lam={lam}") for rate in RATES for lam in (0.1, 1.0)),
        ),
    ),
    measures=(MEAN, WORST),
    seeds=(0, 1, 2, 3, 4),
    claims=(
        Claim(
            "A federation beats a model of each person's own",
            lambda r: _better(r, "FedAvg", "local only", MEAN.name),
        ),
        Claim(
            "FedPer is more accurate than FedAvg",
            lambda r: _better(r, "FedPer", "FedAvg", MEAN.name),
            paper="FedPer, figure 4",
            is_robust=True,
        ),
        Claim(
            "Ditto is more accurate than FedAvg",
            lambda r: _better(r, "Ditto", "FedAvg", MEAN.name),
            paper="Ditto, table 1",
            is_robust=True,
        ),
        Claim(
            "Ditto is more accurate than a model of each person's own",
            lambda r: _better(r, "Ditto", "local only", MEAN.name),
        ),
    ),
    tuning=Tuning(MEAN, seeds=(1000, 1001)),
    drawings=(Drawing("accuracy", "validation_accuracy_mean", "Mean accuracy of a person"),),
    quick=Quick(
        words=("rounds=25",),
        seeds=(0, 1, 2),
        grids={
            "FedAvg": RATES[1:2],
            "local only": RATES[1:2],
            "FedPer": RATES[1:2],
            "Ditto": (("local.optimizer.lr=0.05", "strategy.lam=0.1"),),
        },
    ),
    needs=needs_watch,
    seconds=(90, 11),
    reading="""
Nobody gains from the federation here. All ten know all seven exercises, and a model of one's own
recognises 97 of 100 held-out windows; FedAvg's one model for all 91. FedPer and Ditto repair most
of what the common model loses, both clearly better than FedAvg as their papers say, and neither
beats the own model; Ditto is a point below it. Held-out windows are of the same recordings as
training windows, which suits models of one's own best.
""",
)
