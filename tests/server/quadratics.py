"""Clients whose optima are known: f_i(w) = a_i / 2 (w - b_i)^2, one example each.

With x = sqrt(a_i), y = sqrt(a_i) b_i and the loss (w x - y)^2 / 2 the gradient is a_i (w - b_i).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import fedopt

A = (1.0, 10.0)
B = (1.0, -1.0)
LR = 0.05
STEPS = 10
OPTIMUM = sum(a * b for a, b in zip(A, B, strict=True)) / sum(A)


def half_square(output: Tensor, target: Tensor) -> Tensor:
    """The loss (o - t)^2 / 2."""
    return 0.5 * (output - target).square().mean()


def line() -> nn.Module:
    """The model: one weight, which starts at zero."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def clients(a: Any = A, b: Any = B) -> list[tuple[Tensor, Tensor]]:
    """The clients' examples."""
    pairs = zip(a, b, strict=True)
    return [(_number(math.sqrt(s)), _number(math.sqrt(s) * o)) for s, o in pairs]


def plane() -> nn.Module:
    """Another model: a weight with two elements, which starts at zero."""
    model = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(model.weight)
    return model


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    """The loss |o - t|^2 / 2."""
    return 0.5 * (output - target).square().sum(1).mean()


def plane_clients(centres: Tensor, a: Any = A) -> list[tuple[Tensor, Tensor]]:
    """The examples of f_i(w) = a_i / 2 |w - b_i|^2, the rows of `centres` being the b_i."""
    roots = [math.sqrt(s) for s in a]
    return [(_number(r), (r * b).unsqueeze(0)) for r, b in zip(roots, centres, strict=True)]


def _number(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def tables(strategy: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What `simulate` takes for a run on the quadratics."""
    out: dict[str, Any] = {
        "rounds": 80,
        "clients_per_round": "all",
        "dtype": "float64",
        "strategy": strategy,
        "local": {"steps": STEPS, "batch_size": None, "optimizer": {"name": "sgd", "lr": LR}},
        "engine": {"name": "inline"},
        "evaluation": {"every": 1000},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = {**out[key], **value} if both else value
    return out


def simulate(strategy: dict[str, Any], population: Any = None, **changes: Any) -> fedopt.Run:
    """Run a strategy on the quadratics."""
    keep = changes.pop("keep_parameters", False)
    out = changes.pop("out", None)
    loss = changes.pop("loss", half_square)
    return fedopt.simulate(
        model=changes.pop("model", line),
        loss=loss,
        clients=clients() if population is None else population,
        keep_parameters=keep,
        out=out,
        **tables(strategy, **changes),
    )


def weight(run: fedopt.Run, round: int | None = None) -> float:
    """The model's weight after a round."""
    return float(run.parameters(round)["weight"])
