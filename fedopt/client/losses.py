"""Losses: functions of (output, target) that return the mean over the batch as a scalar."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def mean_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Return mean((output - target)^2), the target viewed in the output's shape and dtype."""
    return torch.nn.functional.mse_loss(output, target.view_as(output).to(output.dtype))
