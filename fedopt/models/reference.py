"""Small reference models, sized from the data. Any `nn.Module` works in their place.

A model factory takes `input_shape` (of one example, without the batch axis) and `classes`
(width of the output) and returns a module from `[B, *input_shape]` to `[B, classes]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from fedopt.errors import ConfigError


def logistic(input_shape: Sequence[int], classes: int, bias: bool = True) -> nn.Module:
    """Return multinomial logistic regression: flatten, then one linear map.

    Source: Li et al. 2020 (FedProx), section 5.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), classes, bias=bias))


def mlp(
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (64,),
    dropout: float = 0.0,
) -> nn.Module:
    """Return a perceptron with ReLU (and dropout, where > 0) after each hidden layer.

    Source: McMahan et al. 2017, section 3 (their 2NN is `hidden=(200, 200)`).
    """
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for next_width in hidden:
        layers += [nn.Linear(width, next_width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = next_width
    return nn.Sequential(*layers, nn.Linear(width, classes))


def need_image(name: str, input_shape: Sequence[int]) -> None:
    """Check that inputs are images of at least 4 x 4 pixels, which a model needs.

    Raises:
        ConfigError: they are not.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 4:
        raise ConfigError(
            f"{name} needs images of shape (channels, height >= 4, width >= 4), "
            f"the data has {tuple(input_shape)}; use mlp or logistic",
            key="model.name",
        )


def cnn(
    input_shape: Sequence[int],
    classes: int,
    channels: Sequence[int] = (32, 64),
    hidden: int = 512,
    kernel_size: int = 5,
    norm: str = "none",
    groups: int = 8,
    dropout: float = 0.0,
) -> nn.Module:
    """Return McMahan's network: (convolution, [GroupNorm], ReLU, 2x2 max-pool) twice, dense.

    Raises:
        ConfigError: the input is not an image of at least 4 x 4 pixels.

    Source: McMahan et al. 2017, section 3 (CNN, 1,663,370 parameters at 28 x 28).
    """
    need_image("cnn", input_shape)
    layers: list[nn.Module] = []
    depth, height, width = input_shape
    for next_depth in channels:
        layers.append(nn.Conv2d(depth, next_depth, kernel_size, padding=kernel_size // 2))
        if norm == "group":
            layers.append(nn.GroupNorm(groups, next_depth))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        depth, height, width = next_depth, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
