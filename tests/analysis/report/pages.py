"""Reading a page as a browser does: its elements, its texts, its tables."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "img", "br"}


@dataclass
class Element:
    """An element: name, attributes, children (elements and texts)."""

    name: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)

    def all(self, *names: str) -> Iterator[Element]:
        """Yield the elements inside that have one of the names, in order; all without names."""
        for child in self.children:
            if isinstance(child, Element):
                if not names or child.name in names:
                    yield child
                yield from child.all(*names)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def has(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {k: v or "" for k, v in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Element(tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse(text: str) -> Element:
    """Return the tree of a page; every element must be closed, in order."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


def by_id(page: Element, name: str) -> Element:
    return next(e for e in page.all() if e.attributes.get("id") == name)


def rows(table: Element) -> list[list[str]]:
    """Return the texts of a table, its headings first."""
    return [[cell.text.strip() for cell in row.all("th", "td")] for row in table.all("tr")]


def tables(section: Element) -> dict[str, list[list[str]]]:
    """Return the tables of a part of a page by their captions."""
    found = {}
    for table in section.all("table"):
        caption = next(table.all("caption"), None)
        found["" if caption is None else html.unescape(caption.text)] = rows(table)
    return found
