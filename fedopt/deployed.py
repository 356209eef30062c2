"""A run on real clients: the same rounds as a simulation, with the data elsewhere.

    gather the clients -> what they have in common -> the rounds of `fedopt.run.train` -> results

The server keeps `deployment.json` in the run's folder (who takes part, and the key by which clients
name their state), so that a run whose server was killed goes on with the same clients.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedopt.analysis.deployed import DEPLOYMENT_FILE, TRANSFERS_FILE
from fedopt.analysis.progress import make_progress
from fedopt.analysis.store import CONFIG_FILE, default_directory, to_json
from fedopt.atomic import write_atomically
from fedopt.client.algorithm import collected
from fedopt.client.site import Others, site_options
from fedopt.config import Config, from_run_config, load
from fedopt.data.site_population import RemotePopulation
from fedopt.data.sites import SiteData, load_site
from fedopt.errors import ConfigError, RunError
from fedopt.experiment import Experiment
from fedopt.recorder import Recorder
from fedopt.run import run_words, train
from fedopt.server.deployment import DeploymentGrid, Member, check_deployable
from fedopt.server.secure import SecureRounds
from fedopt.single_thread import single_thread

log = logging.getLogger("fedopt")

RESULTS = "FEDOPT_RESULTS"
"""Environment variable: the server's folder of runs' folders; default `runs`."""

TEST_DATA = "FEDOPT_TEST_DATA"
"""Environment variable: folder of the server's own test set, if it has one."""

CLIENTS = "FEDOPT_CLIENTS"
"""Environment variable: JSON file of the clients' ids and names; others are refused."""

RESUME_SECONDS = 120.0
"""How long a run that goes on waits for all of its clients, before it goes on with some."""

SUMMARY = "fedopt summary: "
"""Begins the last line of a run's log; a JSON object follows."""


def run_on_sites(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """Run a configuration on the clients that are connected: the body of the ServerApp.

    Args:
        grid: Flower's.
        run_config: what `fedopt deploy submit` sends: the configuration, `out` (name of the run's
            folder) and `resume`.

    Raises:
        ConfigError: the configuration does not go with real clients, or with their data.
        RunError: too few clients are there, or are left.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    resume = bool(run_config.get("resume"))
    directory = _directory(run_config, resume)
    config = load(directory / CONFIG_FILE) if resume else deployable(from_run_config(run_config))
    check_deployable(config)
    source = json.dumps(config.dump())
    known = read_members(directory) if resume else None
    clients = DeploymentGrid(grid, config, source, admitted())
    wanted = config.deployment
    if known is None:
        key, noise = secrets.token_hex(8), secrets.token_hex(8)
        members = clients.gather(wanted.min_clients, wanted.wait_seconds)
        clients.begin(members)
    else:
        key, noise, members = known
        clients.begin(members)
        try:
            clients.gather(wanted.min_clients, min(RESUME_SECONDS, wanted.wait_seconds))
        except RunError as error:
            log.warning("%s", error)
            clients.gather(wanted.min_survivors, wanted.wait_seconds)
    experiment = Experiment.over(config, remote_population(config, members, test_data(config)))
    check_secure(experiment)
    if experiment.population.test() is None:
        log.warning("the server has no test set (%s): test columns stay empty", TEST_DATA)
    progress = make_progress(False, sys.stderr)
    with single_thread(), Recorder(experiment, directory, progress, False, resume) as recorder:
        if known is None:
            write_members(directory, key, noise, members)
        recorder.strategy.noise_seed = int(noise, 16) & (2**63 - 1)
        clients.transfers = directory / TRANSFERS_FILE
        if config.deployment.secure:
            most = float(experiment.population.sizes.max())
            sizes = recorder.strategy.sum_sizes
            clients.secure = SecureRounds(config.deployment, key, config.seed, sizes, most)
        recorder.message_config["experiment"] = source
        recorder.message_config["others"] = others(key, experiment).to_json()
        if config.deployment.probe and not resume:
            clients.probe(experiment.layout.nbytes)
        train(experiment, recorder, clients)
        finished = recorder.finish()
    line = json.dumps(json.loads(to_json(finished.summary)))
    print(SUMMARY + line, file=sys.stderr, flush=True)


def check_secure(experiment: Experiment) -> None:
    """Refuse secure sums to a strategy that looks at each client's update.

    Raises:
        ConfigError: it does.
    """
    config = experiment.config
    if config.deployment.secure and collected(experiment.local_algorithm()):
        raise ConfigError(
            f"{config.strategy.name} looks at each client's update, which a secure sum hides",
            key="deployment.secure",
        )


def deployable(config: Config) -> Config:
    """Return a configuration as it runs on real clients: each a block of its own, losses borne.

    What it changes is in the run's `config.toml`, so that a simulation of that file sums up alike.
    """
    engine = config.engine.model_copy(update={"block_size": 1, "on_client_error": "skip"})
    return replace(config, engine=engine)


def remote_population(
    config: Config, members: Mapping[int, Member], test: SiteData | None
) -> RemotePopulation:
    """Return the population that clients described, of which the server sees no example.

    Args:
        config: the run's.
        members: the clients, by id.
        test: the server's own test set, or None.
    """
    first = members[min(members)]
    sizes = np.zeros(max(members) + 1, dtype=np.int64)
    for client, member in members.items():
        sizes[client] = member.examples
    classes = None
    if first.classes is not None:
        known = [member.classes or 0 for member in members.values()]
        own = [] if test is None or test.classes is None else [test.classes]
        classes = max([*known, *own, site_options(config).classes or 0])
    return RemotePopulation(
        sizes,
        first.input_shape,
        classes,
        first.target_shape,
        any(member.validation for member in members.values()),
        test,
        config.run.dtype,
    )


def others(key: str, experiment: Experiment) -> Others:
    """Return what each client is told of the others."""
    population = experiment.population
    present = int(np.count_nonzero(population.sizes))
    return Others(key, population.clients, present, experiment.typical_size, population.classes)


def test_data(config: Config) -> SiteData | None:
    """Return the server's test set, where it has one.

    Raises:
        DataError: it cannot be read.
    """
    folder = os.environ.get(TEST_DATA)
    if not folder or not Path(folder).is_dir() or not any(Path(folder).iterdir()):
        return None
    return load_site(folder, site_options(config))


def admitted() -> dict[int, str] | None:
    """Return the clients that may take part, id -> name; None where nobody has said."""
    path = os.environ.get(CLIENTS)
    if not path or not Path(path).exists():
        return None
    found = json.loads(Path(path).read_text(encoding="utf-8"))
    return {int(client): str(name) for client, name in found.items()}


def write_members(directory: Path, key: str, noise: str, members: Mapping[int, Member]) -> None:
    """Write who takes part in a run.

    Args:
        directory: the run's folder.
        key: by which clients name their state.
        noise: seed of the noise that the server adds, in hexadecimal; no client knows it.
        members: who takes part.
    """
    told = [asdict(member) for member in members.values()]
    tree = {"run_key": key, "noise": noise, "members": told}
    text = json.dumps(tree, indent=2) + "\n"
    write_atomically(directory / DEPLOYMENT_FILE, text.encode(), private=True)


def read_members(directory: Path) -> tuple[str, str, dict[int, Member]]:
    """Return the key of a run, the seed of its server's noise, and who takes part.

    Raises:
        ConfigError: the folder is not that of a run on real clients.
    """
    path = directory / DEPLOYMENT_FILE
    if not path.exists():
        raise ConfigError(
            f"{directory} has no {DEPLOYMENT_FILE}: it is not the folder of a run on real clients, "
            "or the run ended before its first round; submit it anew"
        )
    tree: Any = json.loads(path.read_text(encoding="utf-8"))
    members = [
        Member(
            **{
                **member,
                "input_shape": tuple(member["input_shape"]),
                "target_shape": tuple(member["target_shape"]),
            }
        )
        for member in tree["members"]
    ]
    return str(tree["run_key"]), str(tree["noise"]), {m.client: m for m in members}


def _directory(run_config: Mapping[str, Any], resume: bool) -> Path:
    """Return the run's folder, inside the server's folder of runs.

    Raises:
        ConfigError: the name leads elsewhere, or there is nothing to resume.
    """
    root = Path(os.environ.get(RESULTS) or "runs")
    name = str(run_config.get("out") or "")
    if not name:
        if resume:
            raise ConfigError("missing; which run is to go on?", key="out")
        return default_directory(root, run_words(from_run_config(run_config)))
    if name != Path(name).name or name.startswith("."):
        raise ConfigError(f'"{name}" is not the plain name of a folder', key="out")
    directory = root / name
    if resume and not directory.is_dir():
        there = ", ".join(sorted(p.name for p in root.glob("*/"))[-5:]) or "none"
        raise ConfigError(f'there is no run "{name}" on the server; the last ones: {there}')
    return directory
