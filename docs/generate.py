"""Write docs/config.md and the table in docs/strategies.md, so that they are what the code is.

`python docs/generate.py` writes them; with `--check` it writes nothing, and ends with exit code 1
where one is out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from strategy_table import with_table

from fedopt.analysis.columns import (
    CLIENT_COLUMNS,
    EVALUATION_COLUMNS,
    ROUND_COLUMNS,
    markdown_table,
)
from fedopt.config import CHOICES, DEFAULT_NAMES, Config, RunTable
from fedopt.registry import KINDS, Entry, entries
from fedopt.schema_text import bounds, default_text, literals, sentence, toml_text, type_text

HERE = Path(__file__).parent

HEAD = """# Configuration reference

<!-- made by docs/generate.py; do not edit -->

A run is described by a TOML file, by `key=value` words on the command line, by keywords of
`fedopt.simulate`, or by a mixture: later ones win. Keys are the same everywhere: `lr` in the table
`[local.optimizer]` is `local.optimizer.lr=0.05` on the command line and
`local={"optimizer": {"lr": 0.05}}` in Python. A table that has a `name` takes the options of what
it names; a bare word for such a table is its name (`strategy=scaffold`), and a new name drops the
options of the old one. An unknown key, a value out of range or options that do not go together
end the command with exit code 2 before anything is trained or written.

`fedopt run ... --dry-run` prints the whole configuration with every default filled in.
"""


def main(arguments: list[str]) -> int:
    """Write reference and table, or check them; return the exit code."""
    strategies = (HERE / "strategies.md").read_text(encoding="utf-8")
    pages = {"config.md": reference(), "strategies.md": with_table(strategies)}
    for name, text in pages.items():
        page = HERE / name
        if "--check" not in arguments:
            page.write_text(text, encoding="utf-8")
            print(page)
        elif not page.exists() or page.read_text(encoding="utf-8") != text:
            print(f"{name} is out of date: run python docs/generate.py", file=sys.stderr)
            return 1
    return 0


def reference() -> str:
    """Return the text of docs/config.md."""
    parts = [HEAD, "## Tables\n", "### Top of the file\n", fields_table(RunTable)]
    inside = [c for c in CHOICES if c.rpartition(".")[0] in Config.TABLES]
    for key in (c for c in CHOICES if c not in inside):
        parts += [f"### `[{key}]`\n", choice_text(key)]
    for key, table in Config.TABLES.items():
        parts += [f"### `[{key}]`\n", f"{table.__doc__}\n", fields_table(table)]
        for choice in (c for c in inside if c.startswith(f"{key}.")):
            parts += [f"### `[{choice}]`\n", choice_text(choice)]
    parts.append("## What can be named\n")
    parts.append(
        "`fedopt list` prints the same. Where a strategy, an optimizer, a model, a loss, an\n"
        'attack, a drift or a codec is named, `"package.module:name"` names your own '
        "([extending](extending.md)).\n"
    )
    for kind, key in KINDS.items():
        parts.append(f"### {kind.capitalize()}: `{key}`\n")
        parts += [entry_text(entry) for entry in entries(kind)]
    parts += ["## Columns of `rounds.csv`\n", "One row a round. An empty cell: not measured.\n"]
    parts.append(markdown_table(ROUND_COLUMNS))
    parts += ["## Columns of `clients.csv`\n", "One row per sampled client and round.\n"]
    parts.append(markdown_table(CLIENT_COLUMNS))
    says = "One row per evaluated client and round; no file where no client is evaluated.\n"
    parts += ["## Columns of `evaluations.csv`\n", says]
    parts.append(markdown_table(EVALUATION_COLUMNS))
    return "\n".join(parts)


def choice_text(key: str) -> str:
    """Return what a table with a `name` takes."""
    kind, default = CHOICES[key], DEFAULT_NAMES[key]
    names = ", ".join(f"`{entry.name}`" for entry in entries(kind))
    text = f"`name`: one of {names}; default `{default}`"
    link = f"#{kind}-{KINDS[kind].replace('.', '')}"
    return f"{text}. The other keys are the options of [what is named]({link}).\n"


def entry_text(entry: Entry) -> str:
    """Return the section of one entry of the registry."""
    source = entry.source.rstrip(".")
    lines = [f"**`{entry.name}`**: {sentence(entry.description)} Source: {source}.\n"]
    if entry.options.model_fields:
        lines.append(fields_table(entry.options))
    return "\n".join(lines)


def fields_table(model: type[BaseModel]) -> str:
    """Return a Markdown table of a schema's fields, ending in a newline."""
    lines = ["| key | type | default | allowed | description |", "| --- | --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        described = sentence(field.description or "").replace("|", "\\|")
        cells = (f"`{name}`", type_text(field.annotation), default_cell(field), allowed(field))
        lines.append(f"| {' | '.join(cells)} | {described} |")
    return "\n".join(lines) + "\n"


def default_cell(field: FieldInfo) -> str:
    """Return a default for a cell of a table."""
    text = default_text(field)
    return text if text in ("required", "unset") else f"`{text}`"


def allowed(field: FieldInfo) -> str:
    """Return the range or the words that a field allows, where the schema says so."""
    words = [
        f"`{toml_text(word) if isinstance(word, str) else word}`"
        for word in literals(field.annotation)
    ]
    return ", ".join([*words, *bounds(field)]) or "-"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
