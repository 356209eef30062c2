"""One registry for everything that a configuration can name.

An entry is a name, an options schema (a pydantic model), where the implementation lives, one
line of description and its source. `fedopt list`, the config reference, validation and the
"did you mean" hints are all made from it. Entries name their implementation by
`"module:attribute"`, so the registry is full without importing torch, Flower or Ray.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fedopt.errors import ConfigError, did_you_mean, unknown_name

KINDS: dict[str, str] = {
    "strategies": "strategy.name",
    "optimizers": "local.optimizer.name",
    "server_optimizers": "server.optimizer.name",
    "schedules": "local.schedule.name",
    "curricula": "local.curriculum.name",
    "pacings": "local.curriculum.pacing",
    "self_paced": "local.self_paced.name",
    "datasets": "data.name",
    "partitions": "partition.name",
    "models": "model.name",
    "losses": "local.loss",
    "codecs": "uplink.compression.name",
    "attacks": "attack.name",
    "drifts": "drift.name",
    "devices": "system.devices.name",
    "availabilities": "system.availability.name",
    "policies": "policy.name",
    "selections": "selection.name",
    "engines": "engine.name",
}
"""Kind of entry -> the configuration key that names one of it."""


class Options(BaseModel):
    """Base of every options schema: unknown keys and wrong types are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


@dataclass(frozen=True)
class Entry:
    """Something a configuration can name.

    Args:
        kind: one of `KINDS`.
        name: the word used in the configuration.
        target: `"package.module:attribute"` of the implementation, imported on first use.
        options: pydantic model of the options that the table takes besides `name`.
        description: one line, for people.
        source: paper, equation or data source.
    """

    kind: str
    name: str
    target: str
    options: type[Options]
    description: str
    source: str

    def load(self) -> Any:
        """Import and return the implementation."""
        return import_object(self.target)


_entries: dict[str, dict[str, Entry]] = {kind: {} for kind in KINDS}


def register(entry: Entry) -> Entry:
    """Add an entry; a name may be registered once a kind.

    Raises:
        ConfigError: the kind is unknown or the name is taken.
    """
    table = _entries.get(entry.kind)
    if table is None:
        raise unknown_name("kind", entry.kind, KINDS)
    if entry.name in table:
        raise ConfigError(f'"{entry.name}" is registered twice', key=KINDS[entry.kind])
    table[entry.name] = entry
    return entry


def entries(kind: str) -> list[Entry]:
    """Return all entries of a kind, in the order of registration.

    Raises:
        ConfigError: the kind is unknown.
    """
    fill()
    if kind not in _entries:
        raise unknown_name("kind", kind, KINDS)
    return list(_entries[kind].values())


def get(kind: str, name: str, *, key: str | None = None) -> Entry:
    """Return one entry.

    Raises:
        ConfigError: naming the key, the value, the allowed names and the nearest one.
    """
    fill()
    table = _entries[kind]
    if name not in table:
        raise unknown_name(key or KINDS[kind], name, table)
    return table[name]


def import_object(path: str, *, key: str | None = None) -> Any:
    """Import `"package.module:attribute"`.

    Raises:
        ConfigError: the path is malformed, the module cannot be imported or has no such name.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f'"{path}" is not of the form "package.module:name"', key=key)
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        says = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f'cannot import "{module_name}": {says}.{_import_hint(module_name)}', key=key
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [n for n in dir(found) if not n.startswith("_")])
            raise ConfigError(f'"{module_name}" has no "{part}".{hint}', key=key)
        found = getattr(found, part)
    return found


def make(kind: str, name: str, options: Mapping[str, Any], *, key: str) -> Any:
    """Return an object of a registered class, or of `"package.module:Class"`.

    Args:
        kind: one of `KINDS`.
        name: of the entry, or the path.
        options: keyword arguments of the class.
        key: of the configuration's table.

    Raises:
        ConfigError: there is no such class, or it does not take the options.
    """
    if ":" in name:
        found = import_object(name, key=f"{key}.name")
    else:
        found = get(kind, name, key=f"{key}.name").load()
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'"{name}" cannot be made: {error}', key=key) from error


def _import_hint(module_name: str) -> str:
    """Say where modules are looked for, and the nearest one, if this one is not there at all."""
    top = module_name.partition(".")[0]
    try:
        if importlib.util.find_spec(top) is not None:
            return ""
    except (ImportError, ValueError):
        return ""
    here = [p.stem for p in Path().iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    return (
        f"{did_you_mean(top, here)} Modules are looked for in the current folder, PYTHONPATH and "
        "the installed packages."
    )


def fill() -> None:
    """Register everything that comes with fedopt (idempotent)."""
    inner = (
        *("data", "models", "optim", "schedules", "curriculum"),
        *("compression", "drift", "system"),
    )
    for package in (*inner, "server", "client", "simulation"):
        importlib.import_module(f"fedopt.{package}.catalogue")
