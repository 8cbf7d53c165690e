"""The check of the sidecars of actors."""

import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.diagnostics.sidecar import ChartSidecar
from asya_injector.mutation.inject import inject

Object = dict[str, Any]
VALUE: Object = {
    "container": {"name": "asya-sidecar", "image": "queue:1"},
    "annotations": {"asya.sh/queue": {"env": "QUEUE", "required": True}},
}
NEWER = {**VALUE, "container": {**VALUE["container"], "image": "queue:2"}}


def deployment(text: str | None) -> Object:
    env = [] if text is None else [{"name": "INJECTOR_SIDECAR", "value": text}]
    containers = [{"name": "mesh"}, {"name": "injector", "env": env}]
    return {"spec": {"template": {"spec": {"containers": containers}}}}


def chart(value: Object | None) -> ChartSidecar:
    return ChartSidecar([deployment(None if value is None else json.dumps(value))])


def pod(value: Object | None, *containers: Object, **annotations: str) -> Object:
    """A pod that a chart with this sidecar has injected."""
    keys = {"handler": "a.b", **({"queue": "q"} if value else {}), **annotations}
    given = {
        "metadata": {"annotations": {f"asya.sh/{key}": text for key, text in keys.items()}},
        "spec": {"containers": [{"name": "model"}, *containers]},
    }
    template = SidecarTemplate.parse(value or {})
    injection = inject(given, ClusterDefaults("0123456789", {}, sidecar=template))
    assert injection is not None
    return injection.pod


WITHOUT = "runs without the chart's sidecar"
OLDER = "runs an older sidecar than the chart's"


@pytest.mark.parametrize(
    ("actor", "of_chart", "problem"),
    [
        pytest.param(pod(VALUE), VALUE, "", id="current"),
        pytest.param(pod(VALUE), NEWER, OLDER, id="image"),
        pytest.param(pod(VALUE), {**VALUE, "native": False}, OLDER, id="kind"),
        pytest.param(pod(VALUE), None, "runs a sidecar that the chart does not have any more",
                     id="removed"),
        pytest.param(pod(None), VALUE, WITHOUT, id="new"),
        pytest.param(pod(None), None, "", id="none"),
        pytest.param(pod(VALUE, sidecar="false"), NEWER, "", id="switched-off"),
        pytest.param(pod(None, sidecar="false"), VALUE, "", id="switched-off-before"),
        pytest.param(pod(VALUE, {"name": "asya-sidecar"}), NEWER, "", id="own"),
        pytest.param(pod(None, {"name": "x"}, sidecars="x"), VALUE, "", id="another"),
        pytest.param(pod(None, {"name": "x"}), VALUE, WITHOUT, id="new-beside-another"),
    ],
)  # fmt: skip
def test_a_sidecar_is_compared_with_that_of_the_chart(
    actor: Object, of_chart: Object | None, problem: str
) -> None:
    assert chart(of_chart).find_problem(actor) == problem


@pytest.mark.parametrize(
    "deployments",
    [
        pytest.param([], id="not-readable"),
        pytest.param([{"spec": {"template": {"spec": {"containers": None}}}}], id="no-container"),
        pytest.param([{"spec": {"template": {"spec": {"containers": [
            {"env": [{"name": "INJECTOR_SIDECAR", "value": "{"}]}]}}}}], id="no-json"),
    ],
)  # fmt: skip
def test_without_the_charts_value_nothing_is_compared(deployments: list[Object]) -> None:
    assert ChartSidecar(deployments).find_problem(pod(VALUE)) == ""


@pytest.mark.parametrize("record", ["{", "{}"])
def test_a_damaged_record_is_not_compared(record: str) -> None:
    actor = pod(VALUE)
    actor["metadata"]["annotations"]["asya.sh/injected"] = record
    assert chart(NEWER).find_problem(actor) == ""


def test_an_unknown_annotation_is_not_compared() -> None:
    actor = pod(None)
    actor["metadata"]["annotations"]["asya.sh/unknown"] = "1"
    assert chart(VALUE).find_problem(actor) == ""
