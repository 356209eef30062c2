"""Layers over stacked clients: forward and backward, each client with its own parameters.

Activations are `[A, B, ...]`, A active clients and B examples each; parameters are `[C, ...]`, of
which the first A rows are in use. `backward` returns the gradient at the input and hands each
parameter's gradient to a `Sink`; for plain SGD the sink is fused into the product that makes the
gradient (`W.baddbmm_(g^T, x, alpha=-lr)`), so that no gradient is ever stored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn


class Sink(Protocol):
    """Takes the gradients of parameters, as the backward pass makes them."""

    def product(self, index: int, left: Tensor, right: Tensor) -> None:
        """Take the gradient `left @ right` `[A, m, n]` of parameter `index`."""
        ...

    def tensor(self, index: int, gradient: Tensor) -> None:
        """Take the gradient `[A, *shape]` of parameter `index`."""
        ...


class StackedLayer(Protocol):
    """A layer over stacked clients; `forward` keeps what its `backward` needs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for activations `[A, B, ...]`."""
        ...

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Hand over the parameters' gradients; return that of the input, where it is needed."""
        ...

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the output as a function of the parameters `[A, *shape]` that autograd records.

        It makes the same draws as `forward`; second derivatives are taken through it.
        """
        ...

    @property
    def has_parameters(self) -> bool:
        """Whether it has parameters of its own, which gradients must reach."""
        ...


def forward_through(layers: Sequence[StackedLayer], x: Tensor) -> Tensor:
    """Return the output of layers one after another."""
    for layer in layers:
        x = layer.forward(x)
    return x


def recorded_through(
    layers: Sequence[StackedLayer], parameters: Sequence[Tensor], x: Tensor
) -> Tensor:
    """Return the output of layers one after another, recorded."""
    for layer in layers:
        x = layer.recorded(parameters, x)
    return x


def backward_through(
    layers: Sequence[StackedLayer], gradient: Tensor, sink: Sink, need_input: bool
) -> Tensor | None:
    """Hand over the gradients of the parameters of layers; return that of the input, if needed."""
    have = (layer.has_parameters for layer in layers)
    *needs, _ = accumulate(have, operator.or_, initial=need_input)
    below: Tensor | None = gradient
    for layer, need in zip(reversed(layers), reversed(needs), strict=True):
        assert below is not None
        below = layer.backward(below, sink, need)
        if below is None:
            break
    return below


Parameters = Sequence[Tensor]
"""The stacked parameters of the model, `[C, *shape]` each, in the layout's order."""


class StackedLinear:
    """y = x W^T + b, for each client.

    Args:
        parameters: all stacked parameters.
        weight: position of W `[C, out, in]`.
        bias: position of b `[C, out]`, or None.
    """

    has_parameters: ClassVar[bool] = True

    def __init__(self, parameters: Parameters, weight: int, bias: int | None) -> None:
        self._parameters = parameters
        self._weight = weight
        self._bias = bias
        self._input: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `[A, B, ..., out]` for `[A, B, ..., in]`."""
        flat = x.flatten(1, -2)
        self._input = flat
        return self._product(self._parameters, flat, len(x)).view(*x.shape[:-1], -1)

    def _product(self, parameters: Parameters, x: Tensor, active: int) -> Tensor:
        weight = parameters[self._weight][:active].transpose(1, 2)
        if self._bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(parameters[self._bias][:active].unsqueeze(1), x, weight)

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Return the gradient at the input, made before the sink may change W."""
        assert self._input is not None
        shape = gradient.shape
        gradient = gradient.flatten(1, -2)
        weight = self._parameters[self._weight][: len(gradient)]
        below = torch.bmm(gradient, weight).view(*shape[:-1], -1) if need_input else None
        sink.product(self._weight, gradient.transpose(1, 2), self._input)
        if self._bias is not None:
            sink.tensor(self._bias, gradient.sum(1))
        self._input = None
        return below

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return `[A, B, ..., out]`, recorded."""
        return self._product(parameters, x.flatten(1, -2), len(x)).view(*x.shape[:-1], -1)


class StackedEmbedding:
    """y = W[x], for each client: a table of vectors, looked up by integers.

    Args:
        parameters: all stacked parameters.
        weight: position of W `[C, V, D]`.
        padding: row that is never trained, or None.
    """

    has_parameters: ClassVar[bool] = True

    def __init__(self, parameters: Parameters, weight: int, padding: int | None) -> None:
        self._parameters = parameters
        self._weight = weight
        self._padding = padding
        self._places: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `[A, B, ..., D]` for integers `[A, B, ...]`."""
        return self.recorded(self._parameters, x)

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return `[A, B, ..., D]`, recorded."""
        table = parameters[self._weight][: len(x)]
        rows = table.shape[1]
        if x.numel() and not (int(x.min()) >= 0 and int(x.max()) < rows):
            raise IndexError(f"index out of range: the embedding has rows 0..{rows - 1}")
        first = torch.arange(len(x), device=x.device).view(-1, *(1,) * (x.dim() - 1)) * rows
        self._places = x + first
        if self._padding is None:
            return nn.functional.embedding(self._places, table.flatten(0, 1))
        # The untrained row of each client: looked up without a gradient.
        found = nn.functional.embedding(self._places, table.flatten(0, 1))
        return torch.where((x == self._padding).unsqueeze(-1), found.detach(), found)

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Add up the gradients of each row."""
        assert self._places is not None
        _, rows, width = self._parameters[self._weight].shape
        summed = gradient.new_zeros(len(gradient) * rows, width)
        summed.index_add_(0, self._places.flatten(), gradient.reshape(-1, width))
        table = summed.view(len(gradient), rows, width)
        if self._padding is not None:
            table[:, self._padding] = 0
        sink.tensor(self._weight, table)
        return None


class StackedRelu:
    """max(x, 0)."""

    has_parameters: ClassVar[bool] = False

    def __init__(self) -> None:
        self._output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive part."""
        self._output = torch.relu(x)
        return self._output

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Let the gradient through where the output is positive."""
        assert self._output is not None
        gradient = gradient.to(self._output.dtype)
        below: Tensor = torch.ops.aten.threshold_backward(gradient, self._output, 0)
        return below

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the positive part, recorded."""
        return torch.relu(x)


class StackedFlatten:
    """`[A, B, ...]` to `[A, B, features]`."""

    has_parameters: ClassVar[bool] = False

    def __init__(self) -> None:
        self._shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but clients and examples."""
        self._shape = x.shape
        return x.flatten(2).contiguous()

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Restore the shape."""
        assert self._shape is not None
        return gradient.view(self._shape)

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Flatten all but clients and examples, recorded."""
        return x.flatten(2)


class StackedDropout:
    """Dropout that draws for each client what the loop engine draws for it.

    Args:
        probability: of an activation to be dropped.
        draws: returns, for each active client, its generator and its examples in this step.
    """

    has_parameters: ClassVar[bool] = False

    def __init__(
        self, probability: float, draws: Callable[[], Iterable[tuple[torch.Generator, int]]]
    ) -> None:
        self._keep = 1 - probability
        self._draws = draws
        self._mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Drop activations and scale the others by 1 / (1 - p)."""
        self._mask = self._drawn(x)
        return x * self._mask

    def _drawn(self, x: Tensor) -> Tensor:
        """Return 1 / (1 - p) where an activation stays, 0 elsewhere."""
        mask = torch.zeros_like(x, requires_grad=False)
        for row, (generator, length) in zip(mask, self._draws(), strict=False):
            row[:length].bernoulli_(self._keep, generator=generator)
        return mask.div_(self._keep)

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Let the gradient through where the activation was."""
        assert self._mask is not None
        return gradient * self._mask

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Drop activations, recorded."""
        return x * self._drawn(x)


@dataclass
class _Taped:
    """What autograd recorded in a forward pass."""

    x: Tensor
    own: list[Tensor]
    output: Tensor


class StackedModule:
    """Any per-example module, differentiated by autograd.

    Args:
        function: of the parameters `[A, ...]` and the activations `[A, B, ...]`.
        parameters: all stacked parameters.
        indices: positions of the module's own.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Tensor], Tensor], Tensor],
        parameters: Parameters,
        indices: Sequence[int],
    ) -> None:
        self._function = function
        self._parameters = parameters
        self._indices = indices
        self._tape: _Taped | None = None

    @property
    def has_parameters(self) -> bool:
        """Whether the module has parameters of its own."""
        return bool(self._indices)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module and record it."""
        own = [self._parameters[i][: len(x)].detach().requires_grad_() for i in self._indices]
        x = x.detach().requires_grad_(x.is_floating_point())
        with torch.enable_grad():
            output = self._function(own, x)
        self._tape = _Taped(x, own, output)
        return output.detach()

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Differentiate what was recorded."""
        assert self._tape is not None
        tape, self._tape = self._tape, None
        if not need_input and not tape.own:
            return None
        gradient = gradient.to(tape.output.dtype)
        below, *own = torch.autograd.grad(tape.output, [tape.x, *tape.own], gradient)
        for index, parameter_gradient in zip(self._indices, own, strict=True):
            sink.tensor(index, parameter_gradient)
        return below

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Apply the module, recorded."""
        return self._function([parameters[i] for i in self._indices], x)


class StackedBranches:
    """y = the sum of several branches over the same x.

    Args:
        branches: the layers of each; one without layers is the identity.
    """

    def __init__(self, branches: Sequence[Sequence[StackedLayer]]) -> None:
        self._branches = branches
        self.has_parameters = any(layer.has_parameters for branch in branches for layer in branch)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs."""
        return reduce(torch.add, [forward_through(branch, x) for branch in self._branches])

    def backward(self, gradient: Tensor, sink: Sink, need_input: bool) -> Tensor | None:
        """Go back through each branch; return the sum of the gradients at x."""
        found = [backward_through(b, gradient, sink, need_input) for b in self._branches]
        wanted = [below for below in found if below is not None]
        return reduce(torch.add, wanted) if need_input and wanted else None

    def recorded(self, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
        """Return the sum of the branches' outputs, recorded."""
        made = [recorded_through(branch, parameters, x) for branch in self._branches]
        return reduce(torch.add, made)


PER_EXAMPLE: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Tanh,
    nn.Sigmoid,
    nn.GELU,
    nn.SiLU,
    nn.ELU,
    nn.SELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Hardtanh,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
"""Modules without parameters or state that treat each example alone."""


def merged(module: nn.Module) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """Return a module without parameters as a function over `[A, B, ...]`: the axes are merged."""

    def function(_own: Sequence[Tensor], x: Tensor) -> Tensor:
        output: Tensor = module(x.flatten(0, 1))
        return output.view(*x.shape[:2], *output.shape[1:])

    return function


def normalised(module: nn.Module) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """Return LayerNorm or GroupNorm over `[A, B, ...]`, with scale and shift of each client."""

    def function(own: Sequence[Tensor], x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        if isinstance(module, nn.LayerNorm):
            output = nn.functional.layer_norm(flat, module.normalized_shape, eps=module.eps)
            trailing = tuple(module.normalized_shape)
        else:
            assert isinstance(module, nn.GroupNorm)
            output = nn.functional.group_norm(flat, module.num_groups, eps=module.eps)
            trailing = (module.num_channels, *(1,) * (flat.dim() - 2))
        output = output.view(x.shape)
        lead = (len(x), *(1,) * (x.dim() - 1 - len(trailing)))
        if own:
            output = output * own[0].view(*lead, *trailing)
        if len(own) > 1:
            output = output + own[1].view(*lead, *trailing)
        return output

    return function


def convolved(module: nn.Conv2d) -> Callable[[Sequence[Tensor], Tensor], Tensor]:
    """Return a convolution of each client as one grouped convolution over `[A, B, C, H, W]`.

    Accelerators gain by it; on a CPU it is slower than one client at a time.
    """

    def function(own: Sequence[Tensor], x: Tensor) -> Tensor:
        clients, examples = x.shape[:2]
        output = nn.functional.conv2d(
            x.transpose(0, 1).flatten(1, 2),
            own[0].flatten(0, 1),
            own[1].flatten() if len(own) > 1 else None,
            module.stride,
            module.padding,
            module.dilation,
            groups=clients * module.groups,
        )
        shape = (examples, clients, module.out_channels, *output.shape[2:])
        return output.view(shape).transpose(0, 1)

    return function


Draws = Callable[[], Iterable[tuple[torch.Generator, int]]]
"""Returns, for each active client, its generator and its examples in this step."""

Builder = Callable[[Any, Parameters, Mapping[str, int], Draws], StackedLayer]
"""Makes a layer's stacked form from the module, all stacked parameters, the positions of its own
by name, and the clients' draws."""


def _linear(layer: nn.Linear, parameters: Parameters, own: Mapping[str, int], _: Draws) -> Any:
    return StackedLinear(parameters, own["weight"], own.get("bias"))


def _embedding(
    layer: nn.Embedding, parameters: Parameters, own: Mapping[str, int], _: Draws
) -> Any:
    return StackedEmbedding(parameters, own["weight"], layer.padding_idx)


def _norm(layer: nn.Module, parameters: Parameters, own: Mapping[str, int], _: Draws) -> Any:
    return StackedModule(normalised(layer), parameters, list(own.values()))


def _per_example(layer: nn.Module, parameters: Parameters, own: Mapping[str, int], _: Draws) -> Any:
    return StackedModule(merged(layer), parameters, [])


def _conv(layer: nn.Conv2d, parameters: Parameters, own: Mapping[str, int], _: Draws) -> Any:
    return StackedModule(convolved(layer), parameters, list(own.values()))


STACKED_FORMS: dict[type[nn.Module], Builder] = {
    nn.Linear: _linear,
    nn.Embedding: _embedding,
    nn.Conv2d: _conv,
    nn.ReLU: lambda layer, parameters, own, draws: StackedRelu(),
    nn.Flatten: lambda layer, parameters, own, draws: StackedFlatten(),
    nn.Dropout: lambda layer, parameters, own, draws: StackedDropout(layer.p, draws),
    nn.LayerNorm: _norm,
    nn.GroupNorm: _norm,
    **dict.fromkeys(PER_EXAMPLE, _per_example),
}
"""Type of a layer -> what makes its stacked form. Subclasses do not inherit it."""


def register_stacked(kind: type[nn.Module], build: Builder) -> None:
    """Give a type of layer a stacked form, so that models with it can be trained stacked.

    `build` must be importable by the workers: register in the module that defines the layer.
    `StackedModule(function, parameters, positions)` makes a form from any function of the
    stacked parameters `[A, ...]` and activations `[A, B, ...]`, differentiated by autograd.

    Args:
        kind: the type; its instances in an `nn.Sequential` are stacked.
        build: called with the module, all stacked parameters, the positions of the module's own
            by name (those of layers inside it with a dot), and the clients' draws; returns a
            `StackedLayer`, whose `has_parameters` tells whether gradients must reach it.
    """
    STACKED_FORMS[kind] = build
