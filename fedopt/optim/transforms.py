"""What happens to gradients before the update rule: skipping, clipping and noise.

Functions of lists of tensors with a leading client axis, `[A, *shape]` for A clients stacked; a
single client has A = 1. Every norm is one client's, over all of its tensors. Nothing here draws
random numbers: the caller makes the noise, so that each client's draws are its own. For plain
torch optimizers see `fedopt.optim.Transformed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = Sequence[Tensor]

CLIP_EPS = 1e-6
"""Added to the norm that clipping divides by, as in torch."""


def client_norms(tensors: Tensors) -> Tensor:
    """Return the 2-norm of each client over all tensors, `[A]`.

    It has the dtype of the tensors, and overflows only where it is itself too large: squares that
    do not fit into that dtype are summed again in float64, which takes several times as long.

    Args:
        tensors: `[A, *shape]` each, at least one.
    """
    dtype = tensors[0].dtype
    norms = _norms(tensors, dtype)
    if dtype != torch.float64 and not bool(norms.isfinite().all()):
        norms = _norms(tensors, torch.float64)
    return norms.to(dtype)


def _norms(tensors: Tensors, dtype: torch.dtype) -> Tensor:
    """Return the norms, with sums within a tensor in a dtype and those of tensors in float64."""
    device = tensors[0].device
    parts = [
        torch.linalg.vector_norm(t.reshape(t.shape[0], -1), dim=1, dtype=dtype).to(device)
        for t in tensors
    ]
    norms: Tensor = torch.linalg.vector_norm(torch.stack(parts).double(), dim=0)
    return norms


def scale_(tensors: Tensors, factors: Tensor) -> None:
    """Multiply each client's tensors by its factor, in place.

    Args:
        tensors: `[A, *shape]` each.
        factors: `[A]`.
    """
    for tensor in tensors:
        tensor.mul_(factors.to(tensor).view(-1, *(1,) * (tensor.dim() - 1)))


def clip_norm_(gradients: Tensors, max_norm: float, norms: Tensor | None = None) -> Tensor:
    """Shorten each client's gradient to a norm in place: g <- min(1, max_norm / (|g| + 1e-6)) g.

    Args:
        gradients: `[A, *shape]` each.
        max_norm: c > 0.
        norms: |g| of each client, `[A]`, where it is known.

    Returns:
        The norms before clipping, `[A]`.

    Source: Pascanu et al. 2013, algorithm 1; torch.nn.utils.clip_grad_norm_.
    """
    if norms is None:
        norms = client_norms(gradients)
    scale_(gradients, (max_norm / (norms + CLIP_EPS)).clamp(max=1.0))
    return norms


def clip_value_(gradients: Tensors, limit: float) -> None:
    """Clip every element to [-limit, limit], in place.

    Source: torch.nn.utils.clip_grad_value_.
    """
    torch._foreach_clamp_min_(list(gradients), -limit)
    torch._foreach_clamp_max_(list(gradients), limit)


def noise_std(step: int, eta: float, gamma: float = 0.55) -> float:
    """Return sqrt(eta / (1 + t)^gamma), the standard deviation of the noise of step t.

    Args:
        step: t, from 0.
        eta: variance at t = 0, >= 0; the paper uses 0.01, 0.3 and 1.
        gamma: decay, >= 0.

    Source: Neelakantan et al. 2015, section 3.
    """
    return math.sqrt(eta / (1 + step) ** gamma)


def is_applied(norms: Tensor, skip_norm: float | None = None) -> Tensor:
    """Return whether each client's step happens: its norm is finite, and <= skip_norm if given.

    Args:
        norms: `[A]`.
        skip_norm: the largest norm that is not skipped.

    Returns:
        Booleans `[A]`.
    """
    finite = norms.isfinite()
    return finite if skip_norm is None else finite & (norms <= skip_norm)


@dataclass(frozen=True)
class GradientTransforms:
    """Skipping, clipping and noise, in this order: skip, clip by norm, clip by value, noise.

    Norms are those of the gradient as it comes, so clipping never hides a step that is to be
    skipped, and noise is not clipped. Without arguments nothing happens.

    Args:
        clip_norm: the largest 2-norm of a client's whole gradient, > 0.
        clip_value: the largest absolute value of an element, > 0.
        noise_eta: variance of Gaussian noise at the first step, > 0.
        noise_gamma: decay of the variance, eta / (1 + t)^gamma, >= 0.
        skip_norm: steps of a larger norm, or of one that is not finite, do not happen; > 0.
        skip_nonfinite: steps whose gradient is not finite do not happen.

    Raises:
        ValueError: a number is out of range.

    Source: Pascanu et al. 2013, algorithm 1 (clipping); Neelakantan et al. 2015, section 3 (noise).
    """

    clip_norm: float | None = None
    clip_value: float | None = None
    noise_eta: float | None = None
    noise_gamma: float = 0.55
    skip_norm: float | None = None
    skip_nonfinite: bool = False

    def __post_init__(self) -> None:
        for name in ("clip_norm", "clip_value", "noise_eta", "skip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and > 0, or None, got {value}")
        if not 0 <= self.noise_gamma < math.inf:
            raise ValueError(f"noise_gamma must be finite and >= 0, got {self.noise_gamma}")

    @property
    def can_skip(self) -> bool:
        """Whether a step may not happen because of its gradient."""
        return self.skip_nonfinite or self.skip_norm is not None

    @property
    def is_identity(self) -> bool:
        """Whether nothing happens to any gradient."""
        wanted = (self.clip_norm, self.clip_value, self.noise_eta)
        return not self.can_skip and all(value is None for value in wanted)

    def __bool__(self) -> bool:
        return not self.is_identity

    def apply_(
        self,
        gradients: Tensors,
        step_noise: Callable[[float], Tensors] | None = None,
        step: int = 0,
    ) -> Tensor:
        """Transform gradients in place; those of skipped clients are left undefined.

        Args:
            gradients: `[A, *shape]` each.
            step_noise: function of the standard deviation of this step that returns noise,
                `[A, *shape]` each; called once a step, whether or not steps are skipped.
            step: t, from 0, of which the noise's variance is a function.

        Returns:
            Whether each client's step happens, booleans `[A]`.

        Raises:
            ValueError: there is noise to add, but `step_noise` is None.
        """
        needs_norms = self.can_skip or self.clip_norm is not None
        norms = client_norms(gradients) if needs_norms else None
        if self.can_skip and norms is not None:
            applied = is_applied(norms, self.skip_norm)
        else:
            first = gradients[0]
            applied = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        if self.clip_norm is not None:
            clip_norm_(gradients, self.clip_norm, norms)
        if self.clip_value is not None:
            clip_value_(gradients, self.clip_value)
        if self.noise_eta is not None:
            if step_noise is None:
                raise ValueError("step_noise is needed: noise_eta is given")
            noise = step_noise(noise_std(step, self.noise_eta, self.noise_gamma))
            torch._foreach_add_(list(gradients), list(noise))
        return applied
