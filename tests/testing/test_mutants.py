"""A strategy with one mistake fails the checks of that mistake, and no others."""

from __future__ import annotations

import re
from typing import Any

import flower_strategies as flower
import mutants
import pytest
from flwr.serverapp.strategy import FedProx

import fedopt.testing as ft

STOCK = {"integer_buffers"}
"""What Flower's averaging fails anyway: integers come back as floats."""


def failed(subject: ft.Subject) -> set[str]:
    return {outcome.check.name for outcome in ft.certify(subject).failed}


@pytest.mark.parametrize(
    ("mutant", "kind", "caught"),
    [
        (mutants.HalfStep, "fedavg", {"weighted_mean", "one_client", "same_clients"}),
        (mutants.CohortControls, "scaffold", {"scaffold_controls"}),
        (
            mutants.HalfControls,
            "scaffold",
            {"scaffold_rounds_option_one", "scaffold_rounds", "scaffold_controls"},
        ),
        (mutants.BiasCorrected, "fedadam", {"fedadam_rounds"}),
        (mutants.ForgetsH, "feddyn", {"feddyn_rounds", "feddyn_optimum"}),
        (
            mutants.NominalWork,
            "fednova",
            {"one_client", "same_clients", "fednova_rounds", "fednova_equal_steps"},
        ),
        (mutants.SharesTheHead, "fedper", {"personal_body", "server_head"}),
        (
            mutants.DoesNotTrim,
            "trimmed_mean",
            {"hostile_client", "hostile_distance", "trimmed_mean_round"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mistakes_in_fedopts_strategies_are_caught(
    mutant: type, kind: str, caught: set[str]
) -> None:
    assert failed(ft.FedoptSubject(mutant, kind=kind)) == caught


@pytest.mark.parametrize(
    ("subject", "caught"),
    [
        (
            ft.FlowerSubject(flower.Unweighted, kind="fedavg"),
            STOCK | {"weighted_mean", "fedavg_fixed_point"},
        ),
        (
            ft.FlowerSubject(flower.LastReplyWins, kind="fedavg"),
            {"order_of_replies", "weighted_mean", "fedavg_fixed_point"},
        ),
        (ft.FlowerSubject(flower.LeaksState), STOCK | {"order_of_replies", "repeatable"}),
        (
            ft.FlowerSubject(flower.DoesNotTrim, kind="trimmed_mean"),
            STOCK | {"hostile_client", "hostile_distance", "trimmed_mean_round"},
        ),
        (
            ft.FlowerSubject(flower.IgnoresMu, kind="fedprox"),
            STOCK | {"fedprox_rounds", "fedprox_fixed_point"},
        ),
        (
            ft.FlowerSubject(FedProx, flower.unsquared_prox, kind="fedprox"),
            STOCK | {"fedprox_rounds", "fedprox_fixed_point"},
        ),
        (flower.scaffold(flower.ForgetsThePopulation), {"scaffold_controls"}),
        (
            flower.scaffold(app=flower.scaffold_app(forgets_rate=True)),
            {
                "scaffold_rounds",
                "scaffold_optimum",
                "scaffold_sampled_optimum",
                "scaffold_gradients",
            },
        ),
        (
            flower.scaffold(flower.ControlFromWeights),
            {
                "one_client",
                "same_clients",
                "scaffold_first_round",
                "scaffold_rounds",
                "scaffold_optimum",
                "scaffold_sampled_optimum",
                "scaffold_controls",
                "scaffold_gradients",
            },
        ),
    ],
    ids=[
        "unweighted",
        "last_reply_wins",
        "leaks_state",
        "does_not_trim",
        "ignores_mu",
        "unsquared_prox",
        "forgets_the_population",
        "forgets_the_rate",
        "control_from_weights",
    ],
)
def test_mistakes_in_flower_strategies_are_caught(subject: ft.Subject, caught: set[str]) -> None:
    assert failed(subject) == caught


def keeps_nothing(codec: Any, vector: Any, residual: Any) -> tuple[Any, Any]:
    """Error feedback that forgets what was lost."""
    return codec(vector + residual), 0 * vector


def largest(vector: Any) -> Any:
    """The four largest of the elements."""
    kept = abs(vector) >= sorted(abs(vector))[-4]
    return vector * kept


@pytest.mark.parametrize(
    ("subject", "caught"),
    [
        (
            ft.FunctionSubject(codec=largest, feedback=keeps_nothing, kind="contraction"),
            {"feedback_telescopes", "feedback_converges"},
        ),
        (ft.FunctionSubject(codec=largest, kind="unbiased"), {"unbiased"}),
        (ft.FunctionSubject(codec=lambda x: 2.5 * x, kind="codec", name="louder"), set()),
        (ft.FunctionSubject(codec=lambda x: -x, kind="biased", name="away"), set()),
    ],
    ids=["no_residual", "not_unbiased", "codec_claims_little", "walks_away"],
)
def test_mistakes_in_codecs_are_caught(subject: ft.Subject, caught: set[str]) -> None:
    assert failed(subject) == caught


def test_a_codec_that_enlarges_is_no_contraction() -> None:
    louder = ft.FunctionSubject(codec=lambda x: 2.5 * x, kind="contraction", name="louder")
    assert "contraction" in failed(louder)


def test_a_failure_says_which_check_what_was_expected_and_measured_and_the_formula() -> None:
    report = ft.certify(ft.FlowerSubject(flower.Unweighted, kind="fedavg"))
    with pytest.raises(ft.CheckFailedError) as caught:
        report.raise_if_failed()
    lines = str(caught.value).split("\n\n")[1].splitlines()
    assert lines[0] == 'weighted_mean: failed for "Unweighted"'
    words = {line.split()[0]: line for line in lines[1:]}
    assert "x <- sum_i n_i w_i / sum_i n_i" in words["formula"]
    assert "McMahan et al. 2017, algorithm 1" in words["source"]
    for word in ("expected", "measured"):
        assert re.search(r"\[-?\d\.\d+, -?\d\.\d+, -?\d\.\d+\]", words[word])
    assert float(words["error"].split()[1]) > 0.01
    assert "1e-12" in words["tolerance"]


def test_a_strategy_that_waits_for_clients_that_never_come_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda seconds: None)
    report = ft.certify(ft.FlowerSubject(flower.WaitsForMore))
    assert len(report.failed) == len(report.outcomes)
    assert "waits for more nodes than the 5" in report.failed[0].message
