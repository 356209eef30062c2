"""The pages of the documentation, cut into fenced blocks."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("server/*.md"),
        *ROOT.glob("clients/*.md"),
    ]
)


def from_docs(module: str) -> ModuleType:
    """Import one of the programs in docs/, which import each other by name."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(ROOT / "docs"))


_FENCE = re.compile(
    r"(?P<mark>^<!-- not run: [^\n]+ -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its line, and whether it says that it is not run."""

    language: str
    text: str
    line: int
    is_marked: bool = False


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            match["language"],
            match["text"],
            text.count("\n", 0, match.start()) + 1,
            match["mark"] is not None,
        )
        for match in _FENCE.finditer(text)
    ]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def name(page: Path) -> str:
    """Return a page's path from the root of the repository."""
    return str(page.relative_to(ROOT))
