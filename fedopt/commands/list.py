"""`fedopt list`: everything that a configuration can name, with descriptions and sources."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fedopt.commands.common import AsJson, Debug, guarded
from fedopt.completion import complete_kinds
from fedopt.errors import unknown_name

ALIASES = {"profiles": "devices", "compressions": "codecs", "grids": "engines"}
"""Other words for kinds."""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command("list")
    def list_(
        kind: Annotated[
            str | None,
            typer.Argument(
                help="strategies, optimizers, datasets, partitions, models, losses, ...",
                autocompletion=complete_kinds,
            ),
        ] = None,
        as_json: AsJson = False,
        debug: Debug = False,
    ) -> None:
        """List what a configuration can name, with descriptions and sources.

        With a kind the options of each are listed too; `fedopt explain` says more of one.

        Example: fedopt list strategies
        """
        guarded(lambda: _list(kind, as_json), debug)


def _list(kind: str | None, as_json: bool) -> None:
    from fedopt.registry import KINDS

    kind = ALIASES.get(kind or "", kind)
    if kind is not None and kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    found = {name: _entries(name) for name in ([kind] if kind else KINDS)}
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo("\n".join(line for name in found for line in _lines(name, found[name], bool(kind))))


def _entries(kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind as plain values."""
    from fedopt.registry import entries

    return [
        {
            "name": entry.name,
            "description": entry.description,
            "source": entry.source,
            "options": {
                name: {
                    "default": _plain_default(field),
                    "required": field.is_required(),
                    "description": field.description,
                }
                for name, field in entry.options.model_fields.items()
            },
        }
        for entry in entries(kind)
    ]


def _lines(kind: str, found: list[dict[str, Any]], with_options: bool) -> list[str]:
    """Return the lines about a kind."""
    from fedopt.registry import KINDS

    lines = [f"{kind} ({KINDS[kind]})"]
    width = max(len(item["name"]) for item in found)
    for item in found:
        source = "" if item["source"] == "-" else f" [{item['source']}]"
        lines.append(f"  {item['name']:<{width}}  {item['description']}{source}")
        for name, option in item["options"].items() if with_options else ():
            default, text = option["default"], option["description"]
            if option["required"]:
                text += " (required)"
            elif default not in (None, []) and "(default" not in text:
                text += f" (default {default})"
            lines.append(f"  {'':<{width}}    {name}: {text}")
    return lines


def _plain_default(field: Any) -> Any:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, tuple):
        return list(default)
    return default if isinstance(default, str | int | float | bool) else None
