"""Everything that comes with fedopt does what it is named for."""

from __future__ import annotations

import pytest

import fedopt.testing as ft
from fedopt.registry import entries
from fedopt.testing.__main__ import main
from fedopt.testing.registered import strategies, subjects
from tests.docs.pages import ROOT, from_docs

BESIDES_GENERAL = {
    "fedavg": {"weighted_mean", "one_client", "fedavg_fixed_point"},
    "fedprox": {"fedprox_without_term", "fedprox_rounds", "fedprox_fixed_point"},
    "scaffold": {
        "scaffold_first_round",
        "scaffold_rounds",
        "scaffold_rounds_option_one",
        "scaffold_optimum",
        "scaffold_optimum_option_one",
        "scaffold_controls",
    },
    "fedavgm": {"fedavgm_rounds", "server_fixed_point"},
    "fedadagrad": {"fedadagrad_rounds", "server_fixed_point"},
    "fedadam": {"fedadam_rounds", "server_fixed_point"},
    "fedyogi": {"fedyogi_rounds", "server_fixed_point"},
    "fednova": {"fednova_rounds", "fednova_equal_steps"},
    "feddyn": {"feddyn_rounds", "feddyn_optimum", "feddyn_server_state"},
    "mimelite": {"mimelite_rounds", "mimelite_without_momentum"},
    "qfedavg": {"qfedavg_rounds", "qfedavg_without_q"},
    "mofedsam": {"mofedsam_without_momentum"},
    "fedpm": {"fedpm_solves"},
    "median": {"median_round", "hostile_client", "hostile_distance"},
    "trimmed_mean": {"trimmed_mean_round", "hostile_client", "hostile_distance"},
    "krum": {"krum_round", "hostile_client", "hostile_distance"},
    "rfa": {"rfa_round", "hostile_client"},
    "fedbn": {"personal_body", "personal_head", "server_head"},
    "fedper": {"personal_body", "personal_head", "server_head"},
    "fedrep": {"fedrep_body", "fedrep_head", "server_head"},
    "ditto": {"ditto_shared_model", "ditto_alone", "ditto_rounds"},
    "local_only": {"local_only_server", "local_only_clients"},
    "centralised": {"centralised_descent"},
}
GENERAL = {"order_of_replies", "repeatable", "integer_buffers"}


@pytest.fixture(scope="module")
def passed() -> dict[str, list[str]]:
    return ft.passed_checks()


def test_the_table_of_strategies_is_up_to_date(passed: dict[str, list[str]]) -> None:
    table = from_docs("strategy_table").table(passed)
    assert table in (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", strategies())
def test_every_strategy_passes_what_it_claims(name: str, passed: dict[str, list[str]]) -> None:
    """All of its checks apply and pass; what fails is shown by `certify`."""
    claimed = {check.name for check in ft.checks_for(subjects()[name].claims)}
    if set(passed[name]) != claimed:
        ft.certify(subjects()[name]).raise_if_failed()
    assert set(passed[name]) == claimed
    assert set(passed[name]) >= GENERAL | BESIDES_GENERAL.get(name, set())


def test_the_table_has_every_registered_strategy(passed: dict[str, list[str]]) -> None:
    assert list(passed) == [entry.name for entry in entries("strategies")]
    assert set(BESIDES_GENERAL) <= set(passed)


@ft.conformance(*(s for name, s in subjects().items() if name not in strategies()))
def test_codecs_and_combinations(check: ft.BoundCheck) -> None:
    check()


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fedprox"]) == 0
    shown = capsys.readouterr().out
    assert "fedprox_without_term" in shown
    assert "9 passed, 0 failed, 0 not applicable" in shown


def test_the_command_refuses_names_that_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["scafold"]) == 2
    assert 'Did you mean "scaffold"?' in capsys.readouterr().err


def test_the_command_tells_what_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ft.FedoptSubject("median", kind="fedavg", name="wrong")
    monkeypatch.setattr("fedopt.testing.registered.subjects", lambda: {"wrong": wrong})
    assert main([]) == 1
    shown = capsys.readouterr().out
    assert 'weighted_mean: failed for "wrong"' in shown
    assert "x <- sum_i n_i w_i / sum_i n_i" in shown
