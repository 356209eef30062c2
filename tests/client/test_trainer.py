"""The trainer: blocks of clients to sums, reports and state, whatever fails on the way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from torch import Tensor, nn

from fedopt.client.algorithm import PlainLocal
from fedopt.client.loop import LoopEngine
from fedopt.client.messages import decode_outcome, decode_request, encode_outcome, encode_request
from fedopt.client.plan import LocalWork
from fedopt.client.rates import constant_rates
from fedopt.client.recipe import Recipe
from fedopt.client.state import RowFile
from fedopt.client.sums import LONG_ROW, add_weighted
from fedopt.client.trainer import Block, Status, Trainer, TrainingOutcome
from fedopt.data.memory import ListPopulation
from fedopt.models.layout import ModelState, ParameterLayout, model_buffers
from fedopt.optim.rules import Sgd
from fedopt.records import to_record
from fedopt.scratch import Scratch
from fedopt.server.scaffold import ScaffoldLocal

SIZES = (4, 9, 1, 6, 12, 7)
WORK = LocalWork(2, None, 4)


def net() -> nn.Module:
    torch.manual_seed(8)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 3))


def population(poison: dict[int, float] | None = None) -> ListPopulation:
    rng = np.random.default_rng(1)
    clients = [(rng.normal(size=(n, 5)), rng.integers(0, 3, n)) for n in SIZES]
    for client, value in (poison or {}).items():
        clients[client][0][:] = value
    return ListPopulation(clients)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def picky(output: Tensor, target: Tensor) -> Tensor:
    """A loss that cannot take a certain client."""
    if len(target) == 1:
        raise ValueError("one example is not enough")
    return loss(output, target)


def trainer(
    people: ListPopulation | None = None,
    algorithm: Any = None,
    function: Any = loss,
    *,
    by_examples: bool = True,
    drop: bool = False,
    model: nn.Module | None = None,
) -> Trainer:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)) if model is None else model
    engine = LoopEngine(model, function, Recipe(Sgd()), 0, torch.device("cpu"))
    return Trainer(
        people or population(),
        engine,
        algorithm or PlainLocal(),
        WORK,
        constant_rates(0.1),
        0,
        weight_by_examples=by_examples,
        drop_partial=drop,
    )


def start_of(worker: Trainer) -> ModelState:
    generator = torch.Generator().manual_seed(5)
    layout = worker.engine.layout
    values = 0.1 * torch.randn(layout.size, generator=generator)
    return ModelState(values, torch.zeros(layout.buffer_size, dtype=torch.float64))


def run(worker: Trainer, clients: list[list[int]], **steps: int) -> TrainingOutcome:
    # Every other block of a round: none is its neighbour's sibling, so each keeps its own sums.
    blocks = [
        Block(2 * i, members, [steps.get(f"c{c}", WORK.planned_steps(SIZES[c])) for c in members])
        for i, members in enumerate(clients)
    ]
    return worker.train(1, blocks, start_of(worker), {}, None, 2 * len(blocks))


def own_deltas(worker: Trainer) -> dict[int, Tensor]:
    """Each client's weighted change, trained in a block of its own."""
    outcome = run(worker, [[c] for c in range(len(SIZES))])
    return {i: sums.terms["delta"] for i, sums in enumerate(outcome.sums)}


def test_the_block_and_its_order_do_not_change_a_client() -> None:
    alone = own_deltas(trainer())
    mixed = run(trainer(), [[5], [3], [0], [4], [2], [1]])
    for client, sums in zip([5, 3, 0, 4, 2, 1], mixed.sums, strict=True):
        assert torch.equal(sums.terms["delta"], alone[client])
    report = run(trainer(), [[1, 4], [5, 0, 2, 3]]).reports
    reference = run(trainer(), [[0, 1, 2, 3, 4, 5]]).reports
    norms = dict(zip(report.client, report.update_norm, strict=True))
    assert norms == dict(zip(reference.client, reference.update_norm, strict=True))


def test_blocks_do_not_change_each_other() -> None:
    blocks = [[0, 3], [1, 5], [2, 4]]
    together = run(trainer(), blocks)
    worker = trainer()
    for number in (2, 0, 1):
        members = blocks[number]
        steps = [WORK.planned_steps(SIZES[c]) for c in members]
        block = Block(number, members, steps)
        (sums,) = worker.train(1, [block], start_of(worker), {}, None, 3).sums
        assert torch.equal(sums.terms["delta"], together.sums[number].terms["delta"])


@pytest.mark.parametrize("by_examples", [True, False])
def test_sums_are_the_weighted_sums_of_the_clients(by_examples: bool) -> None:
    alone = own_deltas(trainer(by_examples=by_examples))
    outcome = run(trainer(by_examples=by_examples), [[0, 1, 2], [3, 4, 5]])
    for sums, members in zip(outcome.sums, ([0, 1, 2], [3, 4, 5]), strict=True):
        expected = sum(alone[c] for c in members)
        # Float64 sums of three numbers, in whatever order.
        torch.testing.assert_close(sums.terms["delta"], expected, rtol=1e-14, atol=1e-15)
        assert sums.weight == sum(SIZES[c] if by_examples else 1 for c in members)
        assert sums.count == 3
    report = outcome.reports
    assert report.status == [Status.TRAINED] * 6
    assert sorted(report.client) == list(range(6))
    assert all(report.examples[i] == SIZES[c] for i, c in enumerate(report.client))
    assert report.steps == report.planned_steps
    assert all(report.steps[i] == WORK.planned_steps(SIZES[c]) for i, c in enumerate(report.client))


def test_a_clients_update_is_single_precision_its_sum_double() -> None:
    sums = run(trainer(), [[0, 1]]).sums[0]
    assert sums.terms["delta"].dtype == torch.float64
    assert sums.buffers.dtype == torch.float64


def test_buffers_are_summed_by_weight() -> None:
    model = net()
    rng = np.random.default_rng(0)
    people = ListPopulation([(rng.normal(size=(n, 5)), np.arange(n) % 3) for n in (6, 7)])
    worker = trainer(people, model=model)
    layout = ParameterLayout.of(model)
    named = {n: p.detach() for n, p in model.named_parameters()} | model_buffers(model)
    start = layout.state(named)
    blocks = [Block(0, [0, 1], [2, 4]), Block(2, [0], [2]), Block(4, [1], [4])]
    both, first, second = worker.train(1, blocks, start, {}, None, 6).sums
    assert torch.equal(first.buffers[-1:], torch.tensor([6 * 2.0]).double())
    assert torch.equal(second.buffers[-1:], torch.tensor([7 * 4.0]).double())
    # Float64 sums of two numbers.
    torch.testing.assert_close(both.buffers, first.buffers + second.buffers, rtol=1e-14, atol=0)


def test_partial_work_is_dropped_or_kept() -> None:
    dropped = run(trainer(drop=True), [[0, 1, 3]], c1=2)
    kept = run(trainer(drop=False), [[0, 1, 3]], c1=2)
    statuses = [dict(zip(o.reports.client, o.reports.status, strict=True)) for o in (dropped, kept)]
    assert statuses[0] == {0: Status.TRAINED, 1: Status.DROPPED, 3: Status.TRAINED}
    assert statuses[1] == {0: Status.TRAINED, 1: Status.PARTIAL, 3: Status.TRAINED}
    assert (dropped.sums[0].count, kept.sums[0].count) == (2, 3)
    assert (dropped.sums[0].weight, kept.sums[0].weight) == (10, 19)
    without = run(trainer(), [[0, 3]])
    assert torch.equal(dropped.sums[0].terms["delta"], without.sums[0].terms["delta"])


def test_a_failing_client_is_named_and_left_out() -> None:
    outcome = run(trainer(function=picky), [[0, 2, 3]])
    (failure,) = outcome.failures
    assert (failure.client, failure.diverged) == (2, False)
    assert failure.reason.splitlines()[-1] == "ValueError: one example is not enough"
    assert "picky" in failure.reason, "the traceback says where"
    status = dict(zip(outcome.reports.client, outcome.reports.status, strict=True))
    assert status == {0: Status.TRAINED, 2: Status.FAILED, 3: Status.TRAINED}
    without = run(trainer(function=picky), [[0, 3]])
    assert torch.equal(outcome.sums[0].terms["delta"], without.sums[0].terms["delta"])
    assert (outcome.sums[0].weight, outcome.sums[0].count) == (10, 2)


@pytest.mark.parametrize("value", [1e30, -3e38])
def test_a_diverging_client_is_named_and_left_out(value: float) -> None:
    outcome = run(trainer(population({3: value})), [[0, 3, 4]])
    (failure,) = outcome.failures
    assert (failure.client, failure.diverged) == (3, True)
    assert "diverged" in failure.reason
    without = run(trainer(), [[0, 4]])
    assert torch.equal(outcome.sums[0].terms["delta"], without.sums[0].terms["delta"])
    assert (outcome.sums[0].weight, outcome.sums[0].count) == (16, 2)


def test_a_failing_client_writes_no_state(tmp_path: Path) -> None:
    worker = trainer(population({3: 1e30}), ScaffoldLocal("II"), picky, by_examples=False)
    layout = worker.engine.layout
    path = tmp_path / "rows"
    path.touch()
    rows = RowFile(str(path), ("control_variate",), (layout.size,), layout.dtype)
    clients = [0, 2, 3, 5]
    block = Block(
        0, clients, [WORK.planned_steps(SIZES[c]) for c in clients], [-1] * 4, [3, 2, 1, 0]
    )
    broadcast = {"control_variate": torch.zeros(layout.size)}
    outcome = worker.train(1, [block], start_of(worker), broadcast, rows, 1)
    assert sorted(f.client for f in outcome.failures) == [2, 3]
    written = rows.read([3, 2, 1, 0])["control_variate"]
    assert written.any(dim=1).tolist() == [True, False, False, True]
    # Without earlier state a client's new control variate is the whole of its change.
    torch.testing.assert_close(
        outcome.sums[0].terms["control_delta"], written.double().sum(0), rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", [7, LONG_ROW + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_first", [True, False])
def test_weighted_sums(count: int, size: int, dtype: torch.dtype, is_first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(count, size, generator=generator).to(dtype)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    total = torch.full((size,), math.nan if is_first else 1.0, dtype=torch.float64)
    add_weighted(total, weights, rows, Scratch(), is_first=is_first)
    expected = (weights.unsqueeze(1) * rows.double()).sum(0) + (0 if is_first else 1)
    torch.testing.assert_close(total, expected, rtol=1e-14, atol=1e-14)  # float64, six terms


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e37])
def test_long_rows_with_exact_weights_lose_no_more_than_their_own_precision(
    scale: float, is_first: bool
) -> None:
    """Numbers of examples are exact; what would overflow in single precision is added in double."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(5, LONG_ROW + 1, generator=generator) * scale
    weights = torch.tensor([60.0, 1.0, 7.0, 600.0, 13.0], dtype=torch.float64)
    total = torch.full((rows.shape[1],), math.nan if is_first else scale, dtype=torch.float64)
    add_weighted(total, weights, rows, Scratch(), is_first=is_first)
    terms = weights.unsqueeze(1) * rows.double()
    expected = terms.sum(0) + (0 if is_first else scale)
    assert total.isfinite().all()
    assert ((total - expected).abs() <= 4 * 2**-24 * terms.abs().sum(0)).all()


# Rows and messages --------------------------------------------------------------------------------


def test_rows_are_read_where_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.touch()
    file = RowFile(str(path), ("a", "b"), (3, 3), torch.float64)
    values = {"a": torch.arange(6.0).double().view(2, 3), "b": -torch.ones(2, 3).double()}
    file.write([5, 1], values)
    back = file.read([1, 5, -1, 0, 99])
    for name in ("a", "b"):
        assert torch.equal(back[name][0], values[name][1])
        assert torch.equal(back[name][1], values[name][0])
        assert not back[name][2:].any(), "rows never written are zero"
    assert path.stat().st_size == 6 * file.row_nbytes


def test_requests_survive_their_message() -> None:
    blocks = [
        Block(0, [4, 2], [3, 1], [-1, 7], [0, 1], [0, 1]),
        Block(3, [9], [2], [5], [2], [2]),
    ]
    arrays = {"w": torch.ones(2, 2)}
    file = RowFile("/somewhere", ("a",), (4,), torch.float32)
    extra = ConfigRecord({"experiment": "{}"})
    content = encode_request(
        7,
        blocks,
        to_record(arrays),
        to_record({"c": torch.zeros(4)}),
        file,
        0.5,
        extra,
        [5],
        3,
        file,
    )
    request = decode_request(content)
    assert request.blocks == blocks
    assert (request.round, request.state_path, request.experiment) == (7, "/somewhere", "{}")
    assert request.lr_scale == 0.5
    assert request.blocks_of_round == [5]
    assert (request.cohort, request.changes_path) == (3, "/somewhere")
    assert torch.equal(request.arrays["w"], arrays["w"])
    assert torch.equal(request.broadcast["c"], torch.zeros(4))
    assert dict(extra) == {"experiment": "{}"}, "the caller's record is not changed"
    bare = decode_request(
        encode_request(
            1, [Block(0, [1], [1])], to_record(arrays), to_record({}), None, 1.0, extra, [1], 1
        )
    )
    assert (bare.broadcast, bare.state_path) == ({}, None)


def test_outcomes_survive_their_message() -> None:
    for worker in (trainer(population({3: 1e30}), function=picky, drop=True), trainer()):
        outcome = run(worker, [[0, 2, 3], [1, 4]], c4=1)
        back = decode_outcome(encode_outcome(outcome))
        assert back.failures == outcome.failures
        for mine, yours in zip(back.sums, outcome.sums, strict=True):
            assert (mine.first, mine.stop) == (yours.first, yours.stop)
            assert (mine.weight, mine.count) == (yours.weight, yours.count)
            assert torch.equal(mine.terms["delta"], yours.terms["delta"])
            assert torch.equal(mine.buffers, yours.buffers)
        for name, column in vars(outcome.reports).items():
            np.testing.assert_array_equal(getattr(back.reports, name), column)
