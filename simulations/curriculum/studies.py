"""A study of curricula and one of self-paced learning as data: arms, measures and grids."""

from __future__ import annotations

from study import BEST_ACCURACY, FINAL_ACCURACY, FINAL_NLL, Arm, Measure, Study

EARLY_ACCURACY = Measure(
    "early accuracy",
    "test_accuracy",
    "higher",
    lambda v: float(v[v.index <= v.index.max() / 4].iloc[-1]),
)
"""Accuracy after a quarter of the rounds."""


def curriculum(name: str, *options: str) -> tuple[str, ...]:
    """Return the words of a curriculum over a client's examples."""
    words = (f"name={name}", "full_at=0.5", *options)
    return tuple(f"local.curriculum.{word}" for word in words)


CURRICULUM = Study(
    name="curriculum",
    title="easy examples first, hard first, random and all at once, on non-IID digits",
    arms=(
        Arm("all at once"),
        Arm("random order", curriculum("random")),
        Arm("curriculum", curriculum("curriculum")),
        Arm("anti-curriculum", curriculum("anti")),
        Arm("curriculum, margin", curriculum("curriculum", "score=margin")),
        Arm(
            "clients, easy first",
            ("server.curriculum.name=curriculum", "server.curriculum.full_at=0.5"),
        ),
    ),
    measures=(EARLY_ACCURACY, FINAL_ACCURACY, FINAL_NLL),
    rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    tuned_by=FINAL_ACCURACY,
    tuned_arms="each",
    quick=("rounds=4",),
)


def paced(name: str, *options: str) -> tuple[str, ...]:
    """Return the words of self-paced learning, at the half of the smallest losses."""
    words = (f"name={name}", "quantile=0.5", "quantile_step=0", *options)
    return tuple(f"local.self_paced.{word}" for word in words)


SELF_PACED = Study(
    name="self_paced",
    title="self-paced learning under 40 % symmetric label noise",
    arms=(
        Arm("all examples"),
        Arm("hard", paced("hard")),
        Arm("linear", paced("linear")),
        Arm("log", paced("log")),
        Arm("mixture", paced("mixture")),
        Arm("hard, shared", paced("hard", "scope=shared")),
    ),
    measures=(FINAL_ACCURACY, BEST_ACCURACY, FINAL_NLL),
    rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    tuned_by=FINAL_ACCURACY,
    tuned_arms="each",
    quick=("rounds=4",),
)

STUDIES = {study.name: study for study in (CURRICULUM, SELF_PACED)}
