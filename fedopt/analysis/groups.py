"""Recorded runs, and those of them that belong together: repetitions that differ in the seed alone.

Groups are labelled by what differs between their configurations. Nothing is drawn or compared
here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fedopt.analysis.store import CONFIG_FILE, ROUNDS_FILE, SUMMARY_FILE, read_history
from fedopt.config import CHOICES, read_toml
from fedopt.errors import ConfigError

REFERENCES = ("centralised", "local_only")
"""Strategies that are drawn as lines to compare with."""

# Where a run is computed, and how often it is saved: never part of its results.
_INDIFFERENT = ("engine.name", "engine.workers", "engine.address", "checkpoint.")
_SWEEP_FILE = "sweep.json"
ABSENT = "none"


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder tells it.

    Args:
        name: how the user named it.
        history: its rounds.
        config: its configuration as dotted keys, without the seed and what never matters for
            results; empty where it is not known.
        seed: of the run, None where it is not known.
    """

    name: str
    history: pd.DataFrame
    config: Mapping[str, Any]
    seed: int | None

    @property
    def strategy(self) -> str:
        """Name of its strategy, empty where it is not known."""
        return str(self.config.get("strategy.name", ""))


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Args:
        label: what tells it from the other groups.
        runs: one a seed, at least one.
        is_counted: whether the number of seeds is worth telling: not for a run alone that is
            given by a name.
    """

    label: str
    runs: tuple[StoredRun, ...]
    is_counted: bool = True

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.runs)

    @property
    def is_reference(self) -> bool:
        """Whether it is one of `REFERENCES`."""
        return self.runs[0].strategy in REFERENCES

    @property
    def histories(self) -> tuple[pd.DataFrame, ...]:
        """The rounds of each run."""
        return tuple(run.history for run in self.runs)


def read_stored(directory: str | Path) -> StoredRun:
    """Return a run from its folder, finished or not.

    Raises:
        ConfigError: the folder is not a run's, or a file is damaged.
    """
    folder = Path(directory)
    history = read_history(folder)
    path = folder / CONFIG_FILE
    return stored(str(directory), history, read_toml(path) if path.is_file() else {})


def stored(name: str, history: pd.DataFrame, tree: Mapping[str, Any]) -> StoredRun:
    """Return a run that is in memory.

    Args:
        name: to be told from others by.
        history: its rounds.
        tree: its whole configuration, as `Config.dump` gives it.
    """
    flat = dict(flattened(tree))
    seed = flat.pop("seed", None)
    kept = {k: v for k, v in flat.items() if not k.startswith(_INDIFFERENT)}
    return StoredRun(name, history, kept, seed)


def run_folders(paths: Iterable[str | Path]) -> tuple[list[Path], list[str]]:
    """Return folders of runs, where folders of sweeps stand for the finished runs in them.

    Args:
        paths: folders of runs, or of sweeps and ablations.

    Returns:
        The folders, and a line for each sweep of which some runs were left out.

    Raises:
        ConfigError: a sweep has no finished run.
    """
    folders: list[Path] = []
    notes = []
    for path in map(Path, paths):
        if (path / ROUNDS_FILE).is_file() or not (path / _SWEEP_FILE).is_file():
            folders.append(path)
            continue
        inside = sorted(p for p in (path / "runs").glob("*") if p.is_dir())
        done = [p for p in inside if _is_completed(p)]
        if not done:
            raise ConfigError(f"{path} is a sweep without a finished run.")
        if len(done) < len(inside):
            left = len(inside) - len(done)
            verb = "is" if left == 1 else "are"
            notes.append(f"{path}: {left} of {len(inside)} runs {verb} not finished and left out")
        folders += done
    return folders, notes


def group_runs(runs: Sequence[StoredRun], by_seed: bool = True) -> list[Group]:
    """Return the runs in groups, in the order in which each group is first met.

    Runs that differ in the seed alone are a group. A second run of the same configuration and
    seed begins another group, so that no seed counts twice.

    Args:
        runs: the runs.
        by_seed: False makes each run a group of its own, labelled by its name.
    """
    groups: dict[tuple[str, int], list[StoredRun]] = {}
    seen: dict[tuple[str, int | None], int] = {}
    for number, run in enumerate(runs):
        if not by_seed or not run.config or run.seed is None:
            groups[f"#{number}", 0] = [run]
            continue
        identity = json.dumps(run.config, sort_keys=True, default=str)
        turn = seen.get((identity, run.seed), 0)
        seen[identity, run.seed] = turn + 1
        groups.setdefault((identity, turn), []).append(run)
    members = list(groups.values())
    if not by_seed:
        return [Group(run.name, (run,), False) for run in runs]
    labels = _labels(members)
    return [Group(label, tuple(some)) for label, some in zip(labels, members, strict=True)]


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the values of nested tables by dotted key."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the dotted keys that tell configurations apart, in the order of the file.

    Where the names of a table differ, its options count only if they differ among those of the
    same name: those of one strategy say nothing beside another's name.
    """
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = []
    for key in keys:
        table = next((t for t in CHOICES if key.startswith(f"{t}.") and key != f"{t}.name"), None)
        by_name: dict[Any, set[str]] = {}
        for config in configs:
            name = config.get(f"{table}.name") if table else None
            by_name.setdefault(name, set()).add(repr(config.get(key)))
        if any(len(values) > 1 for values in by_name.values()):
            differing.append(key)
    return differing


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return a short name for each dotted key that stays unique among them."""
    short = {key: _short(key) for key in keys}
    names = list(short.values())
    return {key: name if names.count(name) == 1 else key for key, name in short.items()}


def value_text(value: Any) -> str:
    """Return a value of a configuration as a label says it."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


def _short(key: str) -> str:
    parts = key.split(".")
    if parts[-1] == "name":
        return parts[-2] if parts[-2] not in ("swa", "curriculum", "compression") else key[:-5]
    if len(parts) == 1 or key.startswith("local.optimizer."):
        return parts[-1]
    if (parts[0] == "local" or parts[0] in CHOICES) and len(parts) == 2:
        return parts[-1]
    return ".".join(parts[-2:])


def _labels(groups: Sequence[Sequence[StoredRun]]) -> list[str]:
    configs = [some[0].config for some in groups]
    known = [config for config in configs if config]
    keys = differing_keys(known)
    names = short_keys(keys)
    labels = []
    for some in groups:
        config = some[0].config
        words = []
        for key in keys:
            table = next((t for t in CHOICES if key.startswith(f"{t}.")), None)
            is_option = table is not None and key != f"{table}.name"
            if is_option and key not in config and _is_named_apart(known, f"{table}.name"):
                continue  # an option that what this one names does not have
            text = value_text(config.get(key))
            words.append(text if key == "strategy.name" else f"{names[key]}={text}")
        alone = config.get("strategy.name") if len(groups) == 1 else None
        labels.append(", ".join(words) if config and words else str(alone or some[0].name))
    return [
        label if labels.count(label) == 1 else _named(label, some)
        for label, some in zip(labels, groups, strict=True)
    ]


def _is_named_apart(configs: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({config.get(key) for config in configs}) > 1


def _named(label: str, some: Sequence[StoredRun]) -> str:
    """Return a label with the folder, where configurations do not tell groups apart."""
    name = some[0].name
    return name if label == name else f"{label} ({name})"


def _is_completed(folder: Path) -> bool:
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    is_table = isinstance(summary, dict)
    return is_table and summary.get("status") == "completed" and (folder / ROUNDS_FILE).is_file()
