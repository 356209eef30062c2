"""Kronecker-factored curvature: what a layer's block of the Fisher matrix is made of, batched.

A layer y = W a (with the bias folded in as a last column of W and a last 1 in a) has the block
A (x) G, with A = E[a a^T] over its inputs and G = E[s s^T] over the gradients s at its outputs.
Here are the layers that have such a block, the factors of a batch, and the algebra of their
inverses, all with a leading axis of clients. `fedopt.optim.curvature` keeps them over steps;
nothing here knows an optimizer or an engine.

Axes: A clients, B examples, T positions (tokens of a sequence, pixels of a convolution's output),
K columns of the loss's Hessian, g groups of a convolution, i inputs with the bias, o outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CHUNK = 2**22
"""Elements of per-example gradients that are held at once."""


class UnsupportedModelError(ValueError):
    """The model has something whose curvature cannot be told; the message names it."""


@dataclass(frozen=True)
class KroneckerLayer:
    """A layer with a Kronecker-factored block.

    Args:
        name: of the module.
        module: `nn.Linear` or `nn.Conv2d`.
        weight: position of W among the parameters.
        bias: position of the bias, or None.
        groups: g; 1 except for grouped convolutions, whose groups have a block each.
        inputs: i, of a group, with 1 for the bias.
        outputs: o, of a group.
    """

    name: str
    module: nn.Module
    weight: int
    bias: int | None
    groups: int
    inputs: int
    outputs: int

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of W and bias among the parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def factor_shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Shapes of A and G, `[g, i, i]` and `[g, o, o]`."""
        return (self.groups, self.inputs, self.inputs), (self.groups, self.outputs, self.outputs)

    def rows(self, x: Tensor) -> Tensor:
        """Return the inputs of W, `[A, g, B, T, i]`, for the layer's inputs `[A, B, ...]`."""
        module = self.module
        if isinstance(module, nn.Conv2d):
            found = _patches(module, x)
        else:
            found = x.reshape(*x.shape[:2], -1, x.shape[-1]).unsqueeze(1)
        if self.bias is None:
            return found
        return torch.cat([found, found.new_ones(*found.shape[:-1], 1)], dim=-1)

    def output_rows(self, s: Tensor) -> Tensor:
        """Return gradients at the outputs as `[K, A, g, B, T, o]`, for `[K, A, B, ...]`."""
        if isinstance(self.module, nn.Conv2d):
            grouped = s.reshape(*s.shape[:3], self.groups, self.outputs, -1)
            return grouped.permute(0, 1, 3, 2, 5, 4)
        return s.reshape(*s.shape[:3], -1, s.shape[-1]).unsqueeze(2)

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return what lies at W and bias as `[A, g, o, i]`, from tensors `[A, *shape]` by position.

        The convolution's weight is read in the order of its patches: depth, height, width.
        """
        weight = tensors[self.weight]
        found = weight.reshape(len(weight), self.groups, self.outputs, -1)
        if self.bias is None:
            return found
        bias = tensors[self.bias].reshape(len(weight), self.groups, self.outputs, 1)
        return torch.cat([found, bias], dim=-1)

    def parts(self, matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield position and value `[A, *shape]` of W and bias: the inverse of `matrix`."""
        weight = self.module.get_parameter("weight")
        width = self.inputs - (self.bias is not None)
        yield self.weight, matrix[..., :width].reshape(len(matrix), *weight.shape)
        if self.bias is not None:
            yield self.bias, matrix[..., width].reshape(len(matrix), -1)


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the patches of a convolution, `[A, g, B, T, depth * height * width]`."""
    images = x.flatten(0, 1)
    padding = module._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        images = nn.functional.pad(images, padding, mode=mode)
    columns = nn.functional.unfold(
        images, module.kernel_size, dilation=module.dilation, stride=module.stride
    )
    grouped = columns.view(*x.shape[:2], module.groups, -1, columns.shape[-1])
    return grouped.permute(0, 2, 1, 4, 3)


@dataclass(frozen=True)
class KroneckerModel:
    """Which parameters of a model have a block.

    Args:
        layers: those with one.
        others: positions of the parameters without.
        reasons: name of each of these parameters -> why.
    """

    layers: tuple[KroneckerLayer, ...]
    others: tuple[int, ...]
    reasons: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> KroneckerModel:
        """Read a module; positions count its parameters with `requires_grad`.

        Raises:
            UnsupportedModelError: two layers share a parameter, or no layer has a block.
        """
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        ids = [id(p) for p in model.parameters() if p.requires_grad]
        at = {identity: position for position, identity in enumerate(ids)}
        owners: dict[int, str] = {}
        opaque = {
            id(child): f"an attention projection of {name or 'the model'}"
            for name, module in model.named_modules()
            if isinstance(module, nn.MultiheadAttention)
            for child in module.modules()
        }
        layers: list[KroneckerLayer] = []
        reasons: dict[str, str] = {}
        for name, module in model.named_modules():
            for own, parameter in module.named_parameters(recurse=False):
                full = f"{name}.{own}" if name else own
                position = at.get(id(parameter))
                if position is None:
                    continue
                if id(parameter) in owners:
                    raise UnsupportedModelError(
                        f"{owners[id(parameter)]} and {full} are one tied parameter: "
                        "its curvature is not a Kronecker product of either layer's factors"
                    )
                owners[id(parameter)] = full
                reason = opaque.get(id(module)) or _why_not(module)
                if reason:
                    reasons[names[position]] = reason
            if id(module) not in opaque and not _why_not(module):
                layers.extend(_layer(name, module, at, reasons, names))
        if not layers:
            raise UnsupportedModelError(
                "no layer of the model has Kronecker factors: it needs a trained nn.Linear or "
                "nn.Conv2d outside of attention"
            )
        covered = {position for layer in layers for position in layer.positions}
        others = tuple(i for i in range(len(names)) if i not in covered)
        for position in others:
            reasons.setdefault(names[position], "a parameter of a module of another kind")
        return cls(tuple(layers), others, {names[i]: reasons[names[i]] for i in others})

    @property
    def sizes(self) -> dict[str, int]:
        """Scalars of all factors A and of all factors G, each symmetric: its upper triangle."""
        return {
            "input_factors": sum(packed_size(layer.factor_shapes[0]) for layer in self.layers),
            "gradient_factors": sum(packed_size(layer.factor_shapes[1]) for layer in self.layers),
        }


def _why_not(module: nn.Module) -> str:
    """Return why a module with parameters has no block; empty where it has one."""
    if parametrize.is_parametrized(module):
        return f"{type(module).__name__} is parametrized"
    if type(module) in (nn.Linear, nn.Conv2d):
        return ""
    return f"{type(module).__name__} has no Kronecker factors"


def _layer(
    name: str, module: nn.Module, at: dict[int, int], reasons: dict[str, str], names: list[str]
) -> list[KroneckerLayer]:
    """Return the block of a linear layer or a convolution, none where W is frozen."""
    weight = module.get_parameter("weight")
    has_bias = getattr(module, "bias", None) is not None
    bias = at.get(id(module.get_parameter("bias"))) if has_bias else None
    if id(weight) not in at:
        if bias is not None:
            reasons[names[bias]] = "its layer's weight is frozen"
        return []
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    inputs = weight[0].numel() + (bias is not None)
    return [
        KroneckerLayer(
            name, module, at[id(weight)], bias, groups, inputs, weight.shape[0] // groups
        )
    ]


# A batch ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerStatistics:
    """What a layer saw in a batch.

    Args:
        rows: inputs of W, `[A, g, B, T, i]`.
        gradients: for each column k of the Hessian of an example's loss l, the gradient of the
            output's product with it, at the layer's output: `[K, A, g, B, T, o]`. For the
            empirical Fisher the one column is the gradient of l.
        weights: of the examples in the objective, `[A, B]`, 1 in sum for each client; 0 for
            what only fills a batch up.
    """

    rows: Tensor
    gradients: Tensor
    weights: Tensor

    def input_factor(self) -> Tensor:
        """Return A = sum_n w_n mean_t a a^T, `[A, g, i, i]`."""
        scales = (self.weights / self.rows.shape[3]).sqrt()[:, None, :, None, None]
        flat = (self.rows * scales.to(self.rows.dtype)).flatten(2, 3)
        return flat.mT @ flat

    def gradient_factor(self) -> Tensor:
        """Return G = sum_n w_n sum_t sum_k s s^T, `[A, g, o, o]`."""
        scales = self.weights.sqrt()[None, :, None, :, None, None]
        scaled = self.gradients * scales.to(self.gradients.dtype)
        flat = scaled.movedim(0, 2).flatten(2, 4)
        return flat.mT @ flat

    def diagonal(self, input_basis: Tensor, gradient_basis: Tensor) -> Tensor:
        """Return the Fisher's diagonal in a Kronecker basis, `[A, g, o, i]`.

        That is sum_n w_n sum_k (U_G^T (sum_t s a^T) U_A)^2, elementwise squared: the second
        moments of the examples' own gradients.

        Source: George et al. 2018 (EKFAC), equation 6 and algorithm 1.
        """
        a = self.rows @ input_basis.unsqueeze(2)
        s = self.gradients @ gradient_basis.unsqueeze(2)
        weights = self.weights[:, None, :, None, None].to(a.dtype)
        if a.shape[3] == 1:  # (s a^T)^2 = s^2 (a^2)^T
            squares = (s.square().sum(0) * weights).flatten(2, 3)
            return squares.mT @ a.square().flatten(2, 3)
        clients, groups, examples, _, inputs = a.shape
        outputs = s.shape[-1]
        found = a.new_zeros(clients, groups, outputs, inputs)
        at_once = max(1, CHUNK // (clients * groups * outputs * inputs))
        for column in s:
            for first in range(0, examples, at_once):
                part = slice(first, first + at_once)
                gradients = column[:, :, part].mT @ a[:, :, part]
                found += (gradients.square_() * weights[:, :, part]).sum(2)
        return found


def hessian_columns(
    kind: str, output: Tensor, *, draws: Tensor | None = None, classes_last: bool = False
) -> Tensor:
    """Return columns S with S S^T = H, the Hessian of each example's loss at the output.

    Cross-entropy has H = diag(p) - p p^T, divided by the positions that it is a mean over; the
    squared error, a mean over D elements, H = 2 / D. With `draws` there is one column, random,
    with E[s s^T] = H: the gradient of the loss at a target drawn from the model's distribution.

    Args:
        kind: `cross_entropy` or `mse`.
        output: `[N, C]`, or with more axes: classes are axis 1.
        draws: for cross-entropy uniform numbers in [0, 1), one for each position `[N, ...]`; for
            the squared error standard normal numbers of the output's shape. None for all columns.
        classes_last: whether the classes are the last axis instead.

    Returns:
        `[K, *output.shape]`; K is C times the positions, D, or 1 with draws.

    Source: Martens & Grosse 2015, section 5; Dangel et al. 2020, equations 2 and 3.
    """
    output = output.detach()
    if kind == "mse":
        scale = math.sqrt(2 / max(1, output[0].numel()))
        if draws is not None:
            return (draws.to(output) * scale).unsqueeze(0)
        flat = torch.eye(output[0].numel(), dtype=output.dtype, device=output.device) * scale
        columns = flat.view(-1, 1, *output.shape[1:])
        return columns.expand(-1, *output.shape)
    if kind != "cross_entropy":
        raise ValueError(f'the Hessian of "{kind}" is not known; known: cross_entropy, mse')
    scores = output if classes_last or output.dim() < 3 else output.movedim(1, -1)
    p = scores.softmax(-1)
    classes = p.shape[-1]
    positions = max(1, p[0, ..., 0].numel())
    scale = 1 / math.sqrt(positions)
    if draws is not None:
        below = p.cumsum(-1) <= draws.to(p).unsqueeze(-1)
        label = below.sum(-1).clamp_(max=classes - 1)
        found = (p - nn.functional.one_hot(label, classes).to(p)).mul_(scale).unsqueeze(0)
    else:
        eye = torch.eye(classes, dtype=p.dtype, device=p.device)
        # column c: sqrt(p_c) (e_c - p), of one position at a time
        spread = eye.view(classes, *(1,) * (p.dim() - 1), classes) - p.unsqueeze(0)
        columns = spread * p.movedim(-1, 0).sqrt().unsqueeze(-1) * scale
        if positions == 1:
            found = columns
        else:
            flat = columns.flatten(2, -2)  # [C, N, T, C]
            apart = torch.eye(positions, dtype=p.dtype, device=p.device)[:, None, None, :, None]
            found = (apart * flat.unsqueeze(0)).flatten(0, 1).view(-1, *p.shape)
    return found if scores is output else found.movedim(-1, 2)


# Algebra ------------------------------------------------------------------------------------------


def trace(factor: Tensor) -> Tensor:
    """Return the trace of `[..., d, d]`."""
    return factor.diagonal(dim1=-2, dim2=-1).sum(-1)


def factored_damping(inputs: Tensor, gradients: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is added to the diagonals of A and of G: pi sqrt(damping), sqrt(damping) / pi.

    pi is the root of the ratio of their mean eigenvalues; 1 where either is zero.

    Args:
        inputs: A, `[A, g, i, i]`.
        gradients: G, `[A, g, o, o]`.
        damping: lambda, `[A]`.

    Source: Martens & Grosse 2015, section 6.3.
    """
    mean_a = trace(inputs) / inputs.shape[-1]
    mean_g = trace(gradients) / gradients.shape[-1]
    both = (mean_a > 0) & (mean_g > 0)
    pi = torch.where(both, mean_a / mean_g, torch.ones_like(mean_a)).sqrt()
    root = damping.to(pi).sqrt().unsqueeze(-1)
    return pi * root, root / pi


def damped_inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """Return (F + damping)^-1, always finite for finite F.

    By Cholesky in the factor's own precision; where that fails, or would lose the damping to
    rounding, by an eigendecomposition in double precision, with negative eigenvalues taken as 0.

    Args:
        factor: symmetric, positive but for rounding, `[..., d, d]`.
        damping: > 0, `[...]`.
    """
    size = factor.shape[-1]
    eye = torch.eye(size, dtype=factor.dtype, device=factor.device)
    lower, info = torch.linalg.cholesky_ex(factor + damping[..., None, None] * eye)
    bad = (info != 0) | (damping < _rounding(factor) * trace(factor))
    inverse = torch.cholesky_inverse(torch.where(bad[..., None, None], eye, lower))
    inverse = (inverse + inverse.mT) / 2
    bad |= ~inverse.isfinite().flatten(-2).all(-1)
    if bad.any():
        values, vectors = torch.linalg.eigh(factor[bad].double())
        denominators = values.clamp_(min=0) + damping[bad].double().unsqueeze(-1)
        inverse[bad] = ((vectors / denominators.unsqueeze(-2)) @ vectors.mT).to(inverse.dtype)
    return inverse


def eigenbasis(factor: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues >= 0, ascending `[..., d]`, and eigenvectors `[..., d, d]`.

    In the factor's own precision; in double precision where eigenvalues as small as `floor`
    `[...]` would be lost to rounding, or where the decomposition does not converge.
    """
    if factor.dtype == torch.float64:
        values, vectors = torch.linalg.eigh(factor)
        return values.clamp_(min=0), vectors
    lost = floor < _rounding(factor) * trace(factor)
    try:
        values, vectors = torch.linalg.eigh(factor)
        bad = lost | ~(values.isfinite().all(-1) & vectors.isfinite().flatten(-2).all(-1))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values, vectors = factor.new_empty(factor.shape[:-1]), torch.empty_like(factor)
        bad = torch.ones_like(lost)
    if bad.any():
        wide_values, wide_vectors = torch.linalg.eigh(factor[bad].double())
        values[bad] = wide_values.to(values.dtype)
        vectors[bad] = wide_vectors.to(vectors.dtype)
    return values.clamp_(min=0), vectors


def _rounding(factor: Tensor) -> float:
    """Return the share of the trace below which eigenvalues are rounding errors, with a margin."""
    return 10 * torch.finfo(factor.dtype).eps


def packed_size(shape: tuple[int, int, int]) -> int:
    """Return the scalars of symmetric matrices `[g, d, d]` as their upper triangles."""
    groups, size, _ = shape
    return groups * size * (size + 1) // 2


def pack(factors: Sequence[Tensor]) -> Tensor:
    """Return symmetric matrices, `[A, g, d, d]` each, as one vector of triangles `[A, size]`."""
    pieces = []
    for factor in factors:
        row, column = torch.triu_indices(*factor.shape[-2:], device=factor.device)
        pieces.append(factor[..., row, column].flatten(1))
    return torch.cat(pieces, dim=1)


def unpack(packed: Tensor, shapes: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Return the matrices, `[A, g, d, d]` each, of a vector `[A, size]`: the inverse of `pack`."""
    found, start = [], 0
    for shape in shapes:
        groups, size, _ = shape
        stop = start + packed_size(shape)
        triangles = packed[:, start:stop].view(len(packed), groups, -1)
        start = stop
        row, column = torch.triu_indices(size, size, device=packed.device)
        matrix = packed.new_empty(len(packed), *shape)
        matrix[..., row, column] = triangles
        matrix[..., column, row] = triangles
        found.append(matrix)
    return found
