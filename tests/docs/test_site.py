"""The site of the documentation: it builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .pages import ROOT

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocs") is None,
    reason="mkdocs-material is not installed (extra docs)",
)
needs_notebook = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("nbclient", "jupytext", "ipykernel")),
    reason="nbclient, jupytext or ipykernel is not installed (extra notebook)",
)

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Tag -> the attribute whose address a browser loads."""

LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "manifest"}


class Loads(HTMLParser):
    """The addresses that a page loads by itself, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.without_text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "link" and not LOADED_LINKS & set(found.get("rel", "").split()):
            return
        if tag in LOADS and found.get(LOADS[tag]):
            self.addresses.append(found[LOADS[tag]])
        if tag == "img" and not found.get("alt"):
            self.without_text.append(found.get("src", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    assert "excluded" not in done.stderr, done.stderr
    return folder


@needs_mkdocs
def test_every_page_is_on_the_site(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page.stem
    assert (site / "tutorial.html").exists()
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


@needs_mkdocs
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        outside = [a for a in loads.addresses if re.match(r"(https?:)?//", a)]
        assert not outside, (page.name, outside)
        missing = [
            a
            for a in loads.addresses
            if not a.startswith(("data:", "/")) and not (page.parent / a.partition("?")[0]).exists()
        ]
        assert not missing, (page.name, missing)
        assert not loads.without_text, (page.name, loads.without_text)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?https?:", style.read_text(encoding="utf-8"))


@needs_mkdocs
def test_python_page_has_what_it_names(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in re.findall(r"^::: (\S+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        assert f'id="{name}"' in text, name


@needs_notebook
def test_tutorial_runs_and_is_that_of_its_script() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "make_tutorial.py"), "--check"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
