"""The pages that need a cluster say what is typed, and what comes of it."""

import os
from collections.abc import Iterator

import pytest
from harness import REPOSITORY, Cluster
from pages import DOCS
from session import run_page

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[None]:
    """The cluster without a release; it is installed again after the test."""
    gone = ("delete", "namespace", "quickstart", "--ignore-not-found")
    cluster.kubectl(*gone)
    cluster.uninstall()
    yield
    cluster.kubectl(*gone, "--wait=false")
    cluster.uninstall()
    cluster.install()


@pytest.mark.usefixtures("bare")
def test_the_quick_start_does_what_it_says() -> None:
    mine = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    assert run_page(DOCS / "quickstart.md", REPOSITORY, mine, seconds=240) > 10
