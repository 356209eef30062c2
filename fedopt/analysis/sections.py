"""Tables with a title and notes, as text for a terminal, Markdown or LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 160  # characters of a line that goes to a file or a pipe
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "\u2212": "$-$",
    "<": r"$<$",
    ">": r"$>$",
}


@dataclass(frozen=True)
class Section:
    """A table, as text and as plain values.

    Args:
        name: of the values in JSON.
        title: a line above the table.
        headings: of the columns.
        cells: text, a list a row.
        data: plain values, a dictionary a row.
        notes: lines below the table.
        left: headings of columns that are set flush left; the others hold numbers.
    """

    name: str
    title: str
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    data: Sequence[dict[str, Any]]
    notes: Sequence[str] = field(default_factory=tuple)
    left: Sequence[str] = field(default_factory=tuple)

    def table(self) -> Table:
        """Return it for a terminal (rich)."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), title_justify="left")
        for heading in self.headings:
            is_left = heading in self.left
            table.add_column(Text(heading), justify="left" if is_left else "right", overflow="fold")
        for row in self.cells:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        """Return it as Markdown, ending in a newline."""
        rules = [":--" if heading in self.left else "--:" for heading in self.headings]
        rows = [self.headings, rules, *self.cells]
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
        notes = [f"\n{note[:1].upper()}{note[1:]}." for note in self.notes]
        return "\n".join([f"**{self.title[:1].upper()}{self.title[1:]}**\n", *lines, *notes]) + "\n"

    def html(self) -> str:
        """Return it as an HTML table with its title and notes, for a notebook."""
        aligned = ["left" if heading in self.left else "right" for heading in self.headings]

        def row(cells: Sequence[str], kind: str) -> str:
            parts = (
                f'<{kind} style="text-align: {side}">{escape(cell)}</{kind}>'
                for cell, side in zip(cells, aligned, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        rows = "".join(row(cells, "td") for cells in self.cells)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        title = f"<caption>{escape(self.title)}</caption>"
        head = f"<thead>{row(self.headings, 'th')}</thead>"
        return f"<table>{title}{head}<tbody>{rows}</tbody></table>{notes}"

    def latex(self) -> str:
        """Return it as a LaTeX table that needs the package booktabs."""
        columns = "".join("l" if heading in self.left else "r" for heading in self.headings)
        lines = [
            r"\begin{table}",
            r"  \centering",
            f"  \\caption{{{_latex(self.title)}}}",
            f"  \\begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            "    " + " & ".join(map(_latex, self.headings)) + r" \\",
            r"    \midrule",
            *("    " + " & ".join(_latex(_minus(c)) for c in row) + r" \\" for row in self.cells),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(f"  \\par\\footnotesize {_latex(note)}." for note in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"


def print_sections(sections: Sequence[Section], stream: TextIO) -> None:
    """Print sections for people, without control codes where the stream is no terminal."""
    from rich.console import Console

    is_terminal = stream.isatty()
    console = Console(file=stream, width=None if is_terminal else _WIDE, highlight=False)
    for number, section in enumerate(sections):
        if number:
            console.print()
        console.print(section.table())
        for note in section.notes:
            console.print(note, markup=False)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _minus(cell: str) -> str:
    """Return a number's cell with a minus sign in place of a hyphen."""
    return re.sub(r"(?<![\w.])-(?=\d)", "\u2212", cell)
