"""Which runs a study needs: conditions, arms, seeds; how alternatives are chosen."""

from __future__ import annotations

import dataclasses

import pytest

from fedopt.errors import ConfigError
from fedopt.studies.catalogue import MODULES, every_study, study_of
from fedopt.studies.study import Arm, Condition, Quick, Rung, Tuning, final
from fedopt.studies.tasks import Schedule, quick, whole

from .made_up import study

RATES = tuple((f"local.optimizer.lr={rate}",) for rate in (0.1, 0.2, 0.3, 0.4))


def drain(schedule):
    """Run everything; return the tasks in the order in which they were handed out."""
    tasks = []
    while (task := schedule.next()) is not None:
        tasks.append(task)
        schedule.ended(task)
    return tasks


def rate(task):
    return float(next(w for w in task.words if "lr=" in w).partition("=")[2])


def test_every_condition_arm_and_seed_is_run_once():
    schedule = Schedule(whole(study()), lambda arm, runs: 0.0)
    assert schedule.total == 12
    tasks = drain(schedule)
    assert len(tasks) == len({t.name for t in tasks}) == 12
    assert len(schedule.reported) == 12


def test_arms_of_one_configuration_share_their_runs():
    twice = study(
        arms=(Arm("plain"), Arm("same", ("strategy=fedavg",)), Arm("last", is_averaged=True))
    )
    tasks = drain(Schedule(whole(twice), lambda arm, runs: 0.0))
    assert len(tasks) == 6


def test_a_changed_configuration_is_another_run():
    one = Schedule(whole(study()), lambda arm, runs: 0.0).reported
    changed = study(base=study().base.replace("rounds = 2", "rounds = 3"))
    other = Schedule(whole(changed), lambda arm, runs: 0.0).reported
    assert one.keys() == other.keys()
    assert not {t.name for t in one.values()} & {t.name for t in other.values()}


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_best_alternative_on_the_tuning_seeds_is_reported(better):
    measure = dataclasses.replace(final("test_accuracy"), better=better)
    tuned = study(
        arms=(Arm("plain", (), RATES),),
        conditions=(Condition("few"),),
        tuning=Tuning(measure, seeds=(7, 8)),
    )
    sign = 1 if better == "higher" else -1
    schedule = Schedule(whole(tuned), lambda arm, runs: -sign * abs(rate(runs[0]) - 0.3))
    assert schedule.total == 4 * 2 + 3
    tasks = drain(schedule)
    assert [t.seed for t in tasks] == [7] * 4 + [8] * 4 + [0, 1, 2]
    assert schedule.chosen["few", "plain"] == ("local.optimizer.lr=0.3",)
    assert {rate(t) for t in tasks[8:]} == {0.3}
    assert len(tasks) == schedule.total


def test_halving_leaves_the_best_of_each_rung():
    tuned = study(
        arms=(Arm("plain", (), RATES),),
        conditions=(Condition("few"),),
        tuning=Tuning(
            final("test_accuracy"),
            seeds=(7,),
            rungs=(Rung(("rounds=1",), keep=2), Rung(("rounds=2",))),
        ),
    )
    schedule = Schedule(
        whole(tuned),
        # After one round 0.1 and 0.4 are ahead; after two, 0.1.
        lambda arm, runs: abs(rate(runs[0]) - 0.25) - (rate(runs[0]) if runs[0].rounds > 1 else 0),
    )
    assert schedule.total == 4 + 2 + 3
    tasks = drain(schedule)
    assert [(rate(t), t.rounds) for t in tasks[:6]] == [
        (0.1, 1),
        (0.2, 1),
        (0.3, 1),
        (0.4, 1),
        (0.1, 2),
        (0.4, 2),
    ]
    assert {rate(t) for t in tasks[6:]} == {0.1}
    assert len(tasks) == 9


def test_equal_scores_choose_the_first():
    tuned = study(arms=(Arm("plain", (), RATES),), tuning=Tuning(final("test_accuracy")))
    schedule = Schedule(whole(tuned), lambda arm, runs: 0.0)
    drain(schedule)
    assert set(schedule.chosen.values()) == {RATES[0]}


def test_the_quick_form_cuts_and_tunes_nothing_unless_it_says_so():
    tuned = study(
        arms=(Arm("plain", (), RATES), Arm("prox", ("strategy=fedprox",), conditions=("many",))),
        tuning=Tuning(final("test_accuracy")),
        quick=Quick(("rounds=1",), seeds=(0, 1), conditions=("few",)),
    )
    form = quick(tuned)
    assert [arm.name for arm in form.study.arms] == ["plain"]
    tasks = drain(Schedule(form, lambda arm, runs: 0.0))
    assert [(t.seed, t.rounds, rate(t)) for t in tasks] == [(0, 1, 0.1), (1, 1, 0.1)]


def test_seeds_of_the_command_line_are_reported():
    assert whole(study(), 5).study.seeds == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("name", MODULES)
def test_every_configuration_of_every_study_is_allowed(name):
    """All words of all conditions, arms and alternatives, in both forms."""
    for form in (whole(study_of(name)), quick(study_of(name))):
        tuning = form.study.tuning
        for condition, arm in form.cells:
            for point in arm.grid:
                form.task(condition, arm, point, 0)
                if tuning is not None and len(arm.grid) > 1:
                    for rung in tuning.rungs:
                        form.task(condition, arm, point, tuning.seeds[0], rung.words)


@pytest.mark.parametrize("name", MODULES)
def test_a_study_is_whole(name):
    found = study_of(name)
    names = {c.name for c in found.conditions}
    assert found.name == name
    assert len(names) == len(found.conditions)
    assert len({a.name for a in found.arms}) == len(found.arms)
    assert len({m.name for m in found.measures}) == len(found.measures)
    assert all(set(a.conditions) <= names for a in found.arms)
    assert set(found.quick.conditions) <= names
    for drawing in found.drawings:
        assert set(drawing.conditions) <= names
        assert set(drawing.arms) <= {a.name for a in found.arms}
    if found.tuning is not None:
        assert not set(found.tuning.seeds) & set(found.seeds)
    assert any(claim.is_robust for claim in found.claims)
    assert len(found.seeds) >= 3


def test_all_studies_are_listed_in_the_order_of_their_names():
    assert [s.name for s in every_study()] == list(MODULES)


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(ConfigError, match='Did you mean "fedprox-synthetic"'):
        study_of("fedprox-syntetic")
