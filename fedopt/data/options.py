"""From plain keywords to a checked options object of a dataset or partition.

The schemas are in `catalogue`; here is only the translation of pydantic's complaints into one
`ConfigError` that names the key, the value, what is allowed and the nearest match.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from fedopt import registry
from fedopt.errors import ConfigError, did_you_mean
from fedopt.registry import Entry, Options


def read_options(kind: str, name: str, values: Mapping[str, object]) -> tuple[Entry, Options]:
    """Return the registry's entry `name` and its options made from `values`.

    Args:
        kind: `"datasets"` or `"partitions"`.
        name: name of the entry.
        values: option names and values.

    Raises:
        ConfigError: the name or an option is unknown, or a value is outside its range.
    """
    entry = registry.get(kind, name)
    try:
        return entry, entry.options.model_validate(dict(values))
    except ValidationError as error:
        raise _config_error(entry, error) from error


def _config_error(entry: Entry, error: ValidationError) -> ConfigError:
    table = registry.KINDS[entry.kind].rpartition(".")[0]
    allowed = sorted(entry.options.model_fields)
    lines = []
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            takes = ", ".join(allowed) if allowed else "no options"
            lines.append(
                f'{table}.{option}: "{entry.name}" does not take this option.'
                f"{did_you_mean(option, allowed)} It takes: {takes}."
            )
        elif problem["type"] == "missing":
            lines.append(f'{table}.{option}: "{entry.name}" needs this option.')
        else:
            lines.append(f"{table}.{option}: got {problem['input']!r}. {problem['msg']}.")
    return ConfigError("\n".join(lines))
