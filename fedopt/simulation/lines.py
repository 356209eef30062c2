"""Lines between the driver and the workers of its machine: sockets that carry pickled messages.

A call of a Ray actor takes about a millisecond, and more while all cores are busy; a round of
small models takes less than that. So Ray starts and watches the workers, but is not asked to
carry each message.
"""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

WATCH_SECONDS = 1.0
"""How often it is asked whether the other end lives. A death is seen at once, since it cuts the
line, unless a process that the worker has forked holds it open."""

CUT = (EOFError, OSError)
"""What says that the other end of a line has gone."""


class AnswerError(Exception):
    """What a worker raised while it answered; the text has its traceback.

    Args:
        text: the traceback.
        cause: the exception itself, where it could be sent.
    """

    def __init__(self, text: str, cause: Exception | None) -> None:
        super().__init__(text)
        self.cause = cause


class Line:
    """The driver's end of a line.

    Args:
        number: tells it from all other lines; the worker gives it when it calls.

    Attributes:
        pid: the worker's process, once it has called.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.connection: Connection | None = None
        self.is_cut = False

    def send(self, content: Any) -> None:
        """Send a question; on a line that is cut, nothing."""
        if self.is_cut:
            return
        assert self.connection is not None
        try:
            self.connection.send_bytes(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))
        except CUT:
            self.is_cut = True

    def receive(self) -> Any:
        """Return the answer, or None where the line is cut.

        Raises:
            AnswerError: the worker raised something.
        """
        if self.is_cut:
            return None
        assert self.connection is not None
        try:
            data = self.connection.recv_bytes()
        except CUT:
            self.is_cut = True
            return None
        is_answer, content = pickle.loads(data)
        if is_answer:
            return content
        text, cause = content
        raise AnswerError(text, None if cause is None else pickle.loads(cause))


class Switchboard:
    """The place where workers call the driver.

    Args:
        path: where the socket is made, in a folder that only this user may enter.

    Attributes:
        address: what workers call.
    """

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.address)
        self._socket.listen()
        self._numbers = itertools.count()
        self._lines: dict[int, Line] = {}

    def expect(self) -> Line:
        """Return a new line, which a worker will connect."""
        line = Line(next(self._numbers))
        self._lines[line.number] = line
        return line

    def drop(self, line: Line) -> None:
        """Cut a line."""
        self._lines.pop(line.number, None)
        line.is_cut = True
        if line.connection is not None:
            line.connection.close()

    def connect(self, line: Line, has_ended: Callable[[], bool]) -> Line:
        """Wait until a line is connected, or cut because its worker has ended."""
        while line.connection is None and not line.is_cut:
            if connection.wait([self._socket], WATCH_SECONDS):
                self._accept()
            elif has_ended():
                line.is_cut = True
        return line

    def wait(self, lines: Mapping[Line, Callable[[], bool]]) -> Line:
        """Return a line that has something to be received, or is cut."""
        while True:
            by_connection = {line.connection: line for line in lines}
            for line in lines:
                if line.is_cut:
                    return line
            ready = connection.wait([c for c in by_connection if c is not None], WATCH_SECONDS)
            if ready:
                return by_connection[ready[0]]  # type: ignore[index]
            for line, has_ended in lines.items():
                line.is_cut = has_ended()

    def close(self) -> None:
        """Cut all lines."""
        for line in list(self._lines.values()):
            self.drop(line)
        self._socket.close()

    def _accept(self) -> None:
        accepted, _ = self._socket.accept()
        caller = Connection(accepted.detach())
        try:
            number, pid = pickle.loads(caller.recv_bytes())
        except CUT:  # it died as soon as it had called, which its line will be asked about
            caller.close()
            return
        line = self._lines.get(number)
        if line is None:  # given up meanwhile
            caller.close()
        else:
            line.connection, line.pid = caller, pid


def serve(address: str, number: int, answer: Callable[..., Any]) -> None:
    """Answer what comes through a line from the driver, until the line is cut.

    Args:
        address: what to call.
        number: of the line.
        answer: function of the arguments that are sent.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.connect(address)
        line = Connection(caller.detach())
    with line:
        line.send_bytes(pickle.dumps((number, os.getpid())))
        while True:
            try:
                # Nothing of an exchange is kept: its memory is wanted for the next.
                line.send_bytes(_answered(line.recv_bytes(), answer))
            except CUT:
                return


def _answered(question: bytes, answer: Callable[..., Any]) -> bytes:
    arguments = pickle.loads(question)
    try:
        return pickle.dumps((True, answer(*arguments)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        return pickle.dumps((False, (traceback.format_exc(), _pickled(error))))


def _pickled(error: Exception) -> bytes | None:
    """Return an exception's pickle, where it has one that can be read again."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        return None
    return data
