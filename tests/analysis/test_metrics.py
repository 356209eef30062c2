from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from fedopt.analysis.metrics import (
    TEMPERATURES,
    auroc,
    balanced_accuracy,
    classification_metrics,
    expected_calibration_error,
    maximum_calibration_error,
    reliability,
    temperature_scale,
)
from fedopt.errors import DataError, RunError


def naive_ece(probabilities: np.ndarray, targets: np.ndarray, bins: int) -> float:
    """The definition, one example and one bin at a time."""
    total = 0.0
    for b in range(bins):
        inside = []
        for row, target in zip(probabilities, targets, strict=True):
            if b / bins < row.max() <= (b + 1) / bins:
                inside.append((row.max(), row.argmax() == target))
        if inside:
            confidence = np.mean([c for c, _ in inside])
            accuracy = np.mean([a for _, a in inside])
            total += len(inside) / len(targets) * abs(confidence - accuracy)
    return total


def sample(seed: int, examples: int, classes: int, scale: float = 2.0):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(examples, classes, generator=random, dtype=torch.float64)
    return logits, torch.randint(classes, (examples,), generator=random)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    examples=st.integers(1, 40),
    classes=st.integers(2, 7),
    bins=st.integers(1, 20),
)
def test_ece_is_its_definition(seed: int, examples: int, classes: int, bins: int) -> None:
    logits, targets = sample(seed, examples, classes)
    probabilities = logits.softmax(1)
    expected = naive_ece(probabilities.numpy(), targets.numpy(), bins)
    # 1e-12: sums of at most 40 float64 numbers in another order.
    assert expected_calibration_error(probabilities, targets, bins) == pytest.approx(
        expected, abs=1e-12
    )
    assert expected_calibration_error(
        probabilities.numpy(), targets.numpy(), bins
    ) == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def torchmetrics() -> ModuleType:
    """torchmetrics' classification; a torchvision of another build breaks its import."""
    try:
        import torchmetrics.classification as peer
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchmetrics cannot be imported: {error}")
    return peer


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_calibration_errors_equal_torchmetrics(
    torchmetrics: ModuleType, classes: int, bins: int, seed: int
) -> None:
    logits, targets = sample(seed, 500, classes)
    for norm, ours in (("l1", expected_calibration_error), ("max", maximum_calibration_error)):
        peer = torchmetrics.MulticlassCalibrationError(num_classes=classes, n_bins=bins, norm=norm)
        # 1e-6: torchmetrics has its edges in float32.
        assert ours(logits.softmax(1), targets, bins) == pytest.approx(
            float(peer(logits.softmax(1), targets)), abs=1e-6
        )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bins_are_right_closed(dtype: type) -> None:
    # 0.6 = 9/15 closes the bin that holds 0.58; with left-closed bins the two would be apart
    # and the errors could not cancel: |0.58 - 1 + 0.6 - 0| / 2.
    probabilities = np.array([[0.58, 0.42], [0.6, 0.4]], dtype)
    assert expected_calibration_error(probabilities, [0, 1]) == pytest.approx(0.09, abs=1e-7)


def test_ece_limits() -> None:
    sure = np.eye(4)
    assert expected_calibration_error(sure, [0, 1, 2, 3]) == 0.0
    assert expected_calibration_error(sure, [1, 2, 3, 0]) == 1.0
    assert expected_calibration_error(torch.eye(2, dtype=torch.bfloat16), [0, 1]) == 0.0


@pytest.mark.parametrize(("examples", "classes"), [(1, 2), (300, 2), (257, 10), (9000, 3)])
def test_metrics_are_their_definitions(examples: int, classes: int) -> None:
    logits, targets = sample(1, examples, classes)
    probabilities = logits.softmax(1).numpy()
    one_hot = np.eye(classes)[targets]
    metrics = classification_metrics(logits, targets)
    auroc = metrics.pop("auroc")
    assert math.isnan(auroc) == (classes != 2 or len(set(targets.tolist())) < 2)
    # 1e-10: 9,000 float64 numbers summed in another order.
    assert metrics == pytest.approx(
        {
            "loss": -np.log(probabilities[np.arange(examples), targets]).mean(),
            "accuracy": (probabilities.argmax(1) == targets.numpy()).mean(),
            "ece": expected_calibration_error(probabilities, targets),
            "mce": maximum_calibration_error(probabilities, targets),
            "brier": ((probabilities - one_hot) ** 2).sum(1).mean(),
            "balanced_accuracy": balanced_accuracy_score(targets, probabilities.argmax(1)),
        },
        abs=1e-10,
    )
    assert all(type(value) is float for value in metrics.values())


def test_metrics_accumulate_in_float64_and_leave_gradients_alone() -> None:
    logits, targets = sample(2, 1000, 5)
    narrow = logits.float().requires_grad_()
    metrics = classification_metrics(narrow, targets.to(torch.int32))
    # Equal, not close: all arithmetic is done after the conversion.
    wide = classification_metrics(logits.float().double(), targets)
    np.testing.assert_array_equal(list(metrics.values()), list(wide.values()))
    assert narrow.grad is None


@settings(max_examples=60)
@given(data=st.data(), levels=st.integers(1, 8), examples=st.integers(2, 60))
def test_auroc_is_that_of_scikit_learn_ties_included(data, levels: int, examples: int) -> None:
    labels = data.draw(st.lists(st.integers(0, 1), min_size=examples, max_size=examples))
    scores = data.draw(st.lists(st.integers(0, levels), min_size=examples, max_size=examples))
    found = auroc(np.array(scores, float), labels)
    if len(set(labels)) < 2:
        assert math.isnan(found)
        return
    assert found == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert auroc(-np.array(scores, float), labels) == pytest.approx(1 - found, abs=1e-12)


def test_auroc_is_not_deceived_by_saturated_probabilities() -> None:
    logits = torch.tensor([[0.0, 40.0], [0.0, 50.0], [0.0, 60.0]])
    assert classification_metrics(logits, torch.tensor([0, 1, 1]))["auroc"] == 1.0


def test_balanced_accuracy_of_a_constant_is_chance() -> None:
    assert balanced_accuracy([0] * 10, [0] * 9 + [1]) == 0.5
    assert balanced_accuracy([2] * 6, [0, 0, 2, 2, 2, 5]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: balanced_accuracy([0, 1], [0]), r"\[2\] and \[1\]"),
        (lambda: auroc([0.1, 0.2], [0]), r"\[2\] and \[1\]"),
        (lambda: auroc([0.1, 0.2], [0, 2]), r"0\.\.2"),
        (lambda: auroc([0.1, float("nan")], [0, 1]), "NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(call, says: str) -> None:
    with pytest.raises(DataError, match=says):
        call()


def test_an_impossible_class_costs_an_infinite_loss() -> None:
    logits = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]])
    assert classification_metrics(logits, torch.tensor([0, 0]))["loss"] == pytest.approx(
        np.log(2) / 2
    )
    assert classification_metrics(logits, torch.tensor([1, 0]))["loss"] == float("inf")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_model_is_said_to_be_one(value: float) -> None:
    logits = torch.zeros(3, 2)
    logits[1, 0] = value
    with pytest.raises(RunError, match="1 of 3 examples: training has diverged"):
        classification_metrics(logits, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("probabilities", "targets", "words"),
    [
        (np.ones((2, 2)) / 2, [0], r"\[N, C\] and targets \[N\], got \[2, 2\] and \[1\]"),
        (np.ones(2), [0, 1], r"must be \[N, C\]"),
        (np.zeros((0, 2)), np.zeros(0, int), "nothing to measure"),
        (np.ones((2, 1)), [0, 0], "at least two classes, got 1"),
        (np.ones((2, 2)) / 2, [0, 2], r"lie in 0\.\.1, got 0\.\.2"),
        (np.ones((2, 2)) / 2, [-1, 1], r"lie in 0\.\.1, got -1\.\.1"),
        (np.ones((2, 2)) / 2, [0.0, 1.0], "integer class ids, got float64"),
        (np.array([[2.0, -1.0]]), [0], r"got -1\.\.2.*softmax"),
        (np.array([[np.nan, 1.0]]), [0], r"must lie in 0\.\.1"),
        (np.array([[0.2, 0.3]]), [0], "sums to 0.5"),
    ],
)
def test_what_is_not_a_prediction_is_refused(probabilities, targets, words: str) -> None:
    with pytest.raises(DataError, match=words):
        expected_calibration_error(probabilities, targets)


def test_bins_are_checked() -> None:
    with pytest.raises(DataError, match="at least 1, got 0"):
        expected_calibration_error(np.eye(2), [0, 1], bins=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    examples=st.integers(1, 40),
    classes=st.integers(2, 7),
    bins=st.integers(1, 20),
)
def test_both_errors_follow_from_the_reliability_bins(
    seed: int, examples: int, classes: int, bins: int
) -> None:
    logits, targets = sample(seed, examples, classes)
    probabilities = logits.softmax(1)
    found = reliability(probabilities, targets, bins)
    assert found.edges.tolist() == [m / bins for m in range(bins + 1)]
    assert found.counts.sum() == examples
    assert np.array_equal(np.isnan(found.accuracy), found.counts == 0)
    assert np.array_equal(np.isnan(found.confidence), found.counts == 0)
    filled = found.counts > 0
    assert np.all(found.confidence[filled] <= found.edges[1:][filled] + 1e-12)
    assert np.all(found.confidence[filled] > found.edges[:-1][filled] - 1e-12)
    gaps = np.abs(found.accuracy - found.confidence)[filled]
    ece = expected_calibration_error(probabilities, targets, bins)
    mce = maximum_calibration_error(probabilities, targets, bins)
    # 1e-12: sums of at most 40 float64 numbers in another order.
    assert ece == pytest.approx((gaps * found.counts[filled]).sum() / examples, abs=1e-12)
    assert mce == pytest.approx(gaps.max(), abs=1e-12)
    assert 0 <= ece <= mce + 1e-12
    assert mce <= 1
    confidences, predicted = probabilities.max(1)
    alone = reliability(confidences, predicted == targets, bins)
    for name in ("edges", "counts", "accuracy", "confidence"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(found, name))


def test_bins_of_mce_are_right_closed_and_small_ones_count() -> None:
    # |0.58 - 1 + 0.6 - 0| / 2 in one bin, and a bin of one example: |0.9 - 0|.
    probabilities = np.array([[0.58, 0.42], [0.6, 0.4], [0.1, 0.9]])
    assert maximum_calibration_error(probabilities, [0, 1, 1]) == pytest.approx(0.1, abs=1e-12)
    assert maximum_calibration_error(probabilities, [0, 1, 0]) == pytest.approx(0.9, abs=1e-12)
    assert maximum_calibration_error(np.eye(3), [1, 2, 0]) == 1.0
    assert maximum_calibration_error(np.eye(3), [0, 1, 2]) == 0.0


@pytest.mark.parametrize(
    ("confidences", "right", "words"),
    [
        (np.zeros(0), np.zeros(0, bool), "N >= 1"),
        (np.ones(2), np.ones(3, bool), r"got \[2\] and \[3\]"),
        (np.array([1.5]), np.ones(1, bool), "must lie in 0..1"),
        (np.array([0.5]), np.ones(1, int), r"must be \[N, C\]"),
    ],
)
def test_confidences_are_checked(confidences, right, words: str) -> None:
    with pytest.raises(DataError, match=words):
        reliability(confidences, right)


def loss_at(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> float:
    return classification_metrics(logits / temperature, targets)["loss"]


def drawn(seed: int, examples: int, classes: int, scale: float = 2.0):
    """Logits whose softmax is the truth that the targets are drawn from."""
    logits, _ = sample(seed, examples, classes, scale)
    random = torch.Generator().manual_seed(seed + 1)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=random).squeeze(1)


@given(
    seed=st.integers(0, 2**32),
    examples=st.integers(1, 60),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.01, 1.0, 5.0, 100.0]),
    is_informed=st.booleans(),
)
def test_a_temperature_never_raises_the_loss(
    seed: int, examples: int, classes: int, scale: float, is_informed: bool
) -> None:
    logits, targets = (drawn if is_informed else sample)(seed, examples, classes, scale)
    temperature = temperature_scale(logits, targets)
    least = loss_at(logits, targets, temperature)
    # 1e-12: rounding of logits / T against logits * b, relative to losses of up to hundreds.
    slack = 1e-12 * max(1.0, least)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    for other in (*TEMPERATURES, 0.1, 1.0, 10.0, temperature * 0.99, temperature * 1.01):
        if TEMPERATURES[0] <= other <= TEMPERATURES[1]:
            assert least <= loss_at(logits, targets, other) + slack


@given(seed=st.integers(0, 2**32), factor=st.sampled_from([0.2, 0.5, 1.5, 4.0]))
def test_scaled_logits_have_a_scaled_temperature(seed: int, factor: float) -> None:
    logits, targets = drawn(seed, 200, 4)
    # 1e-9: the loss is so flat at its minimum that its slope's rounding (1e-16) moves T by 1e-14
    # or so; the rest is margin.
    assert temperature_scale(factor * logits, targets) == pytest.approx(
        factor * temperature_scale(logits, targets), rel=1e-9
    )


def test_exactly_calibrated_logits_have_temperature_one() -> None:
    # Of each kind of prediction, the classes occur as often as it says.
    rows = [[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]
    logits = torch.tensor(rows, dtype=torch.float64).log().repeat_interleave(10, dim=0)
    targets = torch.tensor([c for row in rows for c in range(3) for _ in range(round(10 * row[c]))])
    # 1e-12: the rounding of the slope, 1e-16, over its curvature of about 0.1, with margin.
    assert temperature_scale(logits, targets) == pytest.approx(1.0, abs=1e-12)
    for factor in (3.0, 0.4):
        assert temperature_scale(factor * logits, targets) == pytest.approx(factor, rel=1e-12)
    over = temperature_scale(3 * logits, targets)
    assert over > 1 > temperature_scale(0.4 * logits, targets)
    logits[:, 1] = float("-inf")
    possible = targets != 1
    assert np.isfinite(temperature_scale(logits[possible], targets[possible]))


def test_a_calibrated_sample_has_a_temperature_near_one() -> None:
    logits, targets = drawn(0, 20_000, 10)
    # 0.03: four standard errors of the estimate with 20,000 examples are about 0.03.
    assert temperature_scale(logits, targets) == pytest.approx(1.0, abs=0.03)
    assert temperature_scale(logits.float(), targets) == pytest.approx(
        temperature_scale(logits, targets), rel=1e-5
    )


def test_without_a_minimum_an_end_of_the_range_is_returned() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert temperature_scale(logits, torch.tensor([0, 1])) == TEMPERATURES[0]
    assert temperature_scale(logits, torch.tensor([1, 0])) == TEMPERATURES[1]
    assert temperature_scale(torch.zeros(2, 2), torch.tensor([1, 0])) == 1.0


def test_temperature_scaling_refuses_what_has_no_loss() -> None:
    with pytest.raises(DataError, match="probability 0 at every temperature"):
        temperature_scale(torch.tensor([[0.0, float("-inf")]]), torch.tensor([1]))
    with pytest.raises(RunError, match="1 of 1 examples"):
        temperature_scale(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]))
