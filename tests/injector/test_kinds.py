"""The files that list the supported kinds agree with the table in `kube_objects`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector.kube_objects import WORKLOAD_KINDS, Kind
from asya_injector.webhook.admission import HANDLED

REPOSITORY = Path(__file__).parents[2]
# What each file must contain for a kind.
TEXTS: dict[str, Callable[[Kind], str]] = {
    "chart/templates/_conditions.tpl": lambda kind: "[{{ . }}." + ".".join(kind.template) + "]",
    "chart/templates/mutatingwebhookconfiguration.yaml": lambda kind: kind.plural,
    "docs/annotations.md": lambda kind: kind.name,
    "e2e/test_workloads.py": lambda kind: f'"{kind.name}"',
    "tests/chart/cel_cases.py": lambda kind: f'"{kind.name}"',
}


@pytest.mark.parametrize("file", TEXTS)
@pytest.mark.parametrize("kind", WORKLOAD_KINDS, ids=lambda kind: kind.name)
def test_each_file_has_each_kind(kind: Kind, file: str) -> None:
    assert TEXTS[file](kind) in (REPOSITORY / file).read_text()


def rules(path: str) -> list[Any]:
    """The rules of one webhook in the chart's default rendering."""
    text = (REPOSITORY / "tests/chart/golden/defaults.yaml").read_text()
    (configuration,) = [
        item
        for item in yaml.safe_load_all(text)
        if item and item["kind"] == "MutatingWebhookConfiguration"
    ]
    (webhook,) = [
        item
        for item in configuration["webhooks"]
        if item["clientConfig"]["service"]["path"] == f"/{path}"
    ]
    found: list[Any] = webhook["rules"]
    return found


@pytest.mark.parametrize("path", HANDLED)
def test_the_chart_sends_the_resources_that_the_injector_handles(path: str) -> None:
    sent = {
        (group, version, resource)
        for rule in rules(path)
        for group in rule["apiGroups"]
        for version in rule["apiVersions"]
        for resource in rule["resources"]
    }
    assert sent == set(HANDLED[path])


def test_updates_of_immutable_templates_are_not_sent() -> None:
    updated = {
        resource
        for rule in rules("workloads")
        if "UPDATE" in rule["operations"]
        for resource in rule["resources"]
    }
    assert updated == {kind.plural for kind in WORKLOAD_KINDS if not kind.is_immutable}
