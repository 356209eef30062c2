"""Averages of weights, and BatchNorm statistics that fit them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from fedopt.optim import WeightAverage, update_batch_norm

ROUNDING = 1e-6
"""float32 rounds once, torch's own averages at each update."""


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def walk(network: nn.Module, steps: int) -> Iterator[int]:
    """Let the weights walk at random."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        yield step


def test_equal_weights_give_the_arithmetic_mean() -> None:
    network = model()
    average = WeightAverage(network)
    seen: list[list[Tensor]] = []
    for _ in walk(network, 17):
        average.update()
        seen.append([p.detach().double() for p in network.parameters()])
    assert average.count == 17
    for got, iterates in zip(average.averages, zip(*seen, strict=True), strict=True):
        expected = torch.stack(iterates).mean(0)
        # Half the spacing of float32: it is rounded once, at the end.
        torch.testing.assert_close(got.double(), expected, rtol=6e-8, atol=0)


@pytest.mark.parametrize("decay", [None, 0.0, 0.9])
def test_averages_are_torchs(decay: float | None) -> None:
    network = model()
    function = (
        swa_utils.get_swa_multi_avg_fn() if decay is None else swa_utils.get_ema_multi_avg_fn(decay)
    )
    theirs = swa_utils.AveragedModel(network, multi_avg_fn=function)
    average = WeightAverage(network, decay)
    for _ in walk(network, 20):
        theirs.update_parameters(network)
        average.update()
    for mine, yours in zip(average.averages, theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=ROUNDING, atol=ROUNDING)


def test_small_contributions_are_not_rounded_away() -> None:
    weight = torch.zeros(1)
    average = WeightAverage([weight], decay=1 - 1e-9)
    average.update()
    weight.fill_(1.0)
    for _ in range(100):
        average.update()
    # 1e-9 is below float32's spacing at 1, but not float64's.
    assert float(average.averages[0]) == pytest.approx(1e-7, rel=1e-6)


def test_weights_are_swapped_and_come_back() -> None:
    network = model()
    average = WeightAverage(network)
    for _ in walk(network, 3):
        average.update()
    before = copy.deepcopy(network.state_dict())
    inputs = torch.randn(10, 3)
    with average.swap():
        for parameter, expected in zip(network.parameters(), average.averages, strict=True):
            assert torch.equal(parameter, expected)
        update_batch_norm(network, [inputs])
        assert not torch.equal(network[1].running_mean, before["1.running_mean"])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(RuntimeError, match="mat1"), average.swap():
        network(torch.randn(10, 7))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    average.apply_()
    for parameter, expected in zip(network.parameters(), average.averages, strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_an_average_resumes_to_the_bit(decay: float | None) -> None:
    network = model()
    average, second = WeightAverage(network, decay), WeightAverage(network)
    for step in walk(network, 10):
        average.update()
        if step == 4:
            second.load_state_dict(copy.deepcopy(average.state_dict()))
        elif step > 4:
            second.update()
    assert second.count == 10
    for a, b in zip(average.averages, second.averages, strict=True):
        assert torch.equal(a, b)


def test_an_average_of_nothing_is_refused() -> None:
    average = WeightAverage(model())
    for use in (lambda: average.averages, average.apply_, lambda: average.swap().__enter__()):
        with pytest.raises(ValueError, match="call update"):
            use()
    average.load_state_dict(average.state_dict())
    with pytest.raises(ValueError, match="nothing to average"):
        WeightAverage([])
    with pytest.raises(ValueError, match=r"must be floating, got torch\.int64"):
        WeightAverage([torch.ones(1, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), or None"):
        WeightAverage(model(), 1.0)
    other = WeightAverage([torch.zeros(2)])
    other.update()
    with pytest.raises(ValueError, match=r"have the shapes \[\(2,\)\], expected"):
        average.load_state_dict(other.state_dict())


# BatchNorm ------------------------------------------------------------------------------------


def test_statistics_of_equal_batches_are_torchs() -> None:
    mine, yours = model(), model()
    batches = torch.randn(40, 3).split(10)
    update_batch_norm(mine, batches)
    swa_utils.update_bn(batches, yours)
    for a, b in zip(mine[1].buffers(), yours[1].buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    assert mine[1].num_batches_tracked == 4


@pytest.mark.parametrize("shape", [(3,), (3, 5, 2)])
def test_batches_count_by_their_size(shape: tuple[int, ...]) -> None:
    norm = nn.BatchNorm1d(3) if len(shape) == 1 else nn.BatchNorm2d(3)
    batches = torch.randn(25, *shape).split(10)
    update_batch_norm(norm, [[b, "label"] for b in batches])
    sizes = torch.tensor([10.0, 10.0, 5.0])
    axes = [0, *range(2, 1 + len(shape))]
    for got, statistic in ((norm.running_mean, torch.mean), (norm.running_var, torch.var)):
        per_batch = torch.stack([statistic(b, dim=axes) for b in batches])
        expected = (sizes.unsqueeze(1) * per_batch).sum(0) / sizes.sum()
        torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING)
    every_example = torch.cat(batches).mean(dim=axes)
    torch.testing.assert_close(norm.running_mean, every_example, rtol=ROUNDING, atol=ROUNDING)


def test_modes_and_momenta_are_restored_each_modules_own() -> None:
    network = model()
    network.eval()
    network[0].train()
    network[1].momentum = 0.3
    with pytest.raises(RuntimeError, match="mat1"):
        update_batch_norm(network, [torch.randn(4, 3), torch.randn(4, 7)])
    assert [m.training for m in network] == [True, False, False, False]
    assert network[1].momentum == 0.3
    assert not network[1]._forward_pre_hooks


def test_a_call_says_how_the_model_is_run() -> None:
    mine, yours = model(), model()
    x = torch.randn(12, 3)
    update_batch_norm(mine, [{"x": x}], call=lambda network, batch: network(batch["x"]))
    update_batch_norm(yours, [x])
    assert torch.equal(mine[1].running_var, yours[1].running_var)


def test_no_batches_are_refused_and_no_layers_are_fine() -> None:
    network = model()
    network(torch.randn(8, 3))
    before = network[1].running_mean.clone()
    with pytest.raises(ValueError, match="batches is empty"):
        update_batch_norm(network, [])
    assert torch.equal(network[1].running_mean, before)
    update_batch_norm(nn.Linear(1, 1), [])
    update_batch_norm(nn.BatchNorm1d(1, track_running_stats=False), [])
