from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.analysis.metrics import classification_metrics, expected_calibration_error
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


@pytest.mark.parametrize("classes", [2, 10])
def test_ece_equals_torchmetrics(classes: int) -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    logits, targets = sample(3, 500, classes)
    peer = classification.MulticlassCalibrationError(num_classes=classes, n_bins=15, norm="l1")
    # 1e-6: torchmetrics has its edges in float32.
    assert expected_calibration_error(logits.softmax(1), targets) == pytest.approx(
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
    assert list(metrics) == ["loss", "accuracy", "ece", "brier"]
    # 1e-10: 9,000 float64 numbers summed in another order.
    assert metrics == pytest.approx(
        {
            "loss": -np.log(probabilities[np.arange(examples), targets]).mean(),
            "accuracy": (probabilities.argmax(1) == targets.numpy()).mean(),
            "ece": expected_calibration_error(probabilities, targets),
            "brier": ((probabilities - one_hot) ** 2).sum(1).mean(),
        },
        abs=1e-10,
    )
    assert all(type(value) is float for value in metrics.values())


def test_metrics_accumulate_in_float64_and_leave_gradients_alone() -> None:
    logits, targets = sample(2, 1000, 5)
    narrow = logits.float().requires_grad_()
    metrics = classification_metrics(narrow, targets.to(torch.int32))
    # Equal, not close: all arithmetic is done after the conversion.
    assert metrics == classification_metrics(logits.float().double(), targets)
    assert narrow.grad is None


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
