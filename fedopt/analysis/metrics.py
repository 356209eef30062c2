"""Quality of a classifier's outputs: loss, accuracy and calibration.

Pure functions of logits or probabilities and targets, accumulated in float64 whatever the
model's precision. Running a model over a data set is not done here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedopt.errors import DataError, RunError

Floats = npt.NDArray[np.float64]

BINS = 15
"""Intervals of confidence where nothing else is said."""

TEMPERATURES = (0.01, 100.0)
"""The temperatures among which `temperature_scale` looks."""

_ROWS = 8192  # examples in float64 at a time: bounds the extra memory to a few such slices
_STEPS = 100  # of Newton or bisection: either needs about fifty at most
_SUM_TOLERANCE = 1e-2  # of a row of probabilities: admits a bfloat16 softmax, not logits


def classification_metrics(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return loss, accuracies, calibration errors and Brier score of a classifier's outputs.

    Args:
        logits: `[N, C]` unnormalised log-probabilities, N >= 1 and C >= 2, any floating type;
            minus infinity is a class that cannot be.
        targets: `[N]` class ids in 0..C-1.

    Returns:
        `loss` (mean negative log-likelihood, nats), `accuracy` (0..1), `ece` and `mce` (0..1,
        expected and maximum calibration error over the same 15 bins), `brier` (0..2, mean
        over examples of the squared distance to the one-hot target), `balanced_accuracy` and
        `auroc` (see the functions of these names; `auroc` is NaN unless there are two classes).

    Raises:
        DataError: the shapes do not fit, or a target is not a class.
        RunError: a logit is NaN or plus infinity: the model has diverged.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950;
        Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 3.
    """
    logits, labels = checked_logits(logits, targets)
    loss = brier = 0.0
    tops: list[Tensor] = []
    guesses: list[Tensor] = []
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
        guesses.append(predicted)
    predictions = torch.cat(guesses)
    correct = (predictions == labels).cpu().numpy()
    bins = _Bins.of(torch.cat(tops).cpu().numpy(), correct, BINS)
    return {
        "loss": loss / len(logits),
        "accuracy": float(correct.mean()),
        "ece": bins.expected_error(),
        "mce": bins.maximum_error(),
        "brier": brier / len(logits),
        "balanced_accuracy": balanced_accuracy(predictions, labels),
        "auroc": _auroc(logits, labels),
    }


def balanced_accuracy(
    predictions: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike
) -> float:
    """Return the mean of the classes' accuracies: rare classes count as much as common ones.

        mean over the classes c that occur among the targets of P(prediction = c | target = c)

    Args:
        predictions: `[N]` class ids, N >= 1.
        targets: `[N]` class ids >= 0.

    Returns:
        A number in 0..1; 1 / (classes that occur) for a constant prediction.

    Raises:
        DataError: the shapes do not fit.

    Source: Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010.
    """
    guesses, labels = _as_array(predictions), _as_array(targets)
    _check_flat("predictions and targets", guesses.shape, labels.shape)
    counts = np.bincount(labels)
    hits = np.bincount(labels[guesses == labels], minlength=len(counts))
    occurs = counts > 0
    return float((hits[occurs] / counts[occurs]).mean())


def auroc(scores: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike) -> float:
    """Return the area under the receiver operating characteristic of a two-class problem.

        P(score of a positive > score of a negative) + P(they are equal) / 2

    Args:
        scores: `[N]`, the higher the more likely positive, such as the probability of class 1.
        targets: `[N]` of 0 (negative) and 1 (positive).

    Returns:
        A number in 0..1: 0.5 for scores that know nothing; NaN where one of the classes does not
        occur.

    Raises:
        DataError: the shapes do not fit, a score is NaN, or a target is neither 0 nor 1.

    Source: Hanley and McNeil, "The meaning and use of the area under a receiver operating
        characteristic (ROC) curve", Radiology 143, 1982.
    """
    values, labels = _as_array(scores), _as_array(targets).astype(np.int64, copy=False)
    _check_flat("scores and targets", values.shape, labels.shape)
    _check_targets(labels, classes=2)
    if np.isnan(values.astype(np.float64)).any():
        raise DataError("a score is NaN.")
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return math.nan
    # Mann and Whitney: the positives' ranks among all, those of equal scores averaged.
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = float(ranks[place[labels == 1]].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _auroc(logits: Tensor, labels: Tensor) -> float:
    """Return the AUROC of class 1; NaN unless there are two classes, which both occur."""
    if logits.shape[1] != 2:
        return math.nan
    # Of two logits the difference orders as the probability does, and does not saturate.
    wide = logits.double()
    return auroc(wide[:, 1] - wide[:, 0], labels)


def expected_calibration_error(
    probabilities: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike, bins: int = BINS
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
    return _Bins.of(*_predictions(probabilities, targets), bins).expected_error()


def maximum_calibration_error(
    probabilities: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike, bins: int = BINS
) -> float:
    """Return the maximum calibration error of predicted probabilities.

        MCE = max over the bins b that hold examples of |accuracy(b) - confidence(b)|

    The bins are those of `expected_calibration_error`. A bin counts the same whether it holds
    one example or thousands, so that small test sets give large values. torchmetrics'
    `MulticlassCalibrationError(norm="max")` is the same but for values exactly on an edge.

    Args:
        probabilities: `[N, C]` in 0..1, rows summing to 1; N >= 1 and C >= 2.
        targets: `[N]` class ids in 0..C-1.
        bins: number of intervals, at least 1.

    Returns:
        A number in 0..1, at least the expected calibration error; 0 is perfectly calibrated.

    Raises:
        DataError: the shapes do not fit, a row is not a distribution, or a target not a class.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning",
        AAAI 2015; Guo et al., "On calibration of modern neural networks", ICML 2017, eq. 5.
    """
    return _Bins.of(*_predictions(probabilities, targets), bins).maximum_error()


@dataclass(frozen=True)
class ReliabilityBins:
    """Predictions by confidence: what a reliability diagram shows.

    Args:
        edges: `[M + 1]`, ascending from 0 to 1; bin m is the interval (edges[m], edges[m + 1]].
        counts: `[M]`, the examples in each bin.
        accuracy: `[M]` in 0..1, the share of right predictions; NaN in a bin without examples.
        confidence: `[M]` in 0..1, the mean top probability; NaN in a bin without examples.
    """

    edges: Floats
    counts: npt.NDArray[np.int64]
    accuracy: Floats
    confidence: Floats


def reliability(
    probabilities: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike, bins: int = BINS
) -> ReliabilityBins:
    """Return accuracy and mean confidence of predictions, by bins of their confidence.

    Args:
        probabilities: `[N, C]` in 0..1, rows summing to 1, N >= 1 and C >= 2; or the confidences
            alone, `[N]` in 0..1.
        targets: `[N]` class ids in 0..C-1; with confidences alone, `[N]` booleans that say
            whether the prediction is right.
        bins: number of equal, right-closed intervals, at least 1.

    Raises:
        DataError: the shapes do not fit, a row is not a distribution, or a target not a class.

    Source: DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983;
        Guo et al., "On calibration of modern neural networks", ICML 2017, section 2.
    """
    found = _Bins.of(*_predictions(probabilities, targets), bins)
    filled = np.where(found.counts > 0, found.counts, np.nan)
    return ReliabilityBins(
        np.arange(bins + 1) / bins, found.counts, found.hits / filled, found.confidences / filled
    )


def temperature_scale(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature at which logits have the smallest loss.

        T = argmin over T > 0 of mean_n -log softmax(z_n / T)[y_n]

    The loss is convex in b = 1/T: its slope is the mean of E_p[z_n] - z_n[y_n] and its curvature
    the mean of Var_p[z_n], where p = softmax(b z_n). Newton's method finds the zero of the slope
    in float64, within a bracket that bisection closes where a Newton step would leave it.
    Dividing by T changes confidences, never the predicted class. Fit it on examples other than
    those that calibration is then measured on.

    Args:
        logits: `[N, C]` unnormalised log-probabilities, N >= 1 and C >= 2, any floating type;
            minus infinity is a class that cannot be.
        targets: `[N]` class ids in 0..C-1.

    Returns:
        T in [0.01, 100]: above 1 for an over-confident model, below 1 for an under-confident one,
        1 where the loss does not depend on it. The loss at T is at most that at 1, and the
        logits c z have the temperature c T for c > 0. An end of the range is returned where the
        minimum lies beyond it: 0.01 if all predictions are right, for then more confidence is
        always better; 100 if the logits are no better than guessing.

    Raises:
        DataError: the shapes do not fit, or a target is not a class, or one that cannot be.
        RunError: a logit is NaN or plus infinity: the model has diverged.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017, section 4.2.
    """
    logits, labels = checked_logits(logits, targets)
    if not logits.gather(1, labels.unsqueeze(1)).isfinite().all():
        raise DataError("a target has probability 0 at every temperature.")
    start, slope, curvature = _loss_at(1.0, logits, labels)
    if slope == 0:
        return 1.0
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    end = low if slope > 0 else high
    if (_loss_at(end, logits, labels)[1] > 0) == (slope > 0):
        return 1 / end
    inverse = 1.0
    for _ in range(_STEPS):
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        newton = inverse - slope / curvature if curvature > 0 else math.inf
        following = newton if low < newton < high else math.sqrt(low * high)
        moved = abs(following - inverse)
        inverse = following
        loss, slope, curvature = _loss_at(inverse, logits, labels)
        if slope == 0 or moved <= 1e-14 * inverse:
            break
    return 1 / inverse if loss <= start else 1.0


def _loss_at(inverse: float, logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Return the mean loss of softmax(b z) at b = `inverse`, and its two derivatives by b."""
    loss = slope = curvature = 0.0
    for start in range(0, len(logits), _ROWS):
        part = logits[start : start + _ROWS].double()
        part = part - part.amax(dim=1, keepdim=True)
        column = labels[start : start + _ROWS].unsqueeze(1)
        log_probabilities = (inverse * part).log_softmax(dim=1)
        probabilities = log_probabilities.exp()
        # A class that cannot be has probability 0 and adds nothing: 0 in place of 0 * -inf.
        values = part.masked_fill(part.isinf(), 0.0)
        mean = (probabilities * values).sum(dim=1, keepdim=True)
        loss -= float(log_probabilities.gather(1, column).sum())
        slope += float((mean - values.gather(1, column)).sum())
        curvature += float((probabilities * (values - mean).square()).sum())
    count = len(logits)
    return loss / count, slope / count, curvature / count


def checked_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a classifier's outputs and labels, detached, on one device, labels as int64.

    Raises:
        DataError: the shapes do not fit, or a target is not a class.
        RunError: a logit is NaN or plus infinity: the model has diverged.
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
    return logits, targets.long()


@dataclass(frozen=True)
class _Bins:
    """Sums over the examples of each bin, `[M]`."""

    counts: npt.NDArray[np.int64]
    hits: Floats  # right predictions
    confidences: Floats  # sum of the confidences
    gaps: Floats  # sum of confidence - correctness

    @classmethod
    def of(
        cls, confidences: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_], bins: int
    ) -> _Bins:
        if bins < 1:
            raise DataError(f"bins must be at least 1, got {bins}.")
        # Edges are rounded to the confidences' own type, so that a float32 0.6 lies in
        # (8/15, 9/15].
        edges = (np.arange(1, bins + 1) / bins).astype(confidences.dtype)
        index = np.minimum(np.searchsorted(edges, confidences, side="left"), bins - 1)
        wide = confidences.astype(np.float64)
        return cls(
            np.bincount(index, minlength=bins),
            *(
                _sums(index, weights, bins)
                for weights in (correct.astype(float), wide, wide - correct)
            ),
        )

    def expected_error(self) -> float:
        return float(np.abs(self.gaps).sum() / self.counts.sum())

    def maximum_error(self) -> float:
        return float((np.abs(self.gaps) / np.maximum(self.counts, 1)).max())


def _sums(index: npt.NDArray[np.int64], weights: Floats, bins: int) -> Floats:
    """Return the sum of the weights of each bin, `[M]`."""
    return np.bincount(index, weights=weights, minlength=bins).astype(np.float64, copy=False)


def _predictions(
    probabilities: Tensor | npt.ArrayLike, targets: Tensor | npt.ArrayLike
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.bool_]]:
    """Return each prediction's confidence and whether it is right, both `[N]`, checked."""
    values, labels = _as_array(probabilities), _as_array(targets)
    if values.ndim == 1 and labels.dtype == np.bool_:
        _check_flat("confidences and whether they are right", values.shape, labels.shape)
        confidences = _as_floats(values)
        return confidences, labels.astype(np.bool_)
    _check_shapes("probabilities", values.shape, labels.shape)
    _check_targets(labels, classes=values.shape[1])
    rows = _as_floats(values)
    sums = rows.sum(axis=1, dtype=np.float64)
    worst = float(sums[np.abs(sums - 1).argmax()])
    if abs(worst - 1) > _SUM_TOLERANCE:
        raise DataError(f"each row of probabilities must sum to 1, one sums to {worst:g}.")
    return rows.max(axis=1), rows.argmax(axis=1) == labels


def _as_floats(values: npt.NDArray[np.generic]) -> npt.NDArray[np.floating]:
    """Return probabilities as float32 or float64.

    Raises:
        DataError: one lies outside 0..1.
    """
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    floats: npt.NDArray[np.floating] = values  # type: ignore[assignment]
    if floats.dtype == np.float16:
        floats = floats.astype(np.float32)
    # Written so that NaN fails both checks.
    if not (floats.min() >= 0 and floats.max() <= 1 + 1e-6):
        raise DataError(
            f"probabilities must lie in 0..1, got {floats.min():g}..{floats.max():g}. "
            "Logits go through a softmax first."
        )
    return floats


def _as_array(values: Tensor | npt.ArrayLike) -> npt.NDArray[np.generic]:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
        # numpy has no bfloat16.
        return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
    return np.asarray(values)


def _check_flat(what: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    if first != second or len(first) != 1 or not first[0]:
        raise DataError(f"{what} must be [N] both, N >= 1, got {list(first)} and {list(second)}.")


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
