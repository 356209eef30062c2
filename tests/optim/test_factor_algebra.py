"""Inverses of factors that single precision cannot tell from singular ones: finite, and right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedopt.optim.kronecker import damped_inverse, eigenbasis, pack, unpack


def factors(seed: int, size: int, rank: int, scale: float) -> Tensor:
    """Three factors: all of a rank, the second zero."""
    rows = torch.randn(
        3, rank, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    rows[1] = 0
    return scale * rows.mT @ rows


@given(
    seed=st.integers(0, 100),
    size=st.integers(1, 8),
    rank=st.integers(1, 8),
    scale=st.sampled_from([1e-12, 1.0, 1e6, 1e12]),
    relative=st.sampled_from([1e-12, 1e-6, 1e-2, 1.0]),
)
def test_inverses_are_finite_and_right_in_single_precision(
    seed: int, size: int, rank: int, scale: float, relative: float
) -> None:
    exact = factors(seed, size, rank, scale)
    damping = torch.full((3,), relative * scale, dtype=torch.float64)
    rounded = exact.float()
    found = damped_inverse(rounded, damping.float())
    assert found.isfinite().all()
    # What is inverted is the rounded factor; its own error times the condition is not ours.
    values, vectors = torch.linalg.eigh(rounded.double())
    inverse = 1 / (values.clamp(min=0) + damping.float().double().unsqueeze(-1))
    expected = (vectors * inverse.unsqueeze(-2)) @ vectors.mT
    norms = torch.linalg.matrix_norm(expected, keepdim=True)
    assert ((found.double() - expected) / norms).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenbases_of_singular_factors_are_orthogonal(dtype: torch.dtype) -> None:
    factor = factors(0, 6, 2, 1e8).to(dtype)
    values, vectors = eigenbasis(factor, torch.full((3,), 1e-9, dtype=dtype))
    assert (values >= 0).all()
    eye = torch.eye(6, dtype=dtype).expand(3, 6, 6)
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-5)
    again = (vectors * values.unsqueeze(-2)) @ vectors.mT
    torch.testing.assert_close(again, factor, rtol=0, atol=float(1e-5 * factor.abs().max()))


@given(groups=st.integers(1, 3), size=st.integers(1, 5), clients=st.integers(1, 3))
def test_triangles_hold_a_symmetric_matrix(groups: int, size: int, clients: int) -> None:
    rows = torch.randn(clients, groups, size, size, dtype=torch.float64)
    matrices = [rows @ rows.mT, rows.square().sum((-1, -2), keepdim=True)]
    shapes = [(groups, size, size), (groups, 1, 1)]
    packed = pack(matrices)
    assert packed.shape == (clients, groups * (size * (size + 1) // 2 + 1))
    for matrix, again in zip(matrices, unpack(packed, shapes), strict=True):
        assert torch.equal(again.triu(), matrix.triu())
        assert torch.equal(again, again.mT)
