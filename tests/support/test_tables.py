"""Tables for the terminal, and for the pages of the documentation."""

from pathlib import Path

import pytest

from tests.support.tables import Table, find_page, write_section

ROWS = [["fault", "load", "sent"], ["all gone", "pods", "12"]]


def test_text_is_aligned_to_the_left_and_numbers_to_the_right() -> None:
    assert Table(ROWS, texts=2).as_text() == ["fault    | load | sent", "all gone | pods |   12"]
    assert Table(ROWS, texts=2).as_markdown() == [
        "| fault | load | sent |",
        "| --- | --- | ---: |",
        "| all gone | pods | 12 |",
    ]


def test_a_title_is_above_its_table() -> None:
    assert Table([["", "a"]], "Figures").as_text() == ["", "Figures", " | a"]
    assert Table([["", "a"]], "Figures").as_markdown()[:3] == ["", "**Figures**", ""]


def test_a_section_is_replaced_in_the_page_that_has_its_markers(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n")
    text = (
        "# B\n<!-- x: begin -->\nold\n<!-- x: end -->\nmore\n<!-- y: begin -->\n<!-- y: end -->\n"
    )
    (tmp_path / "b.md").write_text(text)
    write_section("x", ["new", "lines"], tmp_path)
    assert (tmp_path / "b.md").read_text() == text.replace("old", "new\nlines")
    with pytest.raises(LookupError, match="has the markers of z"):
        find_page("z", tmp_path)


@pytest.mark.parametrize(
    "section", ["benchmarks", "benchmarks-cluster", "benchmarks-models", "faults"]
)
def test_every_section_that_is_written_has_a_page(section: str) -> None:
    text = find_page(section).read_text()
    assert text.index(f"<!-- {section}: begin -->") < text.index(f"<!-- {section}: end -->")
