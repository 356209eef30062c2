"""Laying out a report: sections into one HTML file with its own style, script and security policy.

Everything that comes from a run, a configuration or an error is escaped by the template engine or
by `svg.py`; the policy in the page lets no other script run than the one whose digest it names,
and lets nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from fedopt.analysis.report.figures import Section
from fedopt.analysis.report.svg import swatch
from fedopt.atomic import write_atomically
from fedopt.errors import unwritable

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Page:
    """A report before it is laid out.

    Args:
        title: heading.
        subtitle: a line below it.
        status: of the run, or empty.
        sections: in order; those without anything to show say why, or are left out.
        error: what ended the run early, if anything.
    """

    title: str
    subtitle: str
    status: str
    sections: Sequence[Section]
    error: str = ""


def render(page: Page) -> str:
    """Return a page as the text of an HTML file that needs nothing else."""
    style, script = asset("report.css"), asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = [s for s in page.sections if s.figures or s.tables or s.note or s.cards or s.picture]
    return _template().render(
        page=page,
        sections=shown,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        swatch=swatch,
    )


def write_report(path: Path, text: str) -> Path:
    """Write a report in one step.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise unwritable(path, error) from error
    return path


@cache
def asset(name: str) -> str:
    """Return a file beside the templates."""
    folder = resources.files("fedopt.analysis.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"report.html": asset("report.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")
