"""Real clients: who they are, where their messages go, and what becomes of those that are lost.

A `DeploymentGrid` stands between a strategy and Flower's grid. Before a run it asks each node which
client it is; in a run it sends a client's message to its node, and answers for the nodes that are
gone or too late with an error that names the client. So a strategy sees what it sees in a
simulation: one reply a node.
"""

from __future__ import annotations

import csv
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun

from fedopt.client.messages import integer, text
from fedopt.config import Config
from fedopt.errors import ConfigError, RunError
from fedopt.records import integers, to_record
from fedopt.server.secure import SecureRounds, has_trained

log = logging.getLogger("fedopt")

DESCRIBE = "query.describe"
"""Type of the message that asks a node which client it is."""

PROBE = "query.probe"
"""Type of a message that is answered by so many bytes, for measuring a link."""

NODE_UNAVAILABLE = 5
APP_CRASHED = 8
"""Codes of Flower's errors (`flwr.common.constant.ErrorCode`)."""

RAISED = re.compile(r"<class '[^']*'>:<[\"'](.*)[\"']>")
"""How Flower tells what a ClientApp raised."""

MOST_CLIENTS = 2**31
"""Ids of clients are below."""

POLL_SECONDS = (0.05, 0.5)
"""Shortest and longest pause between two looks for replies."""

NODES_SECONDS = 5.0
"""Pause between two looks for nodes, while clients are waited for."""

TRANSFER_COLUMNS = (
    "round",
    "client",
    "kind",
    "bytes_down",
    "bytes_up",
    "train_seconds",
    "round_trip_seconds",
    "steps",
    "examples_seen",
)


@dataclass(frozen=True)
class Member:
    """What a client told of itself before a run.

    Args:
        client: its id.
        name: what people call it.
        examples: that it trains on.
        validation: examples that it holds out.
        input_shape: shape of one input.
        target_shape: shape of one regression target.
        classes: number of classes as far as it knows; None: regression.
        signature: digest of the names of a table's columns; empty for other data.
    """

    client: int
    name: str
    examples: int
    validation: int
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    classes: int | None
    signature: str

    @classmethod
    def of(cls, told: ConfigRecord) -> Member:
        """Return what a reply tells.

        Raises:
            LookupError, AssertionError: it lacks something.
        """
        return cls(
            integer(told, "client"),
            printable(str(told["name"])),
            integer(told, "examples"),
            integer(told, "validation"),
            tuple(integers(told, "input-shape")),
            tuple(integers(told, "target-shape")),
            integer(told, "classes") or None,
            str(told["signature"]),
        )


class DeploymentGrid(Grid):
    """Flower's grid, with the clients that its nodes are.

    Args:
        grid: Flower's.
        config: the run's, which nodes are told.
        experiment: the same as the nodes get it.
        admitted: ids and names of the clients that may take part; None for any.
        clock: a monotonic clock in seconds.
        sleep: pauses so many seconds.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        experiment: str,
        admitted: Mapping[int, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._config = config
        self._experiment = experiment
        self._admitted = admitted
        self._clock = clock
        self._sleep = sleep
        self._nodes: dict[int, int] = {}  # client -> node
        self._clients: dict[int, int] = {}  # node -> client
        self._refused: dict[int, tuple[str, float]] = {}  # node -> why, and when it was asked
        self._expected: dict[int, Member] | None = None
        self.members: dict[int, Member] = {}
        self.transfers: Path | None = None
        self.secure: SecureRounds | None = None

    # Who is there ------------------------------------------------------------------------------

    @property
    def hosts(self) -> Mapping[int, int]:
        """Client id -> node id; of clients that were never seen a negative number."""
        known = self._expected if self._expected is not None else self.members
        return {client: self._nodes.get(client, -1 - client) for client in known}

    def gather(self, clients: int, seconds: float) -> dict[int, Member]:
        """Wait until so many clients are connected, and return all that are.

        Raises:
            RunError: there are too few when the time is over; the message says who refuses and why.
        """
        deadline = self._clock() + seconds
        told = 0.0
        while True:
            self.refresh()
            there = self._online()
            if len(there) >= clients:
                return {client: self.members[client] for client in sorted(there)}
            now = self._clock()
            if now >= deadline:
                raise RunError(self._too_few(len(there), clients, seconds))
            if now - told >= 30 or not told:
                told = now
                log.warning("%d of %d clients are connected; waiting", len(there), clients)
            self._sleep(NODES_SECONDS)

    def begin(self, members: Mapping[int, Member]) -> None:
        """Fix who takes part in the run; who comes later and is not among them is told so."""
        self._expected = dict(members)

    def refresh(self) -> None:
        """Ask the nodes that are new which client they are."""
        online = set(self._grid.get_node_ids())
        now, is_on = self._clock(), self._expected is not None
        # Who is asked in the midst of a run holds up the others.
        again = 60 * NODES_SECONDS if is_on else 6 * NODES_SECONDS
        limit = min(self._config.deployment.wait_seconds, 30.0 if is_on else math.inf)
        asked = [
            node
            for node in sorted(online - set(self._clients))
            if node not in self._refused or now - self._refused[node][1] >= again
        ]
        if not asked:
            return
        content = ConfigRecord({"experiment": self._experiment})
        messages = [Message(RecordDict({"config": content}), node, DESCRIBE) for node in asked]
        replies = self._exchange(messages, limit)
        for reply in replies:
            self._introduce(reply, online)

    def _introduce(self, reply: Message, online: set[int]) -> None:
        """Take in what a node says of itself."""
        node = reply.metadata.src_node_id
        if reply.has_error():
            self._refuse(node, f"node {node} does not answer: {reply.error.reason}")
            return
        record = reply.content.config_records.get("site", ConfigRecord())
        refusal = text(record, "refused")
        if refusal is not None:
            name = printable(str(record.get("name", "no name")))
            who = f"client {record.get('client', '?')!s} ({name})"
            self._refuse(node, f"{who} does not take part: {printable(refusal)}")
            return
        try:
            member = Member.of(record)
        except (LookupError, AssertionError, TypeError, ValueError) as error:
            says = f"{type(error).__name__}: {error}"
            self._refuse(node, f"node {node} does not say which client it is ({says})")
            return
        other = self._nodes.get(member.client)
        if other is not None and other != node and other in online:
            self._refuse(
                node,
                f"client {member.client} is there twice, as {self.members[member.client].name} and "
                f"as {member.name}; client-id must differ",
            )
            return
        problem = self._disagreement(member)
        if problem:
            self._refuse(node, f"client {member.client} ({member.name}) {problem}")
            return
        if other is not None:
            self._clients.pop(other, None)
        self._refused.pop(node, None)
        self._nodes[member.client], self._clients[node] = node, member.client
        is_known = member.client in self.members
        self.members[member.client] = member
        words = "is back" if is_known else "is connected"
        log.warning(
            "client %d (%s) %s, %d examples", member.client, member.name, words, member.examples
        )

    def _disagreement(self, member: Member) -> str | None:
        """Return what keeps a client out of the run, or None."""
        if self._admitted is not None and self._admitted.get(member.client) != member.name:
            name = self._admitted.get(member.client)
            return "is not one of the deployment" if name is None else f"is called {name} here"
        if member.examples < 1 or member.client < 0 or member.client >= MOST_CLIENTS:
            return f"has {member.examples} examples and the id {member.client}; both must be sane"
        if self._expected is not None:
            then = self._expected.get(member.client)
            if then is None:
                return "came after the run began, and takes part in the next one"
            if then.examples != member.examples:
                return (
                    f"has {member.examples} examples, {then.examples} when the run began; its data "
                    "must stay as they are during a run"
                )
            return None
        first = next(iter(self.members.values()), None)
        if first is None or first.client == member.client:
            return None
        if first.input_shape != member.input_shape:
            return f"has inputs of shape {member.input_shape}, {first.name} {first.input_shape}"
        if first.target_shape != member.target_shape or (first.classes is None) != (
            member.classes is None
        ):
            return f"has other targets than {first.name}: labels and numbers do not mix"
        if first.signature != member.signature:
            return f"has a table with other columns, or in another order, than {first.name}"
        return None

    def _refuse(self, node: int, why: str) -> None:
        before = self._refused.get(node)
        self._refused[node] = (why, self._clock())
        if before is None or before[0] != why:
            log.warning("%s", why)

    def _online(self) -> list[int]:
        online = set(self._grid.get_node_ids())
        return [client for client, node in self._nodes.items() if node in online]

    def _too_few(self, there: int, wanted: int, seconds: float) -> str:
        online = set(self._grid.get_node_ids())
        reasons = [why for node, (why, _) in sorted(self._refused.items()) if node in online]
        lines = [
            f"{there} of {wanted} clients are connected after {seconds:g} s",
            *(f"  {why}" for why in reasons),
        ]
        return "\n".join(lines)

    def wait_for_clients(self, clients: int) -> None:
        """Wait until so many clients of the run are connected.

        Raises:
            RunError: they are not within `deployment.wait_seconds`.
        """
        self.gather(clients, self._config.deployment.wait_seconds)

    def probe(self, nbytes: int) -> None:
        """Exchange messages of three sizes with each client, for fits of its link.

        Args:
            nbytes: of the model; a larger message has four times as many, at least 1 MiB.
        """
        large = max(2**20, 4 * nbytes)
        for down, up in ((0, 0), (large, 0), (0, large)):
            payload = to_record({PROBE: torch.zeros(down, dtype=torch.uint8)})
            config = ConfigRecord({"answer-bytes": up})
            messages = [
                Message(RecordDict({PROBE: payload, "config": config}), node, PROBE, group_id="0")
                for node in self._clients
            ]
            self._exchange(messages, self._config.deployment.round_seconds)

    # Flower's Grid -----------------------------------------------------------------------------

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return a reply to each message: an error for a node that is gone or too late.

        Questions (messages that are not for training) that are lost have no reply: whoever asks
        does with the answers that there are.
        """
        batch = list(messages)
        limit = self._config.deployment.round_seconds if timeout is None else timeout
        if self.secure is not None and batch and _trains(batch[0]):
            return self._securely(self.secure, batch, limit)
        replies = self._exchange(batch, limit)
        kept = []
        for reply in replies:
            if reply.has_error() and not _trains(reply):
                log.warning("%s", reply.error.reason)
            else:
                kept.append(reply)
        return kept

    def _securely(
        self, secure: SecureRounds, messages: Sequence[Message], seconds: float
    ) -> list[Message]:
        """Have a round trained of which the sum alone is learned; return replies that add up to it.

        Raises:
            TooFewClientsError: so few stayed to the end that nothing is learned.
        """
        asked = [self._clients.get(m.metadata.dst_node_id) for m in messages]
        there = [client for client in asked if client is not None]
        round = integer(messages[0].content.config_records["config"], "server-round")
        secure.announce(round, there, messages)
        replies = self._exchange(messages, seconds)
        trained = {
            client: reply
            for client, reply in zip(asked, replies, strict=True)
            if client is not None and not reply.has_error() and has_trained(reply)
        }
        total, gone = secure.summed(trained, lambda batch: self._exchange(batch, seconds))
        secure.spread(total, trained)
        kept = []
        for client, reply, message in zip(asked, replies, messages, strict=True):
            is_gone = client is not None and client in gone
            kept.append(self._lost(message, gone[client]) if is_gone else reply)  # type: ignore[index]
        return kept

    def _exchange(self, messages: Sequence[Message], seconds: float) -> list[Message]:
        """Send messages and return a reply to each, in their order."""
        online = set(self._grid.get_node_ids())
        replies: dict[int, Message] = {}
        pending: dict[str, int] = {}
        began = self._clock()
        there = [i for i, m in enumerate(messages) if m.metadata.dst_node_id in online]
        ids: list[str | None] = [None] * len(there)
        if there:  # Flower returns nothing where the messages are too large for it
            ids = list(self._grid.push_messages([messages[i] for i in there])) or ids
        for place, found in zip(there, ids, strict=True):
            if found:
                pending[found] = place
            else:
                replies[place] = self._lost(
                    messages[place], "the SuperLink does not take its message"
                )
        for place, message in enumerate(messages):
            if place not in replies and place not in there:
                replies[place] = self._lost(message, "it is not connected")
        pause = POLL_SECONDS[0]
        is_over = False
        while pending and not is_over:
            is_over = self._clock() - began >= seconds  # what has arrived by now still counts
            found_replies = list(self._grid.pull_messages(list(pending)))
            for reply in found_replies:
                place = pending.pop(reply.metadata.reply_to_message_id)
                message = messages[place]
                if reply.has_error():
                    reply = self._lost(message, _reason(reply.error))
                replies[place] = reply
                self._note(message, reply, self._clock() - began)
            if pending and not is_over:
                pause = POLL_SECONDS[0] if found_replies else min(2 * pause, POLL_SECONDS[1])
                self._sleep(pause)
        for place in pending.values():
            replies[place] = self._lost(messages[place], f"no reply within {seconds:g} s")
        return [replies[place] for place in sorted(replies)]

    def _lost(self, message: Message, why: str) -> Message:
        """Return a reply in place of one that does not come."""
        node = message.metadata.dst_node_id
        client = self._clients.get(node)
        if client is None:
            client = next((c for c, n in self.hosts.items() if n == node), None)
        who = f"node {node}" if client is None else f"client {client}"
        known = (self._expected or self.members).get(-1 if client is None else client)
        named = "" if known is None else f" ({known.name})"
        if not message.metadata.message_id:
            message.metadata.__dict__["_message_id"] = f"not sent to {node}"
        return Message(Error(NODE_UNAVAILABLE, f"{who}{named}: {why}"), reply_to=message)

    def _note(self, message: Message, reply: Message, seconds: float) -> None:
        """Write down what an exchange took, for those who fit device profiles to it."""
        if self.transfers is None or reply.has_error():
            return
        client = self._clients.get(message.metadata.dst_node_id)
        if client is None:
            return
        row: dict[str, Any] = {
            "round": message.metadata.group_id,
            "client": client,
            "kind": message.metadata.message_type,
            "bytes_down": array_nbytes(message.content),
            "bytes_up": array_nbytes(reply.content),
            "train_seconds": "",
            "round_trip_seconds": f"{seconds:.6f}",
            "steps": "",
            "examples_seen": "",
        }
        blocks = reply.content.config_records.get("blocks")
        reports = reply.content.metric_records.get("clients")
        if blocks is not None and reports is not None and "steps" in reports:
            took: Any = blocks["seconds"]
            row["train_seconds"] = f"{sum(took):.6f}"
            steps: Any = reports["steps"]
            row["steps"] = sum(steps)
            seen = reply.content.config_records.get("seen")
            row["examples_seen"] = "" if seen is None else seen["examples"]
        is_new = not self.transfers.exists()
        with open(self.transfers, "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, TRANSFER_COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    def set_run(self, run: FlowerRun) -> None:
        """Set the Flower run."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
        """The Flower run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes that are connected, ascending."""
        return sorted(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages to Flower's grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages from Flower's grid."""
        return self._grid.pull_messages(message_ids)


def _trains(message: Message) -> bool:
    return bool(message.metadata.message_type == MessageType.TRAIN)


def printable(text: str) -> str:
    """Return a text of a client's without what would change a terminal, and not too long."""
    return "".join(c if c.isprintable() else "?" for c in text)[:500]


def array_nbytes(content: RecordDict) -> int:
    """Return the bytes of the arrays in a message's content."""
    return sum(record.count_bytes() for record in content.array_records.values())


def _reason(error: Error) -> str:
    """Return Flower's error in words."""
    if error.code == NODE_UNAVAILABLE:
        return "it went away"
    if error.code == APP_CRASHED:
        return "its process ended before it answered"
    said = printable((error.reason or "no reason given").strip().splitlines()[-1])
    raised = RAISED.fullmatch(said)
    return f"{said} (code {error.code})" if raised is None else raised.group(1)


def check_deployable(config: Config) -> None:
    """Refuse what describes a simulated population, which real clients do not obey.

    Raises:
        ConfigError: naming the key.
    """
    refused = {
        "strategy.name": config.strategy.name == "centralised" and "pools the clients' data",
        "attack.name": config.attack.name != "none" and "makes simulated clients hostile",
        "drift.name": config.drift.name != "none" and "changes the data of simulated clients",
        "arrival.share": config.arrival.is_on and "says when simulated clients join",
        "system.devices.name": config.devices.name != "none" and "describes simulated devices",
        "system.availability.name": config.availability.name != "always"
        and "says when simulated clients are there",
        "system.failures": any(config.failures.model_dump().values())
        and "makes simulated clients fail",
        "policy.name": config.policy.name != "synchronous" and "runs on the virtual clock",
        "deployment.secure": config.deployment.secure
        and config.uplink_compression.name != "none"
        and "sends masked numbers, which do not compress (uplink.compression)",
        "evaluation.unseen_clients": bool(config.evaluation.unseen_clients)
        and "holds out simulated clients",
        "evaluation.gradients": config.evaluation.gradients
        and "asks clients for gradients of their training data, of which more than the agreed "
        "metrics would leave them",
        "evaluation.training_clients": bool(config.evaluation.training_clients)
        and "measures the model on the training data of simulated clients",
        "engine.block_size": config.engine.block_size not in (None, 1)
        and "sums clients before they leave a worker, and each real client is a node of its own; "
        "use 1 in both to compare",
    }
    for key, why in refused.items():
        if why:
            raise ConfigError(f"{why}, and does not go with real clients", key=key)
