"""Flower's own strategies: which checks they pass, and which they fail and why."""

from __future__ import annotations

from typing import Any

import flower_strategies as flower
import flwr.serverapp.strategy as stock
import numpy as np
import pytest

import fedopt.testing as ft
from fedopt.testing import reference
from fedopt.testing.checks.populations import START, UNEQUAL
from fedopt.testing.checks.servers import BETA1, BETA2, LR, TAU

INTEGERS = {"integer_buffers"}

STOCK: list[tuple[Any, Any, set[str]]] = [
    (stock.FedAvg, "fedavg", INTEGERS),
    (stock.FedProx, "fedprox", INTEGERS),
    (stock.FedAvgM, ("fedavgm", "server_optimizer"), INTEGERS),
    (stock.FedAdagrad, "fedadagrad", INTEGERS | {"fedadagrad_rounds"}),
    (stock.FedAdam, "fedadam", INTEGERS | {"fedadam_rounds"}),
    (stock.FedYogi, "fedyogi", INTEGERS | {"fedyogi_rounds"}),
    (stock.QFedAvg, "qfedavg", INTEGERS),
    (stock.FedMedian, "median", INTEGERS),
    (stock.FedTrimmedAvg, "trimmed_mean", INTEGERS),
    (stock.Krum, "krum", INTEGERS),
    (stock.MultiKrum, "krum", INTEGERS),
    (stock.Bulyan, "robust", INTEGERS),
]


@pytest.mark.parametrize(("strategy", "kind", "fails"), STOCK, ids=[s[0].__name__ for s in STOCK])
def test_stock_strategies(strategy: Any, kind: Any, fails: set[str]) -> None:
    """All give integer arrays back as floats; adaptive servers are not those of the paper."""
    report = ft.certify(ft.FlowerSubject(strategy, kind=kind))
    assert {outcome.check.name for outcome in report.failed} == fails
    assert not report.not_applicable
    assert len(report.passed) + len(fails) == len(ft.checks_for(kind))


def counter(strategy: Any) -> Any:
    task = ft.Task(UNEQUAL, rounds=2, counter=True)
    return ft.FlowerSubject(strategy).run(task).counter


def test_integers_come_back_as_floats() -> None:
    assert counter(stock.FedAvg) == 8.0
    assert counter(stock.FedAvg).dtype == np.float64
    assert counter(stock.FedMedian).dtype == np.float64


def test_adaptive_servers_take_a_step_with_counters_too() -> None:
    """After 2 rounds of 4 steps a count is 8; here it is what Adam makes of it."""
    assert 0 < counter(stock.FedAdam) < 1


def test_qfedavg_fails_on_integers() -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        counter(stock.QFedAvg)


class Second:
    """What Flower's adaptive servers do instead: v begins at 0, Adam's rate is corrected."""

    @staticmethod
    def rounds(task: ft.Task, rule: str, beta1: float) -> list[Any]:
        m, v = np.zeros_like(task.first), np.zeros_like(task.first)
        x, models = task.first, [task.first]
        for round in range(1, task.rounds + 1):
            change = reference.mean_changes(task, x, task.population.shares)
            m = beta1 * m + (1 - beta1) * change
            square = change**2
            if rule == "adagrad":
                v = v + square
            elif rule == "adam":
                v = BETA2 * v + (1 - BETA2) * square
            else:
                v = v - (1 - BETA2) * square * np.sign(v - square)
            rate = LR
            if rule == "adam":
                rate *= np.sqrt(1 - BETA2 ** (round + 1)) / (1 - beta1 ** (round + 1))
            x = x + rate * m / (np.sqrt(v) + TAU)
            models.append(x)
        return models


@pytest.mark.parametrize("rule", ["adagrad", "adam", "yogi"])
def test_how_flowers_adaptive_servers_differ(rule: str) -> None:
    task = ft.Task(UNEQUAL, rounds=5, start=START)
    options: dict[str, Any] = {"server_lr": LR, "tau": TAU}
    if rule != "adagrad":
        options |= {"beta1": BETA1, "beta2": BETA2}
    strategy = {"adagrad": stock.FedAdagrad, "adam": stock.FedAdam, "yogi": stock.FedYogi}[rule]
    models = ft.FlowerSubject(strategy).run(task.with_options(**options)).models
    expected = Second.rounds(task, rule, 0.0 if rule == "adagrad" else BETA1)
    np.testing.assert_allclose(models, expected, rtol=0, atol=1e-12)  # five rounds of roundings


def test_scaffold_in_flowers_form() -> None:
    report = ft.certify(flower.scaffold())
    assert report.ok
    names = {outcome.check.name for outcome in report.passed}
    assert names >= {"scaffold_rounds", "scaffold_optimum", "scaffold_controls"}
    reasons = {o.check.name: o.reason for o in report.not_applicable}
    assert set(reasons) == {"scaffold_rounds_option_one", "scaffold_optimum_option_one"}
    assert "takes no option option" in reasons["scaffold_rounds_option_one"]


def test_without_its_state_the_checks_of_it_do_not_apply() -> None:
    subject = ft.FlowerSubject(flower.Scaffold, flower.scaffold_app(), kind="scaffold")
    report = ft.certify(subject)
    assert report.ok
    assert {"scaffold_controls", "scaffold_gradients"} <= {
        o.check.name for o in report.not_applicable
    }


@ft.conformance(ft.FlowerSubject(flower.KeepsIntegers, kind="fedavg"))
def test_an_average_that_keeps_integers_passes_everything(check: ft.BoundCheck) -> None:
    check()


def test_names_of_options_can_be_given() -> None:
    def make(*, pull: float = 0.0, **keywords: Any) -> stock.FedProx:
        return stock.FedProx(proximal_mu=pull, **keywords)

    known = ft.FlowerSubject(make, kind="fedprox", options={"mu": "pull"})
    statuses = {o.check.name: o.status for o in ft.certify(known).outcomes}
    assert statuses["fedprox_rounds"] == "passed"
    unknown = ft.FlowerSubject(make, kind="fedprox")
    statuses = {o.check.name: o.status for o in ft.certify(unknown).outcomes}
    assert statuses["fedprox_rounds"] == "not applicable"


def test_a_client_app_finds_its_task_in_the_context() -> None:
    task = ft.Task(UNEQUAL, steps=3, lr=0.1, per_example=True)
    from fedopt.testing.flower_subject import ClientGrid, sgd_app

    for context, client in zip(ClientGrid(task, sgd_app()).contexts, task.clients(), strict=True):
        found = ft.client_of(context)
        assert (found.id, found.examples, found.steps, found.lr) == (
            client.id,
            client.examples,
            client.examples,
            0.1,
        )
        np.testing.assert_array_equal(found.gradient(START), client.gradient(START))
