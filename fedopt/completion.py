"""What a shell offers at TAB: keys and values of the configuration, folders of runs, files.

Everything comes from the schema and the registry, so no torch is imported while somebody types.

bash hands a command over cut at `=` and `:`, and replaces only what stands behind the last of them;
other shells hand over whole words. Both are served: the word is put together again, and what bash
already has is left out of the answer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import split_arg_string

BREAKS = ("=", ":")
"""Characters at which bash cuts words (of those that a configuration's words may have)."""

RUN_FILES = ("rounds.csv", "config.toml")
"""A folder with one of these is a run's."""

MOST_FOLDERS = 200
"""Folders that are offered at most."""

Offer = tuple[str, str]
"""A word and what is said of it, or ""."""


def complete_words(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer a TOML file first, then keys and values of the configuration."""
    before, word, kept = _joined(_given(context), incomplete)
    offers = config_words(word, before)
    if not before and "=" not in word:
        offers = [*_files(word, ".toml"), *offers]
    return _items(offers, word, kept)


def complete_lists(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer what `complete_words` does, and behind a comma the next value of a list."""
    before, word, kept = _joined(_given(context), incomplete)
    key, _, values = word.partition("=")
    done, comma, _ = values.rpartition(",")
    if not comma:
        return complete_words(context, incomplete)
    given = {value.strip() for value in done.split(",")}
    found = ((offer.partition("=")[2], text) for offer, text in config_words(f"{key}=", before))
    offers = [(f"{key}={done},{value}", text) for value, text in found if value not in given]
    return _items(offers, word, kept)


def complete_explainable(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer keys, tables and, after `=`, the names of what can be chosen."""
    from fedopt.keys import NAMES, keys, tables

    before, word, kept = _joined(_given(context), incomplete)
    if "=" in word or before:
        return _items(config_words(word, before), word, kept)
    texts = {key.path: key.field.description or "" for key in keys()}
    offers = [(path, texts.get(path, "a table")) for path in (*tables(), *texts, *NAMES)]
    return _items(_next_parts(offers, word), word, kept)


def complete_runs(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer folders of runs, and folders that hold some."""
    given = _given(context)
    offers = [offer for offer in run_folders(incomplete) if offer[0] not in given]
    return _items(offers, incomplete, 0)


def complete_kinds(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer the kinds of what can be named."""
    from fedopt.registry import KINDS

    return _items(list(KINDS.items()), incomplete, 0)


def complete_studies(context: click.Context, incomplete: str) -> list[Offer]:
    """Offer the studies."""
    from fedopt.studies.catalogue import MODULES

    return _items([(name, "") for name in MODULES], incomplete, 0)


def config_words(word: str, before: Sequence[str] = ()) -> list[Offer]:
    """Return what a word of a configuration may become.

    Args:
        word: what is typed of `key=value`.
        before: the words before it; a name that they choose says which options there are.
    """
    from fedopt.keys import NAMES, chosen_names, keys

    names = chosen_names(before)
    found = keys(names)
    key, sign, _ = word.partition("=")
    if sign:
        return _values(key, before)
    texts = {k.path: k.field.description or "" for k in found}
    for path in NAMES:
        texts.setdefault(path, f"which one; also {path.removesuffix('.name')}=")
        texts.setdefault(path.removesuffix(".name"), "which one, by name")
    matching = [offer for offer in texts.items() if offer[0].startswith(word)]
    paths = {path.removesuffix(".name") for path, _ in matching}
    if len(paths) == 1:  # one key alone: go on with its values, so that no blank is put behind it
        only = matching[0][0] if len(matching) == 1 else paths.pop()
        return _values(only, before)
    offers = _next_parts(list(texts.items()), word)
    return [(path if path.endswith(".") else f"{path}=", text) for path, text in offers]


def run_folders(incomplete: str) -> list[Offer]:
    """Return the folders of runs whose path begins so, and the folders on the way to some."""
    parent, _, start = incomplete.rpartition("/")
    folder = Path(parent or ("/" if incomplete.startswith("/") else ".")).expanduser()
    prefix = f"{parent}/" if "/" in incomplete else ""
    offers: list[Offer] = []
    for name in sorted(_folders(folder)):
        if not name.startswith(start) or (name.startswith(".") and not start):
            continue
        inner = folder / name
        if is_run(inner):
            offers.append((f"{prefix}{name}", "a run"))
        else:
            held = [n for n in sorted(_folders(inner)) if is_run(inner / n)]
            offers += [(f"{prefix}{name}/{n}", "a run") for n in held]
            if not held and any(_folders(inner)):
                offers.append((f"{prefix}{name}/", "a folder"))
    return offers[:MOST_FOLDERS]


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run."""
    return any((folder / name).is_file() for name in RUN_FILES)


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in found if entry.is_dir()]
    except OSError:
        return []


def _files(word: str, suffix: str) -> list[Offer]:
    """Return files with a suffix whose path begins so, one folder deep."""
    parent, _, start = word.rpartition("/")
    folder = Path(parent or ("/" if word.startswith("/") else "."))
    prefix = f"{parent}/" if "/" in word else ""
    try:
        here = sorted(folder.glob(f"*{suffix}"))
        below = sorted(folder.glob(f"[!.]*/*{suffix}")) if start else []
    except (OSError, ValueError):
        return []
    paths = [*here, *(path for path in below if path.parent.name.startswith(start))]
    names = [prefix + str(path.relative_to(folder)) for path in paths if path.is_file()]
    return [(name, "a configuration") for name in names if name.startswith(word)]


def _values(key: str, before: Sequence[str]) -> list[Offer]:
    """Return `key=value` for the values that a key allows, or for its default and an example."""
    from fedopt.config import CHOICES
    from fedopt.examples import example_of
    from fedopt.keys import chosen_names, keys, values_of, words_of
    from fedopt.schema_text import default_value, toml_text

    full = f"{key}.name" if key in CHOICES else key
    found = [k for k in keys(chosen_names(before)) if k.path == full]
    values = values_of(found) if found else words_of(full)
    if not values and found:
        default = default_value(found[0].field)
        if default not in (None, "", ()):
            values = [(toml_text(default).replace(" ", ""), "the default")]
        example = next(
            (w.partition("=")[2] for w in example_of(found[0]) if w.startswith(f"{full}=")), ""
        )
        if example and example not in dict(values):
            values.append((example, "an example"))
    return [(f"{key}={value}", text) for value, text in values]


def _next_parts(offers: Sequence[Offer], word: str) -> list[Offer]:
    """Cut dotted words behind the next dot, so that a table is offered before its keys."""
    cut: dict[str, str] = {}
    inside: dict[str, list[str]] = {}
    for path, text in offers:
        if not path.startswith(word):
            continue
        rest = path[len(word) :]
        head, dot, _ = rest.partition(".")
        part = word + head + dot
        cut.setdefault(part, "a table" if dot else text)
        inside.setdefault(part, []).append(path)
    if len(cut) == 1:
        (only,) = cut
        if only.endswith(".") and only != word:
            return _next_parts(offers, only)
    return list(cut.items())


def _given(context: click.Context) -> list[str]:
    """Return the positional words that stand before the one that is typed."""
    given: list[str] = []
    for parameter in context.command.params:
        if isinstance(parameter, click.Argument):
            value = context.params.get(parameter.name or "")
            given += [value] if isinstance(value, str) else [str(v) for v in value or ()]
    return given


def _joined(before: Sequence[str], incomplete: str) -> tuple[list[str], str, int]:
    """Put words together that bash has cut.

    Returns:
        The words before, the whole word that is typed, and how many of its characters bash keeps.
    """
    if os.environ.get("_FEDOPT_COMPLETE") != "complete_bash":
        return list(before), incomplete, 0
    pieces = [*before, _typed(incomplete)]
    words: list[str] = []
    is_open = False  # whether the next piece belongs to the last word
    for index, piece in enumerate(pieces):
        is_break = bool(piece) and all(char in BREAKS for char in piece)
        if words and (is_break or is_open) and index:
            words[-1] += piece
        else:
            words.append(piece)
        is_open = is_break
    word = words.pop()
    kept = max((word.rfind(char) + 1 for char in BREAKS), default=0)
    return words, word, kept


def _typed(incomplete: str) -> str:
    """Return the piece that bash says is typed: click takes a lone `=` for nothing."""
    words = split_arg_string(os.environ.get("COMP_WORDS", ""))
    place = os.environ.get("COMP_CWORD", "")
    if incomplete == "" and place.isdigit() and int(place) < len(words):
        return words[int(place)]
    return incomplete


def _items(offers: Iterable[Offer], word: str, kept: int) -> list[Offer]:
    """Return what matches, without what the shell keeps."""
    return [
        (value[kept:], " ".join(text.split())) for value, text in offers if value.startswith(word)
    ]
