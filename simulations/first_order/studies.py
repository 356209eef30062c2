"""Three studies of first-order training as data: arms, measures and grids. See ../study.py."""

from __future__ import annotations

from study import (
    BEST_ACCURACY,
    FINAL_ACCURACY,
    FINAL_ECE,
    FINAL_NLL,
    LATE_ACCURACY,
    LATE_DEVIATION,
    LATE_NLL,
    SHARPNESS,
    Arm,
    Study,
)

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
