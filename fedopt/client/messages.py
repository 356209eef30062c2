"""The words that server and clients exchange: training requests and replies as Flower records.

One place knows the keys of the records; the rest of the code handles dataclasses. A train message
holds `arrays` (the model, Flower's own convention), `broadcast` (other vectors, flat) and
`config`; its reply holds `sums` (flat, float64, one set for each root of the sums' tree), `blocks`,
`clients` (a column a report) and `failures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedopt.client.algorithm import is_weighted
from fedopt.client.state import RowFile
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import Block, Changes, Failure, Reports, TrainingOutcome
from fedopt.errors import RunError
from fedopt.records import from_record, integers, numbers, to_record

UNSEEN = "unseen"
"""The split of clients that never train: all of their training data, and its answers' record."""


@dataclass(frozen=True)
class TrainRequest:
    """What the server asks of a node.

    Args:
        round: communication round, from 1.
        blocks: the blocks to train.
        arrays: the model's arrays by name.
        broadcast: other vectors, `[P]` each.
        state_path: file of client state, or None where the strategy keeps none.
        lr_scale: factor of the clients' learning rates.
        experiment: the run's configuration as JSON, for nodes that were not given it.
        blocks_of_round: blocks of each of the round's sums, on this node and on others.
        cohort: clients of the round, on this node and on others.
        changes_path: file for each client's change, or None where the reply brings them.
        held: rows of state that a real client still needs; None says nothing of them.
    """

    round: int
    blocks: Sequence[Block]
    arrays: Mapping[str, Tensor]
    broadcast: Mapping[str, Tensor]
    state_path: str | None
    lr_scale: float
    experiment: str | None
    blocks_of_round: Sequence[int]
    cohort: int
    changes_path: str | None = None
    held: Sequence[int] | None = None


def encode_request(
    round: int,
    blocks: Sequence[Block],
    arrays: ArrayRecord,
    broadcast: ArrayRecord,
    state: RowFile | None,
    lr_scale: float,
    extra: ConfigRecord,
    blocks_of_round: Sequence[int],
    cohort: int,
    changes: RowFile | None = None,
) -> RecordDict:
    """Return the content of a train message; the arguments are those of `TrainRequest`."""
    config = ConfigRecord(dict(extra))
    config["server-round"] = round
    config["lr-scale"] = lr_scale
    config["blocks-of-round"] = list(blocks_of_round)
    config["cohort"] = cohort
    config["block-ids"] = [block.id for block in blocks]
    config["block-sizes"] = [len(block.clients) for block in blocks]
    config["clients"] = [c for block in blocks for c in block.clients]
    config["steps"] = [s for block in blocks for s in block.steps]
    if state is not None:
        config["state-path"] = state.path
        config["state-read"] = [row for block in blocks for row in block.read_rows]
        config["state-write"] = [row for block in blocks for row in block.write_rows]
    if changes is not None:
        config["changes-path"] = changes.path
        config["change-rows"] = [row for block in blocks for row in block.change_rows]
    content = RecordDict({"arrays": arrays, "config": config})
    if len(broadcast):
        content["broadcast"] = broadcast
    return content


def decode_request(content: RecordDict) -> TrainRequest:
    """Return the request that a train message holds."""
    config = content["config"]
    assert isinstance(config, ConfigRecord)
    clients, steps = integers(config, "clients"), integers(config, "steps")
    read, write = integers(config, "state-read"), integers(config, "state-write")
    changed = integers(config, "change-rows")
    blocks, first = [], 0
    ids, sizes = integers(config, "block-ids"), integers(config, "block-sizes")
    for block_id, size in zip(ids, sizes, strict=True):
        part = slice(first, first + size)
        blocks.append(
            Block(block_id, clients[part], steps[part], read[part], write[part], changed[part])
        )
        first += size
    return TrainRequest(
        round=integer(config, "server-round"),
        blocks=blocks,
        arrays=_tensors(content, "arrays"),
        broadcast=_tensors(content, "broadcast"),
        state_path=text(config, "state-path"),
        lr_scale=number(config, "lr-scale"),
        experiment=text(config, "experiment"),
        blocks_of_round=integers(config, "blocks-of-round"),
        cohort=integer(config, "cohort"),
        changes_path=text(config, "changes-path"),
        held=integers(config, "state-held") if "state-held" in config else None,
    )


def encode_outcome(outcome: TrainingOutcome, *, as_sent: bool = False) -> RecordDict:
    """Return the content of the reply to a train message.

    Args:
        outcome: what came of the training.
        as_sent: whether sums of one client go up as that client's vectors in single precision,
            where these give the same bits: half as many bytes.
    """
    vectors: dict[str, Tensor] = {}
    for sums in outcome.sums:
        named = {f"{sums.first}/{name}": total for name, total in sums.terms.items()}
        if as_sent and sums.count == 1:
            named = {key: _single(key, total, sums.weight) for key, total in named.items()}
        vectors |= named
        if len(sums.buffers):
            vectors[f"{sums.first}/buffers"] = sums.buffers
    blocks = ConfigRecord(
        {
            "firsts": [sums.first for sums in outcome.sums],
            "stops": [sums.stop for sums in outcome.sums],
            "weights": [sums.weight for sums in outcome.sums],
            "counts": [sums.count for sums in outcome.sums],
            "seconds": [sums.seconds for sums in outcome.sums],
        }
    )
    reports = {f.name: getattr(outcome.reports, f.name) for f in fields(Reports)}
    content = RecordDict(
        {
            "sums": to_record(vectors),
            "blocks": blocks,
            "clients": MetricRecord({k: v for k, v in reports.items() if v}),
        }
    )
    if outcome.changes:
        content["changes"] = to_record(
            {
                "rows": torch.cat([part.rows for part in outcome.changes]),
                "buffers": torch.cat([part.buffers for part in outcome.changes]),
            }
        )
        content["changed"] = ConfigRecord(
            {
                "clients": [c for part in outcome.changes for c in part.clients],
                "weights": [w for part in outcome.changes for w in part.weights],
                "places": [row for part in outcome.changes for row in part.places],
            }
        )
    if outcome.failures:
        content["failures"] = ConfigRecord(
            {
                "clients": [f.client for f in outcome.failures],
                "reasons": [f.reason for f in outcome.failures],
                "diverged": [f.diverged for f in outcome.failures],
            }
        )
    return content


def decode_outcome(content: RecordDict) -> TrainingOutcome:
    """Return the outcome that the reply to a train message holds."""
    vectors = _tensors(content, "sums")
    blocks = content["blocks"]
    assert isinstance(blocks, ConfigRecord)
    sums = []
    columns = zip(
        integers(blocks, "firsts"),
        integers(blocks, "stops"),
        numbers(blocks, "weights"),
        integers(blocks, "counts"),
        numbers(blocks, "seconds"),
        strict=True,
    )
    for first, stop, weight, count, took in columns:
        prefix = f"{first}/"
        terms = {
            key.removeprefix(prefix): vector
            for key, vector in vectors.items()
            if key.startswith(prefix)
        }
        if count == 1:
            terms = {name: _summed(name, vector, weight) for name, vector in terms.items()}
        buffers = terms.pop("buffers", torch.zeros(0, dtype=torch.float64))
        sums.append(BlockSums(first, stop, terms, buffers, weight, count, took))
    reports = Reports()
    for name, values in content.metric_records["clients"].items():
        assert isinstance(values, list)
        getattr(reports, name).extend(values)
    failures: list[Failure] = []
    failed = content.config_records.get("failures")
    if failed is not None:
        columns_of_failures: Any = (failed["clients"], failed["reasons"], failed["diverged"])
        failures = [Failure(*row) for row in zip(*columns_of_failures, strict=True)]
    changes = []
    changed = content.config_records.get("changed")
    if changed is not None:
        arrays = _tensors(content, "changes")
        clients, weights = integers(changed, "clients"), numbers(changed, "weights")
        places = integers(changed, "places")
        changes = [Changes(clients, weights, arrays["rows"], arrays["buffers"], places)]
    return TrainingOutcome(sums, reports, failures, changes)


def encode_evaluation(
    round: int,
    clients: Sequence[int],
    arrays: ArrayRecord,
    extra: ConfigRecord,
    split: str = "validation",
    state: RowFile | None = None,
    rows: Sequence[int] = (),
) -> RecordDict:
    """Return the content of a message that asks for an evaluation on clients' data.

    Args:
        round: communication round, from 1.
        clients: client ids.
        arrays: the model's arrays by name.
        extra: what else every message holds.
        split: `validation`, `train` or `unseen`.
        state: file of client state, where clients keep a part of the model.
        rows: of the clients in it.
    """
    config = ConfigRecord(dict(extra))
    config["server-round"] = round
    config["split"] = split
    if state is not None:
        config["state-path"] = state.path
        config["state-read"] = list(rows)
    config["clients"] = list(clients)
    return RecordDict({"arrays": arrays, "config": config})


def content_of(reply: Message) -> RecordDict:
    """Return the content of a reply.

    Raises:
        RunError: the node answered with an error.
    """
    if reply.has_error():
        raise RunError(f"node {reply.metadata.src_node_id}: {reply.error.reason}")
    return reply.content


def integer(config: ConfigRecord, key: str) -> int:
    """Return an integer of a config record."""
    value = config[key]
    assert isinstance(value, int)
    return value


def number(config: ConfigRecord, key: str) -> float:
    """Return a number of a config record."""
    value = config[key]
    assert isinstance(value, float)
    return value


def text(config: ConfigRecord, key: str) -> str | None:
    """Return a string of a config record, or None where there is none."""
    value = config.get(key)
    return str(value) if value is not None else None


def _single(key: str, total: Tensor, weight: float) -> Tensor:
    """Return the vector of one client in single precision, or its sum where bits would be lost."""
    factor = weight if is_weighted(key.partition("/")[2]) else 1.0
    vector = (total / factor).float()
    return vector if torch.equal(vector.double() * factor, total) else total


def _summed(name: str, vector: Tensor, weight: float) -> Tensor:
    """Return the sum that a client's vector in single precision stands for."""
    if vector.dtype != torch.float32:
        return vector
    return vector.double() * (weight if is_weighted(name) else 1.0)


def _tensors(content: RecordDict, key: str) -> dict[str, Tensor]:
    record = content.array_records.get(key)
    return {} if record is None else from_record(record)
