"""A workload's own annotations reach its pods by one note in the template."""

import itertools
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.kube_objects import get_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.workload import find_overridden, propagate

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
    result = propagate(given)
    assert result == workload(own, after, kind)
    assert given == untouched
    assert propagate(result) == result


@pytest.mark.parametrize(
    "broken", [{}, {"spec": None}, {"spec": {}}, {"metadata": None, "spec": {"template": None}}]
)
def test_a_workload_without_a_template_is_left_to_the_api_server(broken: Object) -> None:
    assert propagate(broken) == broken


def test_the_template_wins_and_a_warning_says_so() -> None:
    given = workload({"asya.sh/handler": "a.b", "asya.sh/mode": "wrap"}, {"asya.sh/handler": "c.d"})
    assert find_overridden(given) == (
        'asya.sh/handler: "c.d" on the pod template wins over "a.b" here',
    )


def test_equal_values_need_no_warning() -> None:
    assert find_overridden(workload(HANDLER, HANDLER)) == ()


FORGED = {"asya.sh/inherited": '{"asya.sh/handler":"evil.handler"}'}


@pytest.mark.parametrize("kind", ["Deployment", "Job", "CronJob"])
def test_a_note_that_a_user_forged_in_the_template_goes_or_is_overwritten(kind: str) -> None:
    assert propagate(workload({}, FORGED, kind)) == workload({}, None, kind)
    assert propagate(workload(HANDLER, FORGED, kind)) == workload(HANDLER, NOTE, kind)


def test_a_key_that_is_edited_in_the_template_later_stays_the_users() -> None:
    noted = propagate(workload(HANDLER))
    noted["spec"]["template"]["metadata"]["annotations"]["asya.sh/handler"] = "c.d"
    assert propagate(noted) == noted
    assert find_overridden(noted) == (
        'asya.sh/handler: "c.d" on the pod template wins over "my_app.handler.predict" here',
    )


def test_the_note_does_not_depend_on_the_order_of_keys() -> None:
    keys = [("asya.sh/handler", "a.b"), ("asya.sh/mode", "wrap"), ("asya.sh/json", "auto")]
    notes = {
        json.dumps(propagate(workload(dict(order)))["spec"]["template"])
        for order in itertools.permutations(keys)
    }
    assert len(notes) == 1


def test_a_note_that_is_right_keeps_its_place_among_the_others() -> None:
    given = workload(HANDLER, {**NOTE, "a": "b", "c": "d"})
    assert json.dumps(propagate(given)) == json.dumps(given)


@pytest.mark.parametrize(
    ("kind", "owners", "stays"),
    [
        pytest.param("Job", [{"kind": "CronJob", "controller": True}], True, id="of-a-cronjob"),
        pytest.param("Job", [{"kind": "CronJob"}], False, id="of-no-controller"),
        pytest.param("Job", None, False, id="of-nobody"),
        pytest.param("Job", ["?"], False, id="of-nonsense"),
        pytest.param("Deployment", [{"kind": "App", "controller": True}], False, id="deployment"),
    ],
)
def test_the_note_in_a_job_that_a_cronjob_made_stays(kind: str, owners: Any, stays: bool) -> None:
    given = workload({}, NOTE, kind)
    given["metadata"]["ownerReferences"] = owners
    template = get_template(propagate(given))
    assert (template.get("metadata", {}).get("annotations") == NOTE) is stays


SWITCHES = [
    pytest.param({"inject": "false", "handler": "a.b"}, {}, None, id="off-above"),
    pytest.param({"handler": "a.b"}, {"inject": "false"}, None, id="off-below"),
    pytest.param({"inject": "false"}, {"inject": "true", "handler": "a.b"}, "a.b", id="on-below"),
    pytest.param({"handler": "a.b"}, {"handler": "c.d"}, "c.d", id="template-wins"),
    pytest.param({"handler": "a.b"}, {}, "a.b", id="above-alone"),
    pytest.param({"mode": "mount"}, {"handler": "a.b"}, "a.b", id="together"),
]


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
@pytest.mark.parametrize(("above", "below", "handler"), SWITCHES)
def test_what_both_levels_say_comes_to_this(
    above: Object, below: Object, handler: str | None, kind: str
) -> None:
    said, template = (
        {f"asya.sh/{key}": text for key, text in each.items()} for each in (above, below)
    )
    pod = get_template(propagate(workload(said, template or None, kind)))
    result = inject(pod, ClusterDefaults("0123456789", {}))
    assert (result is not None) == (handler is not None)
    if result is not None:
        assert {"name": "ASYA_HANDLER", "value": handler} in result.pod["spec"]["containers"][0][
            "env"
        ]


def test_warnings_are_for_keys_that_exist_alone() -> None:
    hostile = {"asya.sh/\x1b[31m": "a", "asya.sh/inject": "false"}
    assert find_overridden(workload(hostile, {"asya.sh/\x1b[31m": "b"})) == ()


def test_the_template_of_the_result_can_be_changed_without_the_workload_given() -> None:
    given = workload({}, {"d": "e"})
    result = propagate(given)
    get_template(result).clear()
    assert given == workload({}, {"d": "e"})
