"""The operations of image cells, and their mixture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError, did_you_mean

Norm = Callable[[int], nn.Module]
"""Makes a normalisation of some channels."""


def make_norm(kind: str, affine: bool) -> Norm:
    """Return what makes normalisations: over all of an example's channels, or over the batch.

    In a search BatchNorm keeps no running statistics: it always uses those of its batch.

    Args:
        kind: `group` or `batch`.
        affine: whether there are scale and shift, which a search has not.
    """
    if kind == "group":
        return lambda channels: nn.GroupNorm(1, channels, affine=affine)
    return lambda channels: nn.BatchNorm2d(channels, affine=affine, track_running_stats=affine)


class Zero(nn.Module):
    """No connection: zeros of the right shape."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self._stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros."""
        return x[..., :: self._stride, :: self._stride] * 0


class FactorizedReduce(nn.Module):
    """Halves the image by two 1x1 convolutions, one of which is shifted by a pixel."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self._first = nn.Conv2d(inputs, outputs // 2, 1, stride=2, bias=False)
        self._second = nn.Conv2d(inputs, outputs - outputs // 2, 1, stride=2, bias=False)
        self._norm = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return half the image."""
        x = torch.relu(x)
        if x.shape[-1] % 2 or x.shape[-2] % 2:  # what is missing is 0
            x = nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        shifted = nn.functional.pad(x[..., 1:, 1:], (0, 1, 0, 1))
        found: Tensor = self._norm(torch.cat([self._first(x), self._second(shifted)], dim=1))
        return found


def relu_conv(inputs: int, outputs: int, norm: Norm) -> nn.Module:
    """Return ReLU, 1x1 convolution and normalisation."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), norm(outputs))


def _depthwise(c: int, kernel: int, stride: int, dilation: int, norm: Norm) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    depth = nn.Conv2d(c, c, kernel, stride, padding, dilation, groups=c, bias=False)
    return [nn.ReLU(), depth, nn.Conv2d(c, c, 1, bias=False), norm(c)]


def _separable(kernel: int) -> Callable[[int, int, Norm], nn.Module]:
    return lambda c, stride, norm: nn.Sequential(
        *_depthwise(c, kernel, stride, 1, norm), *_depthwise(c, kernel, 1, 1, norm)
    )


def _dilated(kernel: int) -> Callable[[int, int, Norm], nn.Module]:
    return lambda c, stride, norm: nn.Sequential(*_depthwise(c, kernel, stride, 2, norm))


def _pooled(pool: nn.Module, c: int, norm: Norm) -> nn.Module:
    return nn.Sequential(pool, norm(c))


OPERATIONS: dict[str, Callable[[int, int, Norm], nn.Module]] = {
    "none": lambda c, stride, norm: Zero(stride),
    "max_pool_3x3": lambda c, stride, norm: _pooled(nn.MaxPool2d(3, stride, 1), c, norm),
    "avg_pool_3x3": lambda c, stride, norm: _pooled(
        nn.AvgPool2d(3, stride, 1, count_include_pad=False), c, norm
    ),
    "skip_connect": lambda c, stride, norm: (
        nn.Identity() if stride == 1 else FactorizedReduce(c, c, norm)
    ),
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "dil_conv_3x3": _dilated(3),
    "dil_conv_5x5": _dilated(5),
}
"""Name -> what makes the operation from channels, stride and normalisation."""

DARTS_OPERATIONS = tuple(OPERATIONS)
"""The operations of the paper, in its order."""


def check_operations(names: Sequence[str], known: Sequence[str], key: str) -> None:
    """Check a set of operations.

    Raises:
        ConfigError: it is empty, has one twice, or one that is not known.
    """
    if not names:
        raise ConfigError(
            f"the search space is empty; name one or more of {', '.join(known)}", key=key
        )
    for name in names:
        if name not in known:
            raise ConfigError(
                f'"{name}" is not known.{did_you_mean(name, list(known))} '
                f"One of: {', '.join(known)}.",
                key=key,
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"an operation is there twice: {', '.join(names)}", key=key)


class MixedOp(nn.Module):
    """The mean of operations, weighted by a softmax over their architecture parameters.

    Args:
        operations: modules with one shape of output.

    Source: Liu, Simonyan and Yang 2019 (DARTS), equation 2.
    """

    def __init__(self, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self._operations = nn.ModuleList(operations)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return sum_o weights_o o(x), for weights `[operations]` of sum 1."""
        outputs = [w * op(x) for w, op in zip(weights, self._operations, strict=True)]
        return torch.stack(outputs).sum(0)
