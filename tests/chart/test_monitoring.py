"""Alerts, dashboard and PodMonitor: they refer to what the runtime and the injector serve."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.inject import inject
from asya_injector.webhook.telemetry import Metrics

from tests.chart.charts import CHART, REPOSITORY, Object, find_object, render

ENDS: dict[str, tuple[str, ...]] = {
    "histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "info": ("_info",),
}  # fmt: skip
ENABLED = {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboard")}
RULES: list[Object] = [
    rule
    for group in yaml.safe_load((CHART / "monitoring/rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD: Object = json.loads((CHART / "monitoring/dashboard.json").read_text())
EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    },
    "namespace": DASHBOARD["templating"]["list"][1]["query"]["query"],
}
DOCUMENTED = Path(REPOSITORY, "docs/operations.md").read_text()


def runtime_metrics() -> dict[str, tuple[str, str]]:
    """The runtime's own table: name to type and help."""
    file = REPOSITORY / "runtime/asya_runtime.py"
    spec = importlib.util.spec_from_file_location("asya_runtime_with_metrics", file)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    table: dict[str, tuple[str, str]] = module.METRICS
    return table


def sample_names() -> set[str]:
    """The names of all samples that runtime and injector serve."""
    names = set()
    for name, (kind, _) in runtime_metrics().items():
        names |= {name + end for end in ENDS[kind]} if kind == "histogram" else {name}
    for family in Metrics().registry.collect():
        ends = ENDS.get(family.type, ("",))
        names |= {family.name + end for end in ends}
    return names


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_use_metrics_that_exist(name: str) -> None:
    used = set(re.findall(r"\b(?:asya|process)_\w+", EXPRESSIONS[name]))
    assert used
    assert used <= sample_names()


def test_each_metric_of_actors_is_documented_and_on_the_dashboard_or_in_an_alert() -> None:
    section = DOCUMENTED.split("## Metrics of actors\n")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)
    assert documented == list(runtime_metrics())
    unused = [name for name in documented if name not in " ".join(EXPRESSIONS.values())]
    assert unused == ["process_start_time_seconds"]


def test_each_alert_is_documented_and_says_what_to_do() -> None:
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert f"`{rule['alert']}`" in DOCUMENTED
        for text in (rule["expr"], *rule["annotations"].values()):
            for opened, closed in ("()", "{}", "[]"):
                assert text.count(opened) == text.count(closed)


def test_the_objects_hold_the_files_unchanged() -> None:
    text = render({"metrics": ENABLED})
    rules = find_object(text, "PrometheusRule")["spec"]["groups"]
    assert [rule for group in rules for rule in group["rules"]] == RULES
    maps = [item for item in yaml.safe_load_all(text) if item and item["kind"] == "ConfigMap"]
    (data,) = [each["data"] for each in maps if each["metadata"]["name"].endswith("dashboard")]
    assert json.loads(data["asya-runtime.json"]) == DASHBOARD


def test_the_pod_monitor_finds_injected_pods() -> None:
    spec = find_object(render({"metrics": ENABLED}), "PodMonitor")["spec"]
    annotations = {"asya.sh/handler": "a.b", "asya.sh/metrics-port": "9464"}
    containers = [{"name": "model", "command": ["serve"]}]
    pod = {"metadata": {"annotations": annotations}, "spec": {"containers": containers}}
    injection = inject(pod, ClusterDefaults("0" * 10, {}))
    assert injection is not None
    (expression,) = spec["selector"]["matchExpressions"]
    assert expression["operator"] == "Exists"
    assert expression["key"] in injection.pod["metadata"]["labels"]
    ports = {port["name"] for port in injection.pod["spec"]["containers"][0]["ports"]}
    assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
