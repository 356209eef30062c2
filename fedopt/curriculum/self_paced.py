"""Self-paced learning: weights of examples as closed-form minimisers of sum v l + f(v)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SELF_PACED = ("hard", "linear", "log", "mixture")

LARGEST_LOG_THRESHOLD = 0.9
"""The logarithmic regulariser is defined for thresholds in (0, 1): losses are scaled to this one
where the threshold is larger."""


def self_paced_weights(
    losses: Tensor, threshold: float | Tensor, name: str = "hard", ratio: float = 0.5
) -> Tensor:
    """Return the weights v in [0, 1] that minimise sum_i v_i l_i + f(v_i; lambda).

    - `hard`: v = 1 where l < lambda, else 0.
    - `linear`: v = max(0, 1 - l / lambda).
    - `log`: v = log(l + zeta) / log(zeta) where l < lambda, zeta = 1 - lambda. For lambda > 0.9
      losses are first divided by lambda / 0.9, as the form needs lambda < 1.
    - `mixture`: v = 1 where l <= ratio lambda, 0 where l >= lambda, between them
      zeta (1 / l - 1 / lambda) with zeta = ratio lambda / (1 - ratio).

    Args:
        losses: l >= 0, of any shape.
        threshold: lambda > 0, a number or a tensor that broadcasts; infinite takes everything.
        name: one of the four.
        ratio: of `mixture`, in (0, 1): below ratio lambda an example has weight 1.

    Raises:
        ValueError: a name that is not known, a threshold that is not > 0, a ratio out of range.

    Source: Kumar, Packer and Koller 2010, equation 4 (hard); Jiang et al. 2014, "Easy Samples
    First", equations 5 to 10 (linear, logarithmic, mixture).
    """
    if name not in SELF_PACED:
        raise ValueError(f'name must be one of {", ".join(SELF_PACED)}, got "{name}"')
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be in (0, 1), got {ratio}")
    lam = torch.as_tensor(threshold, dtype=losses.dtype, device=losses.device)
    if not bool((lam > 0).all()):
        raise ValueError(f"threshold must be > 0, got {float(lam.min())}")
    inside = (losses < lam).to(losses.dtype)
    if name == "hard":
        return inside
    is_finite = lam.isfinite()
    bounded = torch.where(is_finite, lam, torch.ones_like(lam))
    if name == "linear":
        found = (1 - losses / bounded).clamp(min=0)
    elif name == "log":
        unit = (bounded / LARGEST_LOG_THRESHOLD).clamp(min=1)
        zeta = 1 - bounded / unit
        found = (losses / unit + zeta).log() / zeta.log() * inside
    else:
        zeta = ratio * bounded / (1 - ratio)
        between = zeta * (1 / losses.clamp(min=torch.finfo(losses.dtype).tiny) - 1 / bounded)
        found = torch.where(losses <= ratio * bounded, torch.ones_like(losses), between)
        found = found.clamp(0, 1) * inside
    return torch.where(is_finite, found, torch.ones_like(losses))


def self_paced_regulariser(
    weights: Tensor, threshold: float, name: str = "hard", ratio: float = 0.5
) -> Tensor:
    """Return f(v; lambda) of each weight, what `self_paced_weights` minimises with sum v l.

    - `hard`: -lambda v.
    - `linear`: lambda (v^2 / 2 - v).
    - `log`: zeta v - zeta^v / log(zeta), zeta = 1 - lambda; for lambda > 0.9 that of 0.9, times
      lambda / 0.9.
    - `mixture`: -zeta log(v + zeta / lambda), zeta = ratio lambda / (1 - ratio).

    Args:
        weights: v in [0, 1].
        threshold: lambda, finite and > 0.
        name: one of the four.
        ratio: of `mixture`.

    Source: Kumar, Packer and Koller 2010; Jiang et al. 2014, section 3.
    """
    if name == "hard":
        return -threshold * weights
    if name == "linear":
        return threshold * (weights.square() / 2 - weights)
    if name == "log":
        unit = max(1.0, threshold / LARGEST_LOG_THRESHOLD)
        zeta = 1 - threshold / unit
        return unit * (zeta * weights - zeta**weights / math.log(zeta))
    zeta = ratio * threshold / (1 - ratio)
    return -zeta * (weights + zeta / threshold).log()
