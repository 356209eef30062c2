"""A run's configuration as tables: what differs from the defaults first, then everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedopt.analysis.groups import flattened
from fedopt.analysis.report.figures import Table
from fedopt.config import CHOICES, Config, default_choice
from fedopt.errors import ConfigError

UNSET = "not set"
"""What is shown for options that have no default, and those of the user's own objects."""


def config_tables(config: Mapping[str, Any]) -> list[tuple[str, Table, bool]]:
    """Return title, table and whether it is folded: what differs, and the whole.

    Args:
        config: the resolved configuration as tables; of an older version, or with parts of the
            user's own, too.
    """
    if not config:
        return []
    given, usual = dict(flattened(config)), default_values(config)
    rows = [(key, text(value), _usual(key, usual)) for key, value in given.items()]
    differs = [
        index
        for index, (key, value) in enumerate(given.items())
        if key not in usual or usual[key] != value
    ]
    headings = ("key", "value", "default")
    changed = Table(headings, [rows[i] for i in differs], numeric=False)
    whole = Table(
        headings,
        rows,
        numeric=False,
        marked=frozenset(differs),
        note="Rows with a bar at their left differ from the default.",
    )
    found = [("The whole configuration", whole, True)]
    if differs:
        found.insert(0, ("What differs from the defaults", changed, False))
    return found


def default_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return default values by dotted key, with the options of what the configuration names."""
    usual = dict(flattened(Config.from_tree({}).dump()))
    given = dict(flattened(config))
    for key in CHOICES:
        name = given.get(f"{key}.name")
        if name == usual.get(f"{key}.name") or not isinstance(name, str):
            continue
        prefix = f"{key}."
        inner = [other for other in CHOICES if other.startswith(prefix)]
        for old in [k for k in usual if k.startswith(prefix) and k != f"{key}.name"]:
            if not old.startswith(tuple(f"{other}." for other in inner)):
                usual.pop(old)
        try:
            options = default_choice(key, name).dump()
        except ConfigError:  # of the user's own, or with options that have no default
            continue
        options.pop("name")
        usual |= {f"{key}.{option}": value for option, value in options.items()}
    return usual


def text(value: object) -> str:
    """Return a value of a configuration as it would be typed."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(text(item) for item in value) + "]"
    return str(value)


def _usual(key: str, usual: Mapping[str, Any]) -> str:
    return text(usual[key]) if key in usual else UNSET
