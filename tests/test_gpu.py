"""On a CUDA device every engine gives what it gives on the CPU, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedopt
from fedopt.models.residual import resnet

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


def residual() -> nn.Module:
    return resnet((2, 8, 8), 3, width=4)


@pytest.mark.parametrize("network", [dense, convolutional, residual])
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


@pytest.mark.parametrize("training", ["loop", "stacked"])
@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "mofedsam"])
@pytest.mark.parametrize("state", ["reset", "average", "keep"])
def test_every_technique_gives_on_a_gpu_what_it_gives_on_the_cpu(
    training: str, strategy: str, state: str
) -> None:
    if strategy != "fedavg" and state != "reset":
        pytest.skip("refused: the displacement is no sum of the round's gradients")
    runs = [
        fedopt.simulate(
            model=dense,
            clients=clients(),
            test=clients()[3],
            rounds=3,
            clients_per_round=3,
            dtype="float64",
            strategy=strategy,
            local={
                "epochs": 2,
                "batch_size": 4,
                "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.5},
                "optimizer_state": state,
                "schedule": {"name": "one_cycle"},
                "sam": {"rho": 0.05},
                "gradient": {
                    "clip_norm": 1.0,
                    "noise_eta": 1e-4,
                    "skip_norm": 50.0,
                    "penalty": 0.01,
                },
                "swa": {"last_epochs": 1},
            },
            server={"swa": {"start": 2}},
            engine={"name": "inline", "training": training, "device": device},
        )
        for device in ("cpu", "cuda")
    ]
    for name, tensor in runs[0].parameters().items():
        torch.testing.assert_close(
            tensor, runs[1].parameters()[name], rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize("training", ["loop", "stacked"])
def test_bfloat16_on_a_gpu_is_near_float32(training: str) -> None:
    runs = [
        fedopt.simulate(
            model=convolutional,
            clients=clients(),
            rounds=2,
            clients_per_round=3,
            local={"epochs": 1, "batch_size": 4, "optimizer": {"name": "sgd", "lr": 0.05}},
            engine={
                "name": "inline",
                "training": training,
                "device": "cuda",
                "precision": precision,
            },
        )
        for precision in ("full", "bf16")
    ]
    for name, tensor in runs[0].parameters().items():
        torch.testing.assert_close(tensor, runs[1].parameters()[name], rtol=0.1, atol=0.01)
