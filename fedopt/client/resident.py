"""A client's training process that stays, so that a message costs no start of torch.

Flower starts a process for every message. Where `fedopt deploy node` runs the SuperNode, that
process hands the message to one that stays, by a socket that the client's user alone can open, and
answers what comes back; it imports no torch itself. The process that stays ends with the SuperNode,
and begins anew with every run; where it has died, the next message starts another.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from flwr.app import RecordDict
from flwr.clientapp import ClientApp

from fedopt.client.handlers import app_of

SOCKET = "FEDOPT_RESIDENT"
"""Environment variable: the socket, in a folder of the client's user alone."""

NODE_PID = "FEDOPT_NODE_PID"
"""Environment variable: the SuperNode, with which the process ends."""

START_SECONDS = 120.0


def resident_app() -> ClientApp:
    """Return the ClientApp of a real client: by the process that stays, where there may be one."""
    if not os.environ.get(SOCKET):
        from fedopt.client.app import client_app

        return client_app()
    return app_of(ask)


def ask(message_type: str, content: RecordDict, node_config: Mapping[str, Any]) -> RecordDict:
    """Have a message answered by the process that stays, which is started if need be.

    Raises:
        RuntimeError: what the process raised, or that it ended.
    """
    # A process of Flower's own for each message holds its own identity; contents travel alone.
    asked = (message_type, content, dict(node_config), list(sys.path))
    answer: Any = None
    ended = 0
    while answer is None:  # it ends where the run is another, and the next one begins
        connection = _connected(Path(os.environ[SOCKET]))
        try:
            connection.send(asked)
            answer = connection.recv()
        except (EOFError, OSError) as error:
            ended += 1  # once may be a process that was about to end for another run
            if ended > 1:
                raise RuntimeError(f"the client's training process ended: {error!r}") from None
            time.sleep(0.5)
        finally:
            connection.close()
    if isinstance(answer, str):
        raise RuntimeError(answer)
    assert isinstance(answer, RecordDict)
    return answer


def _connected(path: Path) -> Connection:
    with contextlib.suppress(OSError):
        return Client(str(path), "AF_UNIX")
    process = subprocess.Popen(
        [sys.executable, "-m", "fedopt.client.resident"], start_new_session=True
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            return Client(str(path), "AF_UNIX")
    raise RuntimeError(f"the client's training process does not start (exit {process.poll()})")


def serve(path: Path) -> None:
    """Answer messages, one after another, until the SuperNode is gone."""
    import traceback

    from fedopt.client.app import Node
    from fedopt.client.site import tellable
    from fedopt.records import serialise

    known: list[str] | None = None  # places of the modules of the run
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    node = Node(None)
    with Listener(str(path), "AF_UNIX") as listener:
        while True:
            with listener.accept() as connection:
                try:
                    message_type, content, node_config, paths = connection.recv()
                except (EOFError, OSError):
                    continue  # whoever asked is gone
                if known is not None and paths != known:  # another run, with modules of its own
                    listener.close()  # first: nobody else may come to who is about to end
                    connection.send(None)
                    os._exit(0)
                known = paths
                sys.path += [entry for entry in paths if entry not in sys.path]
                answer: Any
                try:
                    answer = node.answer(message_type, content, node_config)
                except Exception as error:  # whatever training raises belongs to this message
                    traceback.print_exc()
                    answer = tellable(error)
                if isinstance(answer, RecordDict):
                    serialise(answer)
                with contextlib.suppress(OSError):
                    connection.send(answer)


def end_with(pid: int, path: Path) -> None:
    """End this process once another is gone."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    os._exit(0)


def main() -> None:
    """Run the process that stays."""
    path, pid = Path(os.environ[SOCKET]), int(os.environ[NODE_PID])
    threading.Thread(target=end_with, args=(pid, path), daemon=True).start()
    serve(path)


if __name__ == "__main__":
    main()
