"""Tables of figures, for the terminal and for the pages of the documentation that show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first a header; after `texts` columns of text, all are numbers."""

    rows: list[list[str]]
    title: str = ""
    texts: int = 1

    def as_text(self) -> list[str]:
        """Its lines for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = []
        for row in self.rows:
            cells = zip(row, widths, strict=True)
            texts = [cell.ljust(width) for cell, width in list(cells)[: self.texts]]
            numbers = list(map(str.rjust, row, widths))[self.texts :]
            lines.append(" | ".join([*texts, *numbers]).rstrip())
        return ["", self.title, *lines] if self.title else lines

    def as_markdown(self) -> list[str]:
        """Its lines for a page."""
        header, *rows = self.rows
        ruler = ["---"] * self.texts + ["---:"] * (len(header) - self.texts)
        lines = [f"| {' | '.join(row)} |" for row in (header, ruler, *rows)]
        return ["", f"**{self.title}**", "", *lines] if self.title else lines


def find_page(section: str, docs: Path = DOCS) -> Path:
    """The page with the markers of a section; raises LookupError without one."""
    for page in sorted(docs.glob("*.md")):
        if f"<!-- {section}: begin -->" in page.read_text():
            return page
    raise LookupError(f"no page in {docs} has the markers of {section}")


def write_section(section: str, lines: Iterable[str], docs: Path = DOCS) -> None:
    """Replace what is between the two markers of a section, in the page that has them."""
    page = find_page(section, docs)
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + "\n".join([begin, *lines, end]) + rest.partition(end)[2])
