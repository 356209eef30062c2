"""`fedopt dashboard`: the runs of a folder as a local web page."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Annotated

import typer

from fedopt.commands.common import Debug, guarded


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dashboard)


def dashboard(
    runs_dir: Annotated[Path, typer.Argument(help="folder with runs, at any depth")] = Path("runs"),
    host: Annotated[
        str, typer.Option("--host", help="address to bind to; others than loopback let others in")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="port; 0: any that is free")
    ] = 8050,
    open_page: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
    debug: Debug = False,
) -> None:
    """Show running and finished runs in a browser: curves live, filter, several over each other.

    It reads the folder and writes nothing; Ctrl-C ends it.

    Example: fedopt dashboard runs --open
    """
    guarded(lambda: _dashboard(runs_dir, host, port, open_page), debug)


def _dashboard(runs_dir: Path, host: str, port: int, open_page: bool) -> None:
    from fedopt.dashboard.index import RunIndex

    index = RunIndex(runs_dir)
    bound = _bind(host, port)
    import uvicorn

    from fedopt.dashboard.app import create_app, is_loopback

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{bound.getsockname()[1]}/"
    typer.echo(f"{address} shows the runs in {index.root}; Ctrl-C ends it")
    if not is_loopback(host):
        typer.echo(
            "warning: everyone who reaches this machine can read these runs, without a password",
            err=True,
        )
    app = create_app(index, host, is_stopping=lambda: server.should_exit)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=5,
        lifespan="off",
        access_log=False,
        ws="none",
    )
    server = uvicorn.Server(settings)
    if open_page:
        import webbrowser

        # Connections are taken by the socket already; they are answered once the server runs.
        webbrowser.open(address)
    with bound, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[bound])


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    from fedopt.errors import ConfigError

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        says = error.strerror or error
        raise ConfigError(f'"{host}" is not an address: {says}', key="--host") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        says = error.strerror or error
        raise ConfigError(
            f"cannot bind to {host}, port {port}: {says}. Give another port, or 0 for a free one.",
            key="--port",
        ) from error
    return bound
