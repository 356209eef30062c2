"""Every key that a configuration may have: the fixed tables, and the options of what can be named.

Made from the schema and the registry, without torch; completion and `fedopt explain` rest on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from fedopt.compression.catalogue import DOWN
from fedopt.config import CHOICES, Config
from fedopt.registry import KINDS, Entry, entries
from fedopt.schema import RunTable, Table
from fedopt.schema_text import literals


@dataclass(frozen=True)
class Key:
    """A key of a fixed table, or an option of something that can be named.

    Args:
        path: the dotted key, such as `local.sam.rho`.
        field: its schema.
        entry: whose option it is, or None in a fixed table.
    """

    path: str
    field: FieldInfo
    entry: Entry | None = None

    @property
    def table(self) -> str:
        """The dotted key of its table, "" at the top of the file."""
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.path.rpartition(".")[2]


NAMES = tuple(f"{key}.name" for key in CHOICES)
"""Keys that name an entry of the registry and bring its options."""

WORDS = {key: kind for kind, key in KINDS.items() if key not in NAMES}
"""Keys of fixed tables that name an entry of the registry -> its kind."""
WORDS["server.curriculum.name"] = "curricula"
WORDS["server.curriculum.pacing"] = "pacings"


ONLY: dict[str, tuple[str, ...]] = {"downlink.compression": DOWN}
"""Tables that take some entries of their kind alone."""


def tables() -> tuple[str, ...]:
    """Return the dotted keys of all tables, those that only hold tables included."""
    found = dict.fromkeys([*CHOICES, *Config.TABLES])
    parents = {key.rpartition(".")[0]: None for key in found if "." in key}
    return tuple(dict.fromkeys([*found, *parents]))


def fixed_schema(table: str) -> type[Table] | None:
    """Return the schema of a table whose keys are fixed, "" being the top; else None."""
    return RunTable if table == "" else Config.TABLES.get(table)


def choices(table: str) -> list[Entry]:
    """Return the entries that a table with a `name` can name."""
    found = entries(CHOICES[table])
    return [entry for entry in found if entry.name in ONLY.get(table, (entry.name,))]


def options(table: str, name: str | None = None) -> list[Key]:
    """Return the options that a table with a `name` may have.

    Args:
        table: one of `CHOICES`.
        name: of the entry whose options are wanted; None for those of every entry. A name that is
            not registered, such as a path, has none that are known.
    """
    return [
        Key(f"{table}.{option}", field, entry)
        for entry in choices(table)
        if name in (None, entry.name)
        for option, field in entry.options.model_fields.items()
    ]


def keys(names: Mapping[str, str] | None = None) -> list[Key]:
    """Return every key but those in `NAMES`.

    Args:
        names: table -> the name that is chosen in it; the other tables bring the options of all
            that they could name.
    """
    chosen = names or {}
    found = [
        Key(f"{table}.{name}".removeprefix("."), field)
        for table in ("", *Config.TABLES)
        for name, field in (fixed_schema(table) or Table).model_fields.items()
    ]
    for table in CHOICES:
        found += options(table, chosen.get(table))
    return found


def words_of(key: str) -> list[tuple[str, str]]:
    """Return the names that a key takes, each with its description; empty where any are allowed."""
    table, _, last = key.rpartition(".")
    if last == "name" and table in CHOICES:
        found = choices(table)
    else:
        found = entries(WORDS[key]) if key in WORDS else []
    return [(entry.name, entry.description) for entry in found]


def values_of(found: Sequence[Key]) -> list[tuple[str, str]]:
    """Return the words that a key allows, in any of its schemas, each with what is known of it."""
    if not found:
        return []
    named = words_of(found[0].path)
    if named:
        return named
    words: dict[str, str] = {}
    for key in found:
        for word in literals(key.field.annotation):
            words.setdefault(str(word), "")
        if "bool" in str(key.field.annotation):
            words |= {"true": "", "false": ""}
    return list(words.items())


def chosen_names(arguments: Sequence[str]) -> dict[str, str]:
    """Return the names that `key=value` words choose: table -> name.

    The later word wins, as in a configuration.
    """
    names: dict[str, str] = {}
    for word in arguments:
        key, sign, value = word.partition("=")
        table = key.removesuffix(".name")
        if sign and table in CHOICES:
            names[table] = value.strip().strip('"')
    return names
