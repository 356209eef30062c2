"""Claims, tasks, functions as subjects, and reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import fedopt.testing as ft
from fedopt.errors import ConfigError
from fedopt.testing import reference
from fedopt.testing.checks.populations import UNEQUAL
from fedopt.testing.kinds import INCLUDES

TWO = ft.Quadratics.of([1.0, 10.0], [1.0, -1.0])


# Claims -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: ft.FlowerSubject(object, kind="scafold"),
        lambda: ft.FunctionSubject(kind=("fedavg", "scafold")),
        lambda: ft.FedoptSubject("fedavg", kind="scafold"),
        lambda: ft.checks_for("scafold"),
        lambda: ft.certify(ft.FunctionSubject(), claims=["scafold"]),
        lambda: ft.conformance(ft.FunctionSubject(), claims="scafold"),
    ],
)
def test_unknown_claims_name_the_known_ones_and_the_nearest(make: Any) -> None:
    with pytest.raises(ValueError, match=r'"scafold" is not known\. Did you mean "scaffold"\?'):
        make()
    with pytest.raises(ValueError, match=r"One of: biased, centralised, codec"):
        make()


def test_every_kind_has_a_check_of_its_own_and_every_check_kinds() -> None:
    tested = {kind for check in ft.ALL for kind in check.kinds}
    assert tested <= set(ft.KINDS)
    bare = set(ft.KINDS) - tested
    assert bare <= {included for kinds in INCLUDES.values() for included in kinds}


def test_checks_are_documented() -> None:
    names = [check.name for check in ft.ALL]
    assert len(set(names)) == len(names)
    for check in ft.ALL:
        for text in (check.statement, check.formula, check.source, check.reason):
            assert len(text) > 5, check.name
        assert check.tolerance >= 0


def test_a_claim_brings_its_checks_and_those_of_all() -> None:
    names = {check.name for check in ft.checks_for("median")}
    assert names >= {"median_round", "hostile_client", "order_of_replies"}
    assert "krum_round" not in names
    assert "order_of_replies" not in {check.name for check in ft.checks_for("unbiased")}


def test_strategies_without_a_claim_have_the_checks_of_all() -> None:
    report = ft.certify(ft.FedoptSubject("fedavg", kind=()))
    assert [o.check.name for o in report.passed] == [
        "order_of_replies",
        "repeatable",
        "integer_buffers",
    ]


# Tasks --------------------------------------------------------------------------------------------


def test_closed_forms_agree_with_steps_written_out() -> None:
    task = ft.Task(UNEQUAL, steps=6, start=np.array([0.3, -1.0, 2.0]))
    for mu in (0.0, 0.8):
        moved = reference.moved(task, mu) * (UNEQUAL.optimum - task.first)
        for client in range(UNEQUAL.clients):
            y = reference.local_steps(task, client, task.first, mu=mu)
            np.testing.assert_allclose(task.first + moved[client], y, atol=1e-14)
    assert reference.fixed_point(ft.Task(TWO, steps=1), TWO.shares) == pytest.approx(TWO.best())


@pytest.mark.parametrize(
    ("curvature", "optimum", "examples"),
    [([1.0], [1.0, 2.0], None), ([1.0, -1.0], [0.0, 0.0], None), ([1.0], [0.0], [0])],
)
def test_impossible_clients_are_refused(curvature: Any, optimum: Any, examples: Any) -> None:
    with pytest.raises(ValueError, match=r"curvature|examples"):
        ft.Quadratics.of(curvature, optimum, examples)


def test_fedopt_runs_match_the_closed_form_of_every_kind_of_task() -> None:
    subject = ft.FedoptSubject("fedavg")
    for task in (
        ft.Task(TWO, rounds=3),
        ft.Task(UNEQUAL, rounds=2, per_example=True),
        ft.Task(UNEQUAL, rounds=2, head=2, start=np.array([0.1, 0.2, 0.3])),
        ft.Task(UNEQUAL, rounds=2, order="rotated"),
        ft.Task(UNEQUAL, rounds=2, counter=True, head=1),
    ):
        np.testing.assert_allclose(subject.run(task).models, reference.fedavg(task), atol=1e-14)


def test_sampled_cohorts_are_sampled() -> None:
    whole, part = (
        ft.FedoptSubject("fedavg").run(ft.Task(UNEQUAL, rounds=2, cohort=cohort)).last
        for cohort in (None, 2)
    )
    assert np.abs(whole - part).max() > 0.01


def test_options_that_a_strategy_lacks_do_not_apply() -> None:
    with pytest.raises(ft.NotApplicableError, match="fedavg: mu"):
        ft.FedoptSubject("fedavg").run(ft.Task(TWO).with_options(mu=1.0))
    with pytest.raises(ft.NotApplicableError, match="momentum"):
        ft.FedoptSubject("fedavgm").run(ft.Task(TWO).with_options(momentum=0.0))
    with pytest.raises(ft.NotApplicableError, match="compresses nothing"):
        ft.FedoptSubject("fedavg").run(ft.Task(TWO, feedback=True))
    with pytest.raises(ConfigError, match="Did you mean"):
        ft.FedoptSubject("fedavgg")


# Functions ----------------------------------------------------------------------------------------


def test_functions_are_federated_averaging_by_default() -> None:
    for library in ("numpy", "torch"):
        report = ft.certify(ft.FunctionSubject(kind="fedavg", library=library))
        assert report.ok
        assert {o.check.name for o in report.not_applicable} == {
            "integer_buffers",
            "fedavg_with_head",
        }


def coordinate_median(x: Any, models: Any, examples: Any) -> Any:
    return np.median(np.stack(models), axis=0)


def last_model(x: Any, models: Any, examples: Any) -> Any:
    return models[-1]


@ft.conformance(ft.FunctionSubject(coordinate_median, kind="median"))
def test_an_aggregator_in_numpy(check: ft.BoundCheck) -> None:
    check()


def test_an_aggregator_that_takes_the_last_reply() -> None:
    report = ft.certify(ft.FunctionSubject(last_model, kind="median"))
    assert {o.check.name for o in report.failed} >= {"order_of_replies", "hostile_client"}


class Momentum:
    """A server with momentum, as an object that remembers."""

    def __init__(self, server_lr: float = 1.0, momentum: float = 0.0) -> None:
        self.server_lr, self.momentum = server_lr, momentum
        self.m: Any = 0.0

    def __call__(self, x: Any, models: Any, examples: Any) -> Any:
        total = sum(examples)
        change = sum(n / total * (y - x) for n, y in zip(examples, models, strict=True))
        self.m = self.momentum * self.m + change
        return x + self.server_lr * self.m


def proximal_steps(x: Any, client: Any, *, mu: float = 0.0) -> Any:
    w = x.clone()
    for _ in range(client.steps):
        gradient = torch.from_numpy(client.gradient(w.numpy()))
        w = w - client.lr * (gradient + mu * (w - x))
    return w


def test_an_aggregator_that_remembers_and_takes_options() -> None:
    subject = ft.FunctionSubject(Momentum, kind=("fedavgm", "server_optimizer"))
    report = ft.certify(subject)
    assert report.ok
    names = {o.check.name for o in report.passed}
    assert names >= {"fedavgm_rounds", "server_sgd", "repeatable"}


def test_local_steps_in_torch() -> None:
    subject = ft.FunctionSubject(local=proximal_steps, kind="fedprox", library="torch")
    report = ft.certify(subject)
    assert report.ok
    assert {o.check.name for o in report.passed} >= {"fedprox_rounds", "fedprox_without_term"}


def test_functions_that_raise_fail_with_what_they_said() -> None:
    def broken(x: Any, models: Any, examples: Any) -> Any:
        raise RuntimeError("no such thing")

    report = ft.certify(ft.FunctionSubject(broken, kind="fedavg"))
    assert "RuntimeError: no such thing" in report.failed[0].message


def test_numbers_that_are_not_finite_fail() -> None:
    subject = ft.FunctionSubject(lambda x, models, examples: x * np.nan, name="nan", kind="robust")
    assert {o.check.name for o in ft.certify(subject).failed} >= {"hostile_client", "same_clients"}


# Reports ------------------------------------------------------------------------------------------


def test_reports_are_tables_and_text() -> None:
    report = ft.certify(ft.FunctionSubject(kind="fedavg"))
    assert report.table().row_count == len(report.outcomes)
    text = str(report)
    assert "weighted_mean" in text
    assert "tolerance 1e-12" in text
    assert "functions of vectors know no arrays by name" in text


def test_other_claims_than_its_own() -> None:
    report = ft.certify(ft.FunctionSubject(kind="fedavg"), claims=["robust"])
    assert "hostile_client" in {o.check.name for o in report.failed}


def test_bound_checks_skip_what_does_not_apply() -> None:
    checks = {repr(c): c for c in ft.bound_checks([ft.FunctionSubject(kind="fedavg")])}
    checks["weighted_mean-order_of_replies"]()
    with pytest.raises(pytest.skip.Exception, match="arrays by name"):
        checks["weighted_mean-integer_buffers"]()
    wrong = ft.bound_checks([ft.FunctionSubject(last_model)], claims="fedavg")
    with pytest.raises(ft.CheckFailedError, match="weighted_mean: failed"):
        next(c for c in wrong if c.check.name == "weighted_mean")()


def test_a_claim_of_which_nothing_could_be_checked_is_not_certified() -> None:
    def average(x: Any, models: Any, examples: Any) -> Any:
        return np.average(np.array(models), axis=0, weights=examples)

    report = ft.certify(ft.FunctionSubject(average, kind="fedadam"))
    assert report.untested == ["fedadam"]
    assert not report.ok
    assert 'no check of the claim "fedadam" could run' in str(report)
    with pytest.raises(ft.CheckFailedError, match="takes no option server_lr"):
        report.raise_if_failed()
    assert ft.certify(ft.FunctionSubject(average, kind="fedavg")).ok
