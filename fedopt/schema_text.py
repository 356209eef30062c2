"""A schema in words: types, defaults and allowed values, as the reference and `explain` say them.

Nothing here knows a table by name; Markdown and the terminal use the same words.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}

WORDS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def type_text(annotation: Any) -> str:
    """Return a type in the words of TOML; None, which TOML lacks, is left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return type_text(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        members = [a for a in get_args(annotation) if a is not type(None)]
        return " or ".join(unique(type_text(a) for a in members))
    if origin is Literal:
        return " or ".join(unique(type_text(type(word)) for word in get_args(annotation)))
    if origin is tuple:
        parts = get_args(annotation)
        what = f"{type_text(parts[0])}s"
        return f"list of {what}" if Ellipsis in parts else f"list of {len(parts)} {what}"
    return WORDS[annotation]


def default_value(field: FieldInfo) -> Any:
    """Return a default; None where there is none, or where it is unset."""
    value = field.get_default(call_default_factory=True)
    return None if value is PydanticUndefined else value


def toml_text(value: Any) -> str:
    """Return a plain value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_text(item) for item in value)}]"
    return str(value)


def default_text(field: FieldInfo) -> str:
    """Return a default as TOML writes it, or `required`, or `unset`."""
    if field.is_required():
        return "required"
    value = default_value(field)
    return "unset" if value is None else toml_text(value)


def bounds(field: FieldInfo) -> list[str]:
    """Return the limits of a number, such as `>= 1`."""
    limits = (
        (sign, _bound(metadata, name))
        for metadata in field.metadata
        for name, sign in SIGNS.items()
    )
    return [
        f"{sign} {limit:,}"
        for sign, limit in limits
        if limit is not None and not (isinstance(limit, int) and limit.bit_length() >= 62)
    ]


def literals(annotation: Any) -> list[Any]:
    """Return the literal words in an annotation."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for inner in get_args(annotation) for word in literals(inner)]


def sentence(text: str) -> str:
    """Return a description as a sentence; a first word that a colon explains stays as it is."""
    first = text.split(maxsplit=1)[0]
    start = text[0] if first.endswith(":") else text[0].upper()
    return start + text[1:].rstrip(".") + "."


def unique(words: Iterable[str]) -> list[str]:
    """Return the words without repeats, in order."""
    return list(dict.fromkeys(words))


def _bound(metadata: object, name: str) -> int | float | None:
    """Return one bound, whole numbers as integers."""
    limit = getattr(metadata, name, None)
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
