"""A run that ends in the middle and is taken up again, beside the one that nothing disturbed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from quadratics import clients, half_square, line, tables

from fedopt.analysis.progress import SilentProgress
from fedopt.config import load
from fedopt.experiment import Experiment
from fedopt.run import Run, execute, in_memory
from fedopt.server.checkpoint import digest

LAST, ENDED = 7, 4


def assert_resumes(
    folder: Path,
    strategy: dict[str, Any],
    population: Any = None,
    model: Any = line,
    loss: Any = half_square,
    **changes: Any,
) -> None:
    """Assert that a resumed run on quadratics has the bits of an undisturbed one."""

    def make(rounds: int) -> Experiment:
        settings = tables(strategy, **{"checkpoint": {"every": 1}, "rounds": rounds, **changes})
        data = clients() if population is None else population
        return in_memory(load(None, **settings), model, loss, data)

    assert_same_bits(folder, make)


def assert_same_bits(folder: Path, make: Callable[[int], Experiment]) -> None:
    """Assert that a resumed run has the bits of an undisturbed one: model, state and history.

    Args:
        folder: where the runs are written.
        make: makes the experiment with a number of rounds; it has checkpoints.
    """

    def run(name: str, rounds: int, resume: bool = False) -> Run:
        return execute(make(rounds), folder / name, SilentProgress(), resume=resume)

    whole = run("whole", LAST)
    run("broken", ENDED)
    resumed = run("broken", LAST, resume=True)
    assert resumed.summary["model_sha256"] == whole.summary["model_sha256"]
    assert digests(resumed.state()) == digests(whole.state())
    columns = [column for column in whole.history if column != "wall_seconds"]
    assert resumed.history[columns].equals(whole.history[columns])
    assert resumed.clients.equals(whole.clients)


def digests(tree: Any) -> Any:
    """Return the digests of the tensors in nested dictionaries."""
    if all(isinstance(value, torch.Tensor) for value in tree.values()):
        return digest(tree)
    return {key: digests(value) for key, value in tree.items()}
