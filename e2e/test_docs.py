"""The pages that need a cluster say what is typed, and what comes of it."""

import os

import pytest

from e2e.harness import REPOSITORY, Cluster
from tests.docs.pages import DOCS
from tests.docs.session import run_page


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_quick_start_does_what_it_says(free: Cluster) -> None:
    gone = ("delete", "namespace", "quickstart", "--ignore-not-found")
    free.kubectl(*gone)
    mine = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    assert run_page(DOCS / "quickstart.md", REPOSITORY, mine, seconds=240) > 10
    free.kubectl(*gone, "--wait=false")
