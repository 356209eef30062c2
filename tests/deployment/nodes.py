"""Real clients in this process: each a node with its own folder, behind Flower's `Grid`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict

from fedopt.client.app import client_app
from fedopt.client.site import Site
from fedopt.config import load
from fedopt.data.sites import write_site
from fedopt.deployed import run_on_sites
from fedopt.deployment.submit import prepared
from fedopt.experiment import Experiment
from fedopt.simulation.grid import DirectGrid

TASK = (
    "partition.clients=3",
    "clients_per_round=3",
    "rounds=4",
    "model.hidden=[16]",
    "local.epochs=1",
    "engine.name=inline",
    "engine.block_size=1",
    "engine.on_client_error=skip",
    "data.validation_fraction=0.1",
    "evaluation.validation_clients=3",
)


def split(config, folder: Path) -> list[Path]:
    """Write the clients' folders of a simulated population, and the test set."""
    population = Experiment.from_config(config).population
    folders = []
    for client in range(population.clients):
        held = tuple(population.validation(client)) if population.has_validation else None
        folders.append(folder / f"client-{client}")
        write_site(folders[-1], tuple(population.train(client)), held, population.classes)
    write_site(folder / "test", tuple(population.test()), None, population.classes)
    return folders


class Nodes(DirectGrid):
    """Nodes that each are a client; every message is answered by a new ClientApp, as in Flower.

    `before(message, client)` may return words, with which the node then fails, or None.
    """

    def __init__(self, sites: Iterable[Site]) -> None:
        sites = list(sites)
        super().__init__(nodes=len(sites))
        self.sites = dict(zip(self.get_node_ids(), sites, strict=True))
        self.down: set[int] = set()
        self.before: Callable[[Message, int], str | None] = lambda message, client: None
        self.seen: list[Message] = []
        self.answers: list[Message] = []

    def get_node_ids(self) -> list[int]:
        return [
            n
            for n in super().get_node_ids()
            if getattr(self, "sites", {}).get(n) is None or self.sites[n].client not in self.down
        ]

    def exchange(self, messages):
        replies = []
        for message in messages:
            self.seen.append(message)
            node = message.metadata.dst_node_id
            site = self.sites[node]
            problem = self.before(message, site.client)
            if problem == "late":
                continue
            if problem is not None:
                replies.append(Message(Error(2, problem), reply_to=message))
                continue
            config = {
                key: value
                for key, value in {
                    "client-id": site.client,
                    "name": site.name,
                    "data-path": str(site.data),
                    "state-path": str(site.state),
                    "min-examples": site.min_examples,
                    "require-clip-norm": site.require_clip_norm,
                    "require-noise": site.require_noise,
                    "require-secure": site.require_secure,
                    "share-metrics": site.share_metrics,
                }.items()
                if value is not None
            }
            context = Context(1, node, config, RecordDict(), {})
            sent = pickle.loads(pickle.dumps(message))  # nothing is shared across a network
            try:
                reply = client_app()(sent, context)
            except Exception as error:  # as Flower answers for an app that raises
                reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
            replies.append(pickle.loads(pickle.dumps(reply)))
        self.answers += [pickle.loads(pickle.dumps(reply)) for reply in replies]
        return replies


def sites(folder: Path, folders: list[Path], **rules) -> list[Site]:
    return [
        Site(client, f"clinic-{client}", data, folder / f"state-{client}", **rules)
        for client, data in enumerate(folders)
    ]


def deploy(monkeypatch, root: Path, nodes: Nodes, words=(), resume=False, out="real", **test):
    """Run a configuration on nodes; return the run's folder."""
    monkeypatch.setenv("FEDOPT_RESULTS", str(root / "runs"))
    monkeypatch.setenv("FEDOPT_TEST_DATA", str(test.get("test", root / "data" / "test")))
    run_config = {"sites": True, "out": out, "resume": resume}
    if not resume:
        config = prepared(load(None, words), len(nodes.sites))
        run_config["config"] = json.dumps(config.dump())
    run_on_sites(nodes, run_config)
    return root / "runs" / out
