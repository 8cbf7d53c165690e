"""A workload's own annotations reach its pods by one note in the template."""

import json
from typing import Any

import pytest
from asya_injector.inject import inherit, overridden

Object = dict[str, Any]
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
NOTE = {"asya.sh/inherited": json.dumps(HANDLER, separators=(",", ":"))}


def workload(
    own: Object | None = None, template: Object | None = None, kind: str = "Deployment"
) -> Object:
    pod: Object = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "a"}]}}
    if template is not None:
        pod["metadata"]["annotations"] = template
    spec: Object = {"template": pod}
    if kind == "CronJob":
        spec = {"schedule": "@daily", "jobTemplate": {"spec": spec}}
    metadata: Object = {"name": "a"} if own is None else {"name": "a", "annotations": own}
    return {"kind": kind, "metadata": metadata, "spec": spec}


CASES = [
    pytest.param({}, None, None, id="nothing-said-nothing-done"),
    pytest.param({"a/b": "c"}, {"d": "e"}, {"d": "e"}, id="annotations-of-others-stay"),
    pytest.param(HANDLER, None, NOTE, id="noted"),
    pytest.param(HANDLER, {"d": "e"}, {"d": "e", **NOTE}, id="noted-beside-others"),
    pytest.param(HANDLER, NOTE, NOTE, id="already-noted"),
    pytest.param({"asya.sh/handler": "x.y"}, NOTE,
                 {"asya.sh/inherited": '{"asya.sh/handler":"x.y"}'}, id="follows-a-change"),
    pytest.param({}, {"d": "e", **NOTE}, {"d": "e"}, id="goes-with-its-source"),
    pytest.param({}, NOTE, None, id="goes-and-leaves-no-empty-map"),
    pytest.param({}, HANDLER, HANDLER, id="keys-of-the-template-are-the-users"),
    pytest.param({}, {**HANDLER, **NOTE}, HANDLER, id="moved-to-the-template-in-one-apply"),
    pytest.param({"asya.sh/inject": "false"}, HANDLER,
                 {**HANDLER, "asya.sh/inherited": '{"asya.sh/inject":"false"}'},
                 id="the-switch-is-handed-down-too"),
    pytest.param({**HANDLER, "asya.sh/injected": "{}"}, None, NOTE, id="our-own-marks-are-not"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
@pytest.mark.parametrize(("own", "before", "after"), CASES)
def test_the_template_notes_what_its_workload_says(
    own: Object, before: Object | None, after: Object | None, kind: str
) -> None:
    given = workload(own, before, kind)
    untouched = json.loads(json.dumps(given))
    result = inherit(given)
    assert result == workload(own, after, kind)
    assert given == untouched
    assert inherit(result) == result


@pytest.mark.parametrize(
    "broken", [{}, {"spec": None}, {"spec": {}}, {"metadata": None, "spec": {"template": None}}]
)
def test_a_workload_without_a_template_is_left_to_the_api_server(broken: Object) -> None:
    assert inherit(broken) == broken


def test_the_template_wins_and_a_warning_says_so() -> None:
    given = workload({"asya.sh/handler": "a.b", "asya.sh/mode": "wrap"}, {"asya.sh/handler": "c.d"})
    assert overridden(given) == ('asya.sh/handler: "c.d" on the pod template wins over "a.b" here',)


def test_equal_values_need_no_warning() -> None:
    assert overridden(workload(HANDLER, HANDLER)) == ()
