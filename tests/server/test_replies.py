"""Replies that are not what was asked for, or not finite: refused, named, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedopt.analysis.progress import SilentProgress
from fedopt.client.trainer import Failure
from fedopt.config import load
from fedopt.errors import ClientError, FedoptError, ReplyError, RunError
from fedopt.experiment import Experiment
from fedopt.recorder import Recorder
from fedopt.records import from_record, to_record
from fedopt.results import Run
from fedopt.run import simulate, train
from fedopt.server.blocks import Pace
from fedopt.server.replies import FailureCounts
from fedopt.simulation.inline import InlineGrid

WORDS = [
    "engine.name=inline",
    "rounds=3",
    "clients_per_round=6",
    "partition.clients=12",
    "model=logistic",
    "local.steps=2",
    "engine.block_size=2",
    "strategy=scaffold",
]


@pytest.fixture(autouse=True)
def equal_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deal each node its share: one that happened to be slow could be left without blocks."""
    monkeypatch.setattr(Pace, "observe", lambda *_: None)


class TwoNodes(InlineGrid):
    """Two nodes in this process, of which the second answers badly.

    Args:
        experiment: the run's experiment.
        poison: changes the content of its replies.
        rounds: in which it does.
    """

    def __init__(
        self,
        experiment: Experiment,
        poison: Callable[[RecordDict], None],
        rounds: Sequence[int] = (2,),
    ) -> None:
        super().__init__(experiment)
        self._node_ids = [2, 3]
        self._poison = poison
        self._rounds = rounds

    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        replies = super().exchange(messages)
        for message, reply in zip(messages, replies, strict=True):
            config = message.content.config_records["config"]
            is_train = message.metadata.message_type.startswith("train")
            is_now = config["server-round"] in self._rounds
            if is_train and is_now and message.metadata.dst_node_id == 3:
                self._poison(reply.content)
        return replies


def run(
    poison: Callable[[RecordDict], None],
    *words: str,
    rounds: Sequence[int] = (2,),
    folder: Path | None = None,
) -> Run:
    experiment = Experiment.from_config(load(None, [*WORDS, *words]))
    with (
        Recorder(experiment, folder, SilentProgress(), False, False) as recorder,
        TwoNodes(experiment, poison, rounds) as grid,
    ):
        train(experiment, recorder, grid)
        return recorder.finish()


def on_sums(change: Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]) -> Any:
    def poison(content: RecordDict) -> None:
        sums = {k: v.clone() for k, v in from_record(content.array_records["sums"]).items()}
        content["sums"] = to_record(change(sums))

    return poison


def with_value(value: float) -> Any:
    def change(sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = sorted(sums)[-1]
        sums[name][3] = value
        return sums

    return on_sums(change)


def on_blocks(name: str, change: Callable[[list[Any]], list[Any]]) -> Any:
    def poison(content: RecordDict) -> None:
        record = dict(content.config_records["blocks"])
        record[name] = change(list(record[name]))  # type: ignore[arg-type]
        content["blocks"] = ConfigRecord(record)

    return poison


def on_clients(name: str, change: Callable[[list[Any]], list[Any]]) -> Any:
    def poison(content: RecordDict) -> None:
        record = dict(content.metric_records["clients"])
        record[name] = change(list(record[name]))  # type: ignore[arg-type]
        content["clients"] = MetricRecord(record)

    return poison


def without(name: str) -> Any:
    def poison(content: RecordDict) -> None:
        del content[name]

    return poison


def nothing_right(content: RecordDict) -> None:
    for name in list(content):
        del content[name]


POISONS: dict[str, tuple[Any, str]] = {
    "NaN": (with_value(math.nan), "that is not finite"),
    "infinity": (with_value(math.inf), "that is not finite"),
    "a wrong length": (on_sums(lambda sums: {k: v[:-1] for k, v in sums.items()}), "of shape"),
    "a wrong type": (on_sums(lambda sums: {k: v.float() for k, v in sums.items()}), "float32"),
    "a matrix": (on_sums(lambda s: {k: v.reshape(1, -1) for k, v in s.items()}), "of shape"),
    "a wrong name": (on_sums(lambda s: {f"{k}x": v for k, v in s.items()}), "deltax"),
    "a sum too many": (
        on_sums(lambda s: {**s, f"{sorted(s)[0].split('/')[0]}/more": torch.zeros(3).double()}),
        "more",
    ),
    "a sum too few": (on_sums(lambda s: dict(sorted(s.items())[1:])), "sums of"),
    "no sums": (without("sums"), "sums of"),
    "no blocks": (without("blocks"), "cannot be read"),
    "no reports": (without("clients"), "cannot be read"),
    "nothing": (nothing_right, "cannot be read"),
    "a wrong count": (on_blocks("counts", lambda v: [c + 1 for c in v]), "but reports of"),
    "a count of none": (on_blocks("counts", lambda v: [0] * len(v)), "but reports of"),
    "a wrong weight": (on_blocks("weights", lambda v: [w * 9.0 for w in v]), "sums of weight"),
    "a NaN weight": (on_blocks("weights", lambda v: [math.nan] * len(v)), "sums of weight"),
    "blocks of others": (on_blocks("firsts", lambda v: [0] * len(v)), "sums of the blocks"),
    "blocks that are not": (on_blocks("stops", lambda v: [99] * len(v)), "sums of the blocks"),
    "fewer columns": (on_blocks("weights", lambda v: v[:-1]), "cannot be read"),
    "other clients": (on_clients("client", lambda v: [c + 100 for c in v]), "not those it was"),
    "a client twice": (on_clients("client", lambda v: [v[0]] * len(v)), "not those it was"),
    "a status that is none": (on_clients("status", lambda v: [77] * len(v)), "a status"),
    "short reports": (on_clients("steps", lambda v: v[:-1]), "unequal lengths"),
}


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_reply_ends_the_run_and_the_node_is_named(name: str) -> None:
    poison, says = POISONS[name]
    with pytest.raises(ReplyError, match="node 3") as caught:
        run(poison)
    assert "round 2" in str(caught.value)
    assert says in str(caught.value)
    assert isinstance(caught.value, RunError)


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_reply_is_skipped_and_its_clients_counted(name: str) -> None:
    poison, _ = POISONS[name]
    found = run(poison, "engine.on_client_error=skip")
    failed = found.clients[found.clients["status"] == "failed"]
    assert set(failed["round"]) == {2}
    count = list(found.history["failed_clients"])
    assert count[0] == count[2] == 0
    assert 0 < count[1] < 6
    used = list(found.history["clients"])
    assert used == [6, 6 - count[1], 6]
    for array in found.parameters().values():
        assert bool(torch.isfinite(array).all())
    # Who was refused has not trained: nothing of the round is in what it keeps.
    state = found.state()["client_control_variate"]
    seen = found.clients[found.clients["status"] == "trained"]["client"]
    assert set(state) == set(seen)


def test_clients_that_fail_too_often_end_the_run() -> None:
    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.requires_grad and bool((target == 4).all()):
            raise ValueError("broken sensor")
        return (output - target).square().mean()

    def simulated(limit: int | None) -> Run:
        engine: dict[str, Any] = {"name": "inline", "on_client_error": "skip"}
        if limit is not None:
            engine["max_client_failures"] = limit
        return simulate(
            model=lambda: torch.nn.Linear(3, 1),
            loss=loss,
            clients=[(torch.ones(8, 3), torch.full((8, 1), float(c))) for c in range(6)],
            rounds=4,
            clients_per_round=None,
            local={"steps": 2, "optimizer": {"name": "sgd", "lr": 0.01}},
            engine=engine,
        )

    assert list(simulated(None).history["failed_clients"]) == [1] * 4
    assert list(simulated(4).history["failed_clients"]) == [1] * 4
    with pytest.raises(ClientError, match=r"engine\.max_client_failures is 2") as caught:
        simulated(2)
    assert (caught.value.client, caught.value.round) == (4, 3)
    assert "broken sensor" in str(caught.value)


def test_a_limit_needs_failures_that_are_skipped() -> None:
    with pytest.raises(FedoptError, match='needs on_client_error = "skip"'):
        load(None, ["engine.max_client_failures=3"])


def test_counts_survive_a_checkpoint() -> None:
    counts = FailureCounts(2)
    counts.add(1, [Failure(7, "x", False), Failure(10**12, "x", False)])
    counts.add(2, [Failure(7, "x", False)])
    other = FailureCounts(2)
    other.load(counts.vectors())
    other.add(3, [Failure(10**12, "y", False)])
    with pytest.raises(ClientError, match=r"3\. time") as caught:
        other.add(4, [Failure(7, "y", False)])
    assert caught.value.client == 7
    fresh = FailureCounts(1)
    fresh.load({})
    fresh.add(1, [Failure(1, "x", False)])


def test_what_a_client_keeps_must_be_finite_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedopt.server.scaffold import ScaffoldLocal

    finish = ScaffoldLocal.finish

    def poisoned(self: Any, result: Any, broadcast: Any, state: Any) -> Any:
        update = finish(self, result, broadcast, state)
        for value in update.state.values():
            if value.dim() == 2:
                value[0, 0] = math.nan
        return update

    monkeypatch.setattr(ScaffoldLocal, "finish", poisoned)
    with pytest.raises(ClientError, match="sends or keeps that is not finite"):
        simulate(load(None, WORDS))
