"""BatchNorm's running statistics among a model's buffers, and their pooling without data.

The statistics of several clients' data together follow from each client's own: means add up with
the numbers of examples, and so do second moments (variance + mean^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedopt.models.layout import ParameterLayout

Places = list[tuple[slice, slice]]
"""Where the running mean and the running variance of each layer lie in the buffers `[Q]`."""


def statistics_places(model: nn.Module, layout: ParameterLayout) -> Places:
    """Return where the statistics of a model's BatchNorm layers lie in its buffers."""
    at: dict[str, slice] = {}
    start = 0
    for spec in layout.buffers:
        at[spec.name] = slice(start, start + spec.size)
        start += spec.size
    places = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None:
            prefix = f"{name}." if name else ""
            places.append((at[f"{prefix}running_mean"], at[f"{prefix}running_var"]))
    return places


def pooled(base: Tensor, clients: Sequence[tuple[int, Tensor]], places: Places) -> Tensor:
    """Return buffers with the statistics of all clients' data together.

    Args:
        base: buffers `[Q]`, of which all but the statistics stay.
        clients: number of examples and buffers `[Q]` of each client, at least one.
        places: where the statistics are.

    Returns:
        `[Q]`: mean = sum n m / sum n and var = sum n (v + m^2) / sum n - mean^2.
    """
    examples = sum(n for n, _ in clients)
    out = base.clone()
    for mean_at, variance_at in places:
        mean = torch.zeros_like(base[mean_at])
        second = torch.zeros_like(mean)
        for n, buffers in clients:
            mean += n / examples * buffers[mean_at]
            second += n / examples * (buffers[variance_at] + buffers[mean_at].square())
        out[mean_at] = mean
        out[variance_at] = (second - mean.square()).clamp_min(0)
    return out


def statistics_batches(inputs: Tensor, size: int) -> Sequence[Tensor]:
    """Return inputs cut evenly into batches of about `size`, none of one example but of one alone.

    Args:
        inputs: `[n, ...]`, n >= 1.
        size: the size aimed at, >= 1.
    """
    count = min(-(-len(inputs) // size), len(inputs) // 2)
    return torch.tensor_split(inputs, max(1, count))
