"""The folder of a deployment: who takes part, certificates, keys, and where everything lies.

    deployment.toml          host names, port, clients
    .env, docker-compose.yml for Docker
    ca/                      the authority: ca.crt, and its key, which no other machine needs
    server/                  server.pem, server.key, ca.crt, keys/NAME.pub, data/ (a test set),
                             state/
    results/                 folders of runs
    clients/NAME/            what belongs on that client's machine: site.toml, key, ca.crt, data/,
                             state/

Nothing that exists is overwritten: what is missing is made, the rest is left alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedopt.atomic import write_atomically
from fedopt.deployment import pki
from fedopt.errors import ConfigError, did_you_mean
from fedopt.validation import validate

DEPLOYMENT = "deployment.toml"
SITE = "site.toml"
CONFIG = "config.toml"
"""What `submit` begins with where no file is given: the configuration of a trial's split."""

CLIENTS = "clients.json"
"""In the server's folder: the clients' ids and names, which no node may choose for itself."""

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
ALWAYS = ("superlink", "gateway", "localhost", "127.0.0.1")
"""Names that the server's certificate has besides those that are given."""

CONTAINER_UID = 10001
"""User and group of the containers where root makes the folder, so that none runs as root."""


class Table(BaseModel):
    """A table of `deployment.toml` or `site.toml`: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientTable(Table):
    """A client, as the server knows it."""

    name: str = Field(description="name of its folder and container: lower case, digits, dashes")
    id: int = Field(ge=0, description="its id in every run, >= 0; never changes")
    remote: bool = Field(False, description="whether it runs on another machine")

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        return checked_name(value)


class DeploymentTable(Table):
    """`deployment.toml`."""

    hosts: tuple[str, ...] = Field(description="names and addresses of the server")
    port: int = Field(9092, ge=1, le=65535, description="port that clients connect to")
    clients: tuple[ClientTable, ...] = ()


class SiteTable(Table):
    """`site.toml`: what a client's machine knows of itself and of the server."""

    client_id: int = Field(ge=0, description="the client's id in the federation")
    name: str = Field(description="the client's name")
    server: str = Field(description="host:port of the server's gateway")
    data: str = Field("data", description="folder of the client's examples")
    state: str = Field("state", description="folder of what the client keeps between rounds")
    key: str = Field("key", description="the client's private key")
    authority: str = Field("ca.crt", description="certificate of the server's authority")
    min_examples: int = Field(1, ge=1, description="fewer examples, and it takes no part")
    require_clip_norm: float | None = Field(
        None, gt=0, description="the longest update that it sends"
    )
    require_noise: float | None = Field(
        None, gt=0, description="the least uplink.privacy.noise_multiplier of a run"
    )
    require_secure: bool = Field(False, description="refuse runs without secure aggregation")
    share_metrics: bool = Field(True, description="tell its loss and the norm of its update")


@dataclass(frozen=True)
class Deployment:
    """A deployment's folder.

    Args:
        root: the folder.
        table: what `deployment.toml` says.
    """

    root: Path
    table: DeploymentTable

    @classmethod
    def open(cls, root: Path) -> Deployment:
        """Read a folder.

        Raises:
            ConfigError: it is not a deployment's, or its file says what is not allowed.
        """
        path = root / DEPLOYMENT
        if not path.exists():
            near = did_you_mean(
                root.name, [p.parent.name for p in root.parent.glob(f"*/{DEPLOYMENT}")]
            )
            raise ConfigError(
                f"{root} is not a deployment's folder (no {DEPLOYMENT}).{near} Make one: "
                f"fedopt deploy init {root} --clients 3"
            )
        return cls(root, validate(DeploymentTable, _toml(path), DEPLOYMENT))

    @property
    def authority(self) -> Path:
        """Certificate of the authority."""
        return self.root / "ca" / "ca.crt"

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.root / "server"

    @property
    def results(self) -> Path:
        """The folder of runs' folders."""
        return self.root / "results"

    def client(self, name: str) -> Path:
        """Return a client's folder."""
        return self.root / "clients" / name

    def named(self, name: str) -> ClientTable:
        """Return a client by its name.

        Raises:
            ConfigError: there is none; the message names the nearest.
        """
        for client in self.table.clients:
            if client.name == name:
                return client
        names = [client.name for client in self.table.clients]
        raise ConfigError(
            f'there is no client "{name}".{did_you_mean(name, names)} One of: {", ".join(names)}.'
        )

    def write(self) -> None:
        """Write `deployment.toml`."""
        tree = self.table.model_dump(mode="json")
        write_atomically(self.root / DEPLOYMENT, tomli_w.dumps(tree).encode())


def init(root: Path, hosts: Sequence[str], port: int, clients: Sequence[str]) -> Deployment:
    """Make a deployment's folder, or add to one what it lacks.

    Args:
        root: the folder.
        hosts: names and addresses under which clients reach the server.
        port: that clients connect to.
        clients: names; their ids are their places.

    Raises:
        ConfigError: a name is not allowed or there twice, or the folder says otherwise already.
    """
    names = [checked_name(name) for name in clients]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f'"{twice[0]}" is there twice', key="clients")
    every = tuple(dict.fromkeys([*hosts, *ALWAYS]))
    for host in every:
        pki.alternative_name(host)
    table = DeploymentTable(
        hosts=every,
        port=port,
        clients=tuple(ClientTable(name=name, id=place) for place, name in enumerate(names)),
    )
    if (root / DEPLOYMENT).exists():
        old = Deployment.open(root)
        if old.table != table:
            raise ConfigError(
                f"{root} is a deployment already, of clients "
                f"{', '.join(c.name for c in old.table.clients)} at {old.table.hosts[0]}:"
                f"{old.table.port}; add one with: fedopt deploy add-client NAME --folder {root}"
            )
    elif root.is_dir() and any(root.iterdir()):
        raise ConfigError(f"{root} is not empty, and not a deployment's folder; give another")
    deployment = Deployment(root, table)
    for folder in ("ca", "server/keys", "server/data", "server/state", "results", "clients"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if not (root / DEPLOYMENT).exists():
        deployment.write()
    complete(deployment)
    return deployment


def complete(deployment: Deployment) -> None:
    """Make what a deployment's folder lacks: certificates, keys, folders, Docker's files."""
    from fedopt.deployment.compose import compose_file, environment_file

    root, server = deployment.root, deployment.server
    if not (root / "ca" / "ca.key").exists():
        pki.make_authority(root / "ca" / "ca.key", deployment.authority)
    if not (server / "server.key").exists():
        pki.make_server_certificate(
            root / "ca" / "ca.key",
            deployment.authority,
            server / "server.key",
            server / "server.pem",
            deployment.table.hosts,
        )
    _copy(deployment.authority, server / "ca.crt")
    for client in deployment.table.clients:
        folder = deployment.client(client.name)
        for part in ("", "data", "state"):
            if not (folder / part).exists():
                (folder / part).mkdir(parents=True)
                (folder / part).chmod(0o700)  # examples and state are nobody else's to read
        public = server / "keys" / f"{client.name}.pub"
        if not public.exists():
            if not (folder / "key").exists():
                pki.make_client_key(folder / "key")
            _copy(folder / "key.pub", public)
        _copy(deployment.authority, folder / "ca.crt")
        if not (folder / SITE).exists():
            write_site_table(folder, client, deployment)
    names = {str(client.id): client.name for client in deployment.table.clients}
    write_atomically(server / CLIENTS, json.dumps(names).encode())
    for name, text in (
        (".env", environment_file(deployment)),
        ("docker-compose.yml", compose_file(deployment.table)),
    ):
        if not (root / name).exists():
            write_atomically(root / name, text.encode())
    own(root)


def write_site_table(folder: Path, client: ClientTable, deployment: Deployment) -> None:
    """Write a client's `site.toml`."""
    host = deployment.table.hosts[0]
    table = SiteTable(
        client_id=client.id, name=client.name, server=f"{host}:{deployment.table.port}"
    )
    lines = [
        "# What this client's machine knows. Its owner's rules are its own: the server cannot",
        "# change them, and a run that does not keep to them is refused.",
        "",
    ]
    for name, field in SiteTable.model_fields.items():
        value = getattr(table, name)
        lines.append(f"# {field.description}")
        lines.append(f"# {name} = ..." if value is None else tomli_w.dumps({name: value}).strip())
    write_atomically(folder / SITE, ("\n".join(lines) + "\n").encode())


def read_site_table(folder: Path) -> SiteTable:
    """Read a client's `site.toml`.

    Raises:
        ConfigError: it is missing, or says what is not allowed.
    """
    path = folder / SITE
    if not path.exists():
        raise ConfigError(f"{folder} has no {SITE}: it is not a client's folder")
    table: SiteTable = validate(SiteTable, _toml(path), SITE)
    return table


def add_client(deployment: Deployment, name: str, public_key: Path | None) -> Deployment:
    """Add a client to a deployment.

    Args:
        deployment: the deployment.
        name: of the client.
        public_key: the public part of a key that was made on the client's machine, where the
            client then runs; None makes a key here.

    Raises:
        ConfigError: the name is not allowed or taken, or the key is not one.
    """
    from fedopt.deployment.compose import compose_file

    checked_name(name)
    if any(client.name == name for client in deployment.table.clients):
        raise ConfigError(f'there is a client "{name}" already')
    if public_key is not None:
        pki.check_public_key(public_key)
    place = max((client.id for client in deployment.table.clients), default=-1) + 1
    added = ClientTable(name=name, id=place, remote=public_key is not None)
    clients = (*deployment.table.clients, added)
    table = deployment.table.model_copy(update={"clients": clients})
    grown = Deployment(deployment.root, table)
    if public_key is not None:
        shutil.copyfile(public_key, deployment.server / "keys" / f"{name}.pub")
    grown.write()
    compose = deployment.root / "docker-compose.yml"
    if compose.exists() and compose.read_text() == compose_file(deployment.table):
        compose.unlink()  # as it was written; one that was edited stays as it is
    complete(grown)
    return grown


def checked_name(name: str) -> str:
    """Return a client's name.

    Raises:
        ConfigError: it is not allowed.
    """
    if not NAME.fullmatch(name):
        hint = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        near = f' Such as "{hint}".' if hint and NAME.fullmatch(hint) else ""
        raise ConfigError(
            f'"{name}" is not a name: lower-case letters, digits and dashes, at most 42.{near}',
            key="clients",
        )
    return name


def container_ids() -> tuple[int, int]:
    """Return user and group of the containers: those of the caller, never root's."""
    uid, gid = os.getuid(), os.getgid()
    return (uid, gid) if uid else (CONTAINER_UID, CONTAINER_UID)


def own(root: Path) -> None:
    """Give a folder that root made to the containers' user, so that they can read their keys."""
    if os.getuid():
        return
    uid, gid = container_ids()
    for folder in (root / "server", root / "results", root / "clients"):
        for path in (folder, *folder.rglob("*")):
            os.chown(path, uid, gid, follow_symlinks=False)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        shutil.copyfile(source, target)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
