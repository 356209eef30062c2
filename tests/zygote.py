"""Processes of `fedopt` without its imports: forked from one that has made them.

A test calls the command as a user does, in a process of its own; what it need not do each time is
to import torch, Flower and matplotlib, which takes longer than most commands. Tests of start-up
itself, of signals and of installed packages start Python.
"""

from __future__ import annotations

import array
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

FIRST = "fedopt.run fedopt.analysis.plots fedopt.data.picture fedopt.cli flwr.serverapp pandas ray"


class Done(NamedTuple):
    """How a command ended: exit code, or the negative number of a signal; what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Zygote:
    """A process that has imported everything, and forks one a command."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        root = str(Path(__file__).parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
        )
        theirs.close()
        self._replies = self._socket.makefile("r")
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def run(
        self, words: Sequence[str], folder: Path, env: Mapping[str, str], timeout: float
    ) -> Done:
        """Run `fedopt` with words in a folder to its end.

        Raises:
            subprocess.TimeoutExpired: it was killed, because it took too long.
        """
        order = {"words": list(words), "folder": str(folder), "env": dict(env)}
        with (
            self._lock,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            files = array.array("i", [out.fileno(), err.fileno()])
            payload = json.dumps(order).encode()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
            self._socket.sendmsg([len(payload).to_bytes(4, "big")], ancillary)
            self._socket.sendall(payload)
            pid = int(self._replies.readline())
            timer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
            timer.start()
            code = int(self._replies.readline())
            is_late = not timer.is_alive()
            timer.cancel()
            if is_late:
                raise subprocess.TimeoutExpired(["fedopt", *words], timeout)
            out.seek(0)
            err.seek(0)
            return Done(code, out.read(), err.read())

    def stop(self) -> None:
        """End it."""
        self._socket.close()
        self._process.kill()
        self._process.wait()


_zygotes: dict[int, Zygote] = {}


def fedopt(
    folder: Path,
    words: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout: float = 420,
) -> Done:
    """Run `fedopt` with words in a folder to its end, as a process of its own.

    Args:
        folder: where it is called.
        words: its arguments.
        env: its whole environment; None: this process's.
        timeout: seconds after which it is killed.
    """
    zygote = _zygotes.get(os.getpid())
    if zygote is None or zygote._process.poll() is not None:
        zygote = _zygotes[os.getpid()] = Zygote()
    return zygote.run(words, folder, os.environ if env is None else env, timeout)


def _serve(descriptor: int) -> None:
    """Fork a process for each order."""
    import importlib

    for name in FIRST.split():
        importlib.import_module(name)
    connection = socket.socket(fileno=descriptor)
    while True:
        head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(2 * 4))
        if not head:
            return
        files = array.array("i")
        files.frombytes(ancillary[0][2][: 2 * files.itemsize])
        size, payload = int.from_bytes(head, "big"), b""
        while len(payload) < size:
            payload += connection.recv(size - len(payload))
        pid = os.fork()
        if pid == 0:
            connection.close()
            _become(json.loads(payload), *files)
        for file in files:
            os.close(file)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(order: dict[str, object], out: int, err: int) -> None:
    """Be the command; never returns."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.clear()
        os.environ.update(order["env"])  # type: ignore[call-overload]
        os.chdir(str(order["folder"]))
        sys.argv = ["fedopt", *order["words"]]  # type: ignore[misc]
        sys.path[0] = ""
        from fedopt.cli import main

        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
