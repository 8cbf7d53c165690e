"""Public CI runs what everybody runs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from tests.docs.pages import REPOSITORY


def workflow() -> dict[Any, Any]:
    text = (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
    loaded: dict[Any, Any] = yaml.safe_load(text)
    return loaded


def test_it_runs_make_check_on_each_kubernetes_release_that_is_known() -> None:
    job = workflow()["jobs"]["check"]
    versions = (REPOSITORY / "e2e" / "cluster" / "versions.env").read_text()
    known = re.findall(r"^(\d\.\d+) kindest/node:", versions, re.MULTILINE)
    assert known == job["strategy"]["matrix"]["kubernetes"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[0] == ".ci/run"
    assert (REPOSITORY / ".ci" / "run").read_text().endswith("exec make check\n")


def test_it_may_read_the_repository_and_nothing_else() -> None:
    loaded = workflow()
    assert loaded["permissions"] == {"contents": "read"}
    assert all("permissions" not in job for job in loaded["jobs"].values())
    assert "secrets." not in (REPOSITORY / ".github" / "workflows" / "ci.yml").read_text()
