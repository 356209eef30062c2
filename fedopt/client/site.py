"""A real client: where its data and its state are, and what it does not do, whatever it is asked.

A site is described by the node configuration of its SuperNode. It tells the server its client id,
how many examples it has and their shape, and nothing else of its data; what the site's own rules
refuse, it refuses with a reason, before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, RecordDict

import fedopt
from fedopt.atomic import write_atomically
from fedopt.client.messages import TrainRequest, encode_outcome
from fedopt.client.rows import RowFolder
from fedopt.client.secure import SecureClient
from fedopt.client.state import ClientRows
from fedopt.client.trainer import TrainingOutcome
from fedopt.config import Config
from fedopt.data.catalogue import DatasetOptions, SitesOptions
from fedopt.data.partitioners import IntArray
from fedopt.data.site_population import SitePopulation
from fedopt.data.sites import SiteData, load_site
from fedopt.errors import ConfigError, RefusalError, RunError, unknown_name
from fedopt.experiment import Experiment, load_strategy
from fedopt.seeds import derive

log = logging.getLogger("fedopt")

KEPT_RUNS = 5
"""Runs whose state stays on a client's volume: the newest ones."""

SECRET_NBYTES = 32


@dataclass(frozen=True)
class Others:
    """What a site is told of the federation.

    Args:
        run_key: of the run, the same after a resumption; names the folder of client state.
        clients: N, ids of clients.
        present: clients that have examples.
        typical: the mean number of examples of these, rounded.
        classes: number of classes, or None for regression.
    """

    run_key: str
    clients: int
    present: int
    typical: int
    classes: int | None

    def to_json(self) -> str:
        """Return a text for a message."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Others:
        """Return what `to_json` returned a text of."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Site:
    """One client with its own data.

    Args:
        client: its id in the federation, >= 0.
        name: what people call it.
        data: folder of its examples (`fedopt.data.sites`).
        state: folder of what it keeps between rounds; writable.
        min_examples: fewer examples than these, and it does not take part, >= 1.
        require_clip_norm: the longest update that it sends; a run without clipping, or with a
            longer norm, is refused. None: no such rule.
        require_noise: the least `uplink.privacy.noise_multiplier` of a run. None: no such rule.
        require_secure: whether a run without secure aggregation is refused.
        share_metrics: whether its training loss and the norm of its update are told.
    """

    client: int
    name: str
    data: Path
    state: Path
    min_examples: int = 1
    require_clip_norm: float | None = None
    require_noise: float | None = None
    require_secure: bool = False
    share_metrics: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.client, bool) or not isinstance(self.client, int) or self.client < 0:
            raise ConfigError(f"must be an integer >= 0, got {self.client!r}", key="client-id")
        if not isinstance(self.min_examples, int) or self.min_examples < 1:
            raise ConfigError(f"must be >= 1, got {self.min_examples!r}", key="min-examples")
        for key, value in (
            ("require-clip-norm", self.require_clip_norm),
            ("require-noise", self.require_noise),
        ):
            if value is not None and not (isinstance(value, float) and value > 0):
                raise ConfigError(f"must be a number > 0, got {value!r}", key=key)

    @classmethod
    def of(cls, node_config: Mapping[str, Any]) -> Site | None:
        """Return the site that a SuperNode's configuration describes, or None where it has no data.

        Raises:
            ConfigError: a key is unknown, missing or out of range.
        """
        if "data-path" not in node_config:
            return None
        given = dict(node_config)
        unknown = sorted(set(given) - set(KEYS) - FLOWERS)
        if unknown:
            raise unknown_name("node-config", unknown[0], KEYS)
        if "client-id" not in given:
            raise ConfigError("missing beside data-path", key="client-id")
        values: dict[str, Any] = {
            KEYS[key]: value for key, value in given.items() if key in KEYS and value != ""
        }
        for name in ("require_clip_norm", "require_noise"):
            if isinstance(values.get(name), int):
                values[name] = float(values[name])
        values.setdefault("name", f"client-{given['client-id']}")
        values.setdefault("state", ".")
        for name in ("data", "state"):
            values[name] = Path(str(values[name]))
        return cls(**values)

    def node_config(self) -> str:
        """Return the words for a SuperNode's `--node-config`."""
        words = []
        for key, name in KEYS.items():
            value = getattr(self, name)
            default = {f.name: f.default for f in fields(self)}[name]
            if value == default:
                continue
            is_plain = isinstance(value, bool | int | float)
            words.append(f"{key}={str(value).lower() if is_plain else _quoted(str(value))}")
        return " ".join(words)

    def load(self, options: SitesOptions | None = None) -> SiteData:
        """Read the site's examples.

        Raises:
            DataError: they cannot be used.
            ConfigError: there are too few of them.
        """
        data = load_site(self.data, options)
        if len(data.x) < self.min_examples:
            raise ConfigError(
                f"{self.data} has {len(data.x)} examples, the site's rule wants at least "
                f"{self.min_examples}",
                key="min-examples",
            )
        return data

    def refusal(self, config: Config) -> str | None:
        """Return why the site's rules do not admit a run, or None where they do."""
        clip, limit = config.clip.norm, self.require_clip_norm
        moves = config.clip.quantile is not None
        if limit is not None and (clip is None or clip > limit or moves):
            got = "none" if clip is None else f"{clip:g}" + (", and moves" if moves else "")
            return f"the site sends no update longer than {limit:g}; uplink.clip.norm is {got}"
        strategy = load_strategy(config.strategy.name)
        others = set(strategy.local(config.strategy.options).terms) - {"delta"}
        if limit is not None and others:
            return (
                f"the site sends no update longer than {limit:g}, and {config.strategy.name} sends "
                f"{', '.join(sorted(others))} beside the clipped one"
            )
        noise = config.privacy.noise_multiplier
        if self.require_noise is not None and noise < self.require_noise:
            return (
                f"the site wants uplink.privacy.noise_multiplier >= {self.require_noise:g}, "
                f"got {noise:g}"
            )
        if self.require_secure and not config.deployment.secure:
            return "the site wants deployment.secure = true"
        return None

    def facts(self, config: Config) -> ConfigRecord:
        """Return what the site tells a server before a run: its id and the shape of its data."""
        told = ConfigRecord(
            {"client": self.client, "name": self.name, "fedopt": fedopt.__version__}
        )
        told["torch"] = torch.__version__
        try:
            refusal = self.refusal(config)
            data = self.load(site_options(config))
        except ConfigError as error:  # which may quote the data
            log.error("the client's data cannot be used: %s", error)
            refusal = "its data cannot be used; the client's log says why"
        if refusal is not None:
            told["refused"] = refusal
            return told
        population = self._population(config, data)
        told["examples"] = int(population.sizes[self.client])
        told["validation"] = population.validation_size(self.client)
        told["input-shape"] = [int(size) for size in data.x.shape[1:]]
        told["target-shape"] = [int(size) for size in data.y.shape[1:]]
        told["classes"] = data.classes or 0
        told["signature"] = data.signature
        return told

    def experiment(self, config: Config, others: Others) -> Experiment:
        """Return a run's experiment over the site's own examples.

        Args:
            config: the run's.
            others: what the site is told of the other clients.

        Raises:
            ConfigError: the data cannot be used, or the site refuses.
        """
        refusal = self.refusal(config)
        if refusal is not None:
            raise RefusalError(refusal, key=f"site {self.name}")
        data = self.load(site_options(config))
        sizes = np.zeros(others.clients, dtype=np.int64)
        ids = [client for client in range(others.clients) if client != self.client]
        sizes[ids[: others.present - 1]] = others.typical  # what they have is not told
        return Experiment.over(config, self._population(config, data, others, sizes))

    def _population(
        self,
        config: Config,
        data: SiteData,
        others: Others | None = None,
        sizes: IntArray | None = None,
    ) -> SitePopulation:
        options = config.data.options
        fraction = options.validation_fraction if isinstance(options, DatasetOptions) else 0.0
        return SitePopulation(
            {self.client: data},
            None if others is None else others.clients,
            sizes,
            classes=None if others is None else others.classes,
            validation_fraction=fraction,
            seed=config.seed,
            dtype=config.run.dtype,
            typical_size=None if others is None else others.typical,
        )

    def settle(self, request: TrainRequest, rows: ClientRows | None) -> None:
        """Remove the rows of state that the server will not ask for again."""
        if isinstance(rows, RowFolder) and request.held is not None:
            written = [row for block in request.blocks for row in block.write_rows]
            rows.keep([*request.held, *written])

    def run_folder(self, run_key: str) -> Path:
        """Return the folder of a run's state; old runs' folders beyond the newest few go.

        Raises:
            ConfigError: the key is not one that a server of ours makes.
        """
        if not run_key or not all(c.isalnum() or c == "-" for c in run_key):
            raise ConfigError(f'"{run_key}" is not the key of a run', key="run-key")
        folder = self.state / "runs" / run_key
        if not folder.is_dir():
            folder.mkdir(parents=True)
            others = sorted(
                (p for p in folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime
            )
            for old in others[: -KEPT_RUNS or None]:
                shutil.rmtree(old, ignore_errors=True)
        now = time.time()
        os.utime(folder, (now, now))
        return folder

    def secure(self, run_key: str) -> SecureClient:
        """Return the client's part in the secure sums of a run."""
        return SecureClient(self.run_folder(run_key), self.client)

    def check_cohort(self, request: TrainRequest, others: Others) -> None:
        """Refuse a round of more clients than there are, of which each would add too little noise.

        Raises:
            RefusalError: it says so.
        """
        if not 1 <= request.cohort <= others.present:
            raise RefusalError(
                f"a round of {request.cohort} clients, of {others.present} that have examples",
                key="cohort",
            )

    def noise_seed(self, run_key: str, received: str) -> int:
        """Return the seed of the noise that protects the client: the server does not know it.

        It is made from a secret that never leaves the state folder, and from what the client
        received: a round that is asked for twice has the same noise, and none is learned from the
        difference; another model in the same round has another.
        """
        path = self.state / "secret"
        if not path.exists():
            self.state.mkdir(parents=True, exist_ok=True)
            write_atomically(path, os.urandom(SECRET_NBYTES), private=True)
        word = f"{path.read_bytes().hex()} {run_key} {received}"
        return derive(0, word) & (2**63 - 1)


def digest_of(request: TrainRequest) -> str:
    """Return a digest of what a client received in a train message: the model and the rest."""
    digest = hashlib.sha256(f"{request.round} {request.lr_scale!r}".encode())
    for named in (request.arrays, request.broadcast):
        for name in sorted(named):
            digest.update(name.encode())
            digest.update(named[name].contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def tellable(error: Exception) -> str:
    """Return what a server may be told of an error: our own words of runs and rules, else its kind.

    The rest is in the client's log. Errors of data name columns, classes and values.
    """
    is_ours = isinstance(error, RunError | RefusalError)
    return str(error) if is_ours else f"{type(error).__name__}; the client's log says more"


def told(outcome: TrainingOutcome, site: Site, config: Config) -> RecordDict:
    """Return the reply to a train message as a real client sends it.

    Errors of the training program may quote examples, so that the server gets their kind alone, and
    the client's log the rest. Where updates are private or the site says so, the client's loss and
    the norm of its update, which no noise protects, are withheld.
    """
    for place, failure in enumerate(outcome.failures):
        if not failure.diverged:
            log.error("training failed:\n%s", failure.reason)
            outcome.failures[place] = replace(failure, reason=_kind(failure.reason))
    reports = outcome.reports
    if not site.share_metrics or config.privacy.is_on:
        for column in (
            reports.train_loss,
            reports.update_norm,
            reports.available_share,
            reports.selected_share,
        ):
            column[:] = [math.nan] * len(column)
    content = encode_outcome(outcome, as_sent=True)
    seen = [n * s for n, s in zip(reports.examples, reports.steps, strict=True)]
    batch = config.local.batch_size
    if batch is not None:
        seen = [min(n, batch) * s for n, s in zip(reports.examples, reports.steps, strict=True)]
    content["seen"] = ConfigRecord({"examples": sum(seen)})
    return content


def _kind(reason: str) -> str:
    """Return what may be told of an error: our own words, of others the class alone."""
    last = reason.strip().splitlines()[-1]
    name, _, words = last.partition(": ")
    if name.startswith("fedopt.errors.RunError"):
        return words
    return f"{name.rpartition('.')[2]}; the client's log says more"


KEYS = {
    "client-id": "client",
    "name": "name",
    "data-path": "data",
    "state-path": "state",
    "min-examples": "min_examples",
    "require-clip-norm": "require_clip_norm",
    "require-noise": "require_noise",
    "require-secure": "require_secure",
    "share-metrics": "share_metrics",
}
"""Keys of a SuperNode's `--node-config` -> fields."""

FLOWERS = {"partition-id", "num-partitions"}
"""Keys that Flower's own tools set."""


def site_options(config: Config) -> SitesOptions:
    """Return how a site's folder is read: the run's options of `sites`, else the defaults.

    Where the configuration names a dataset that sites were split from, the folders hold numpy
    archives with their validation parts, and there is nothing to say.
    """
    options = config.data.options
    return options if isinstance(options, SitesOptions) else SitesOptions()


def _quoted(text: str) -> str:
    """Return a TOML string: literal where it can be, as Flower splits the words itself."""
    return json.dumps(text) if "'" in text or "\n" in text else f"'{text}'"
