"""The documentation says what the code does."""

import re
from pathlib import Path

from asya_injector.annotations.table import TABLE
from asya_injector.cli.main import program
from asya_injector.errors import Reason
from asya_injector.manifests import chart_values

DOCS = Path(__file__).parent.parent.parent / "docs"


def annotation_table() -> str:
    """The table of docs/annotations.md, made from the table of the code."""
    rows = ["| annotation | default | runtime setting | meaning |", "| --- | --- | --- | --- |"]
    for entry in TABLE:
        default = f"`{entry.default}`" if entry.default else "-"
        env = f"`{entry.env}`" if entry.env else "-"
        rows.append(f"| `{entry.key}` | {default} | {env} | {entry.description} |")
    return "\n".join(rows)


def test_the_table_of_annotations_is_the_codes() -> None:
    assert annotation_table() in (DOCS / "annotations.md").read_text()


def test_each_reason_code_has_a_section_and_each_section_a_code() -> None:
    text = (DOCS / "troubleshooting.md").read_text()
    sections = re.findall(r"^## ([A-Z][A-Za-z]+)$", text, re.MULTILINE)
    assert sections == sorted(Reason)


def test_the_options_of_the_command_line_are_the_codes() -> None:
    rows = ["| option | default | meaning |", "| --- | --- | --- |"]
    rows += [
        f"| `--{entry.name}` | `{entry.default}` | {entry.description} |"
        for entry in chart_values.DEFAULTS
    ]
    assert "\n".join(rows) + "\n\n" in (DOCS / "command-line.md").read_text()


def test_each_command_has_a_section() -> None:
    text = (DOCS / "command-line.md").read_text()
    sections = re.findall(r"^## ([a-z]+)$", text, re.MULTILINE)
    assert sorted(sections) == sorted(set(program.commands) - {"run"})
