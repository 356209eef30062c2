"""Named arrays <-> one flat vector: how the parameters of a model lie in memory.

All arithmetic of strategies, terms and client state is on flat vectors `[..., P]`. The order is a
pure function of the arrays' names, order and shapes, so server and clients agree on it without
talking: arrays follow each other; an array of four dimensions (a convolution's weight
`[out, in, height, width]`) is stored channels-last `[out, height, width, in]`, which is the order
in which CPU convolutions are fastest. Buffers (BatchNorm's statistics and counters) form a second
vector `[Q]` in float64, in which integers up to 2**53 are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedopt.errors import ConfigError
from fedopt.memory import empty_rows


@dataclass(frozen=True)
class ArraySpec:
    """Name, shape and dtype of one array of a model."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, without framing."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True)
class ModelState:
    """A model's values: `parameters` `[P]` in the model's dtype and `buffers` `[Q]` in float64."""

    parameters: Tensor
    buffers: Tensor

    def clone(self) -> ModelState:
        """Return a copy that shares no memory."""
        return ModelState(self.parameters.clone(), self.buffers.clone())


@dataclass(frozen=True)
class ParameterLayout:
    """Where each parameter and buffer lies in the flat vectors.

    Args:
        parameters: trained arrays, all of one floating dtype.
        buffers: arrays that are not trained: statistics, counters, frozen weights.
    """

    parameters: tuple[ArraySpec, ...]
    buffers: tuple[ArraySpec, ...]

    def __post_init__(self) -> None:
        dtypes = {spec.dtype for spec in self.parameters}
        if len(dtypes) != 1 or not next(iter(dtypes)).is_floating_point:
            got = ", ".join(sorted(str(d) for d in dtypes)) or "no trainable parameter"
            raise ConfigError(f"trained parameters must share one floating dtype, got {got}")

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout of a module; tied parameters count once, frozen ones are buffers."""
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        held = model_buffers(model)
        return cls(
            tuple(ArraySpec(n, tuple(p.shape), p.dtype) for n, p in trained.items()),
            tuple(ArraySpec(n, tuple(b.shape), b.dtype) for n, b in held.items()),
        )

    @classmethod
    def of_arrays(
        cls, arrays: Mapping[str, Tensor], buffers: Iterable[str] = ()
    ) -> ParameterLayout:
        """Read the layout of named arrays: integers and the names in `buffers` are buffers."""
        held = set(buffers)
        trained: list[ArraySpec] = []
        rest: list[ArraySpec] = []
        for name, array in arrays.items():
            spec = ArraySpec(name, tuple(array.shape), array.dtype)
            is_buffer = name in held or not array.dtype.is_floating_point
            (rest if is_buffer else trained).append(spec)
        return cls(tuple(trained), tuple(rest))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.parameters[0].dtype

    @cached_property
    def size(self) -> int:
        """P, the number of trained scalars."""
        return sum(spec.size for spec in self.parameters)

    @cached_property
    def buffer_size(self) -> int:
        """Q, the number of scalars in buffers."""
        return sum(spec.size for spec in self.buffers)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the whole model on the wire, without framing."""
        return sum(spec.nbytes for spec in (*self.parameters, *self.buffers))

    @property
    def parameter_nbytes(self) -> int:
        """Bytes of one vector of parameters on the wire."""
        return self.size * self.dtype.itemsize

    @staticmethod
    def memory_shape(spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of a parameter as it lies in memory: channels last of four axes."""
        if len(spec.shape) != 4:
            return spec.shape
        out, channels, height, width = spec.shape
        return out, height, width, channels

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return the parameters as views into `flat` `[..., P]`, each `[..., *shape]`."""
        return [_shaped(piece, spec.shape) for spec, piece in self._pieces(flat)]

    def vector(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return tensors `[..., *shape]` as one new vector `[..., P]`: the inverse of `views`."""
        lead = tensors[0].shape[: tensors[0].dim() - len(self.parameters[0].shape)]
        flat = tensors[0].new_empty(*lead, self.size)
        for view, tensor in zip(self.views(flat), tensors, strict=True):
            view.copy_(tensor)
        return flat

    def named(self, state: ModelState, *, copy: bool = True) -> dict[str, Tensor]:
        """Return all arrays by name, contiguous and in their own dtypes.

        Args:
            state: the values.
            copy: whether the arrays are copies; without, parameters share memory with `state`
                where their order in memory allows it.
        """
        out = {
            spec.name: _contiguous(_shaped(piece, spec.shape), copy)
            for spec, piece in self._pieces(state.parameters)
        }
        start = 0
        for spec in self.buffers:
            piece = state.buffers[start : start + spec.size]
            start += spec.size
            if not spec.dtype.is_floating_point:
                piece = piece.round()
            out[spec.name] = piece.to(spec.dtype).reshape(spec.shape).clone()
        return out

    def named_vector(self, flat: Tensor) -> dict[str, Tensor]:
        """Return copies of a parameter-shaped vector `[P]` (any floating dtype) by name."""
        return {
            spec.name: _contiguous(_shaped(piece, spec.shape), copy=True)
            for spec, piece in self._pieces(flat)
        }

    def state(self, arrays: Mapping[str, Tensor], into: Tensor | None = None) -> ModelState:
        """Return the flat state of named arrays.

        Args:
            arrays: the arrays.
            into: memory for the parameters `[P]`; None takes new memory.

        Raises:
            ConfigError: an array is missing or has another shape.
        """
        flat = torch.empty(self.size, dtype=self.dtype) if into is None else into
        for spec, view in zip(self.parameters, self.views(flat), strict=True):
            view.copy_(_checked(arrays, spec))
        return ModelState(flat, self.buffer_vector(arrays))

    def buffer_vector(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Return the buffers among named arrays, `[Q]` in float64.

        Raises:
            ConfigError: an array is missing or has another shape.
        """
        buffers = [_checked(arrays, spec).reshape(-1).double() for spec in self.buffers]
        return torch.cat(buffers) if buffers else torch.zeros(0, dtype=torch.float64)

    def _pieces(self, flat: Tensor) -> Iterable[tuple[ArraySpec, Tensor]]:
        start = 0
        for spec in self.parameters:
            yield spec, flat[..., start : start + spec.size]
            start += spec.size


class BoundModel:
    """A module whose parameters are views into one flat vector.

    Args:
        model: the module; its parameters' storage is replaced.
        device: where it runs.

    Attributes:
        flat: the parameters `[P]`; writing to it changes the module.
        parameters: the module's parameters, as views into `flat`.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.module = model.to(device)
        self.layout = ParameterLayout.of(self.module)
        self.flat = empty_rows(1, self.layout.size, self.layout.dtype, device)[0]
        trained = [p for p in self.module.parameters() if p.requires_grad]
        for parameter, view in zip(trained, self.layout.views(self.flat), strict=True):
            view.copy_(parameter.data)
            parameter.data = view
        self.parameters: Sequence[nn.Parameter] = trained
        self._buffers = list(model_buffers(self.module).values())

    def load(self, state: ModelState) -> None:
        """Copy the values of `state` into the module."""
        self.flat.copy_(state.parameters)
        start = 0
        for buffer in self._buffers:
            piece = state.buffers[start : start + buffer.numel()].view(buffer.shape)
            start += buffer.numel()
            buffer.copy_(piece if buffer.dtype.is_floating_point else piece.round())

    @property
    def has_batch_statistics(self) -> bool:
        """Whether some layer keeps running statistics of its batches."""
        return any(
            isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None
            for m in self.module.modules()
        )

    @contextmanager
    def frozen_buffers(self) -> Iterator[None]:
        """Leave the buffers as they are, whatever a forward pass does to them."""
        kept = self.kept_buffers()
        try:
            yield
        finally:
            self.restore_buffers(kept)

    def kept_buffers(self) -> list[Tensor]:
        """Return copies of the buffers."""
        return [buffer.clone() for buffer in self._buffers]

    def restore_buffers(self, kept: Sequence[Tensor]) -> None:
        """Put back what `kept_buffers` returned."""
        for buffer, value in zip(self._buffers, kept, strict=True):
            buffer.copy_(value)

    def buffers(self) -> Tensor:
        """Return the buffers `[Q]` in float64 on the CPU."""
        if not self._buffers:
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([b.detach().reshape(-1).double().cpu() for b in self._buffers])


def model_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return what a model holds besides trained parameters: saved buffers and frozen weights."""
    saved = set(model.state_dict(keep_vars=True))
    held = {n: p.data for n, p in model.named_parameters() if not p.requires_grad}
    return held | {n: b for n, b in model.named_buffers() if n in saved}


def _shaped(piece: Tensor, shape: tuple[int, ...]) -> Tensor:
    """View `[..., size]` as `[..., *shape]`, four dimensions being stored channels-last."""
    lead = piece.shape[:-1]
    if len(shape) != 4:
        return piece.view((*lead, *shape))
    out, depth, height, width = shape
    return piece.view(*lead, out, height, width, depth).movedim(-1, -3)


def _contiguous(array: Tensor, copy: bool) -> Tensor:
    if copy:
        return array.clone(memory_format=torch.contiguous_format)
    return array.contiguous()


def _checked(arrays: Mapping[str, Tensor], spec: ArraySpec) -> Tensor:
    array = arrays.get(spec.name)
    if array is None:
        raise ConfigError(f'array "{spec.name}" is missing; got {", ".join(arrays)}')
    if tuple(array.shape) != spec.shape:
        raise ConfigError(
            f'array "{spec.name}" has shape {tuple(array.shape)}, expected {spec.shape}'
        )
    return array
