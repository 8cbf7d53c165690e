"""What the pages that need no cluster say is typed, and what comes of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import DOCS
from tests.docs.session import PageError, run_page


def has(program: str) -> bool:
    return shutil.which(program) is not None


@pytest.mark.parametrize(
    "name", ["command-line", "gitops", "handlers", "memory-errors", "sidecars"]
)
def test_a_page_does_what_it_says(name: str, checkout: Path, environ: dict[str, str]) -> None:
    page = DOCS / f"{name}.md"
    text = page.read_text()
    # Those who read a page in Python's part alone need no compiler.
    for program in [each for each in ("go", "node") if not has(each)]:
        text = re.sub(rf"^\$ {program} .*\n(?:(?!\$ |```).*\n)*", "", text, flags=re.MULTILINE)
    copy = checkout / page.name
    copy.write_text(text)
    assert run_page(copy, checkout, environ, seconds=250) >= 3


@pytest.mark.parametrize(
    ("session", "complaint"),
    [
        ("$ echo one\ntwo\n", "printed:\none"),
        ("$ false\n", "ended with 1"),
        ("$ true # fails\n", "ended with 0"),
        ("$ exit 3\n", "did not end"),
    ],
)
def test_a_page_that_says_something_else_is_found_out(
    session: str, complaint: str, checkout: Path, environ: dict[str, str]
) -> None:
    page = checkout / "page.md"
    page.write_text(f"```console\n$ echo right\nright\n{session}```\n")
    with pytest.raises(PageError, match=complaint):
        run_page(page, checkout, environ, seconds=100)


def test_what_a_page_leaves_running_is_ended(checkout: Path, environ: dict[str, str]) -> None:
    page = checkout / "page.md"
    page.write_text("```console\n$ sleep 1234 & echo $! >pid\n```\n")
    run_page(page, checkout, environ, seconds=100)
    pid = (checkout / "pid").read_text().strip()
    words = ["timeout", "100", "tail", f"--pid={pid}", "-f", "/dev/null"]  # waits for its end
    assert subprocess.run(words, check=False).returncode == 0


def test_a_page_that_does_not_end_is_given_up(checkout: Path, environ: dict[str, str]) -> None:
    page = checkout / "page.md"
    page.write_text("```console\n$ echo before\n$ sleep 1000\n```\n")
    with pytest.raises(PageError, match=r"not done in 3 s:\nbefore"):
        run_page(page, checkout, environ, seconds=3)
