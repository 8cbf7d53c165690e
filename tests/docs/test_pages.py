"""The pages do not name what is not there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from asya_injector.annotations.table import BY_KEY, INTERNAL

from tests.docs.pages import DOCS, REPOSITORY, agrees, blocks, commands, pages

PAGES = {str(page.relative_to(REPOSITORY)): page for page in pages()}
each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@each_page
def test_each_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_each_page_of_the_docs_is_in_their_index() -> None:
    index = (DOCS / "README.md").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if f"]({page.name})" not in index]
    assert missing == ["README.md"]


@each_page
def test_each_make_target_is_in_the_makefile(page: Path) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:`|\$ |\()make (?:-s )?([a-z][a-z0-9-]*)", page.read_text())
    assert sorted(set(named) - set(targets)) == []


@each_page
def test_each_annotation_is_one_that_exists(page: Path) -> None:
    others = {"asya.sh/runtime-hash", "asya.sh/runtime-sha256", "asya.sh/injection"}
    values = yaml.safe_load((REPOSITORY / "examples/queue/values.yaml").read_text())
    ours = {*BY_KEY, *INTERNAL, *values["sidecar"]["annotations"]} | others
    wrong_on_purpose = {"asya.sh/handlr"}
    named = set(re.findall(r"asya\.sh/[a-z0-9-]+", page.read_text()))
    assert sorted(named - ours - wrong_on_purpose) == []


@each_page
def test_each_runtime_setting_is_one_that_exists(page: Path) -> None:
    source = (REPOSITORY / "runtime" / "asya_runtime.py").read_text()
    known = set(re.findall(r'\("(ASYA_[A-Z_]+)"', source))
    named = set(re.findall(r"\bASYA_[A-Z]+(?:_[A-Z]+)*\b", page.read_text()))
    assert sorted(named - known) == []


@each_page
def test_each_chart_value_that_a_command_sets_exists(page: Path) -> None:
    values = yaml.safe_load((REPOSITORY / "chart" / "values.yaml").read_text())
    for name in re.findall(r"--set(?:-string)? ([a-zA-Z.-]+)=", page.read_text()):
        node = values
        for step in name.split("."):
            assert step in node, f"{name}: no such value"
            node = node[step]


@each_page
def test_each_piece_of_python_and_yaml_can_be_read(page: Path) -> None:
    for block in blocks(page.read_text()):
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "yaml":
            list(yaml.safe_load_all(block.text))


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("anything\n", "", True),
        ("one\ntwo\n", "one\ntwo\n", True),
        ("one\ntwo\n", "one\n", False),
        ("one  \n", "one\n", True),
        ("a 17 b\n", "a ... b\n", True),
        ("a 17 c\n", "a ... b\n", False),
        ("x\ny\nend\n", "...\nend\n", True),
        ("end\n", "...\nend\n", True),
        ("end\nmore\n", "...\nend\n", False),
        ("a.b", "a+b", False),
    ],
)
def test_what_is_printed_is_compared_with_the_page(printed: str, expected: str, same: bool) -> None:
    assert agrees(printed, expected) is same


def test_a_session_is_commands_and_what_they_print() -> None:
    text = "$ one \\\n    two\nout\n\n$ three # fails\n"
    found = commands(text)
    assert [(each.text, each.prints, each.fails) for each in found] == [
        ("one \\\n    two", "out\n\n", False),
        ("three # fails", "", True),
    ]
