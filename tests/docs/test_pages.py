"""The documentation is up to date, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, from_docs, name, prose

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MOST_BYTES_OF_AN_IMAGE = 200_000


def test_configuration_reference_is_up_to_date() -> None:
    """The table of strategies, which is made beside it, is checked in tests/testing."""
    reference = from_docs("generate").reference()
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == reference


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    broken = [
        link
        for link in _LINK.findall(prose(page))
        if not link.startswith(("http://", "https://")) and not _resolves(page, link)
    ]
    assert not broken


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(readme))}
    assert set(ROOT.glob("docs/*.md")) <= linked


def test_images_are_small() -> None:
    sizes = {name(path): path.stat().st_size for path in ROOT.glob("docs/images/*")}
    assert sizes
    assert max(sizes.values()) < MOST_BYTES_OF_AN_IMAGE, sizes


def _resolves(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or anchor in {_anchor(heading) for heading in _HEADING.findall(prose(target))}


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
