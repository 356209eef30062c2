"""A trial's data: the folders of clients, written from a simulated population."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tomli_w

from fedopt.atomic import write_atomically
from fedopt.config import Config
from fedopt.data.sites import write_site
from fedopt.deployment.folder import CONFIG, Deployment
from fedopt.errors import ConfigError
from fedopt.experiment import configured_population


def split(config: Config, deployment: Deployment) -> Iterator[str]:
    """Write each client's training and validation examples, and the server's test set.

    A deployed run of the same configuration then has the same examples in the same order as its
    simulation.

    The configuration is kept in the deployment's folder: `submit` begins with it, so that what is
    recorded of a run is what its data are from.

    Args:
        config: whose population is split; it must have as many clients as the deployment.
        deployment: whose folders are written.

    Returns:
        A line for each folder, as it is written.

    Raises:
        ConfigError: the numbers of clients differ, a client has no example, or a folder holds data.
    """
    if "clients_per_round" not in config.run.model_fields_set:
        run = config.run.model_copy(update={"clients_per_round": "all"})
        config = replace(config, run=run)
    population = configured_population(config)
    clients = deployment.table.clients
    if population.clients != len(clients):
        raise ConfigError(
            f"got {population.clients}, but the deployment has {len(clients)} clients; use "
            f"partition.clients = {len(clients)}",
            key="partition.clients",
        )
    empty = [client.name for client in clients if not population.sizes[client.id]]
    if empty:
        raise ConfigError(f"{empty[0]} would have no example; use another partition or seed")
    folders = [deployment.client(client.name) / "data" for client in clients]
    test = deployment.server / "data"
    for folder in (*folders, test):
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds data, which is never overwritten; empty it first")
    kept = deployment.root / CONFIG
    if kept.exists():
        raise ConfigError(f"{kept} exists, which is never overwritten; move it away first")
    for client, folder in zip(clients, folders, strict=True):
        train = population.train(client.id)
        held = population.validation(client.id) if population.has_validation else None
        write_site(folder, train, held, population.classes)
        rest = "" if held is None else f", {held.size} held out"
        yield f"{folder}: {train.size} examples{rest}"
    examples = population.test()
    if examples is not None and examples.size:
        write_site(test, examples, None, population.classes)
        yield f"{test}: {examples.size} test examples"
    write_atomically(kept, tomli_w.dumps(_said(config)).encode())
    yield f"{kept}: the configuration, which submit begins with"


def _said(config: Config) -> dict[str, Any]:
    """Return a configuration without what `submit` fills in where the user has said nothing."""
    tree = config.dump()
    for name in ("deployment", "checkpoint"):
        said = getattr(config, name).model_fields_set
        tree[name] = {key: value for key, value in tree[name].items() if key in said}
    return tree
