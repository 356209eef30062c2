"""Residual blocks, and the networks of He et al. for small images made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.models.reference import need_image


class Residual(nn.Module):
    """y = body(x) + shortcut(x).

    Args:
        body: layers from x to y.
        shortcut: likewise; an empty one is the identity.

    Source: He et al. 2016, equations 1 and 2.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Sequential) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both branches."""
        return torch.add(self.body(x), self.shortcut(x))


def resnet(
    input_shape: Sequence[int],
    classes: int,
    depth: int = 8,
    width: int = 16,
    groups: int = 2,
) -> nn.Module:
    """Return the residual network for small images, with GroupNorm in the place of BatchNorm.

    A convolution, three stages of (depth - 2) / 6 blocks with 1, 2 and 4 times `width` channels,
    the second and third of which halve the image, the mean over the image, and one linear layer.
    Shortcuts that change the shape are 1 x 1 convolutions.

    Args:
        input_shape: (channels, height, width) of an image, height and width >= 4.
        classes: outputs.
        depth: layers with weights, 6 n + 2.
        width: channels of the first stage.
        groups: of GroupNorm; must divide `width`.

    Raises:
        ConfigError: the inputs are not such images, or the depth is none of these.

    Source: He et al. 2016, section 4.2, shortcuts B; Hsieh et al. 2020 for GroupNorm, as BatchNorm
        suffers under label skew.
    """
    need_image("resnet", input_shape)
    if depth < 8 or (depth - 2) % 6:
        raise ConfigError(f"must be 8, 14, 20, ... (6 n + 2), got {depth}", key="model.depth")
    layers: list[nn.Module] = [*_normed(input_shape[0], width, groups), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            out, stride = width * 2**stage, 2 if stage and not block else 1
            body = nn.Sequential(
                *_normed(channels, out, groups, stride=stride),
                nn.ReLU(),
                *_normed(out, out, groups),
            )
            shortcut = nn.Sequential()
            if (channels, stride) != (out, 1):
                shortcut.extend(_normed(channels, out, groups, kernel_size=1, stride=stride))
            layers += [Residual(body, shortcut), nn.ReLU()]
            channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def _normed(
    channels: int, out: int, groups: int, kernel_size: int = 3, stride: int = 1
) -> list[nn.Module]:
    """Return a convolution that keeps the size, or halves it, and GroupNorm."""
    convolution = nn.Conv2d(
        channels, out, kernel_size, stride, padding=kernel_size // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.GroupNorm(groups, out)]
