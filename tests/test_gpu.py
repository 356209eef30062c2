"""On a CUDA device every engine gives what it gives on the CPU, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedopt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Float64 sums of a few hundred products in the orders of two devices.
TOLERANCE = 1e-9


def clients() -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(n, 2, 8, 8)), rng.integers(0, 3, n)) for n in (3, 5, 9, 20)]


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Linear(16, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


@pytest.mark.parametrize("network", [dense, convolutional])
@pytest.mark.parametrize("training", ["loop", "stacked"])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_gpu_gives_what_the_cpu_gives(network: Any, training: str, strategy: str) -> None:
    runs = [
        fedopt.simulate(
            model=network,
            clients=clients(),
            test=clients()[3],
            rounds=3,
            clients_per_round=3,
            dtype="float64",
            strategy=strategy,
            local={"epochs": 2, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.05}},
            engine={"name": "inline", "training": training, "device": device},
        )
        for device in ("cpu", "cuda")
    ]
    for name, mine in runs[0].parameters().items():
        yours = runs[1].parameters()[name]
        torch.testing.assert_close(mine, yours, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(
        runs[0].history["test_loss"], runs[1].history["test_loss"], rtol=TOLERANCE
    )
