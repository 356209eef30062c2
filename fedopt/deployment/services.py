"""The programs of a deployment, each the main process of a container or of a machine's own.

    serve     SuperLink: keeps messages, starts the ServerApp
    gateway   the port that clients reach
    node      SuperNode of one client, after its data have been checked

They check what they need and then become Flower's programs, so that signals reach those.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

from fedopt.client.resident import NODE_PID, SOCKET
from fedopt.client.site import Site
from fedopt.deployed import CLIENTS, RESULTS, TEST_DATA
from fedopt.deployment.flower import environment, exec_program
from fedopt.deployment.folder import SiteTable, read_site_table
from fedopt.errors import ConfigError, UndescribedDataError

log = logging.getLogger("fedopt")


def superlink_words(server: Path, host: str, port: int) -> list[str]:
    """Return the arguments of `flower-superlink`.

    Args:
        server: the server's folder.
        host: address to listen on.
        port: port to listen on; clients reach the gateway's instead.
    """
    return [
        *("--host", host, "--port", str(port)),
        *("--ssl-ca-certfile", str(server / "ca.crt")),
        *("--ssl-certfile", str(server / "server.pem")),
        *("--ssl-keyfile", str(server / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(server / "state" / "superlink.db")),
    ]


def superlink_environment(server: Path, results: Path) -> dict[str, str]:
    """Return the environment of a SuperLink, which that of the ServerApp comes from."""
    return environment(
        server / "state" / "flwr",
        **{
            RESULTS: str(results.absolute()),
            TEST_DATA: str((server / "data").absolute()),
            CLIENTS: str((server / "clients.json").absolute()),
        },
    )


def serve(server: Path, results: Path, host: str, port: int) -> None:
    """Become the SuperLink.

    Raises:
        ConfigError: a file is missing, readable by others, or a folder cannot be written to.
    """
    check_private(server / "server.key")
    for path in (server / "ca.crt", server / "server.pem"):
        check_readable(path)
    for folder in (server / "state", results):
        check_writable(folder)
    (server / "state" / "flwr").mkdir(exist_ok=True)
    exec_program(
        "flower-superlink",
        superlink_words(server, host, port),
        superlink_environment(server, results),
    )


def site_of(folder: Path, table: SiteTable | None = None) -> Site:
    """Return the client that a folder describes.

    Raises:
        ConfigError: the folder is not a client's.
    """
    table = table or read_site_table(folder)
    return Site(
        client=table.client_id,
        name=table.name,
        data=(folder / table.data).absolute(),
        state=(folder / table.state).absolute(),
        min_examples=table.min_examples,
        require_clip_norm=table.require_clip_norm,
        require_noise=table.require_noise,
        require_secure=table.require_secure,
        share_metrics=table.share_metrics,
    )


def supernode_words(folder: Path, server: str, port: int) -> list[str]:
    """Return the arguments of `flower-supernode`.

    Args:
        folder: the client's folder.
        server: host:port of the gateway.
        port: of the SuperNode's own service for the ClientApp, on this machine alone.
    """
    table = read_site_table(folder)
    return [
        *("--superlink", server, "--root-certificates", str(folder / table.authority)),
        *("--auth-supernode-private-key", str(folder / table.key)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", site_of(folder, table).node_config()),
    ]


def supernode_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a SuperNode."""
    home = (folder / read_site_table(folder).state).absolute() / "flwr"
    return environment(home, OMP_NUM_THREADS="1")


def check_site(folder: Path) -> str:
    """Check a client's folder, and return what it has in a line.

    Labels that are names need the run's `data.labels` and are checked then.

    Raises:
        ConfigError: key, authority, data or state cannot be used; the message says what to do.
    """
    table = read_site_table(folder)
    check_private(folder / table.key)
    check_readable(folder / table.authority)
    site = site_of(folder, table)
    check_writable(site.state)
    data = site.load()
    shape = "x".join(map(str, data.x.shape[1:])) or "single numbers"
    held = "" if data.validation is None else f", {len(data.validation[0])} held out"
    return (
        f"client {site.client} ({site.name}): {len(data.x)} examples ({data.kind}, inputs {shape})"
        f"{held}; nothing but updates and agreed metrics leaves this machine"
    )


def node(folder: Path, server: str | None, port: int) -> None:
    """Become a client's SuperNode.

    Args:
        folder: the client's folder.
        server: host:port of the gateway; None as `site.toml` says.
        port: of the SuperNode's own service.

    Raises:
        ConfigError: as `check_site`.
    """
    try:
        log.warning("%s", check_site(folder))
    except UndescribedDataError as error:
        log.warning("%s\nThe run's configuration has to say it.", error)
    table = read_site_table(folder)
    environ = supernode_environment(folder)
    environ[SOCKET] = str(Path(tempfile.mkdtemp(prefix="fedopt-")) / "node")
    environ[NODE_PID] = str(os.getpid())  # the SuperNode's, which this process becomes
    Path(environ["FLWR_HOME"]).mkdir(parents=True, exist_ok=True)
    exec_program("flower-supernode", supernode_words(folder, server or table.server, port), environ)


def check_readable(path: Path) -> None:
    """Check that a file can be read.

    Raises:
        ConfigError: it cannot.
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None


def check_private(path: Path) -> None:
    """Check that a private key can be read, by its owner alone.

    Raises:
        ConfigError: it cannot, or others can.
    """
    check_readable(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} is a private key that others can read; chmod 600 {path}")


def check_writable(folder: Path) -> None:
    """Check that files can be made in a folder.

    Raises:
        ConfigError: they cannot.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        says = error.strerror or error
        raise ConfigError(f"{folder} cannot be written to by user {os.getuid()}: {says}") from None
