"""The demo's folder, and its application on the import path as in its image."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's folder; the application's package can be imported."""
    monkeypatch.syspath_prepend(EXAMPLES / "app")
    return EXAMPLES
