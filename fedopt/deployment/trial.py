"""A trial's data: the folders of clients, written from a simulated population."""

from __future__ import annotations

from collections.abc import Iterator

from fedopt.config import Config
from fedopt.data.sites import write_site
from fedopt.deployment.folder import Deployment
from fedopt.errors import ConfigError
from fedopt.experiment import configured_population


def split(config: Config, deployment: Deployment) -> Iterator[str]:
    """Write each client's training and validation examples, and the server's test set.

    A deployed run of the same configuration then has the same examples in the same order as its
    simulation.

    Args:
        config: whose population is split; it must have as many clients as the deployment.
        deployment: whose folders are written.

    Returns:
        A line for each folder, as it is written.

    Raises:
        ConfigError: the numbers of clients differ, a client has no example, or a folder holds data.
    """
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
