"""Sharpness of a loss around a point: its largest curvature, and its rise within a small ball.

Functions of a loss and of the tensors it depends on; they know no data set and no client. A loss
is a function without arguments that returns a scalar tensor, or a sequence of such functions
whose sum it is (one a batch, which bounds the memory). It must give the same value each time:
no dropout, no statistics of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Loss = Callable[[], Tensor] | Sequence[Callable[[], Tensor]]


def top_hessian_eigenvalue(
    loss: Loss,
    parameters: Sequence[Tensor],
    iterations: int = 50,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:
    """Return the largest eigenvalue of the Hessian of a loss, the largest algebraically.

    Lanczos' method with full reorthogonalisation, on products of the Hessian with vectors
    (Pearlmutter's: the gradient of <gradient, v>). An eigenvalue below zero of larger size does
    not hide the largest one, as it would with power iteration; the result is negative only where
    the Hessian is negative definite. Each iteration costs one product (about two gradients) and
    keeps one vector of the size of all parameters.

    It ends when the residual bound |lambda - theta| <= beta_k |s_k| is below the tolerance. A
    Ritz value theta never exceeds the largest eigenvalue, so that too few iterations give a
    lower bound.

    Args:
        loss: L, one function or several that add up; twice differentiable where it is taken.
        parameters: the tensors that L depends on, all of one floating type and device, with
            `requires_grad`; P scalars in all. They are left as they are.
        iterations: most products, >= 1; with P of them the result is exact but for rounding.
        tolerance: of the result, relative to its size, >= 0.
        generator: draws the start vector (on the CPU, whatever the device); None takes one of
            a fixed seed. The same generator state gives the same start.

    Returns:
        The eigenvalue; 0 for a linear loss, NaN where a product is not finite.

    Raises:
        ValueError: no parameter, or an argument out of range.

    Source: Lanczos, "An iteration method for the solution of the eigenvalue problem", 1950;
        Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994;
        Parlett, "The symmetric eigenvalue problem", 1980, chapter 13. As a measure of sharpness:
        Keskar et al., "On large-batch training for deep learning", ICLR 2017.
    """
    tensors = _checked(parameters)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    product = _hessian_product(_terms(loss), tensors)
    size = sum(tensor.numel() for tensor in tensors)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    first = torch.randn(size, generator=generator, dtype=torch.float64)
    vector = (first / first.norm()).to(tensors[0])
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []  # beta_1, ..., beta_(k-1)
    eps = torch.finfo(vector.dtype).eps
    scale = 0.0  # a lower bound of the Hessian's norm
    for _ in range(min(iterations, size)):
        basis.append(vector)
        image = product(vector)
        if not torch.isfinite(image).all():
            return math.nan
        diagonal.append(float(image.double() @ vector.double()))
        for _ in range(2):  # once leaves the rounding of large components behind
            for known in basis:
                image = image - known * (known @ image)
        beta = float(image.double().norm())
        theta, last = _largest_ritz_pair(diagonal, beside)
        scale = max(scale, abs(diagonal[-1]) + beta)
        # beta at rounding level: the basis spans all that the start vector reaches.
        if beta <= 8 * eps * scale or beta * last <= max(tolerance * abs(theta), eps * scale):
            break
        beside.append(beta)
        vector = image / image.norm()
    return theta


def sam_ball_increase(
    loss: Loss, parameters: Sequence[Tensor], rho: float = 0.05, steps: int = 1
) -> float:
    """Return how much a loss rises when SAM perturbs the parameters.

        e_0 = 0;  e_k = e_(k-1) + rho/steps * g(w + e_(k-1)) / ||g(w + e_(k-1))||
        result = max over k = 1..steps of L(w + e_k) - L(w)

    With one step, the default, this is L(w + rho g/||g||) - L(w), the rise along the ascent
    direction of SAM. All e_k lie in the ball of radius rho, so the result is a lower bound of the
    loss's largest rise in it, equal to it to first order in rho. It can be negative, where the
    loss curves down within rho. The norm is Euclidean, over all parameters together.

    Args:
        loss: L, one function or several that add up.
        parameters: w, the tensors that L depends on, with `requires_grad`; changed while the
            loss is taken, and the same bits afterwards.
        rho: radius of the ball, > 0.
        steps: gradient steps of equal length to its edge, >= 1.

    Returns:
        The rise; 0 where the gradient is zero, NaN where loss or gradient are not finite.

    Raises:
        ValueError: no parameter, or an argument out of range.

    Source: Foret et al., "Sharpness-aware minimization for efficiently improving
        generalization", ICLR 2021, eq. 2.
    """
    tensors, terms = _checked(parameters), _terms(loss)
    if not (rho > 0 and math.isfinite(rho)):
        raise ValueError(f"rho must be a positive number, got {rho}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    kept = [tensor.detach().clone() for tensor in tensors]
    base, gradient = _value_and_gradient(terms, tensors)
    rise = -math.inf
    try:
        for _ in range(steps):
            norm = float(gradient.double().norm())
            if not (math.isfinite(base) and math.isfinite(norm)):
                return math.nan
            if norm == 0:
                return max(rise, 0.0)
            _add(tensors, gradient * (rho / steps / norm))
            value, gradient = _value_and_gradient(terms, tensors)
            if math.isnan(value):
                return math.nan
            rise = max(rise, value - base)
    finally:
        with torch.no_grad():
            for tensor, old in zip(tensors, kept, strict=True):
                tensor.copy_(old)
    return rise


def _hessian_product(
    terms: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return v -> H v on flat vectors `[P]`; one term's graph is kept, several are rebuilt."""

    def gradients(term: Callable[[], Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            found = torch.autograd.grad(
                term(), parameters, create_graph=True, materialize_grads=True
            )
        return list(found)

    def times(first: Sequence[Tensor], vector: Tensor, *, keep: bool) -> Tensor:
        pieces = _pieces(vector, parameters)
        pairs = [(g, v) for g, v in zip(first, pieces, strict=True) if g.requires_grad]
        if not pairs:  # the loss is linear
            return torch.zeros_like(vector)
        second = torch.autograd.grad(
            [g for g, _ in pairs],
            parameters,
            [v for _, v in pairs],
            retain_graph=keep,
            materialize_grads=True,
        )
        return _flat(second)

    if len(terms) == 1:
        kept = gradients(terms[0])
        return lambda vector: times(kept, vector, keep=True)

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for term in terms:
            total += times(gradients(term), vector, keep=False)
        return total

    return product


def _value_and_gradient(
    terms: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]
) -> tuple[float, Tensor]:
    """Return the loss and its gradient `[P]`."""
    values, total = [], torch.zeros(0)
    for term in terms:
        with torch.enable_grad():
            value = term()
            gradient = _flat(torch.autograd.grad(value, parameters, materialize_grads=True))
        values.append(float(value.detach()))
        total = total + gradient if len(total) else gradient
    # fsum refuses infinities of both signs.
    return (math.fsum(values) if all(map(math.isfinite, values)) else sum(values)), total


def _largest_ritz_pair(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """Return the largest eigenvalue of a tridiagonal matrix, and its vector's last entry's size."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        side = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(side, 1) + torch.diag(side, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return float(values[-1]), abs(float(vectors[-1, -1]))


def _add(parameters: Sequence[Tensor], vector: Tensor) -> None:
    with torch.no_grad():
        for parameter, piece in zip(parameters, _pieces(vector, parameters), strict=True):
            parameter.add_(piece)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _pieces(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    split = torch.split(vector, [parameter.numel() for parameter in parameters])
    return [piece.view(p.shape) for piece, p in zip(split, parameters, strict=True)]


def _terms(loss: Loss) -> list[Callable[[], Tensor]]:
    terms = [loss] if callable(loss) else list(loss)
    if not terms:
        raise ValueError("the loss has no term")
    return terms


def _checked(parameters: Sequence[Tensor]) -> list[Tensor]:
    tensors = list(parameters)
    if not sum(tensor.numel() for tensor in tensors):
        raise ValueError("there is no parameter")
    if not all(tensor.requires_grad for tensor in tensors):
        raise ValueError("all parameters must require a gradient")
    if len({(tensor.dtype, tensor.device) for tensor in tensors}) > 1:
        raise ValueError("all parameters must have one type and one device")
    return tensors
