"""What our grids share: Flower's `Grid` interface over a function from messages to replies.

Flower's stock simulation polls; ours hand each `Message` straight to the ClientApp and return the
replies. A `Message` needs to know the process's task: that is set here, in one place.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

from fedopt.experiment import Experiment

SERVER_NODE_ID = 1


def identify_process() -> None:
    """Give this process a Flower task identity, without which no `Message` can be made."""
    if TaskIdentity._task_id is None:  # the public property raises when it is not set
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER_NODE_ID


class DirectGrid(Grid):
    """A grid whose nodes answer at once: subclasses define `exchange`.

    Args:
        nodes: number of nodes.
    """

    def __init__(self, nodes: int) -> None:
        identify_process()
        self._node_ids = list(range(2, 2 + nodes))
        self._run = FlowerRun.create_empty(TaskIdentity.run_id)
        self._replies: dict[str, Message] = {}
        self._sent = 0

    @classmethod
    def check(cls, experiment: Experiment) -> None:
        """Refuse what the grid cannot start with, before anything is written.

        Raises:
            ConfigError: naming the key.
        """

    @property
    def shares_files(self) -> bool:
        """Whether all nodes see the files that this process writes, and it theirs."""
        return False

    @abstractmethod
    def exchange(self, messages: Sequence[Message]) -> list[Message]:
        """Return the reply to each message, in any order."""

    def close(self) -> None:
        """Release what the grid holds; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def set_run(self, run: FlowerRun) -> None:
        """Set the Flower run."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """The Flower run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message (Flower asks for it; `Message(...)` does the same)."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of the nodes, ascending."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have the messages answered and return their ids."""
        batch = list(messages)
        for message in batch:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
        for reply in self.exchange(batch):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in batch]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to some messages, each once."""
        return [self._replies.pop(key) for key in message_ids if key in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Return the replies, in the order of the messages; nothing is waited for in vain."""
        return self.pull_messages(self.push_messages(messages))
