"""How calibrated a finished model is, before and after one temperature: the facts of a run.

The arithmetic is in `metrics.py`, the picture in `calibration_plots.py`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from fedopt.analysis.metrics import TEMPERATURES, classification_metrics, temperature_scale


@dataclass(frozen=True)
class Calibration:
    """Calibration of a model on a test set; None where it is not available.

    Args:
        ece: expected calibration error over 15 bins, in [0, 1].
        mce: maximum calibration error over the same bins, in [0, 1].
        brier: Brier score, in [0, 2].
        loss: mean negative log-likelihood, nats.
        temperature: the temperature of smallest loss on other examples than the test set's; None
            where there are none, or where their loss has no minimum in 0.01..100.
        ece_scaled: expected calibration error of the logits divided by the temperature.
        loss_scaled: mean negative log-likelihood of the logits divided by the temperature.
        temperature_fitted_on: number of those other examples, 0 if there are none.
    """

    ece: float | None = None
    mce: float | None = None
    brier: float | None = None
    loss: float | None = None
    temperature: float | None = None
    ece_scaled: float | None = None
    loss_scaled: float | None = None
    temperature_fitted_on: int = 0

    def facts(self) -> dict[str, float | None]:
        """Return the values by name, as in `summary.json`."""
        return asdict(self)


def measure_calibration(
    logits: Tensor, targets: Tensor, held_out: tuple[Tensor, Tensor] | None = None
) -> Calibration:
    """Return the calibration of a classifier's outputs.

    Args:
        logits: `[N, C]` on the test set.
        targets: `[N]` class ids of the test set.
        held_out: logits `[M, C]` and class ids `[M]` on which the temperature is fitted; None, or
            M = 0, fits none.

    Raises:
        DataError: shapes do not fit, or a target is not a class.
        RunError: a logit is NaN or plus infinity.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    metrics = classification_metrics(logits, targets)
    plain = Calibration(
        ece=metrics["ece"],
        mce=metrics["mce"],
        brier=metrics["brier"],
        loss=_finite(metrics["loss"]),
    )
    if held_out is None or not len(held_out[1]):
        return plain
    examples = len(held_out[1])
    temperature = temperature_scale(*held_out)
    if temperature in TEMPERATURES:
        return replace(plain, temperature_fitted_on=examples)
    scaled = classification_metrics(logits.double() / temperature, targets)
    return replace(
        plain,
        temperature=temperature,
        ece_scaled=scaled["ece"],
        loss_scaled=_finite(scaled["loss"]),
        temperature_fitted_on=examples,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
