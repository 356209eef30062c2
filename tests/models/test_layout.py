"""The layout: named arrays to flat vectors and back, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.models.layout import BoundModel, ModelState, ParameterLayout, model_buffers

CPU = torch.device("cpu")


class Tied(nn.Module):
    """Two layers over one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


class Shifted(nn.Module):
    """A module with a saved and an unsaved buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("shift", torch.full((3,), 0.25))
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.shift
        return out


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    return model


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, (3, 1)),
        nn.Flatten(),
        nn.Linear(4 * 4 * 6, 5),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "scalar": (lambda: nn.Linear(1, 1, bias=False), (1,)),
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), (4,)),
    "convolutional": (convolutional, (2, 6, 6)),
    "frozen": (frozen, (4,)),
    "tied": (Tied, (4,)),
    "buffers": (Shifted, (4,)),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A model with values all its own, and inputs for it."""
    torch.manual_seed(1)
    factory, shape = MODELS[name]
    model = factory().to(dtype)
    with torch.no_grad():
        for buffer in model_buffers(model).values():
            if buffer.dtype.is_floating_point:
                buffer.add_(torch.rand(buffer.shape, dtype=dtype))
            else:
                buffer.fill_(2**40 + 1)
    return model, torch.randn(7, *shape, dtype=dtype)


def arrays(model: nn.Module) -> dict[str, Tensor]:
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return trained | model_buffers(model)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_named_arrays_survive_the_flat_form(name: str, dtype: torch.dtype) -> None:
    model, _ = build(name, dtype)
    layout, before = ParameterLayout.of(model), arrays(model)
    state = layout.state(before)
    assert state.parameters.shape == (layout.size,)
    assert state.parameters.dtype == dtype
    assert state.buffers.shape == (layout.buffer_size,)
    assert state.buffers.dtype == torch.float64
    after = layout.named(state)
    assert list(after) == list(before)
    for key, array in before.items():
        assert after[key].dtype == array.dtype, key
        assert torch.equal(after[key], array), key
        assert after[key].is_contiguous()
    again = layout.state(after)
    assert torch.equal(again.parameters, state.parameters)
    assert torch.equal(again.buffers, state.buffers)


@pytest.mark.parametrize("name", MODELS)
def test_a_layout_is_known_from_the_arrays_alone(name: str) -> None:
    model, _ = build(name)
    layout = ParameterLayout.of(model)
    buffers = [spec.name for spec in layout.buffers]
    assert ParameterLayout.of_arrays(arrays(model), buffers) == layout


def test_convolutions_are_channels_last() -> None:
    conv = nn.Conv2d(3, 2, (4, 5), bias=False)
    layout = ParameterLayout.of(conv)
    flat = torch.arange(layout.size, dtype=torch.float32)
    (view,) = layout.views(flat)
    assert view.shape == (2, 3, 4, 5)
    assert view.is_contiguous(memory_format=torch.channels_last)
    expected = flat.reshape(2, 4, 5, 3).permute(0, 3, 1, 2)
    assert torch.equal(view, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_views_are_views(name: str, lead: tuple[int, ...]) -> None:
    model, _ = build(name)
    layout = ParameterLayout.of(model)
    flat = torch.zeros(*lead, layout.size)
    views = layout.views(flat)
    for spec, view in zip(layout.parameters, views, strict=True):
        assert view.shape == (*lead, *spec.shape)
        view.fill_(1.0)
    assert bool((flat == 1).all()), "the views cover the vector, and share its memory"


@pytest.mark.parametrize("name", MODELS)
def test_copies_are_copies(name: str) -> None:
    model, _ = build(name)
    layout = ParameterLayout.of(model)
    state = layout.state(arrays(model))
    reference = state.clone()
    for array in (*layout.named(state).values(), *layout.named_vector(state.parameters).values()):
        array.zero_()
    clone = state.clone()
    clone.parameters.zero_()
    clone.buffers.zero_()
    assert torch.equal(state.parameters, reference.parameters)
    assert torch.equal(state.buffers, reference.buffers)


@pytest.mark.parametrize("name", MODELS)
def test_a_bound_model_computes_what_the_module_does(name: str) -> None:
    model, inputs = build(name)
    plain, _ = build(name)
    layout = ParameterLayout.of(plain)
    bound = BoundModel(model, CPU)
    assert bound.layout == layout
    plain.eval()
    bound.module.eval()
    # Channels-last convolutions add in another order: some float32 ulps on sums of 20 products.
    torch.testing.assert_close(bound.module(inputs), plain(inputs), rtol=1e-5, atol=1e-6)
    if not any(len(spec.shape) == 4 for spec in layout.parameters):
        assert torch.equal(bound.module(inputs), plain(inputs))
    state = layout.state(arrays(plain))
    assert torch.equal(bound.flat, state.parameters)
    assert torch.equal(bound.buffers(), state.buffers)


@pytest.mark.parametrize("name", MODELS)
def test_loading_changes_the_module_and_nothing_else(name: str) -> None:
    model, inputs = build(name)
    bound = BoundModel(model, CPU)
    layout = bound.layout
    state = layout.state(arrays(model))
    other = ModelState(state.parameters * 0.5, state.buffers * 0.5)
    kept = other.clone()
    bound.load(other)
    bound.module.eval()
    target, _ = build(name)
    named = layout.named(other)
    target.load_state_dict({k: named.get(k, v) for k, v in target.state_dict().items()})
    if name == "tied":
        assert target.second.weight is target.first.weight
    target.eval()
    # See above: the order of sums in channels-last convolutions.
    torch.testing.assert_close(bound.module(inputs), target(inputs), rtol=1e-5, atol=1e-6)
    bound.flat.zero_()
    assert all(not p.any() for p in bound.parameters)
    assert torch.equal(other.parameters, kept.parameters)
    assert torch.equal(other.buffers, kept.buffers)


def test_integers_stay_integers_and_are_rounded() -> None:
    model = nn.BatchNorm1d(2)
    layout = ParameterLayout.of(model)
    assert [spec.name for spec in layout.buffers] == [
        "running_mean",
        "running_var",
        "num_batches_tracked",
    ]
    state = layout.state(arrays(model))
    state.buffers[-1] = 2.0**53 - 1
    assert int(layout.named(state)["num_batches_tracked"]) == 2**53 - 1
    state.buffers[-1] = 2.6
    counter = layout.named(state)["num_batches_tracked"]
    assert (int(counter), counter.dtype) == (3, torch.int64)
    bound = BoundModel(model, CPU)
    bound.load(state)
    assert int(bound.module.num_batches_tracked) == 3


def test_tied_and_frozen_parameters_count_once() -> None:
    tied = ParameterLayout.of(Tied())
    assert tied.size == 16 + 4 + 4
    layout = ParameterLayout.of(frozen())
    assert [s.name for s in layout.parameters] == ["2.weight", "2.bias"]
    assert [s.name for s in layout.buffers] == ["0.weight", "0.bias"]
    assert (layout.size, layout.buffer_size) == (18, 25)
    assert layout.nbytes == 4 * (18 + 25)
    assert layout.parameter_nbytes == 4 * 18


def test_unsaved_buffers_are_not_sent() -> None:
    layout = ParameterLayout.of(Shifted())
    assert [spec.name for spec in layout.buffers] == ["shift"]


def test_gradients_reach_the_bound_parameters() -> None:
    model, inputs = build("tied")
    bound = BoundModel(model, CPU)
    bound.module(inputs).square().mean().backward()
    gradients = [p.grad for p in bound.parameters]
    plain, _ = build("tied")
    plain(inputs).square().mean().backward()
    for mine, parameter in zip(gradients, plain.parameters(), strict=True):
        assert mine is not None
        assert torch.equal(mine, parameter.grad)


def test_what_does_not_fit_is_refused() -> None:
    model = nn.Linear(2, 2)
    layout = ParameterLayout.of(model)
    with pytest.raises(ConfigError, match='"bias" is missing; got weight'):
        layout.state({"weight": torch.zeros(2, 2)})
    with pytest.raises(ConfigError, match=r'"weight" has shape \(3, 2\), expected \(2, 2\)'):
        layout.state({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ParameterLayout.of(nn.ReLU())
    with pytest.raises(ConfigError, match="no trainable parameter"):
        ParameterLayout.of(nn.Linear(2, 2).requires_grad_(False))
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ConfigError, match=r"torch\.float32, torch\.float64"):
        ParameterLayout.of(mixed)


shapes = st.lists(st.lists(st.integers(1, 4), max_size=5).map(tuple), min_size=1, max_size=5)


@given(shapes, st.integers(0, 2**32 - 1))
def test_any_shapes_round_trip(given_shapes: list[tuple[int, ...]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    named = {f"a{i}": torch.randn(s, generator=generator) for i, s in enumerate(given_shapes)}
    layout = ParameterLayout.of_arrays(named)
    state = layout.state(named)
    back = layout.named(state)
    vector = layout.named_vector(state.parameters.double())
    for key, array in named.items():
        assert torch.equal(back[key], array)
        assert torch.equal(vector[key], array.double())
    assert torch.equal(
        state.parameters.sort().values,
        torch.cat([a.reshape(-1) for a in named.values()]).sort().values,
    )
