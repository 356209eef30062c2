"""What the site needs besides the pages in docs/: pages and files from elsewhere, the notebook.

Pages link to files of the repository as a reader of the repository follows them. On the site such a
link leads to a page made of the file where it is Markdown, and to a copy of it where it is not.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

OUTER = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "server/README.md": "server.md",
    "clients/README.md": "clients.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Pages from elsewhere in the repository -> where they lie on the site."""

HOMES = {page: posixpath.dirname(source) for source, page in OUTER.items()}
"""Page of the site -> folder in the repository whence its links go."""

NOTEBOOK = "tutorial.ipynb"

_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)

_OUTPUTS = ("text/html", "image/png", "text/plain")
"""Forms of an output, the best first."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the outer pages, the files that pages link to, and the notebook as a page."""
    for source, name in OUTER.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "tutorial.md", content=notebook_page()))
    known = {file.src_uri for file in files}
    pages = [file for file in files if file.src_uri.endswith(".md")]
    for page in pages:
        folder = _home(page.src_uri)
        for match in _LINK.finditer(_FENCE.sub("", page.content_string)):
            target = _target(match[2], folder)
            copy = f"source/{target}"
            if target is None or copy in known or _page_of(target) is not None:
                continue
            if (ROOT / target).is_file():
                content = (ROOT / target).read_bytes()
                files.append(File.generated(config, copy, content=content))
                known.add(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to files of the repository to where those are on the site."""
    folder = _home(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def lead(match: re.Match[str]) -> str:
        target = _target(match[2], folder)
        if target is None:
            return match[0]
        to = _page_of(target)
        if to is None:
            to = f"source/{target}"
            if files.get_file_from_path(to) is None:
                return match[0]  # for MkDocs to complain of
        anchor = match[2].partition("#")[2]
        link = posixpath.relpath(to, here or ".") + (f"#{anchor}" if anchor else "")
        return f"{match[1]}{link}{match[3]}"

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(lead, part) for part in parts)


def _home(page: str) -> str:
    """Return the folder in the repository whence a page's links go."""
    return HOMES.get(page, posixpath.dirname(f"docs/{page}"))


def _target(link: str, folder: str) -> str | None:
    """Return a link's file, from the root of the repository; None where it leads elsewhere."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z]+:", link) or path.startswith("/"):
        return None
    return posixpath.normpath(posixpath.join(folder, path))


def _page_of(target: str) -> str | None:
    """Return the page of the site that a file of the repository is, or None."""
    if target == "README.md":
        return "index.md"
    if target == f"docs/{NOTEBOOK}":
        return "tutorial.md"
    if target in OUTER:
        return OUTER[target]
    return target.removeprefix("docs/") if target.startswith("docs/") else None


def notebook_page() -> str:
    """Return the notebook as Markdown, with its outputs."""
    notebook = json.loads((ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif text:
            parts.append(f"```python\n{text}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _shown(output))]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    """Return an output of a cell as Markdown or HTML."""
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output.get("data", {})
    form = next((form for form in _OUTPUTS if form in data), None)
    if form is None:
        return ""
    text = "".join(data[form])
    if form == "image/png":
        title = html.escape("".join(data.get("text/plain", "a figure")))
        return f'<img alt="{title}" src="data:image/png;base64,{text.strip()}">'
    if form == "text/html":
        plain = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        plain = plain.replace('border="1" class="dataframe"', 'class="dataframe"')
        lines = (line.strip() for line in plain.splitlines())
        return f'<div class="output">{"".join(lines)}</div>'
    return f"```text\n{text}\n```"
