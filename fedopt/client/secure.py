"""A real client's part in secure aggregation: its update waits on its volume, then goes up masked.

    train                 trains as ever, keeps the sums, tells its public keys
    query.secure_shares   shares its secrets among its neighbours
    query.secure_mask     sends the sums, quantised and masked
    query.secure_unmask   answers what unmasks the sum of those that stayed, once

Each message may be answered by another process, so what lies between is in files that the client's
user alone can read.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

from fedopt.atomic import write_atomically
from fedopt.client.sums import BlockSums
from fedopt.client.trainer import TrainingOutcome
from fedopt.errors import RunError, SecureAggregationError
from fedopt.records import from_record, to_record
from fedopt.secure import Agreement, ClientSession, Inbox, KeyRing, Survivors

AGREEMENT = "secure-agreement"
"""Key of a train message: the agreement of the round, as bytes."""

KEYS = "secure"
"""Record of the replies, and its key: a message of the protocol, as bytes."""

SHARES, MASK, UNMASK = "query.secure_shares", "query.secure_mask", "query.secure_unmask"
BUFFERS = "buffers"
"""Name of the model's buffers among the parts of a secure sum."""


class SecureClient:
    """What a client keeps of the secure sum of a round.

    Args:
        folder: of the run's state on the client's volume.
        client: its id.
    """

    def __init__(self, folder: Path, client: int) -> None:
        self._folder = folder / "secure"
        self._client = client

    def begin(self, agreement: bytes, round: int, received: str, outcome: TrainingOutcome) -> bytes:
        """Keep a round's sums, and return the public keys for the server.

        Args:
            agreement: as the server sent it.
            round: communication round.
            received: digest of what the client was sent in this round.
            outcome: what the client trained: the sums of its one block.

        Raises:
            SecureAggregationError: the client has helped to unmask this round or a later one, of
                another model. The same round may be summed again, as a server that was killed does:
                over the same clients, as `unmask` sees to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        answered = self._answered()
        before = answered.get(str(round))
        if before is None and round <= max(map(int, answered), default=0):
            raise SecureAggregationError(
                f"client {self._client} has helped to unmask a later round than {round}"
            )
        if before is not None and before["received"] != received:
            raise SecureAggregationError(
                f"client {self._client} has helped to unmask round {round}, of another model"
            )
        (sums,) = outcome.sums
        session, keys = ClientSession.start(Agreement.from_bytes(agreement), self._client)
        arrays: dict[str, Any] = {name: vector.numpy() for name, vector in named_sums(sums).items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self._write("sums.npz", buffer.getvalue())
        self._write("session", session.to_bytes())
        self._write("round", json.dumps({"round": round, "received": received}).encode())
        return keys.to_bytes()

    def shares(self, message: bytes) -> bytes:
        """Return the sealed shares for the neighbours, whose keys the message brings."""
        session = self._session()
        reply = session.share(KeyRing.from_bytes(message)).to_bytes()
        self._write("session", session.to_bytes())
        return reply

    def mask(self, message: bytes) -> bytes:
        """Return the sums, quantised and masked.

        Raises:
            DataError: a number is beyond `deployment.secure_range`.
        """
        session = self._session()
        with np.load(self._folder / "sums.npz") as archive:
            values: dict[str, Any] = {name: archive[name] for name in archive.files}
        reply = session.mask(Inbox.from_bytes(message), values).to_bytes()
        self._write("session", session.to_bytes())
        (self._folder / "sums.npz").unlink()
        return reply

    def unmask(self, message: bytes) -> bytes:
        """Return the shares that unmask the sum of the survivors.

        Raises:
            SecureAggregationError: the round was unmasked before, over other clients: the
                difference of the two sums would be what these had sent.
        """
        session = self._session()
        survivors = Survivors.from_bytes(message)
        now = json.loads((self._folder / "round").read_text())
        now["survivors"] = [int(client) for client in survivors.clients]
        answered = self._answered()
        before = answered.get(str(now["round"]))
        if before is not None and before["survivors"] != now["survivors"]:
            raise SecureAggregationError(
                f"client {self._client} has helped to unmask round {now['round']}, over other "
                "clients"
            )
        reply = session.unmask(survivors).to_bytes()
        self._write("session", session.to_bytes())
        self._write("answered", json.dumps({**answered, str(now["round"]): now}).encode())
        return reply

    def _answered(self) -> dict[str, Any]:
        """Return the rounds that the client has helped to unmask."""
        path = self._folder / "answered"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _session(self) -> ClientSession:
        try:
            return ClientSession.from_bytes((self._folder / "session").read_bytes())
        except FileNotFoundError:
            raise RunError(
                f"client {self._client} has no part in a secure sum: its state is gone"
            ) from None

    def _write(self, name: str, payload: bytes) -> None:
        """Write a file that its owner alone can read, whole."""
        write_atomically(self._folder / name, payload, private=True)


def named_sums(sums: BlockSums) -> dict[str, torch.Tensor]:
    """Return the vectors of a block's sums by name, the buffers' among them where there are any."""
    named = dict(sums.terms)
    if len(sums.buffers):
        named[BUFFERS] = sums.buffers
    return named


def without_sums(content: RecordDict, keys: bytes) -> None:
    """Take the sums out of a reply, and put the client's public keys into it."""
    content["sums"] = to_record({})
    content[KEYS] = ConfigRecord({KEYS: keys})


def wrapped(message: bytes) -> RecordDict:
    """Return the content of a message of the protocol."""
    array = torch.from_numpy(np.frombuffer(message, dtype=np.uint8).copy())
    return RecordDict({KEYS: to_record({KEYS: array})})


def unwrapped(content: RecordDict) -> bytes:
    """Return the message of the protocol that a content holds.

    Raises:
        LookupError: there is none.
    """
    message: bytes = from_record(content.array_records[KEYS])[KEYS].numpy().tobytes()
    return message
