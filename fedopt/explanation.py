"""What is known of a key, a table or a name of the configuration, for `fedopt explain`.

Everything comes from the schema, the registry and `fedopt.effects`; no key is known here by name.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fedopt.config import CHOICES, DEFAULT_NAMES, OPEN
from fedopt.effects import effect_of
from fedopt.errors import ConfigError, did_you_mean
from fedopt.examples import ENTRY_NEEDS, command, example_of
from fedopt.keys import (
    NAMES,
    WORDS,
    Key,
    choices,
    chosen_names,
    fixed_schema,
    keys,
    options,
    tables,
    words_of,
)
from fedopt.registry import KINDS, Entry, entries
from fedopt.schema_text import (
    bounds,
    default_text,
    literals,
    sentence,
    toml_text,
    type_text,
    unique,
)

MOST_RELATED = 8
WIDTH = 96
"""Columns of the text."""


@dataclass(frozen=True)
class Explanation:
    """What is known of one thing.

    Args:
        subject: the dotted key, or `table=name`.
        what: `key`, `table` or `name`.
        description: sentences.
        variants: of a key, each schema that it has: type, default, allowed values, description, and
            `of`, the entries whose option it is (empty in a fixed table).
        keys: of a table or a name, its keys with defaults and descriptions.
        where: when and where it takes effect.
        source: paper or equation, or "".
        related: other keys.
        example: a command.
        page: of the documentation.
    """

    subject: str
    what: str
    description: str
    where: str
    source: str
    example: str
    page: str
    variants: list[dict[str, Any]] = field(default_factory=list)
    keys: list[dict[str, Any]] = field(default_factory=list)
    related: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return dict(vars(self))

    def text(self) -> str:
        """Return it for people."""
        lines = [self.subject]
        if self.description:
            lines += _wrapped(self.description, "  ")
        for variant in self.variants:
            lines += _variant_lines(variant, self.description)
        if self.keys:
            width = max(len(row["key"]) for row in self.keys)
            lines.append("")
            for row in self.keys:
                head = f"  {row['key']:<{width}}  "
                lines += _wrapped(row["description"] + _default_note(row), head, " " * len(head))
        lines.append("")
        for label, value in (
            ("takes effect", self.where),
            ("source", self.source),
            ("related", ", ".join(self.related)),
        ):
            if value:
                lines += _wrapped(value, f"  {label:<12}  ", " " * 16)
        lines.append(f"  {'example':<12}  {self.example}")
        lines.append(f"  {'more':<12}  {self.page}")
        return "\n".join(lines)


def explain(subject: str, context: Sequence[str] = ()) -> Explanation:
    """Return what is known of a key, a table or a name.

    Args:
        subject: a dotted key (`local.sam.rho`), its last part where no other key ends so, a table
            (`local.sam`), a choice (`strategy=fedprox`), or a registered name (`fedprox`).
        context: `key=value` words; a choice among them says whose option is meant.

    Raises:
        ConfigError: there is no such thing; the message names the nearest one.
    """
    names = chosen_names(context)
    for table, name in names.items():
        _refuse_unknown_name(table, name)
    head, sign, value = subject.partition("=")
    key = head.strip()
    if sign and key.removesuffix(".name") in CHOICES:
        return _explain_name(key.removesuffix(".name"), value.strip().strip('"'))
    if key in NAMES or (key in WORDS):
        return _explain_word(key)
    if key in tables():
        return _explain_table(key, names.get(key))
    known = keys()
    found = [known_key for known_key in known if known_key.path == key]
    if not found:
        key, found = _by_last_part(key, known)
    if not found:
        owners = [table for table in CHOICES if key in _names(table)]
        if owners:
            return _explain_name(owners[0], key)
        kind = next((k for k in KINDS if key in (e.name for e in entries(k))), None)
        if kind is None:
            raise _unknown(key, known)
        return _explain_word(KINDS[kind])
    return _explain_key(key, found, names)


def _by_last_part(word: str, known: Sequence[Key]) -> tuple[str, list[Key]]:
    """Return the only key that ends with a word.

    Raises:
        ConfigError: several do.
    """
    paths = unique(k.path for k in known if k.path.endswith(f".{word}"))
    if len(paths) > 1:
        named = [f"{table}={word}" for table in CHOICES if word in _names(table)]
        several = ", ".join([*paths, *named])
        raise ConfigError(f'"{word}" is the end of several keys; give one: {several}')
    return (paths[0], [k for k in known if k.path == paths[0]]) if paths else (word, [])


def _unknown(word: str, known: Sequence[Key]) -> ConfigError:
    """Return the error for a word that is neither key nor table nor name."""
    paths = unique([*(k.path for k in known), *NAMES, *tables()])
    names = unique(entry.name for kind in KINDS for entry in entries(kind))
    hint = did_you_mean(word, paths) or did_you_mean(word, names)
    if not hint:
        ends = {path.rpartition(".")[2]: path for path in paths}
        near = did_you_mean(word.rpartition(".")[2], ends)
        end = re.search(r'"(.+)"', near)
        hint = f' Did you mean "{ends[end[1]]}"?' if end else ""
    inside = [path for path in paths if path.startswith(f"{word.rpartition('.')[0]}.")]
    table = word.rpartition(".")[0]
    if table in tables() and inside:
        rest = unique(path.removeprefix(f"{table}.") for path in inside)
        return ConfigError(
            f'"{word}" is no key of the configuration.{hint} [{table}] has: {", ".join(rest)}.'
        )
    return ConfigError(
        f'"{word}" is neither a key nor a table nor a name of the configuration.{hint} '
        f"Tables: {', '.join(sorted(tables()))}."
    )


def _names(table: str) -> list[str]:
    return [entry.name for entry in choices(table)]


def _refuse_unknown_name(table: str, name: str) -> None:
    from fedopt.errors import unknown_name

    if name not in _names(table) and ":" not in name:
        raise unknown_name(f"{table}.name", name, _names(table))


def _explain_key(key: str, found: list[Key], names: dict[str, str]) -> Explanation:
    """Explain a key of a fixed table, or an option."""
    table = found[0].table
    if table in names:
        chosen = [k for k in found if k.entry is not None and k.entry.name == names[table]]
        if not chosen:
            having = ", ".join(k.entry.name for k in found if k.entry is not None)
            raise ConfigError(
                f'"{names[table]}" has no option "{found[0].name}"; these have it: {having}',
                key=key,
            )
        found = chosen
    schema = fixed_schema(table)
    effect = effect_of(key)
    entry = found[0].entry
    is_one = len({k.entry.name for k in found if k.entry}) == 1
    source = entry.source if entry and is_one and entry.source != "-" else effect.source
    variants = _variants(found)
    is_fixed = schema is not None and entry is None
    return Explanation(
        subject=key,
        what="key",
        description=variants[0]["description"] if is_fixed or len(variants) == 1 else "",
        where=effect.where,
        source=source,
        example=command(example_of(found[0])),
        page=effect.page,
        variants=variants,
        related=_related(key, found),
    )


def _variants(found: Sequence[Key]) -> list[dict[str, Any]]:
    """Return the different schemas of a key, each with the entries that have it."""
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    for key in found:
        row = {
            "type": type_text(key.field.annotation),
            "default": default_text(key.field),
            "allowed": allowed_text(key),
            "description": sentence(key.field.description or ""),
        }
        same = merged.setdefault(tuple(row.values()), {**row, "of": [], "sources": []})
        if key.entry is not None:
            same["of"].append(key.entry.name)
            same["sources"].append(key.entry.source)
    return list(merged.values())


def allowed_text(key: Key) -> str:
    """Return the words or the range that a key allows, "" where the schema sets none."""
    words = [toml_text(word) for word in literals(key.field.annotation)]
    if not words and "bool" in str(key.field.annotation):
        words = ["true", "false"]
    return ", ".join([*words, *bounds(key.field)])


def _explain_word(key: str) -> Explanation:
    """Explain a key that names something registered."""
    table, _, _last = key.rpartition(".")
    kind = CHOICES[table] if key in NAMES else WORDS[key]
    effect = effect_of(key)
    fixed = [k for k in keys() if k.path == key]
    default = DEFAULT_NAMES[table] if key in NAMES else str(fixed[0].field.default)
    named = words_of(key)
    takes_path = key == "local.loss" or table in (*OPEN, "strategy")
    other = ' or "package.module:name" of your own' if takes_path else ""
    first = next((name for name, _ in named if name not in (default, "none")), default)
    example = example_of(fixed[0]) if fixed else ()
    if key in NAMES:
        example = (f"{table}={first}", *ENTRY_NEEDS.get((table, first), ()))
    said = sentence(fixed[0].field.description or "") if fixed else f"Which of the {kind} is used."
    return Explanation(
        subject=key,
        what="key",
        description=said,
        where=effect.where,
        source=effect.source,
        example=command(example),
        page=effect.page,
        variants=[
            {
                "type": "string",
                "default": f'"{default}"',
                "allowed": ", ".join(f'"{name}"' for name, _ in named) + other,
                "description": said,
                "of": [],
                "sources": [],
            }
        ],
        keys=[_named_row(*word) for word in named] if fixed else [],
        related=_related(key, []),
    )


def _explain_table(table: str, name: str | None) -> Explanation:
    """Explain a table: what it is for, and its keys."""
    if table in CHOICES:
        if name is not None and ":" not in name:
            return _explain_name(table, name)
        return _explain_choice(table)
    inner = [t for t in tables() if t.rpartition(".")[0] == table]
    schema = fixed_schema(table)
    effect = effect_of(table if schema else inner[0])
    fixed = [k for k in keys() if k.table == table and k.entry is None]
    rows = [_row(k) for k in fixed]
    rows += [{"key": f"[{t}]", "default": None, "description": _first_line(t)} for t in inner]
    example = example_of(fixed[0] if fixed else next(k for k in keys() if k.table == inner[0]))
    return Explanation(
        subject=f"[{table}]",
        what="table",
        description=_first_line(table),
        where=effect.where if schema else "",
        source=effect.source if schema else "",
        example=command(example),
        page=effect.page,
        keys=rows,
        related=[f"{table}.{row['key']}" for row in rows if not row["key"].startswith("[")],
    )


def _explain_choice(table: str) -> Explanation:
    """Explain a table with a name: what it can name."""
    effect = effect_of(table)
    default = DEFAULT_NAMES[table]
    rows = [_named_row(entry.name, entry.description) for entry in choices(table)]
    first = next(e.name for e in choices(table) if e.name not in (default, "none"))
    return Explanation(
        subject=f"[{table}]",
        what="table",
        description=(
            f'Its key "name" is one of those below (default "{default}"); its other keys are the '
            f"options of what is named."
        ),
        where=effect.where,
        source=effect.source,
        example=command((f"{table}={first}", *ENTRY_NEEDS.get((table, first), ()))),
        page=effect.page,
        keys=rows,
        related=[f"{table}.name", *unique(k.path for k in options(table))][:MOST_RELATED],
    )


def _explain_name(table: str, name: str) -> Explanation:
    """Explain something that a table names, with its options."""
    _refuse_unknown_name(table, name)
    entry = _entry(table, name)
    effect = effect_of(table)
    own = options(table, name)
    return Explanation(
        subject=f"{table}={name}",
        what="name",
        description=sentence(entry.description),
        where=effect.where,
        source="" if entry.source == "-" else entry.source,
        example=command((f"{table}={name}", *ENTRY_NEEDS.get((table, name), ()))),
        page=effect.page,
        keys=[_row(k) for k in own],
        related=[k.path for k in own],
    )


def _entry(table: str, name: str) -> Entry:
    if ":" in name:
        raise ConfigError(f'"{name}" is a path of your own; its options are those that it declares')
    return next(entry for entry in choices(table) if entry.name == name)


def _row(key: Key) -> dict[str, Any]:
    return {
        "key": key.name,
        "default": default_text(key.field),
        "description": sentence(key.field.description or "").rstrip("."),
    }


def _named_row(name: str, description: str) -> dict[str, Any]:
    return {"key": name, "default": None, "description": description}


def _default_note(row: dict[str, Any]) -> str:
    """Return what is said of a default behind a description that does not tell it."""
    default = row["default"]
    if default is None or (default == "unset" and "default" in row["description"]):
        return ""
    return f" ({default})" if default in ("required", "unset") else f" (default {default})"


def _first_line(table: str) -> str:
    """Return what a table is for, in one sentence."""
    schema = fixed_schema(table)
    if schema is not None:
        return (schema.__doc__ or "").strip().splitlines()[0]
    if table in CHOICES:
        return f"One of the {CHOICES[table].replace('_', ' ')}, with its options."
    return "Holds tables only."


def _related(key: str, found: Sequence[Key]) -> list[str]:
    """Return keys that a key's description names, that name it, and its nearest neighbours."""
    known = keys()
    paths = {k.path for k in known}
    table, _, name = key.rpartition(".")
    said = " ".join(k.field.description or "" for k in found) + " " + effect_of(key).where
    mentioned = [p for p in re.findall(r"[a-z_]+(?:\.[a-z_A-Z0-9]+)+", said) if p in paths]
    words = set(re.findall(r"[A-Za-z_0-9]+", said))
    siblings = unique(k.path for k in known if k.table == table and k.path != key)
    owners = {k.entry.name for k in found if k.entry}
    if owners:
        siblings = unique(
            k.path for k in known if k.table == table and k.entry and k.entry.name in owners
        )
        siblings = [path for path in siblings if path != key]
    near = [p for p in siblings if len(p.rpartition(".")[2]) > 2 and p.rpartition(".")[2] in words]
    stem = name.partition("_")[0]
    near += [p for p in siblings if p.rpartition(".")[2].partition("_")[0] == stem]
    naming = [
        k.path
        for k in known
        if k.path != key
        and (
            re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", k.field.description or "")
            if table
            else False
        )
    ]
    found_paths = unique([*mentioned, *near, *naming])
    if len(found_paths) < MOST_RELATED and table:
        found_paths = unique([*found_paths, *siblings])
    return [path for path in found_paths if path != key][:MOST_RELATED]


def _variant_lines(variant: dict[str, Any], said: str) -> list[str]:
    """Return the lines of one schema of a key."""
    facts = [variant["type"]]
    default = variant["default"]
    facts.append(default if default in ("required", "unset") else f"default {default}")
    lines = []
    if variant["of"]:
        alone = len(variant["of"]) == 1 and variant["sources"] != ["-"]
        source = f" [{variant['sources'][0]}]" if alone else ""
        lines += _wrapped(f"option of {', '.join(variant['of'])}{source}:", "  ", "    ")
    indent = "    " if variant["of"] else "  "
    if variant["description"] != said:
        lines += _wrapped(variant["description"], indent)
    lines.append(f"{indent}{', '.join(facts)}")
    if variant["allowed"]:
        lines += _wrapped(f"allowed: {variant['allowed']}", indent, indent + "  ")
    return lines


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
