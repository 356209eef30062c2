"""The configuration of a run: its schema, its errors, TOML in and out.

A configuration is a tree of tables. Tables with a `name` (data, partition, model, strategy,
local.optimizer) take the options that the named entry of the registry declares; the others have
a fixed schema here. Everything is checked before anything is trained or written. This module
imports neither torch nor Flower nor Ray.
"""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import (
    BaseModel,
    ValidationError,
)

from fedopt.errors import ConfigError, did_you_mean
from fedopt.registry import Options, get, import_object
from fedopt.schema import (
    CheckpointTable,
    EngineTable,
    EvaluationTable,
    LocalTable,
    RunTable,
    SystemTable,
    Table,
)


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
}
"""Dotted key of a table with a name -> the registry's kind."""

DEFAULT_NAMES: dict[str, str] = {
    "data": "digits",
    "partition": "dirichlet",
    "model": "mlp",
    "strategy": "fedavg",
    "local.optimizer": "sgd",
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
    system: SystemTable = field(default_factory=SystemTable)
    engine: EngineTable = field(default_factory=EngineTable)
    evaluation: EvaluationTable = field(default_factory=EvaluationTable)
    checkpoint: CheckpointTable = field(default_factory=CheckpointTable)

    TABLES: ClassVar[dict[str, type[Table]]] = {
        "system": SystemTable,
        "engine": EngineTable,
        "evaluation": EvaluationTable,
        "checkpoint": CheckpointTable,
    }

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.run.seed

    @property
    def rounds(self) -> int:
        """Communication rounds."""
        return self.run.rounds

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
        for key in ("data", "partition", "model", "strategy"):
            tree[key] = getattr(self, key).dump()
        tree["local"] = {**_plain(self.local), "optimizer": self.optimizer.dump()}
        if self.local.batch_size is None:
            tree["local"]["batch_size"] = "full"
        for key in self.TABLES:
            tree[key] = _plain(getattr(self, key))
        return tree

    def to_toml(self) -> str:
        """Return the configuration as a TOML document that `load` reads back."""
        return tomli_w.dumps(self.dump())


def default_choice(key: str, name: str | None = None) -> Choice:
    """Return the default entry of a table, with its default options."""
    name = name or DEFAULT_NAMES[key]
    entry = get(CHOICES[key], name, key=f"{key}.name")
    return Choice(name, _validate(entry.options, {}, key))


def load(path: str | Path | None = None, overrides: Sequence[str] = (), **tables: Any) -> Config:
    """Read a configuration: a TOML file, then `key=value` overrides, then keyword tables.

    Raises:
        ConfigError: the file cannot be read, or what it says is not allowed.
    """
    tree = read_toml(path) if path is not None else {}
    given: dict[str, Any] = {}
    for text in overrides:
        _assign(given, *_split_override(text))
    for layer in (given, tables):
        for key, value in layer.items():
            _merge(tree, key, value)
    return Config.from_tree(tree)


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
            command line; `out`, which is not read here; and any dotted keys of fedopt's that the
            app declares. Flower lets a run override only what the app's pyproject.toml declares.

    Raises:
        ConfigError: as `load`.
    """
    given: dict[str, Any] = {}
    for key, value in run_config.items():
        if key not in ("config-file", "overrides", "out"):
            _assign(given, key, value)
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
    known = [*RunTable.model_fields, *(f.name for f in fields(Config) if f.name != "run")]
    known.remove("optimizer")
    for key in list(tables):
        if key not in known:
            hint = did_you_mean(key, known)
            problems.append(f"{key}: unknown key.{hint} Known: {', '.join(known)}.")
            del tables[key]

    def checked(build: Any, *arguments: Any) -> Any:
        try:
            return build(*arguments)
        except ConfigError as error:
            problems.append(str(error))
            return None

    values: dict[str, Any] = {
        "run": checked(
            _validate, RunTable, {k: v for k, v in tree.items() if k in RunTable.model_fields}, ""
        )
    }
    _implied(tables)
    local = tables.get("local", {})
    if not isinstance(local, Mapping):
        problems.append(f"local: expected a table, got {local!r}.")
        local = {}
    optimizer = local.get("optimizer", {})
    values["local"] = checked(
        _validate, LocalTable, {k: v for k, v in local.items() if k != "optimizer"}, "local"
    )
    values["optimizer"] = checked(_choice, "local.optimizer", optimizer)
    for key in ("data", "partition", "model", "strategy"):
        values[key] = checked(_choice, key, tables.get(key, {}))
    for key, table in Config.TABLES.items():
        values[key] = checked(_validate, table, tables.get(key, {}), key)
    if problems:
        raise ConfigError("\n".join(problems))
    local_table = values["local"]
    if local_table.epochs is None and local_table.steps is None:
        values["local"] = local_table.model_copy(update={"epochs": 5.0})
    return Config(**values)


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
    if key == "model" and ":" in name:
        from fedopt.models.catalogue import FreeOptions

        return Choice(name, FreeOptions.model_validate(options))
    if key == "strategy" and ":" in name:
        schema = getattr(import_object(name, key="strategy.name"), "options_type", None)
        if schema is None:
            raise ConfigError(
                f'"{name}" is not a fedopt.server.FederatedStrategy', key="strategy.name"
            )
        return Choice(name, _validate(schema, options, key))
    entry = get(CHOICES[key], name, key=f"{key}.name")
    return Choice(name, _validate(entry.options, options, key))


def _validate(model: type[Any], value: Any, prefix: str) -> Any:
    if isinstance(value, str) and "name" in model.model_fields:
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"expected a table, got {value!r}.", key=prefix)
    value = {k: _number(v) for k, v in value.items()}
    try:
        return model.model_validate(value)
    except ValidationError as error:
        by_key: dict[Any, list[Any]] = {}
        for problem in error.errors():
            by_key.setdefault(problem["loc"][:1], []).append(problem)
        lines = [_explain(model, problems, prefix, value) for problems in by_key.values()]
        raise ConfigError("\n".join(lines)) from None


def _number(value: Any) -> Any:
    """Return a number of numpy as Python's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def _explain(
    model: type[BaseModel], problems: Sequence[Any], prefix: str, values: Mapping[str, Any]
) -> str:
    """Say pydantic's problems with one key as `key: what is wrong, what is allowed`."""
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])  # begins with the name of the key to blame
        return f"{prefix}.{text}" if prefix else text
    name = location[0] if location else ""
    key = ".".join(part for part in (prefix, name) if part)
    allowed = list(model.model_fields)
    if problem["type"] == "extra_forbidden":
        known = ", ".join(allowed) or "none"
        return f"{key}: unknown key.{did_you_mean(name, allowed)} Known: {known}."
    described = model.model_fields[name].description if name in model.model_fields else None
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        words = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        hint = did_you_mean(problem["input"], words)
    if problem["type"] == "missing" and len(location) == 1:
        return f"{key}: required ({described})."
    if (
        len(problems) > 1 or len(location) > 1
    ):  # none of several types fits, or several elements are wrong
        return f"{key}: got {values[name]!r}, which is not allowed. ({described})"
    says = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}: got {problem['input']!r}; {says}.{hint} ({described})"


def _plain(model: BaseModel) -> dict[str, Any]:
    """Dump a table without the values that are None (TOML has no null)."""
    dumped = model.model_dump(mode="python", exclude_none=True)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dumped.items()}
