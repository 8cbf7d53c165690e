"""The commands and outputs of the pages that need a cluster."""

import os

import pytest

from e2e.harness import REPOSITORY, Cluster
from tests.docs.pages import DOCS
from tests.docs.session import run_page


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_the_quickstart_works_as_written(free: Cluster) -> None:
    gone = ("delete", "namespace", "quickstart", "--ignore-not-found")
    free.kubectl(*gone)
    mine = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    assert run_page(DOCS / "quickstart.md", REPOSITORY, mine, seconds=600) > 10
    free.kubectl(*gone, "--wait=false")
