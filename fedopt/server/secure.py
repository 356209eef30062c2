"""Secure aggregation of a round's updates, between a deployment's grid and its clients.

Clients train first and keep their sums; whoever has trained takes part in the protocol of
`fedopt.secure`. What comes out is the sum over those that stayed to the end, quantised. The
strategy gets it as if the first of them had sent it all and the others zeros, which add up to the
same, and learns no single update.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor

from fedopt.client.algorithm import is_weighted
from fedopt.client.secure import (
    AGREEMENT,
    BUFFERS,
    KEYS,
    MASK,
    SHARES,
    UNMASK,
    unwrapped,
    wrapped,
)
from fedopt.errors import SecureAggregationError, TooFewClientsError
from fedopt.records import integers, to_record
from fedopt.schema import DeploymentTable
from fedopt.secure import (
    Agreement,
    Layout,
    MaskedVector,
    PublicKeys,
    SealedShares,
    SecureSum,
    ServerSession,
    UnmaskShares,
    suggest,
)

log = logging.getLogger("fedopt")

BUFFER_RANGE = 64.0
"""How much larger than other numbers statistics of normalisation layers may be."""

SPARSE_FROM = 64
"""Clients from which on each masks with some neighbours instead of with all."""

Exchange = Callable[[Sequence[Message]], Sequence[Message]]
"""Sends messages and returns a reply to each that has one, an error for each that is lost."""


@dataclass
class SecureRounds:
    """How the rounds of a run are summed.

    Args:
        table: `[deployment]` of the configuration.
        run_key: of the run.
        seed: of the run; orders the clients, which is public.
        sizes: returns the length of each vector of the clients' sums, by name.
        most_examples: of a client, which an update is weighted by.
    """

    table: DeploymentTable
    run_key: str
    seed: int
    sizes: Callable[[], Mapping[str, int]]
    most_examples: float
    _agreement: Agreement | None = field(default=None, init=False)

    def announce(self, round: int, clients: Sequence[int], messages: Sequence[Message]) -> None:
        """Tell the clients of a round what they agree on.

        Raises:
            TooFewClientsError: there is one, whose sum would be its update.
        """
        if len(clients) < 2:
            raise TooFewClientsError(
                f"round {round}: a secure sum of one client would be its update; use more "
                "clients_per_round"
            )
        sizes = dict(self.sizes())
        layout = Layout.finest({name: self._limit(name) for name in sizes}, sizes, len(clients))
        neighbours, threshold = None, math.ceil(self.table.secure_threshold * len(clients))
        if len(clients) >= SPARSE_FROM:
            neighbours, threshold = suggest(len(clients), dropped=1 - self.table.secure_threshold)
        name = f"{self.run_key}-{secrets.token_hex(8)}"  # a round that is done again is another
        self._agreement = Agreement(
            name, self.seed, round, tuple(clients), layout, neighbours, max(2, threshold)
        )
        told = self._agreement.to_bytes()
        for message in messages:
            message.content.config_records["config"][AGREEMENT] = told

    def _limit(self, name: str) -> float:
        """Return the largest absolute value that a client's number may have."""
        weight = self.most_examples if is_weighted(name) or name == BUFFERS else 1.0
        return self.table.secure_range * weight * (BUFFER_RANGE if name == BUFFERS else 1.0)

    def summed(
        self, replies: Mapping[int, Message], exchange: Exchange
    ) -> tuple[SecureSum, dict[int, str]]:
        """Do the protocol with the clients that have trained.

        Args:
            replies: of these, by client.
            exchange: sends messages to them.

        Returns:
            The sum, and of each client that did not stay to the end why.

        Raises:
            TooFewClientsError: so few stayed that nothing can be learned.
        """
        assert self._agreement is not None
        server = ServerSession(self._agreement)
        gone: dict[int, str] = {}
        try:
            for client, reply in replies.items():
                try:
                    told = reply.content.config_records[KEYS][KEYS]
                    assert isinstance(told, bytes)
                    server.add_keys(PublicKeys.from_bytes(told))
                except (LookupError, AssertionError, SecureAggregationError) as error:
                    gone[client] = f"its keys are refused: {error}"
            stage = _Stage(exchange, self.run_key, replies, gone)
            messages = {c: m.to_bytes() for c, m in server.close_keys().items()}
            stage(SHARES, messages, lambda m: server.add_shares(SealedShares.from_bytes(m)))
            messages = {c: m.to_bytes() for c, m in server.close_shares().items()}
            stage(MASK, messages, lambda m: server.add_masked(MaskedVector.from_bytes(m)))
            messages = {c: m.to_bytes() for c, m in server.close_masked().items()}
            stage(UNMASK, messages, lambda m: server.add_unmask(UnmaskShares.from_bytes(m)))
            total = server.close_unmask()
        except SecureAggregationError as error:
            why = "; ".join(f"client {client}: {reason}" for client, reason in gone.items())
            raise TooFewClientsError(f"{error} {why}".strip()) from error
        for client in replies:
            if client not in total.survivors:
                gone.setdefault(client, "left before the sum was complete")
        return total, {c: why for c, why in gone.items() if c not in total.survivors}

    def spread(self, total: SecureSum, replies: Mapping[int, Message]) -> None:
        """Put the sum into the replies of those that are in it."""
        for place, client in enumerate(total.survivors):
            content = replies[client].content
            blocks = content.config_records["blocks"]
            (first,) = integers(blocks, "firsts")
            vectors: dict[str, Tensor] = {}
            for name, size in self.sizes().items():
                own = torch.zeros(size, dtype=torch.float64)
                if place == 0:
                    own = torch.from_numpy(total.values[name])
                vectors[f"{first}/{name}"] = own
            content["sums"] = to_record(vectors)


def has_trained(reply: Message) -> bool:
    """Return whether a client has an update to add: it told its keys."""
    record = reply.content.config_records.get(KEYS)
    return record is not None and bool(record.get(KEYS))


class _Stage:
    """Sends the messages of a stage, and hands what comes back to the server's session."""

    def __init__(
        self,
        exchange: Exchange,
        run_key: str,
        replies: Mapping[int, Message],
        gone: dict[int, str],
    ) -> None:
        self._exchange = exchange
        self._run_key = run_key
        self._nodes = {client: reply.metadata.src_node_id for client, reply in replies.items()}
        self._group = next(iter(replies.values())).metadata.group_id if replies else ""
        self._gone = gone

    def __call__(
        self, kind: str, messages: Mapping[int, bytes], take: Callable[[bytes], None]
    ) -> None:
        """Do a stage."""
        asked = []
        for client, message in messages.items():
            content = wrapped(message)
            content["config"] = ConfigRecord({"run-key": self._run_key})
            asked.append(Message(content, self._nodes[client], kind, group_id=self._group))
        clients = dict(zip([self._nodes[c] for c in messages], messages, strict=True))
        for reply in self._exchange(asked):
            client = clients[reply.metadata.src_node_id]
            if reply.has_error():
                self._gone[client] = reply.error.reason or "lost"
                continue
            try:
                take(unwrapped(reply.content))
            except (LookupError, SecureAggregationError) as error:
                self._gone[client] = f"its message is refused: {error}"
