"""Codecs: what is decoded is what `compress` says, in the bytes it says, in any group."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fedopt.compression
from fedopt.compression import (
    QSGD,
    Codec,
    Identity,
    PowerSGD,
    RandomK,
    StochasticUniform,
    TopK,
    error_feedback,
)

CODECS: tuple[Codec, ...] = (
    Identity(),
    StochasticUniform(1),
    StochasticUniform(5),
    StochasticUniform(16),
    QSGD(1),
    QSGD(4),
    QSGD(65535),
    TopK(0.01),
    TopK(0.4),
    TopK(1),
    RandomK(0.3),
    RandomK(0.3, scaled=False),
    RandomK(1),
    PowerSGD(1),
    PowerSGD(3),
)
CONTRACTIONS: tuple[Codec, ...] = (
    TopK(0.01),
    TopK(0.4),
    RandomK(0.3, scaled=False),
    PowerSGD(1),
    PowerSGD(3),
    Identity(),
)
UNBIASED: tuple[Codec, ...] = (
    StochasticUniform(1),
    StochasticUniform(3),
    QSGD(1),
    QSGD(5),
    RandomK(0.3),
    Identity(),
)
DTYPES = (torch.float32, torch.float64)
SHAPES = ((), (1,), (3,), (17,), (2, 1), (4, 5), (6, 2, 3), (9, 9), (3, 0))

codecs = st.sampled_from(CODECS)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**63 - 1)
shape_lists = st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4).filter(
    lambda shapes: elements(shapes) > 0
)
numbers = st.one_of(
    st.floats(-1e3, 1e3, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 1e-20, 1e15]),
)


def elements(shapes: Any) -> int:
    return sum(math.prod(shape) for shape in shapes)


def generators(seed: int, group: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed((seed + g) % 2**63) for g in range(group)]


def normal(group: int, shapes: Any, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    (generator,) = generators(seed, 1)
    return torch.randn(group, elements(shapes), generator=generator, dtype=dtype)


def bits(tensor: Tensor) -> Tensor:
    """What tells 0 from -0."""
    return tensor.contiguous().view(torch.uint8)


@st.composite
def groups(draw: Any) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Rows of a group with the model's shapes, of few different numbers or many."""
    shapes = draw(shape_lists)
    group, size = draw(st.integers(1, 4)), elements(shapes)
    if draw(st.booleans()):
        drawn = torch.randn(group, size, generator=generators(draw(seeds), 1)[0])
        rows = drawn.to(draw(dtypes))
    else:
        few = draw(st.lists(numbers, min_size=1, max_size=5))
        choice = torch.randint(len(few), (group, size), generator=generators(draw(seeds), 1)[0])
        rows = torch.tensor(few, dtype=draw(dtypes))[choice]
    return rows, shapes


# What holds for every codec -----------------------------------------------------------------------


@given(codec=codecs, drawn=groups(), seed=seeds)
@settings(max_examples=300, deadline=None)
def test_encoding_and_group_change_no_bit(codec: Codec, drawn: Any, seed: int) -> None:
    rows, shapes = drawn
    before = rows.clone()
    own = generators(seed, len(rows))
    together = codec.compress(rows, own, shapes)
    assert torch.equal(bits(rows), bits(before))
    assert together.rows.dtype == rows.dtype
    assert together.rows.shape == rows.shape
    assert together.nbytes.dtype == torch.int64
    assert together.rows.isfinite().all()
    for g, row in enumerate(rows):
        (encoding,) = generators(seed + g, 1)
        data = codec.encode(row, encoding, shapes)
        assert len(data) == together.nbytes[g]
        decoded = codec.decode(data, row.numel(), row.dtype, shapes)
        assert decoded.dtype == row.dtype
        assert torch.equal(bits(decoded), bits(together.rows[g]))
        alone = codec.compress(row.unsqueeze(0), generators(seed + g, 1), shapes)
        assert torch.equal(bits(alone.rows[0]), bits(decoded))
        assert torch.equal(encoding.get_state(), own[g].get_state())


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_large_rows_too(codec: Codec, dtype: torch.dtype) -> None:
    """Sums and products of many numbers are where groups and threads would show."""
    shapes = [(32, 3, 5, 5), (32,), (120, 131), (10, 1001)]
    rows = normal(5, shapes).to(dtype)
    together = codec.compress(rows, generators(3, 5), shapes)
    for g in (0, 3, 4):
        data = codec.encode(rows[g], generators(3 + g, 1)[0], shapes)
        decoded = codec.decode(data, rows.shape[1], dtype, shapes)
        assert len(data) == together.nbytes[g]
        assert torch.equal(bits(decoded), bits(together.rows[g]))


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [[(1,)], [(7, 9), (3,)]])
def test_zeros_stay_zeros(codec: Codec, dtype: torch.dtype, shapes: Any) -> None:
    rows = torch.zeros(3, elements(shapes), dtype=dtype)
    rows[1] = 1
    decoded = codec.compress(rows, generators(0, 3), shapes).rows
    assert not decoded[0].any()
    assert not decoded[2].any()
    assert decoded.isfinite().all()


@pytest.mark.parametrize("codec", [c for c in CODECS if not isinstance(c, RandomK | TopK)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_client_that_diverged_shows_and_harms_no_other(codec: Codec, bad: float) -> None:
    shapes = [(7, 9), (3,)]
    rows = normal(3, shapes)
    whole = codec.compress(rows, generators(0, 3), shapes).rows
    rows[1, 5] = bad
    decoded = codec.compress(rows, generators(0, 3), shapes).rows
    assert not decoded[1].isfinite().all()
    assert torch.equal(decoded[[0, 2]], whole[[0, 2]])
    data = codec.encode(rows[1], generators(1, 1)[0], shapes)
    again = codec.decode(data, rows.shape[1], rows.dtype, shapes)
    assert torch.equal(again.isfinite(), decoded[1].isfinite())


@pytest.mark.parametrize("codec", UNBIASED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 6])
def test_the_mean_of_many_draws_is_the_input(codec: Codec, dtype: torch.dtype, size: int) -> None:
    draws = 20_000
    assert codec.is_unbiased
    row = torch.tensor([0.3, -1.7, 0.0, 1e-3, 0.9, 2.2], dtype=dtype)[-size:]
    rows = row.expand(draws, -1)
    decoded = codec.compress(rows, generators(0, draws), ()).rows.double()
    deviations = decoded.std(dim=0) / math.sqrt(draws)
    # Five standard deviations. The header is rounded outward to float32, so that an extreme goes to
    # another level about once in 2^24 draws: a deviation that these draws do not show.
    tolerances = 5 * deviations + 4 * torch.finfo(torch.float32).eps * row.abs().max()
    assert ((decoded.mean(dim=0) - row.double()).abs() <= tolerances).all()


def test_who_is_unbiased() -> None:
    assert all(codec.is_unbiased for codec in UNBIASED)
    biased: list[Codec] = [TopK(0.5), RandomK(0.5, scaled=False), PowerSGD(2)]
    assert not any(codec.is_unbiased for codec in biased)
    keeping: list[Codec] = [TopK(1), RandomK(1, scaled=False)]
    assert all(codec.is_unbiased for codec in keeping)


@pytest.mark.parametrize(
    ("codec", "nbytes"),
    [
        (Identity(), 40),
        (StochasticUniform(3), 8 + 4),
        (QSGD(4), 4 + 5),  # 3 bits and a sign for 0..4
        (QSGD(3), 4 + 4),
        (TopK(0.2), 1 + 1 + 8),  # two indices of 4 bits
        (TopK(0.5), 1 + 2 + 20),  # a bitmap: five indices take 3 bytes
        (RandomK(0.2), 8 + 8),
        (PowerSGD(1), 4 * (3 + 3 + 1)),
        (PowerSGD(2), 40),  # two columns of each factor are longer than the matrix
    ],
    ids=str,
)
def test_bytes_by_hand(codec: Codec, nbytes: int) -> None:
    shapes = [(3, 3), (1,)]
    row = torch.arange(10.0)
    assert codec.compress(row.unsqueeze(0), generators(0, 1), shapes).nbytes.tolist() == [nbytes]
    data = codec.encode(row, generators(0, 1)[0], shapes)
    assert len(data) == codec.nbytes(10, 4, shapes) == nbytes
    with pytest.raises(ValueError, match=f"data must have {nbytes} bytes"):
        codec.decode(data + b"\x00", 10, row.dtype, shapes)


# Quantisers ---------------------------------------------------------------------------------------


@given(drawn=groups(), width=st.integers(1, 16), seed=seeds)
@settings(deadline=None)
def test_uniform_levels_are_next_to_the_value(drawn: Any, width: int, seed: int) -> None:
    rows, shapes = drawn
    decoded = StochasticUniform(width).compress(rows, generators(seed, len(rows)), shapes).rows
    exact, low, high = rows.double(), rows.amin(1, True).double(), rows.amax(1, True).double()
    # The header is rounded to float32, to denormal numbers at worst.
    slack = 2e-7 * rows.abs().amax(1, True).double() + 1e-38
    assert (decoded >= low - slack).all()
    assert (decoded <= high + slack).all()
    step = (high - low) / (2**width - 1)
    assert ((decoded - exact).abs() <= step * (1 + 1e-6) + 2 * slack).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_on_a_level_stay(dtype: torch.dtype) -> None:
    row = torch.arange(2**16, dtype=dtype)[torch.randperm(2**16, generator=generators(0, 1)[0])]
    rows = row.expand(3, -1)
    assert torch.equal(StochasticUniform(16).compress(rows, generators(1, 3), ()).rows, rows)
    constant = torch.full((2, 9), 0.1)
    assert torch.equal(StochasticUniform(2).compress(constant, generators(1, 2), ()).rows, constant)


def test_headers_in_float32_hold_every_float64() -> None:
    rows = torch.tensor([[0.1, 0.7], [-0.7, -0.1], [1e-300, 3e-300], [-1e-300, 1 / 3]]).double()
    rows = rows + 1e-12
    header = StochasticUniform(4)._header(rows)
    assert header.dtype == torch.float32
    assert (header[:, 0].double() <= rows.amin(1)).all()
    assert (header[:, 1].double() >= rows.amax(1)).all()
    assert (QSGD(4)._header(rows).double() >= rows.norm(dim=1)).all()


@pytest.mark.parametrize("levels", [1, 3, 16])
def test_qsgd_has_its_levels_signs_and_variance(levels: int) -> None:
    size, draws = 50, 2000
    row = normal(1, [(size,)])
    decoded = QSGD(levels).compress(row.expand(draws, -1), generators(0, draws), ()).rows
    norm = QSGD(levels)._header(row).double()
    units = decoded / norm * levels
    assert torch.allclose(units, units.round(), atol=1e-12)
    assert ((decoded == 0) | (decoded.sign() == row.sign())).all()
    assert ((units - row / norm * levels).abs() < 1).all()
    variance = (decoded - row).square().sum(1).mean() / row.square().sum()
    # Lemma 3.1; the mean over 2000 draws is well below the bound.
    assert variance <= min(size / levels**2, math.sqrt(size) / levels)


# Sparsifiers --------------------------------------------------------------------------------------


@given(drawn=groups(), share=st.floats(0.001, 1))
@settings(max_examples=200, deadline=None)
def test_top_k_keeps_the_largest_and_contracts(drawn: Any, share: float) -> None:
    rows, shapes = drawn
    size = rows.shape[1]
    count = max(1, round(share * size))
    decoded = TopK(share).compress(rows, generators(0, len(rows)), shapes).rows
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices[:, :count]
    expected = torch.zeros_like(rows).scatter(1, order, rows.gather(1, order))
    assert torch.equal(bits(decoded), bits(expected))
    exact = rows.double()
    lost = (exact - decoded.double()).square().sum(1)
    # 1e-12: sums of at most 324 squares in float64.
    assert (lost <= (1 - count / size) * exact.square().sum(1) * (1 + 1e-12) + 1e-300).all()


def test_ties_go_to_the_first() -> None:
    rows = torch.tensor([[1.0, -2, 2, -2, 1], [0, 0, 0, 0, 0], [3, 1, -1, 1, 1]])
    decoded = TopK(0.4).compress(rows, generators(0, 3), ()).rows
    assert decoded.tolist() == [[0, -2, 2, 0, 0], [0, 0, 0, 0, 0], [3, 1, 0, 0, 0]]


def test_elements_that_are_not_finite_are_the_largest() -> None:
    rows = torch.tensor([[5.0, math.nan, 1, -math.inf]])
    decoded = TopK(0.5).compress(rows, generators(0, 1), ()).rows[0]
    assert decoded[1].isnan()
    assert decoded[[0, 2, 3]].tolist() == [0, 0, -math.inf]


def test_random_k_draws_every_element_equally_often() -> None:
    draws, size = 4000, 10
    rows = torch.ones(draws, size)
    decoded = RandomK(0.3).compress(rows, generators(0, draws), ()).rows
    assert ((decoded == 0) | (decoded == torch.tensor(10 / 3))).all()
    assert ((decoded != 0).sum(1) == 3).all()
    often = (decoded != 0).double().mean(0)
    # Five standard deviations of a share of 0.3.
    assert ((often - 0.3).abs() < 5 * math.sqrt(0.3 * 0.7 / draws)).all()
    plain = RandomK(0.3, scaled=False).compress(rows, generators(0, draws), ()).rows
    assert torch.equal(plain != 0, decoded != 0)
    assert plain.max() == 1


# Low rank -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("true_rank", [0, 1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_power_sgd_is_exact_on_low_ranks(rank: int, true_rank: int, seed: int) -> None:
    shapes = [(40, 5, 6), (7,), (30, 50)]
    parts = []
    for n, m in ((40, 30), (30, 50)):
        left = normal(n, [(true_rank,)], seed) if true_rank else torch.zeros(n, 1).double()
        right = normal(m, [(true_rank,)], seed + 9) if true_rank else torch.zeros(m, 1).double()
        parts.append((left @ right.T).reshape(-1))
    rows = torch.cat([parts[0], torch.arange(7.0).double(), parts[1]]).unsqueeze(0)
    compressed = PowerSGD(rank).compress(rows, generators(seed, 1), shapes)
    assert compressed.nbytes.item() == 8 * (rank * (40 + 30) + 7 + rank * (30 + 50))
    error = (compressed.rows - rows).norm() / rows.norm()
    if true_rank <= rank:
        assert error < 1e-10
    else:
        assert 1e-3 < error < 1
    assert torch.equal(compressed.rows[:, 1200:1207], rows[:, 1200:1207])
    assert compressed.rows.norm() <= rows.norm() * (1 + 1e-12)


def test_power_sgd_is_a_projection_no_better_than_the_best() -> None:
    shapes = [(20, 30)]
    rows = normal(4, shapes)
    for rank in (1, 4, 8):
        decoded = PowerSGD(rank).compress(rows, generators(0, 4), shapes).rows
        values = torch.linalg.svdvals(rows.view(4, 20, 30))
        best = values[:, rank:].square().sum(1)
        lost = (rows - decoded).square().sum(1)
        assert (lost >= best).all()
        # |x|^2 = |P(x)|^2 + |x - P(x)|^2, up to rounding.
        kept = decoded.square().sum(1)
        assert torch.allclose(kept + lost, rows.square().sum(1), rtol=1e-12)


# Error feedback -----------------------------------------------------------------------------------


@given(codec=st.sampled_from(CONTRACTIONS), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_feedback_loses_nothing(codec: Codec, seed: int) -> None:
    shapes = [(8, 9), (5,)]
    residual = torch.zeros(3, elements(shapes), dtype=torch.float64)
    sent, wanted = torch.zeros_like(residual), torch.zeros_like(residual)
    for t in range(15):
        rows = normal(3, shapes, seed + t)
        before = residual.clone()
        compressed, new = error_feedback(codec, rows, residual, generators(t, 3), shapes)
        assert torch.equal(residual, before)
        residual = new
        sent += compressed.rows
        wanted += rows
    # Each round adds roundings of numbers below about 50.
    assert (sent + residual - wanted).abs().max() < 1e-12


def descend(
    codec: Codec, gradients: Any, x: Tensor, rate: float, steps: int, feedback: bool
) -> Tensor:
    """Gradient descent with the mean of compressed steps, from x `[P]`."""
    clients = len(gradients(x))
    residual = torch.zeros(clients, len(x), dtype=x.dtype)
    for t in range(steps):
        rows = rate * gradients(x)
        if feedback:
            compressed, residual = error_feedback(codec, rows, residual, generators(t, clients), ())
        else:
            compressed = codec.compress(rows, generators(t, clients), ())
        x = x - compressed.rows.mean(0)
    return x


def test_top_k_diverges_where_feedback_converges() -> None:
    """f_i(x) = <a_i, x>^2 + |x|^2 / 4 of Beznosikov et al. 2020, example 1: the optimum is 0.

    From (1, 1, 1) each client sends -11/2 of its own coordinate, so the mean step is
    -11/6 (1, 1, 1): away from the optimum, at any rate.
    """
    a = torch.tensor([[-3.0, 2, 2], [2, -3, 2], [2, 2, -3]]).double()
    start = torch.ones(3).double()

    def gradients(x: Tensor) -> Tensor:
        return 2 * (a @ x).unsqueeze(1) * a + x / 2

    plain = descend(TopK(0.3), gradients, start, 0.003, 2000, feedback=False)
    assert plain == pytest.approx([(1 + 0.003 * 11 / 6) ** 2000] * 3, rel=1e-9)
    fed = descend(TopK(0.3), gradients, start, 0.003, 20_000, feedback=True)
    assert fed.abs().max() < 1e-6


def test_top_k_stalls_where_feedback_converges() -> None:
    """Clients that disagree about one coordinate never send the one they agree about."""
    centres = torch.tensor([[100.0, 1], [-100, 1]]).double()
    start = torch.zeros(2).double()

    def gradients(x: Tensor) -> Tensor:
        return x - centres

    plain = descend(TopK(0.5), gradients, start, 0.01, 3000, feedback=False)
    assert plain.tolist() == [0, 0]
    fed = descend(TopK(0.5), gradients, start, 0.001, 30_000, feedback=True)
    # Steps of 0.001 keep what is unsent, and so the distance, of the order of 0.1.
    assert (fed - torch.tensor([0.0, 1]).double()).abs().max() < 0.1


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: StochasticUniform(0), r"bits must be an integer in 1\.\.16, got 0"),
        (lambda: StochasticUniform(17), r"bits must be an integer in 1\.\.16, got 17"),
        (lambda: StochasticUniform(2.0), r"bits must be an integer in 1\.\.16, got 2\.0"),  # type: ignore[arg-type]
        (lambda: QSGD(0), r"levels must be an integer in 1\.\.65535, got 0"),
        (lambda: QSGD(65536), r"levels must be an integer in 1\.\.65535, got 65536"),
        (lambda: TopK(0.0), r"share must be in \(0, 1\], got 0\.0"),
        (lambda: TopK(math.nan), r"share must be in \(0, 1\], got nan"),
        (lambda: RandomK(1.5), r"share must be in \(0, 1\], got 1\.5"),
        (lambda: PowerSGD(0), r"rank must be an integer >= 1, got 0"),
        (lambda: PowerSGD(True), r"rank must be an integer >= 1, got True"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_rows_that_do_not_fit_are_refused() -> None:
    rows = torch.zeros(2, 6)
    for codec in CODECS:
        with pytest.raises(ValueError, match="generators must be 2, one a row, got 3"):
            codec.compress(rows, generators(0, 3), [(6,)])
        with pytest.raises(ValueError, match=r"rows must be floats \[G, P\]"):
            codec.compress(rows[0], generators(0, 2), [(6,)])
        with pytest.raises(ValueError, match=r"got torch.float32 \[2, 0\]"):
            codec.compress(rows[:, :0], generators(0, 2), [(0,)])
    with pytest.raises(ValueError, match=r"shapes must have 6 elements together.*got 4"):
        PowerSGD(1).compress(rows, generators(0, 2), [(2, 2)])
    with pytest.raises(ValueError, match=r"residual must be \[2, 6\], got \[6\]"):
        error_feedback(Identity(), rows, rows[0], generators(0, 2), ())


def test_codecs_are_values() -> None:
    assert TopK(0.1) == TopK(0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TopK(0.1).share = 0.2  # type: ignore[misc]


def test_it_needs_neither_flower_nor_ray() -> None:
    program = (
        "import sys, fedopt.compression as c; [getattr(c, name) for name in c.__all__];"
        "sys.exit(any(name in sys.modules for name in ('flwr', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'Huffman'"):
        _ = fedopt.compression.Huffman
