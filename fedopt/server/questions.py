"""Questions to clients that do not train: the loss and accuracy of the model on their data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType
from flwr.serverapp import Grid

from fedopt.client.messages import content_of, encode_evaluation
from fedopt.client.state import RowFile
from fedopt.server.client_store import ClientStateStore
from fedopt.server.placing import shares


def questions(
    round: int,
    clients: npt.NDArray[np.int64],
    arrays: ArrayRecord,
    config: ConfigRecord,
    grid: Grid,
    split: str,
    store: ClientStateStore | None = None,
) -> list[Message]:
    """Return messages that ask for the model's loss on a split of some clients' data.

    With a store, clients use what they keep of the model.
    """
    return [
        Message(
            encode_evaluation(round, share, arrays, config, split, *_kept_rows(store, share)),
            dst_node_id=node,
            message_type=MessageType.EVALUATE,
            group_id=str(round),
        )
        for node, share in shares(grid, clients.tolist()).items()
    ]


def _kept_rows(
    store: ClientStateStore | None, clients: Sequence[int]
) -> tuple[RowFile | None, list[int]]:
    """Return the file of client state, and the rows of some clients."""
    return (None, []) if store is None else (store.file, store.rows(clients))


def answers(
    replies: Iterable[Message], record: str = "clients"
) -> list[tuple[int, int, float, float]]:
    """Return client, examples, loss and accuracy of the clients that have examples, in order."""
    rows: list[tuple[int, int, float, float]] = []
    for reply in replies:
        columns = content_of(reply).metric_records.get(record)
        if columns is None:
            continue
        names = ("client", "examples", "loss", "accuracy")
        rows.extend(zip(*(columns[n] for n in names), strict=True))
    return sorted(row for row in rows if row[1] > 0)
