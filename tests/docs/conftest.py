"""The checkout as a page's reader sees it, in a folder where the page may write."""

import os
from pathlib import Path

import pytest
from pages import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("runtime", "chart", "examples", "e2e"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.fixture
def environ() -> dict[str, str]:
    """The environment without what other tests or CI settings could say to the runtime."""
    return {name: text for name, text in os.environ.items() if not name.startswith("ASYA_")}
