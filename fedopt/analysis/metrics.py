"""Quality of a classifier's outputs: loss, accuracy and calibration.

Pure functions of logits or probabilities and targets, accumulated in float64 whatever the
model's precision. Running a model over a data set is not done here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.errors import DataError, RunError

_ROWS = 8192  # examples in float64 at a time: bounds the extra memory to a few such slices
_SUM_TOLERANCE = 1e-2  # of a row of probabilities: admits a bfloat16 softmax, not logits


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return loss, accuracy, calibration error and Brier score of a classifier's outputs.

    Args:
        logits: `[N, C]` unnormalised log-probabilities, N >= 1 and C >= 2, any floating type;
            minus infinity is a class that cannot be.
        targets: `[N]` class ids in 0..C-1.

    Returns:
        `loss` (mean negative log-likelihood, nats), `accuracy` (0..1), `ece` (0..1, 15 bins) and
        `brier` (0..2, mean over examples of the squared distance to the one-hot target).

    Raises:
        DataError: the shapes do not fit, or a target is not a class.
        RunError: a logit is NaN or plus infinity: the model has diverged.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950;
        Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3.
    """
    _check_shapes("logits", tuple(logits.shape), tuple(targets.shape))
    logits, targets = logits.detach(), targets.detach().to(logits.device)
    _check_targets(targets.cpu().numpy(), classes=logits.shape[1])
    # A row's largest logit is finite exactly when its softmax is defined (amax passes NaN on).
    broken = int((~logits.amax(dim=1).isfinite()).sum())
    if broken:
        raise RunError(
            f"the model's outputs are not finite for {broken} of {len(logits)} examples: "
            "training has diverged. Lower the learning rate, or clip the gradient "
            "(local.gradient.clip_norm)."
        )
    loss = brier = 0.0
    tops: list[Tensor] = []
    hits: list[Tensor] = []
    labels = targets.long()
    for start in range(0, len(logits), _ROWS):
        label = labels[start : start + _ROWS]
        log_probabilities = logits[start : start + _ROWS].double().log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        column = label.unsqueeze(1)
        loss -= float(log_probabilities.gather(1, column).sum())
        one_hot = torch.zeros_like(probabilities).scatter_(1, column, 1.0)
        brier += float((probabilities - one_hot).square().sum())
        top, predicted = probabilities.max(dim=1)
        tops.append(top)
        hits.append(predicted == label)
    correct = torch.cat(hits).cpu().numpy()
    confidences = torch.cat(tops).cpu().numpy()
    return {
        "loss": loss / len(logits),
        "accuracy": float(correct.mean()),
        "ece": _calibration_error(confidences, correct, bins=15),
        "brier": brier / len(logits),
    }


def expected_calibration_error(
    probabilities: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike, bins: int = 15
) -> float:
    """Return the expected calibration error of predicted probabilities.

    Predictions are put into `bins` equal, right-closed intervals (0, 1/bins], ... by their top
    probability; the result is the mean over examples of |accuracy - confidence| of their bin.
    torchmetrics' `MulticlassCalibrationError(norm="l1")` is the same but for values exactly on
    an edge, 1.0 among them: its intervals are left-closed.

    Args:
        probabilities: `[N, C]` in 0..1, rows summing to 1; N >= 1 and C >= 2.
        targets: `[N]` class ids in 0..C-1.
        bins: number of intervals, at least 1.

    Returns:
        A number in 0..1; 0 is perfectly calibrated.

    Raises:
        DataError: the shapes do not fit, a row is not a distribution, or a target not a class.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning",
        AAAI 2015; Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3.
    """
    if bins < 1:
        raise DataError(f"bins must be at least 1, got {bins}.")
    values, labels = _as_array(probabilities), _as_array(targets)
    _check_shapes("probabilities", values.shape, labels.shape)
    _check_targets(labels, classes=values.shape[1])
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    # Written so that NaN fails both checks.
    if not (values.min() >= 0 and values.max() <= 1 + 1e-6):
        raise DataError(
            f"probabilities must lie in 0..1, got {values.min():g}..{values.max():g}. "
            "Logits go through a softmax first."
        )
    sums = values.sum(axis=1, dtype=np.float64)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > _SUM_TOLERANCE:
        raise DataError(f"each row of probabilities must sum to 1, one sums to {worst:g}.")
    correct = values.argmax(axis=1) == labels
    return _calibration_error(values.max(axis=1), correct, bins)


def _calibration_error(
    confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], bins: int
) -> float:
    # Edges are rounded to the confidences' own type, so that a float32 0.6 lies in (8/15, 9/15].
    edges = (np.arange(1, bins + 1) / bins).astype(confidences.dtype)
    index = np.minimum(np.searchsorted(edges, confidences, side="left"), bins - 1)
    gap = np.bincount(index, weights=confidences.astype(np.float64) - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidences))


def _as_array(values: Tensor | npt.ArrayLike) -> npt.NDArray[np.generic]:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        # numpy has no bfloat16.
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    return np.asarray(values)


def _check_shapes(name: str, outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    if len(outputs) != 2 or len(targets) != 1 or outputs[0] != targets[0]:
        raise DataError(
            f"{name} must be [N, C] and targets [N], got {list(outputs)} and {list(targets)}."
        )
    if outputs[0] == 0:
        raise DataError(f"{name} are empty: there is nothing to measure.")
    if outputs[1] < 2:
        raise DataError(f"{name} must have at least two classes, got {outputs[1]}.")


def _check_targets(targets: npt.NDArray[np.generic], *, classes: int) -> None:
    if not np.issubdtype(targets.dtype, np.integer):
        raise DataError(f"targets must be integer class ids, got {targets.dtype}.")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise DataError(f"targets must lie in 0..{classes - 1}, got {low}..{high}.")
