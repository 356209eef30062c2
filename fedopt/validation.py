"""What users write, checked: tables by their schema, spans of rounds; refused in words of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from fedopt.errors import ConfigError, did_you_mean


def validate(model: type[Any], value: Any, prefix: str, tables: Sequence[str] = ()) -> Any:
    """Return a table checked against its schema.

    Args:
        model: the schema, a pydantic model.
        value: the table; a bare word is its name, where it has one.
        prefix: dotted key of the table, "" at the top.
        tables: names of the tables inside it, which are checked elsewhere.

    Raises:
        ConfigError: naming every bad key, its value, what is allowed, and the nearest match.
    """
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
        lines = [explain(model, problems, prefix, value, tables) for problems in by_key.values()]
        raise ConfigError("\n".join(lines)) from None


def _number(value: Any) -> Any:
    """Return a number of numpy as Python's; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def explain(
    model: type[BaseModel],
    problems: Sequence[Any],
    prefix: str,
    values: Mapping[str, Any],
    tables: Sequence[str] = (),
) -> str:
    """Say pydantic's problems with one key as `key: what is wrong, what is allowed`."""
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])  # begins with the name of the key to blame
        return f"{prefix}.{text}" if prefix else text
    name = location[0] if location else ""
    key = ".".join(part for part in (prefix, name) if part)
    allowed = [*model.model_fields, *tables]
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


def round_span(text: str, key: str) -> tuple[int, int]:
    """Return the first and the last round of `A-B`, or of `A` alone.

    Raises:
        ConfigError: the text is neither.
    """
    match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text.strip())
    if not match:
        raise ConfigError(f'expected A-B or A, such as "3-7", got "{text}"', key=key)
    return int(match[1]), int(match[2] or match[1])
