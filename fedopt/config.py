"""The configuration of a run: its schema, its errors, TOML in and out.

A configuration is a tree of tables. Tables with a `name` (data, partition, model, strategy,
local.optimizer) take the options that the named entry of the registry declares; the others have
a fixed schema here. Everything is checked before anything is trained or written. This module
imports neither torch nor Flower nor Ray.
"""

from __future__ import annotations

import copy
import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import BaseModel

from fedopt.errors import ConfigError, did_you_mean
from fedopt.registry import Options, entries, get, import_object
from fedopt.schema import (
    ArrivalTable,
    CheckpointTable,
    ClipTable,
    CurriculumTable,
    DeploymentTable,
    EngineTable,
    EvaluationTable,
    FailuresTable,
    GradientTable,
    LocalSwaTable,
    LocalTable,
    PacedTable,
    PrivacyTable,
    RunTable,
    SamTable,
    SearchTable,
    SelfPacedTable,
    ServerCurriculumTable,
    ServerSwaTable,
    SystemTable,
    Table,
)
from fedopt.validation import validate


@dataclass(frozen=True)
class Choice:
    """A table whose `name` chooses an entry of the registry, with that entry's options."""

    name: str
    options: Options

    def dump(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return {"name": self.name, **_plain(self.options)}


CHOICES: dict[str, str] = {
    "data": "datasets",
    "partition": "partitions",
    "model": "models",
    "strategy": "strategies",
    "local.optimizer": "optimizers",
    "local.schedule": "schedules",
    "server.optimizer": "server_optimizers",
    "uplink.compression": "codecs",
    "downlink.compression": "codecs",
    "attack": "attacks",
    "drift": "drifts",
    "system.devices": "devices",
    "system.availability": "availabilities",
    "policy": "policies",
    "selection": "selections",
}
"""Dotted key of a table with a name -> the registry's kind."""

OPEN = ("model", "local.optimizer", "server.optimizer", "uplink.compression", "attack", "drift")
"""Tables whose name may be a `"package.module:object"` of the user's, with any options."""

DEFAULT_NAMES: dict[str, str] = {
    "data": "digits",
    "partition": "dirichlet",
    "model": "mlp",
    "strategy": "fedavg",
    "local.optimizer": "sgd",
    "local.schedule": "constant",
    "server.optimizer": "none",
    "uplink.compression": "none",
    "downlink.compression": "none",
    "attack": "none",
    "drift": "none",
    "system.devices": "none",
    "system.availability": "always",
    "policy": "synchronous",
    "selection": "uniform",
}


@dataclass(frozen=True)
class Config:
    """A checked configuration. Build it with `load`, `from_tree` or `from_run_config`."""

    run: RunTable = field(default_factory=RunTable)
    data: Choice = field(default_factory=lambda: default_choice("data"))
    partition: Choice = field(default_factory=lambda: default_choice("partition"))
    model: Choice = field(default_factory=lambda: default_choice("model"))
    strategy: Choice = field(default_factory=lambda: default_choice("strategy"))
    local: LocalTable = field(default_factory=LocalTable)
    optimizer: Choice = field(default_factory=lambda: default_choice("local.optimizer"))
    schedule: Choice = field(default_factory=lambda: default_choice("local.schedule"))
    sam: SamTable = field(default_factory=SamTable)
    gradient: GradientTable = field(default_factory=GradientTable)
    local_swa: LocalSwaTable = field(default_factory=LocalSwaTable)
    local_curriculum: CurriculumTable = field(default_factory=CurriculumTable)
    self_paced: SelfPacedTable = field(default_factory=SelfPacedTable)
    server_optimizer: Choice = field(default_factory=lambda: default_choice("server.optimizer"))
    server_swa: ServerSwaTable = field(default_factory=ServerSwaTable)
    server_curriculum: ServerCurriculumTable = field(default_factory=ServerCurriculumTable)
    clip: ClipTable = field(default_factory=ClipTable)
    privacy: PrivacyTable = field(default_factory=PrivacyTable)
    uplink_compression: Choice = field(default_factory=lambda: default_choice("uplink.compression"))
    downlink_compression: Choice = field(
        default_factory=lambda: default_choice("downlink.compression")
    )
    attack: Choice = field(default_factory=lambda: default_choice("attack"))
    drift: Choice = field(default_factory=lambda: default_choice("drift"))
    arrival: ArrivalTable = field(default_factory=ArrivalTable)
    search: SearchTable = field(default_factory=SearchTable)
    system: SystemTable = field(default_factory=SystemTable)
    devices: Choice = field(default_factory=lambda: default_choice("system.devices"))
    availability: Choice = field(default_factory=lambda: default_choice("system.availability"))
    failures: FailuresTable = field(default_factory=FailuresTable)
    policy: Choice = field(default_factory=lambda: default_choice("policy"))
    selection: Choice = field(default_factory=lambda: default_choice("selection"))
    engine: EngineTable = field(default_factory=EngineTable)
    evaluation: EvaluationTable = field(default_factory=EvaluationTable)
    checkpoint: CheckpointTable = field(default_factory=CheckpointTable)
    deployment: DeploymentTable = field(default_factory=DeploymentTable)

    TABLES: ClassVar[dict[str, type[Table]]] = {
        "local": LocalTable,
        "local.sam": SamTable,
        "local.gradient": GradientTable,
        "local.swa": LocalSwaTable,
        "local.curriculum": CurriculumTable,
        "local.self_paced": SelfPacedTable,
        "server.swa": ServerSwaTable,
        "server.curriculum": ServerCurriculumTable,
        "uplink.clip": ClipTable,
        "uplink.privacy": PrivacyTable,
        "arrival": ArrivalTable,
        "search": SearchTable,
        "system": SystemTable,
        "system.failures": FailuresTable,
        "engine": EngineTable,
        "evaluation": EvaluationTable,
        "checkpoint": CheckpointTable,
        "deployment": DeploymentTable,
    }

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.seed

    @property
    def rounds(self) -> int:
        """Communication rounds."""
        return self.run.rounds

    @property
    def has_objects(self) -> bool:
        """Whether data, model or loss are objects of the calling program, not of a file."""
        return "in_memory" in (self.data.name, self.model.name, self.local.loss)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Config:
        """Check a tree of tables, as a TOML file or keyword arguments give it.

        Raises:
            ConfigError: naming every bad key, its value, what is allowed, and the nearest match.
        """
        return _parse(tree)

    def dump(self) -> dict[str, Any]:
        """Return the whole configuration, defaults included, as a tree of plain values."""
        tree: dict[str, Any] = dict(_plain(self.run))
        for key in (*CHOICES, *self.TABLES):
            *parents, last = key.split(".")
            table = tree
            for parent in parents:
                table = table.setdefault(parent, {})
            value = getattr(self, field_name(key))
            table.setdefault(last, {}).update(
                value.dump() if isinstance(value, Choice) else _plain(value)
            )
        if self.local.batch_size is None:
            tree["local"]["batch_size"] = "full"
        return tree

    def to_toml(self) -> str:
        """Return the configuration as a TOML document that `load` reads back."""
        return tomli_w.dumps(self.dump())


def field_name(key: str) -> str:
    """Return the field of `Config` that holds a table: `local.sam` is `sam`."""
    shared = key.endswith((".swa", ".curriculum", ".compression")) or key == "server.optimizer"
    return key.replace(".", "_") if shared else key.rpartition(".")[2]


def default_choice(key: str, name: str | None = None) -> Choice:
    """Return the default entry of a table, with its default options."""
    name = name or DEFAULT_NAMES[key]
    entry = get(CHOICES[key], name, key=f"{key}.name")
    return Choice(name, validate(entry.options, {}, key))


def load(
    path: str | Path | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    **tables: Any,
) -> Config:
    """Read a configuration: a TOML file, then `key=value` overrides, then keyword tables.

    Args:
        path: the file, or what one holds, as `tomllib` reads it.
        overrides: words as on the command line.
        tables: keys of the configuration.

    Raises:
        ConfigError: the file cannot be read, or what it says is not allowed.
    """
    if isinstance(path, Mapping):
        tree = copy.deepcopy(dict(path))
    else:
        tree = read_toml(path) if path is not None else {}
    given: dict[str, Any] = {}
    for text in overrides:
        _assign(given, *_split_override(text))
    for layer in (given, tables):
        for key, value in layer.items():
            _merge(tree, key, value)
    return Config.from_tree(tree)


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Return the configuration file that arguments begin with, or None, and the words after it."""
    if not arguments:
        return None, []
    first = Path(arguments[0])
    # A file's path may have a "=", and then it is there.
    is_path = "=" not in arguments[0] or (first.suffix == ".toml" and first.is_file())
    return (first, list(arguments[1:])) if is_path else (None, list(arguments))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: the file does not exist (with the nearest name beside it) or is not TOML.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = file.parent if file.parent.is_dir() else Path()
        hint = did_you_mean(file.name, [p.name for p in folder.glob("*.toml")])
        raise ConfigError(f'configuration file "{path}" does not exist.{hint}') from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'configuration file "{path}" cannot be read: {error}') from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f'configuration file "{path}" is not TOML: {error}') from error


def from_run_config(run_config: Mapping[str, Any]) -> Config:
    """Read a Flower run config.

    Args:
        run_config: `config-file`, a TOML file's path; `overrides`, words `key=value` as on the
            command line; or `config`, a whole configuration as JSON; `out`, `sites` and `resume`,
            which are not read here; and any dotted keys of fedopt's that the
            app declares. Flower lets a run override only what the app's pyproject.toml declares.

    Raises:
        ConfigError: as `load`.
    """
    given: dict[str, Any] = {}
    for key, value in run_config.items():
        if key not in ("config-file", "overrides", "out", "sites", "resume", "config"):
            _assign(given, key, value)
    if run_config.get("config"):
        return Config.from_tree(json.loads(str(run_config["config"])))
    file = run_config.get("config-file")
    words = shlex.split(str(run_config.get("overrides") or ""))
    return load(str(file) if file else None, words, **given)


def _split_override(text: str) -> tuple[str, Any]:
    key, sign, raw = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f'"{text}" is not of the form key=value')
    raw = raw.strip()
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a bare word for a table sets its name."""
    *parents, last = key.split(".")
    table = tree
    for depth, parent in enumerate(parents):
        inner = table.setdefault(parent, {})
        if isinstance(inner, str):
            inner = table[parent] = {"name": inner}
        if not isinstance(inner, dict):
            where = ".".join(parents[: depth + 1])
            raise ConfigError(f'"{where}" is a value, not a table', key=key)
        table = inner
    old = table.get(last)
    if isinstance(old, dict) and isinstance(value, str):
        old["name"] = value
    else:
        table[last] = value


def _merge(tree: dict[str, Any], key: str, value: Any, path: str = "") -> None:
    """Put `value` under `key` of the table at `path`, over what an earlier source said.

    Tables are merged; where a new name chooses another entry, the options of the old go.
    """
    path = f"{path}.{key}" if path else key
    old = tree.get(key)
    if isinstance(value, str) and isinstance(old, Mapping):
        value = {"name": value}
    if not isinstance(value, Mapping):
        tree[key] = value
        return
    merged = {"name": old} if isinstance(old, str) else {}
    merged |= old if isinstance(old, Mapping) else {}
    if path in CHOICES:
        chosen = merged.get("name", DEFAULT_NAMES[path])
        if value.get("name", chosen) != chosen:
            merged = {}
    tree[key] = merged
    for inner, inner_value in value.items():
        _merge(merged, inner, inner_value, path)


def _parse(tree: Mapping[str, Any]) -> Config:
    problems: list[str] = []
    tables = {k: v for k, v in tree.items() if k not in RunTable.model_fields}
    _refuse_unknown(tables, problems)

    def checked(build: Any, *arguments: Any) -> Any:
        try:
            return build(*arguments)
        except ConfigError as error:
            problems.append(str(error))
            return None

    values: dict[str, Any] = {
        "run": checked(
            validate, RunTable, {k: v for k, v in tree.items() if k in RunTable.model_fields}, ""
        )
    }
    _implied(tables)
    for key in CHOICES:
        values[field_name(key)] = checked(_choice, key, _table(tables, key))
    for key, schema in Config.TABLES.items():
        given, inner = _table(tables, key), _inner(key)
        if isinstance(given, Mapping):
            given = {k: v for k, v in given.items() if k not in inner}
        values[field_name(key)] = checked(validate, schema, given, key, inner)
    if problems:
        raise ConfigError("\n".join(problems))
    local_table = values["local"]
    if local_table.epochs is None and local_table.steps is None:
        values["local"] = local_table.model_copy(update={"epochs": 5.0})
    config = Config(**values)
    _check_together(config)
    return config


_NESTED = tuple(key for key in (*CHOICES, *Config.TABLES) if "." in key)
"""Tables inside tables."""


def _inner(key: str) -> list[str]:
    """Return the names of the tables inside a table."""
    return [k.removeprefix(f"{key}.") for k in _NESTED if k.startswith(f"{key}.")]


def _refuse_unknown(tables: dict[str, Any], problems: list[str]) -> None:
    """Note unknown keys, at the top and in tables that hold only tables, and drop them."""
    top = dict.fromkeys(key.partition(".")[0] for key in (*CHOICES, *Config.TABLES))
    known = [*RunTable.model_fields, *top]
    for key in list(tables):
        if key not in known:
            hint = did_you_mean(key, known)
            problems.append(f"{key}: unknown key.{hint} Known: {', '.join(known)}.")
            del tables[key]
    for key in [key for key in top if key not in (*CHOICES, *Config.TABLES)]:
        given = tables.get(key, {})
        if not isinstance(given, Mapping):
            problems.append(f"{key}: expected a table, got {given!r}.")
            del tables[key]
            continue
        inner = _inner(key)
        for name in given:
            if name not in inner:
                hint = did_you_mean(name, inner)
                known_words = ", ".join(inner)
                problems.append(f"{key}.{name}: unknown key.{hint} Known: {known_words}.")


def _table(tables: Mapping[str, Any], key: str) -> Any:
    """Return the table at a dotted key, empty where there is none."""
    found: Any = tables
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return {}  # the outer table's own check says what is wrong
        found = found.get(part, {})
    return found


def _check_together(config: Config) -> None:
    """Check what concerns several tables.

    Raises:
        ConfigError: averaging begins after the last round; a plateau waits for a metric that is
            not measured.
    """
    swa = config.server_swa
    if swa.is_on and swa.first_round(config.rounds) > config.rounds:
        raise ConfigError(
            f"got {swa.start}: averaging would begin in round {swa.first_round(config.rounds)}, "
            f"but the last is {config.rounds}; use a round in 1..{config.rounds}, a smaller share "
            "or a smaller every",
            key="server.swa.start",
        )
    for key, paced in (
        ("local.curriculum", config.local_curriculum),
        ("server.curriculum", config.server_curriculum),
    ):
        if paced.is_on and getattr(paced, "scope", "across") == "across":
            _check_pacing(key, paced, config.rounds)
    metric = getattr(config.schedule.options, "metric", "")
    if metric.startswith("validation") and not config.evaluation.validation_clients:
        raise ConfigError(
            f'got 0, but the schedule "plateau" watches "{metric}"; use a number > 0 (and '
            'data.validation_fraction > 0), or local.schedule.metric = "train_loss"',
            key="evaluation.validation_clients",
        )


def _check_pacing(key: str, paced: PacedTable, rounds: int) -> None:
    """Check that all data are available in the last round.

    Raises:
        ConfigError: they are not.
    """
    last = (rounds - 1) / rounds
    if paced.full_at > last and paced.start < 1:
        raise ConfigError(
            f'got {paced.full_at:g}: the pacing "{paced.pacing}" never reaches all data, as the '
            f"last of {rounds} rounds begins at {last:.3g} of the training; use at most that, or "
            "more rounds",
            key=f"{key}.full_at",
        )


def _implied(tables: dict[str, Any]) -> None:
    """Synthetic data come with their own devices: the one implies the other."""

    def name(key: str) -> Any:
        table = tables.get(key)
        return table.get("name") if isinstance(table, Mapping) else table

    for one, other in (("data", "partition"), ("partition", "data")):
        if name(one) == "synthetic" and name(other) is None:
            table = tables.get(other) or {}
            tables[other] = {"name": "synthetic", **table}


def _choice(key: str, value: Any) -> Choice:
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError(f"expected a table or a name, got {value!r}.", key=key)
    options = {k: v for k, v in table.items() if k != "name"}
    name = table.get("name")
    if name is None:
        name = DEFAULT_NAMES[key]
    if not isinstance(name, str):
        raise ConfigError(f"expected a name, got {name!r}.", key=f"{key}.name")
    if key in OPEN and ":" in name:
        from fedopt.models.catalogue import FreeOptions

        return Choice(name, FreeOptions.model_validate(options))
    if key == "strategy" and ":" in name:
        schema = getattr(import_object(name, key="strategy.name"), "options_type", None)
        if schema is None:
            raise ConfigError(
                f'"{name}" is not a fedopt.server.FederatedStrategy', key="strategy.name"
            )
        return Choice(name, validate(schema, options, key))
    entry = get(CHOICES[key], name, key=f"{key}.name")
    if options and not entry.options.model_fields:
        given = next(iter(options))
        raise ConfigError(
            f'{key}.name is "{name}", which has no options; name another, as in {key}.name = '
            f'"{_another(key, given)}"',
            key=f"{key}.{given}",
        )
    return Choice(name, validate(entry.options, options, key))


def _another(key: str, option: str) -> str:
    """Return an entry that takes an option, else any that has options."""
    found = [entry for entry in entries(CHOICES[key]) if entry.options.model_fields]
    having = [entry.name for entry in found if option in entry.options.model_fields]
    return (having or [entry.name for entry in found])[0]


def _plain(model: BaseModel) -> dict[str, Any]:
    """Dump a table without the values that are None (TOML has no null)."""
    dumped = model.model_dump(mode="python", exclude_none=True)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dumped.items()}
