"""The reference models: the papers' sizes, and what they cannot take."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedopt.config import load
from fedopt.errors import ConfigError
from fedopt.models.reference import cnn, logistic, mlp
from fedopt.models.residual import Residual, resnet


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_papers_counts() -> None:
    assert count(cnn((1, 28, 28), 10)) == 1_663_370  # McMahan et al. 2017, section 3
    assert count(mlp((1, 28, 28), 10, hidden=(200, 200))) == 199_210  # the same, 2NN
    assert count(logistic((60,), 10)) == 610  # Li et al. 2020, Synthetic


def test_residual_networks_have_the_papers_depth_and_size() -> None:
    """He et al. 2016, table 6: 20, 32 and 56 layers have 0.27, 0.46 and 0.85 million weights.

    Shortcuts A have none; B add a convolution and its normalisation at two places.
    """
    shortcuts = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    for depth, expected in ((20, 0.27e6), (32, 0.46e6), (56, 0.85e6)):
        model = resnet((3, 32, 32), 10, depth=depth)
        assert count(model) - shortcuts == pytest.approx(expected, abs=0.01e6)
        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth + 2
    assert count(resnet((3, 32, 32), 10)) == 78_042


@given(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9), st.sampled_from([8, 14]))
def test_residual_networks_take_any_image(depth: int, height: int, width: int, layers: int) -> None:
    model = resnet((depth, height, width), 3, depth=layers, width=2, groups=1)
    assert model(torch.randn(2, depth, height, width)).shape == (2, 3)


def test_a_residual_block_adds_its_input() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(Residual(nn.Sequential(nn.ReLU()), nn.Sequential())(x), x.relu() + x)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.depth=9"], "must be 6 n + 2, got 9; the nearest are 8 and 14"),
        (["model.groups=3"], "must divide width = 16, got 3"),
    ],
)
def test_residual_networks_say_what_they_cannot_take(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(None, ["model=resnet", *words])
    with pytest.raises(ConfigError, match=re.escape("6 n + 2")):
        resnet((1, 8, 8), 10, depth=9)
    with pytest.raises(ConfigError, match="resnet needs images"):
        resnet((60,), 10)


shape = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(shape, st.integers(1, 5), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_dense_models_take_any_shape(
    input_shape: tuple[int, ...], classes: int, hidden: list[int]
) -> None:
    inputs = torch.randn(3, *input_shape)
    features = math.prod(input_shape)
    model = logistic(input_shape, classes)
    assert model(inputs).shape == (3, classes)
    assert count(model) == (features + 1) * classes
    assert count(logistic(input_shape, classes, bias=False)) == features * classes
    widths = [features, *hidden, classes]
    deep = mlp(input_shape, classes, hidden)
    assert deep(inputs).shape == (3, classes)
    assert count(deep) == sum((a + 1) * b for a, b in pairwise(widths))


@given(
    st.integers(1, 3),
    st.integers(4, 9),
    st.integers(4, 9),
    st.sampled_from([3, 5]),
    st.sampled_from(["none", "group"]),
)
def test_cnn_takes_any_image(depth: int, height: int, width: int, kernel: int, norm: str) -> None:
    options = {"kernel_size": kernel, "norm": norm, "groups": 2, "hidden": 7, "channels": (2, 4)}
    model = cnn((depth, height, width), 3, **options)
    assert model(torch.randn(2, depth, height, width)).shape == (2, 3)
    assert any(isinstance(m, nn.GroupNorm) for m in model) == (norm == "group")


@pytest.mark.parametrize("input_shape", [(28, 28), (784,), (1, 3, 28), (1, 28, 3)])
def test_cnn_needs_images(input_shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.name: cnn needs images .* use mlp"):
        cnn(input_shape, 10)


def test_dropout_is_there_where_it_is_asked_for() -> None:
    for model in (mlp((8,), 2, dropout=0.5), cnn((1, 8, 8), 2, dropout=0.5)):
        found = [m for m in model if isinstance(m, nn.Dropout)]
        assert [m.p for m in found] == [0.5]
    for model in (mlp((8,), 2), cnn((1, 8, 8), 2)):
        assert not any(isinstance(m, nn.Dropout) for m in model)
