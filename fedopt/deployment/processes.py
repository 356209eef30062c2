"""A deployment as plain processes of this machine: what containers would do, without Docker.

Each process has a file in `run/` with its id and when it began, so that another process that got
the same id later is never stopped, and its output in `logs/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fedopt.atomic import write_atomically
from fedopt.deployment.flower import Flower
from fedopt.deployment.folder import ClientTable, Deployment
from fedopt.deployment.services import check_site, supernode_environment
from fedopt.errors import ConfigError, RunError, UndescribedDataError

START_SECONDS = 90.0
"""How long a process may take to answer."""

STOP_SECONDS = 10.0
"""How long a process may take to end when it is asked to."""

CONNECTED, NOT_ADMITTED = "SuperNode ID: ", "Failed to activate SuperNode"
"""What a SuperNode says when the server knows it, and when it does not admit it."""

SUPERLINK, GATEWAY = "superlink", "gateway"


@dataclass(frozen=True)
class Process:
    """One process of a deployment.

    Args:
        name: `superlink`, `gateway`, or a client's.
        pid: its id, None where it does not run.
    """

    name: str
    pid: int | None


def control_port(deployment: Deployment) -> int:
    """Return the port of the SuperLink, which only this machine reaches."""
    return deployment.table.port + 1


def flower(deployment: Deployment) -> Flower:
    """Return Flower's command line against the deployment's SuperLink on this machine."""
    address = f"127.0.0.1:{control_port(deployment)}"
    return Flower(deployment.root / "run" / "flwr", address, deployment.authority)


def up(deployment: Deployment, names: Sequence[str] = ()) -> list[Process]:
    """Start what does not run yet: SuperLink, gateway and clients.

    Args:
        deployment: the deployment.
        names: clients to start; none for all.

    Raises:
        ConfigError: a client's folder cannot be used, or a port is taken.
        RunError: a process ends or does not answer; with the end of its log.
    """
    wanted = [deployment.named(name) for name in names]
    wanted = wanted or [client for client in deployment.table.clients if not client.remote]
    for client in wanted:
        try:
            check_site(deployment.client(client.name))
        except UndescribedDataError:
            pass  # the run's configuration will say it
        except ConfigError as error:
            raise ConfigError(f"client {client.name}: {error}") from None
    (deployment.root / "run").mkdir(exist_ok=True)
    (deployment.root / "logs").mkdir(exist_ok=True)
    started: list[Process] = []
    server, port = deployment.server, control_port(deployment)
    if _running(deployment, SUPERLINK) is None:
        _check_port(port)
        words = ["serve", str(server), "--results", str(deployment.results)]
        words += ["--host", "127.0.0.1", "--port", str(port)]
        started.append(_start(deployment, SUPERLINK, words))
    _wait(deployment, SUPERLINK, port)
    if _running(deployment, GATEWAY) is None:
        _check_port(deployment.table.port)
        words = ["gateway", str(server), "--superlink", f"127.0.0.1:{port}"]
        # A trial on one machine is nobody else's to reach.
        is_local = deployment.table.hosts[0] in ("localhost", "127.0.0.1")
        words += ["--host", "127.0.0.1" if is_local else "0.0.0.0"]
        words += ["--port", str(deployment.table.port)]
        started.append(_start(deployment, GATEWAY, words))
    _wait(deployment, GATEWAY, deployment.table.port)
    register(flower(deployment), server)
    starts = {c.name: _start_node(deployment, c.name) for c in wanted if not _is_on(deployment, c)}
    for name, place in starts.items():
        started.append(_await_node(deployment, name, place))
    return started


def _is_on(deployment: Deployment, client: ClientTable) -> bool:
    return _running(deployment, client.name) is not None


def _start_node(deployment: Deployment, name: str) -> int:
    """Start a client, and return where in its log what it says begins."""
    log = log_file(deployment, name)
    place = log.stat().st_size if log.exists() else 0
    words = ["node", str(deployment.client(name))]
    words += ["--server", f"127.0.0.1:{deployment.table.port}", "--port", str(_free_port())]
    _start(deployment, name, words, supernode_environment(deployment.client(name)))
    return place


def _await_node(deployment: Deployment, name: str, place: int) -> Process:
    """Wait until a client is known to the server.

    For up to a minute after a client was killed, its server still counts it as connected, and
    admits no second one with its key.

    Raises:
        RunError: it ends for another reason, or for too long; with the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with open(log_file(deployment, name), "rb") as file:
            file.seek(place)
            said = file.read().decode(errors="replace")
        process = _running(deployment, name)
        if process is not None and CONNECTED in said:
            return Process(name, process.pid)
        if process is None:
            if NOT_ADMITTED not in said:
                break
            time.sleep(5)
            place = _start_node(deployment, name)
        time.sleep(0.2)
    tail = log_file(deployment, name).read_text(errors="replace").strip().splitlines()[-15:]
    raise RunError("\n".join([f"{name} does not connect; the end of its log:", *tail]))


def down(deployment: Deployment, names: Sequence[str] = ()) -> list[Process]:
    """Stop processes, clients first; return those that were stopped.

    Args:
        deployment: the deployment.
        names: of the processes; none for all.
    """
    every = [*(client.name for client in deployment.table.clients), GATEWAY, SUPERLINK]
    for name in names:
        if name not in every:
            deployment.named(name)
    stopped = []
    for name in names or every:
        process = _running(deployment, name)
        if process is None:
            continue
        family = [process]
        with contextlib.suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        _stop(family)
        _pid_file(deployment, name).unlink(missing_ok=True)
        stopped.append(Process(name, process.pid))
    return stopped


def kill(deployment: Deployment, name: str) -> None:
    """Kill a process and what it started, as a power cut would."""
    process = _running(deployment, name)
    if process is not None:
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        process.wait(STOP_SECONDS)


def status(deployment: Deployment) -> list[Process]:
    """Return all processes of a deployment, whether they run or not."""
    names = [SUPERLINK, GATEWAY, *(client.name for client in deployment.table.clients)]
    found = []
    for name in names:
        process = _running(deployment, name)
        found.append(Process(name, None if process is None else process.pid))
    return found


def is_up(deployment: Deployment) -> bool:
    """Return whether the deployment's SuperLink runs here as a process."""
    return _running(deployment, SUPERLINK) is not None


def register(flwr: Flower, server: Path) -> list[str]:
    """Admit the clients' keys that lie with the server; return the names of those that are new.

    Which were admitted is kept beside the SuperLink's database, as each takes a process to ask.

    Raises:
        RunError: the SuperLink refuses one.
    """
    database, known = server / "state" / "superlink.db", server / "state" / "admitted.json"
    admitted: dict[str, str] = {}
    if database.exists() and known.exists():
        admitted = json.loads(known.read_text())
    new = []
    for path in sorted((server / "keys").glob("*.pub")):
        key = path.read_text()
        if admitted.get(path.stem) == key:
            continue
        if flwr.register(path):
            new.append(path.stem)
        admitted[path.stem] = key
    if database.exists():
        write_atomically(known, json.dumps(admitted).encode())
    return new


def log_file(deployment: Deployment, name: str) -> Path:
    """Return the file of a process's output."""
    return deployment.root / "logs" / f"{name}.log"


def _start(
    deployment: Deployment, name: str, words: Sequence[str], environ: dict[str, str] | None = None
) -> Process:
    with open(log_file(deployment, name), "ab") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "fedopt", "deploy", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ or dict(os.environ),
            start_new_session=True,
        )
    born = psutil.Process(started.pid).create_time()
    text = json.dumps({"pid": started.pid, "born": born})
    write_atomically(_pid_file(deployment, name), text.encode())
    return Process(name, started.pid)


def _running(deployment: Deployment, name: str) -> psutil.Process | None:
    """Return a process that was started here and still runs."""
    try:
        told = json.loads(_pid_file(deployment, name).read_text())
        process = psutil.Process(int(told["pid"]))
        if abs(process.create_time() - told["born"]) > 1 or not process.is_running():
            return None
        if process.status() == psutil.STATUS_ZOMBIE:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            return None
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return None
    return process


def _wait(deployment: Deployment, name: str, port: int) -> None:
    """Wait until a server answers."""
    context = ssl.create_default_context(cafile=str(deployment.authority))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            url = f"https://127.0.0.1:{port}/health"
            with urllib.request.urlopen(url, context=context, timeout=5) as answer:
                if answer.status == 200:
                    return
        if _running(deployment, name) is None:
            break
        time.sleep(0.2)
    tail = log_file(deployment, name).read_text(errors="replace").strip().splitlines()[-15:]
    raise RunError("\n".join([f"{name} does not answer; the end of its log:", *tail]))


def _stop(family: Sequence[psutil.Process]) -> None:
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _pid_file(deployment: Deployment, name: str) -> Path:
    return deployment.root / "run" / f"{name}.json"


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"port {port} cannot be used: {error.strerror}; another deployment runs, or choose "
                f"another with: fedopt deploy init --port",
                key="port",
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
