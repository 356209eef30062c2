from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fedopt.analysis.comparison import comparison
from fedopt.analysis.comparison_tables import SECTIONS, group_records, sections_of
from fedopt.analysis.groups import Group, StoredRun
from fedopt.analysis.targets import Target
from fedopt.errors import ConfigError

from .test_targets import frame

A, B = [0.90, 0.92, 0.91, 0.95], [0.91, 0.95, 0.92, 0.99]


def group(label: str, finals: list[float], first_seed: int = 0, start: float = 0.1) -> Group:
    """Runs that go from `start` in a straight line of four rounds."""
    runs = []
    for place, final in enumerate(finals):
        values = np.linspace(start, final, 4).tolist()
        runs.append(StoredRun(f"{label}{place}", frame(values), {"x": label}, first_seed + place))
    return Group(label, tuple(runs))


def test_paired_differences_are_scipys() -> None:
    found = comparison([group("a", A), group("b", B)], ["test_accuracy"])
    (d,) = [d for d in found.differences if d.quantity == "final test_accuracy"]
    test = stats.ttest_rel(B, A)
    assert d.interval is not None
    assert d.mean == pytest.approx(np.mean(B) - np.mean(A))
    assert d.interval.p_value == pytest.approx(test.pvalue, rel=1e-9)
    ends = test.confidence_interval(0.95)
    assert (d.interval.low, d.interval.high) == pytest.approx(tuple(ends), rel=1e-9)
    assert (d.pairs, d.left_out, d.verdict) == (4, 0, "no difference shown")


def test_pairs_are_of_equal_seeds() -> None:
    found = comparison([group("a", A), group("b", B, first_seed=2)], ["test_accuracy"])
    d = found.differences[0]
    assert d.pairs == 2
    assert d.mean == pytest.approx(np.mean([0.91 - 0.91, 0.95 - 0.95]))
    apart = comparison([group("a", A), group("b", B, first_seed=9)], ["test_accuracy"])
    assert not apart.differences


def test_means_over_seeds_and_costs_to_the_target() -> None:
    target = Target("test_accuracy", 0.5)
    found = comparison([group("a", A), group("b", [0.4, 0.9])], ["test_accuracy"], target)
    rounds = [1 + 3 * (0.5 - 0.1) / (final - 0.1) for final in A]
    mean = found.mean_of(0, "rounds")
    assert mean is not None
    low, high = stats.t.interval(0.95, 3, loc=np.mean(rounds), scale=stats.sem(rounds))
    assert (mean.mean, mean.low, mean.high) == pytest.approx((np.mean(rounds), low, high))
    assert found.mean_of(1, "rounds") is None, "one seed did not reach it"
    d = next(d for d in found.differences if d.quantity == "rounds")
    assert (d.pairs, d.left_out, d.verdict) == (1, 1, "no interval: one pair")
    text = "\n".join(str(row) for section in sections_of(found) for row in section.cells)
    assert "not reached" in text
    assert "reached by 1 of 2" in text
    nobody = comparison(
        [group("a", A), group("b", B)], ["test_accuracy"], Target("test_accuracy", 1.0)
    )
    assert all(row[-1] == "not reached" for row in SECTIONS[0](nobody).cells)  # type: ignore[union-attr]


def test_less_of_a_loss_and_of_rounds_is_better() -> None:
    def losses(label: str, finals: list[float]) -> Group:
        runs = [
            StoredRun(label, frame([0.1, 0.2]).assign(test_loss=[2.0, final]), {}, seed)
            for seed, final in enumerate(finals)
        ]
        return Group(label, tuple(runs))

    found = comparison(
        [losses("a", [1.0, 1.1, 1.2]), losses("b", [0.5, 0.61, 0.7])],
        ["test_loss"],
        Target("test_loss", 1.5),
    )
    verdicts = {d.quantity: d.verdict for d in found.differences}
    assert verdicts["final test_loss"] == "better"
    assert verdicts["rounds"] == "better"
    other = comparison(
        [losses("a", [1.0, 1.1]), losses("b", [0.5, 0.61])], ["test_loss"], None, "b"
    )
    assert other.reference.label == "b"
    assert other.differences[0].mean == pytest.approx(0.495)


def test_single_runs_have_one_table() -> None:
    runs = [group("a", [0.9]), group("b", [0.8])]
    found = comparison(runs, ["test_accuracy"], Target("test_accuracy", 0.5))
    (section,) = sections_of(found)
    assert section.name == "runs"
    assert section.data[0]["rounds"] == pytest.approx(2.5)
    assert section.data[0]["sim_seconds"] is None
    assert section.data[1]["best_round"] == 4


def test_records_hold_everything_in_a_row_a_group() -> None:
    found = comparison(
        [group("a", A), group("b", B)], ["test_accuracy"], Target("test_accuracy", 0.5)
    )
    table = pd.DataFrame(group_records(found))
    assert table["group"].tolist() == ["a", "b"]
    assert table["seeds"].tolist() == ["0 1 2 3"] * 2
    assert table["reached"].tolist() == [4, 4]
    assert math.isnan(table["final_test_accuracy_difference"][0])
    assert table["final_test_accuracy_difference"][1] == pytest.approx(np.mean(B) - np.mean(A))
    assert table["sim_seconds_to_target"].isna().all()


def test_tables_in_markdown_and_latex_are_whole() -> None:
    found = comparison([group("a_1 & 50%", A), group("b|c", B)], ["test_accuracy"])
    for section in sections_of(found):
        rows = [line for line in section.markdown().splitlines() if line.startswith("|")]
        assert len(rows) == 2 + len(section.cells)
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        latex = section.latex()
        body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == len(section.cells)
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(section.headings) - 1}
        assert not re.search(r"(?<!\\)[_%#]", body)


@pytest.mark.parametrize(
    ("metrics", "reference", "words"),
    [
        (["test_acuracy"], None, 'Did you mean "test_accuracy"'),
        (["lr"], None, "neither more nor less"),
        (["test_loss"], None, '"a0" did not measure it'),
        (["test_accuracy"], "c", '--reference: "c" is not a group. One of: a; b'),
    ],
)
def test_what_cannot_be_compared_is_refused(metrics, reference, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        comparison([group("a", A), group("b", B)], metrics, None, reference)
