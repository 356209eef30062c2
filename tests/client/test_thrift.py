"""A group that does not fit into memory is trained in parts, to the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from fedopt.client import thrift
from fedopt.client.algorithm import LocalTerms
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import Block, Trainer, TrainingOutcome
from fedopt.config import load
from fedopt.errors import ClientError
from fedopt.experiment import Experiment
from fedopt.recorder import model_state
from fedopt.run import simulate

WORDS = ["engine.name=inline", "clients_per_round=24", "partition.clients=24", "local.epochs=2"]
RECIPES = {
    "fused": ["model=logistic"],
    "two layers": ["model.hidden=[32]"],
    "adam": ["model.hidden=[32]", "local.optimizer=adam", "local.optimizer.lr=0.01"],
    "momentum, sam, clipping": [
        "model.hidden=[32]",
        "local.optimizer.momentum=0.9",
        "local.sam.rho=0.05",
        "local.gradient.clip_norm=1.0",
    ],
    "gradient penalty": ["model.hidden=[32]", "local.gradient.penalty=0.01"],
    "averaged": ["model.hidden=[32]", "local.swa.last_epochs=1"],
    "stragglers": ["model.hidden=[32]", "system.stragglers=0.5", "local.epochs=5"],
    "scaffold": ["model.hidden=[32]", "strategy=scaffold"],
    "scaffold, option I": ["model.hidden=[32]", "strategy=scaffold", "strategy.option=I"],
    "self-paced": ["model.hidden=[32]", "local.self_paced=hard", "local.self_paced.threshold=2.0"],
    "ditto": [
        "model.hidden=[32]",
        "strategy=ditto",
        "data.validation_fraction=0.2",
        "evaluation.validation_clients=2",
    ],
}
MESSAGES = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
]


class Cramped:
    """An engine that has memory for some clients only.

    Args:
        engine: the engine.
        clients: the most that it trains at once.
        error: what it raises for more.
    """

    def __init__(self, engine: Any, clients: int, error: Exception) -> None:
        self._engine = engine
        self._clients = clients
        self._error = error
        self.groups: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def train(
        self, start: Any, round: int, plans: Sequence[Any], examples: Any, terms: LocalTerms
    ) -> Any:
        if len(plans) > self._clients:
            raise self._error
        self.groups.append(len(plans))
        return self._engine.train(start, round, plans, examples, terms)


@pytest.mark.parametrize("name", RECIPES)
def test_the_bits_are_those_of_the_whole_group(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, [*WORDS, "rounds=2", *RECIPES[name]])
    expected = simulate(config)
    build, cramped = Experiment.trainer, []

    def with_little_memory(experiment: Experiment) -> Trainer:
        trainer = build(experiment)
        error = MESSAGES[len(cramped) % len(MESSAGES)]
        cramped.append(Cramped(trainer.engine, limit, error))
        trainer.engine = cramped[-1]
        return trainer

    monkeypatch.setattr(Experiment, "trainer", with_little_memory)
    for limit in (1, 2, 5):
        found = simulate(config)
        assert max(cramped[-1].groups) <= limit
        assert found.summary["model_sha256"] == expected.summary["model_sha256"], limit
        times = ["wall_seconds"]
        assert found.history.drop(columns=times).equals(expected.history.drop(columns=times))
        assert found.clients.equals(expected.clients)


def test_a_client_that_never_fits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(None, [*WORDS, "rounds=2", "model=logistic"])
    experiment = Experiment.from_config(config)
    build = Experiment.trainer

    def without_memory_for_7(experiment: Experiment) -> Trainer:
        trainer = build(experiment)
        train = trainer.engine.train

        def cramped(start: Any, round: int, plans: Any, examples: Any, terms: Any) -> Any:
            if any(plan.client == 7 for plan in plans):
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return train(start, round, plans, examples, terms)

        trainer.engine.train = cramped  # type: ignore[method-assign]
        return trainer

    monkeypatch.setattr(Experiment, "trainer", without_memory_for_7)
    assert experiment.population.sizes[7]
    with pytest.raises(ClientError, match="out of memory, even for this client alone") as caught:
        simulate(config)
    assert (caught.value.client, caught.value.round) == (7, 1)
    skipping = load(None, [*WORDS, "rounds=2", "model=logistic", "engine.on_client_error=skip"])
    run = simulate(skipping)
    assert list(run.history["failed_clients"]) == [1, 1]


def test_an_engine_that_runs_out_of_memory_can_be_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its buffers are made for the largest group so far; half-made ones must not count as made."""
    config = load(None, [*WORDS, "rounds=1", "model.hidden=[32]", "engine.training=stacked"])
    experiment = Experiment.from_config(config)

    def outcome(trainer: Trainer, clients: Sequence[int]) -> TrainingOutcome:
        sizes = experiment.population.sizes
        steps = [experiment.work.planned_steps(int(sizes[c])) for c in clients]
        return trainer.train(1, [Block(0, clients, steps)], start, {}, None, 1)

    def sums(found: TrainingOutcome) -> BlockSums:
        assert not found.failures
        return found.sums[0]

    trainer = experiment.trainer()
    start = model_state(experiment.build_model(), trainer.engine.layout)
    expected = sums(outcome(experiment.trainer(), range(6)))
    empty, calls = torch.empty, []

    def short(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 3:  # among the buffers of the first, whole group
            raise RuntimeError("can't allocate memory")
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", short)
    found = sums(outcome(trainer, range(6)))
    monkeypatch.undo()
    for name, term in expected.terms.items():
        assert torch.equal(found.terms[name], term)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert all(thrift.is_out_of_memory(error) for error in MESSAGES)
    others = [ValueError("can't allocate memory"), RuntimeError("shapes differ"), KeyError("x")]
    assert not any(thrift.is_out_of_memory(error) for error in others)
