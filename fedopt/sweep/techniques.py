"""The techniques that a configuration combines, and configurations without some of them.

A technique is what can be left out and something is left to train: a table, or a few keys of one,
that differ from their defaults. Data, model, system, attacks and the amount of training are the
task, and stay.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from fedopt.config import CHOICES, DEFAULT_NAMES, Config, field_name
from fedopt.errors import ConfigError
from fedopt.sweep.space import Space, key_hint, read_dimension


@dataclass(frozen=True)
class Technique:
    """Something that a configuration may use.

    Args:
        name: in tables; the dotted key of its table, or of its first key.
        keys: that go back to their defaults without it: keys, or tables as a whole.
        is_on: whether a configuration uses it.
    """

    name: str
    keys: tuple[str, ...]
    is_on: Callable[[Config], bool]


def _choice(key: str) -> Technique:
    def is_on(config: Config) -> bool:
        return bool(getattr(config, field_name(key)).name != DEFAULT_NAMES[key])

    return Technique(key, (key,), is_on)


def _table(key: str, is_on: Callable[[Any], bool]) -> Technique:
    return Technique(key, (key,), lambda config: is_on(getattr(config, field_name(key))))


def _keys(first: str, *others: str) -> Technique:
    """Return the technique of some keys of a table, on where the first differs from its default."""
    table, _, name = first.rpartition(".")
    schema = Config.TABLES[table]
    default = schema.model_fields[name].default

    def is_on(config: Config) -> bool:
        return bool(getattr(getattr(config, field_name(table)), name) != default)

    return Technique(first, (first, *others), is_on)


def _optimizer_option(name: str) -> Technique:
    key = f"local.optimizer.{name}"

    def is_on(config: Config) -> bool:
        # With another optimizer, its options are part of it.
        is_default = config.optimizer.name == DEFAULT_NAMES["local.optimizer"]
        return is_default and bool(getattr(config.optimizer.options, name, 0.0))

    keys = (key, "local.optimizer.nesterov") if name == "momentum" else (key,)
    return Technique(key, keys, is_on)


TECHNIQUES: tuple[Technique, ...] = (
    _choice("strategy"),
    _choice("local.optimizer"),
    _optimizer_option("momentum"),
    _optimizer_option("weight_decay"),
    _choice("local.schedule"),
    _table("local.sam", lambda sam: sam.rho > 0),
    _keys("local.gradient.penalty"),
    _keys("local.gradient.skip_norm"),
    _keys("local.gradient.skip_nonfinite"),
    _keys("local.gradient.clip_norm"),
    _keys("local.gradient.clip_value"),
    _keys("local.gradient.noise_eta", "local.gradient.noise_gamma"),
    _keys("local.optimizer_state"),
    _table("local.swa", lambda table: table.is_on),
    _table("local.curriculum", lambda table: table.is_on),
    _table("local.self_paced", lambda table: table.is_on),
    _choice("server.optimizer"),
    _table("server.swa", lambda table: table.is_on),
    _table("server.curriculum", lambda table: table.is_on),
    _table("uplink.clip", lambda table: table.norm is not None),
    _table("uplink.privacy", lambda table: table.is_on),
    _choice("uplink.compression"),
    _choice("downlink.compression"),
    _choice("policy"),
    _choice("selection"),
)
"""In the order in which tables name them."""


def techniques_of(config: Config) -> list[Technique]:
    """Return the techniques that a configuration uses."""
    return [technique for technique in TECHNIQUES if technique.is_on(config)]


def without(
    config: Config, absent: Collection[Technique], instead: Mapping[str, Any] | None = None
) -> Config:
    """Return a configuration without some of its techniques.

    Args:
        config: the whole.
        absent: what goes back to its defaults.
        instead: dotted key -> value, in place of the defaults of what is absent: such as the
            learning rate that goes with plain SGD. Keys of what stays are not touched.

    Raises:
        ConfigError: what is left is not allowed.
    """
    tree = deepcopy(config.dump())
    for technique in absent:
        for key in technique.keys:
            _drop(tree, key)
    for key, value in (instead or {}).items():
        if any(key == k or key.startswith(f"{k}.") for t in absent for k in t.keys):
            _put(tree, key, value)
    return Config.from_tree(tree)


def read_instead(space: Space) -> dict[str, Any]:
    """Return `key=value` words as values by dotted key.

    Raises:
        ConfigError: a key has several values.
    """
    if space.dimensions or space.seeds:
        key = space.keys[0] if space.keys else "seed"
        raise ConfigError("needs one value", key=f"--instead {key}")
    found = {}
    for word in space.fixed:
        key, _, raw = word.partition("=")
        if not _is_removable(key):
            hint = key_hint([key])
            names = ", ".join(technique.name for technique in TECHNIQUES)
            raise ConfigError(
                f"belongs to no technique.{hint} Techniques: {names}.", key=f"--instead {key}"
            )
        found[key] = read_dimension(key, raw).values[0].plain  # type: ignore[union-attr]
    return found


def _is_removable(key: str) -> bool:
    return any(key == k or key.startswith(f"{k}.") for t in TECHNIQUES for k in t.keys)


def _drop(tree: dict[str, Any], key: str) -> None:
    """Take a key, or what is directly in a table, out of a tree."""
    *parents, last = key.split(".")
    table: Any = tree
    for parent in parents:
        table = table.get(parent, {})
    held = table.get(last)
    if key in CHOICES or key in Config.TABLES:
        inner = {k: v for k, v in held.items() if isinstance(v, dict)} if held else {}
        table[last] = inner
    else:
        table.pop(last, None)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if isinstance(tree.get(last), dict) and isinstance(value, str):
        tree[last]["name"] = value
    else:
        tree[last] = value


def names_of(techniques: Sequence[Technique]) -> str:
    """Return techniques as words."""
    return ", ".join(technique.name for technique in techniques)
