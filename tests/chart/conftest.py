"""Requires Helm, which `make test` installs."""

from pathlib import Path

import pytest

from tests.chart.charts import copy_chart, helm


@pytest.fixture(scope="session", autouse=True)
def _helm() -> None:
    for name in ("helm", "helm3"):
        if not helm(name):
            pytest.exit(f"{name} is not on PATH: `make test` installs it, then runs these tests", 1)


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the chart with short files in place of the runtime's, and a few defaults."""
    return copy_chart(tmp_path_factory.mktemp("chart"))
