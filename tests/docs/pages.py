"""The documentation as a program: its files, its commands, and what they print.

In a page, a fenced block whose info string has a second word is a file of that name; a block in the
language `console` is a session: lines after `$ ` are commands, with `\\` going on in the next line,
and the lines below one are what it prints, where `...` stands for anything. A command that is meant
to fail ends in `# fails`. A command without such lines may print what it likes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
FAILS = "# fails"


@dataclass(frozen=True)
class Block:
    """A fenced block; `name` is the second word of its info string."""

    language: str
    name: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a page and the text below it."""

    text: str
    prints: str

    @property
    def fails(self) -> bool:
        """Whether the page says that it fails."""
        return self.text.endswith(FAILS)


def pages() -> list[Path]:
    """All pages of the project."""
    found = [*REPOSITORY.glob("*.md"), *DOCS.glob("*.md")]
    for folder in ("chart", "e2e", "examples", "runtime"):
        found += (REPOSITORY / folder).rglob("README.md")
    return sorted(path for path in found if not path.name.startswith("."))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = re.finditer(r"^```(\w*) ?(\S*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(*match.groups()) for match in found]


def commands(session: str) -> list[Command]:
    """The commands of a console block."""
    found = re.finditer(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE)
    return [Command(*match.groups()) for match in found]


def agrees(printed: str, expected: str) -> bool:
    """Whether a command printed what the page says, trailing blanks aside.

    `...` in a line is any text; on a line of its own, any number of lines.
    """
    if not expected:
        return True
    parts = re.split(r"(^\.\.\.\n|\.\.\.)", expected.rstrip(), flags=re.MULTILINE)
    wild = {"...\n": r"(.*\n)?", "...": ".*"}
    pattern = "".join(wild.get(part) or re.escape(part) for part in parts)
    lines = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
    return re.fullmatch(pattern, lines, re.DOTALL) is not None
