"""The documentation says what the code does; its tables are held by tests/generated."""

import re
from pathlib import Path

from asya_injector.cli.main import program
from asya_injector.errors import Reason

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_each_reason_code_has_a_section_and_each_section_a_code() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    sections = re.findall(r"^## ([A-Z][A-Za-z]+)$", text, re.MULTILINE)
    assert sections == sorted(Reason)


def test_each_command_has_a_section() -> None:
    text = (DOCS / "command-line.md").read_text()
    sections = re.findall(r"^## ([a-z]+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(set(program.commands) - {"run"})
