"""A Flower ClientApp over a function that answers messages. Imports neither torch nor the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

Answer = Callable[[str, RecordDict, Mapping[str, Any]], RecordDict]
"""From a message's type, its content and the node's configuration to the content of the reply."""


def app_of(answer: Answer) -> ClientApp:
    """Return a ClientApp whose replies a function makes."""
    app = ClientApp()

    def handler(message: Message, context: Context) -> Message:
        content = answer(message.metadata.message_type, message.content, context.node_config)
        return Message(content, reply_to=message)

    app.train()(handler)
    app.evaluate()(handler)
    app.evaluate("test")(handler)
    app.evaluate("batch_norm")(handler)
    app.evaluate("objective")(handler)
    for action in ("describe", "probe", "secure_shares", "secure_mask", "secure_unmask"):
        app.query(action)(handler)
    return app
