"""A workload's annotations reach its pods through one annotation of the template."""

import itertools
import json
from typing import Any

import pytest
from asya_injector.annotations.parse import merge
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import get_template
from asya_injector.mutation.inject import inject
from asya_injector.mutation.workload import (
    change_object,
    find_overridden,
    find_skip_reason,
    propagate,
)

Object = dict[str, Any]
DEFAULTS = ClusterDefaults("0123456789", {})
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
PROPAGATED = {"asya.sh/inherited": json.dumps(HANDLER, separators=(",", ":"))}


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
    pytest.param({}, None, None, id="no-annotations"),
    pytest.param({"a/b": "c"}, {"d": "e"}, {"d": "e"}, id="keeps-other-annotations"),
    pytest.param(HANDLER, None, PROPAGATED, id="propagates"),
    pytest.param(HANDLER, {"d": "e"}, {"d": "e", **PROPAGATED}, id="propagates-beside-others"),
    pytest.param(HANDLER, PROPAGATED, PROPAGATED, id="already-propagated"),
    pytest.param({"asya.sh/handler": "x.y"}, PROPAGATED,
                 {"asya.sh/inherited": '{"asya.sh/handler":"x.y"}'}, id="follows-a-change"),
    pytest.param({}, {"d": "e", **PROPAGATED}, {"d": "e"}, id="removed-with-its-source"),
    pytest.param({}, PROPAGATED, None, id="removed-without-an-empty-mapping"),
    pytest.param({}, HANDLER, HANDLER, id="keeps-the-templates-own"),
    pytest.param({}, {**HANDLER, **PROPAGATED}, HANDLER, id="moved-to-the-template"),
    pytest.param({"asya.sh/inject": "false"}, HANDLER,
                 {**HANDLER, "asya.sh/inherited": '{"asya.sh/inject":"false"}'},
                 id="propagates-inject-too"),
    pytest.param({**HANDLER, "asya.sh/injected": "{}"}, None, PROPAGATED,
                 id="does-not-propagate-the-record"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["Deployment", "CronJob"])
@pytest.mark.parametrize(("own", "before", "after"), CASES)
def test_propagates_a_workloads_annotations_to_its_template(
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
def test_does_not_change_a_workload_without_a_template(broken: Object) -> None:
    assert propagate(broken) == broken


def test_warns_that_the_template_overrides_the_workload() -> None:
    given = workload({"asya.sh/handler": "a.b", "asya.sh/mode": "wrap"}, {"asya.sh/handler": "c.d"})
    assert find_overridden(given) == (
        'asya.sh/handler: the pod template sets "c.d", which overrides "a.b"',
    )


def test_does_not_warn_about_equal_values() -> None:
    assert find_overridden(workload(HANDLER, HANDLER)) == ()


FORGED = {"asya.sh/inherited": '{"asya.sh/handler":"evil.handler"}'}


@pytest.mark.parametrize("kind", ["Deployment", "Job", "CronJob"])
def test_removes_or_overwrites_forged_inherited_annotations(kind: str) -> None:
    assert propagate(workload({}, FORGED, kind)) == workload({}, None, kind)
    assert propagate(workload(HANDLER, FORGED, kind)) == workload(HANDLER, PROPAGATED, kind)


def test_keeps_a_key_that_a_user_edits_in_the_template_later() -> None:
    propagated = propagate(workload(HANDLER))
    propagated["spec"]["template"]["metadata"]["annotations"]["asya.sh/handler"] = "c.d"
    assert propagate(propagated) == propagated
    assert find_overridden(propagated) == (
        'asya.sh/handler: the pod template sets "c.d", which overrides "my_app.handler.predict"',
    )


def test_the_propagated_text_does_not_depend_on_the_order_of_keys() -> None:
    keys = [("asya.sh/handler", "a.b"), ("asya.sh/mode", "wrap"), ("asya.sh/json", "auto")]
    results = {
        json.dumps(propagate(workload(dict(order)))["spec"]["template"])
        for order in itertools.permutations(keys)
    }
    assert len(results) == 1


def test_keeps_the_order_of_annotations_if_nothing_changes() -> None:
    given = workload(HANDLER, {**PROPAGATED, "a": "b", "c": "d"})
    assert json.dumps(propagate(given)) == json.dumps(given)


@pytest.mark.parametrize(
    ("kind", "owners", "stays"),
    [
        pytest.param("Job", [{"kind": "CronJob", "controller": True}], True, id="of-a-cronjob"),
        pytest.param("Job", [{"kind": "CronJob"}], True, id="of-a-cronjob-not-its-controller"),
        pytest.param("Job", [{"kind": "CronJob", "controller": False}], True, id="of-a-dashboard"),
        pytest.param("Job", [{"kind": "App", "controller": True}], True, id="of-a-controller"),
        pytest.param("Job", [{"kind": "App"}], False, id="of-an-owner-of-another-kind"),
        pytest.param("Job", None, False, id="without-owner"),
        pytest.param("Job", ["?"], False, id="malformed-owner"),
        pytest.param("Deployment", [{"kind": "App", "controller": True}], False, id="deployment"),
    ],
)
def test_keeps_the_inherited_annotations_of_a_cronjobs_job(
    kind: str, owners: Any, stays: bool
) -> None:
    given = workload({}, PROPAGATED, kind)
    given["metadata"]["ownerReferences"] = owners
    template = get_template(propagate(given))
    assert (template.get("metadata", {}).get("annotations") == PROPAGATED) is stays


def test_keeps_the_inherited_annotations_of_a_job_made_from_a_cronjob_without_an_owner() -> None:
    given = workload({"cronjob.kubernetes.io/instantiate": "manual"}, PROPAGATED, "Job")
    assert propagate(given) == given
    assert find_overridden(given) == ()


def test_warns_about_a_job_whose_inherited_annotations_have_no_source() -> None:
    assert find_overridden(workload({}, PROPAGATED, "Job")) == (
        "asya.sh/inherited: is ignored, because the Job has no owner of kind CronJob; to run its "
        "pods as actors, annotate the Job with asya.sh/handler",
    )
    assert find_overridden(workload(HANDLER, PROPAGATED, "Job")) == ()
    assert find_overridden(workload({}, PROPAGATED)) == ()


# --- The three levels of a CronJob


def cronjob(own: Object | None, job: Object | None, template: Object | None = None) -> Object:
    """A CronJob; `job` are the annotations of its Job template."""
    item = workload(own, template, "CronJob") | {"apiVersion": "batch/v1"}
    if job is not None:
        item["spec"]["jobTemplate"]["metadata"] = {"annotations": job}
    return item


def make_job(item: Object) -> Object:
    """The Job that the controller makes of a CronJob."""
    template = json.loads(json.dumps(item["spec"]["jobTemplate"]))
    owners = [{"kind": "CronJob", "name": "a", "controller": True}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": template.get("metadata", {}) | {"ownerReferences": owners},
        "spec": template["spec"],
    }


THREE = [
    pytest.param({"handler": "a.b"}, {}, {}, {"handler": "a.b"}, id="first"),
    pytest.param({}, {"handler": "a.b"}, {}, {"handler": "a.b"}, id="second"),
    pytest.param({}, {}, {"handler": "a.b"}, {"handler": "a.b"}, id="third"),
    pytest.param({"handler": "a.b"}, {"concurrency": "2"}, {},
                 {"handler": "a.b", "concurrency": "2"}, id="first-and-second"),
    pytest.param({"concurrency": "2"}, {"handler": "a.b"}, {},
                 {"handler": "a.b", "concurrency": "2"}, id="second-and-first"),
    pytest.param({"handler": "a.b"}, {"handler": "c.d"}, {}, {"handler": "c.d"}, id="second-wins"),
    pytest.param({"handler": "a.b"}, {"handler": "c.d"}, {"handler": "e.f"}, {"handler": "e.f"},
                 id="third-wins"),
    pytest.param({"json": "auto"}, {"concurrency": "2"}, {"handler": "e.f"},
                 {"handler": "e.f", "concurrency": "2", "json": "auto"}, id="all"),
    pytest.param({"inject": "false"}, {"handler": "a.b"}, {}, None, id="off-first"),
    pytest.param({"handler": "a.b"}, {"inject": "false"}, {}, None, id="off-second"),
    pytest.param({"inject": "false"}, {"inject": "true", "handler": "a.b"}, {},
                 {"inject": "true", "handler": "a.b"}, id="on-second"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "job", "template", "expected"), THREE)
def test_pods_of_a_cronjob_inherit_from_three_levels(
    own: Object, job: Object, template: Object, expected: Object | None
) -> None:
    levels = [{f"asya.sh/{key}": text for key, text in each.items()} for each in (own, job)]
    own_template = {f"asya.sh/{key}": text for key, text in template.items()}
    given = cronjob(levels[0], levels[1], own_template or None)
    untouched = json.loads(json.dumps(given))
    applied = propagate(given)
    assert given == untouched
    assert propagate(applied) == applied
    job_item = propagate(make_job(applied))
    assert propagate(job_item) == job_item
    results = [inject(get_template(each), DEFAULTS) for each in (applied, job_item)]
    for result in results:
        if expected is None:
            assert result is None
            continue
        assert result is not None
        found = {f"asya.sh/{key}": text for key, text in expected.items()}
        assert merge(result.pod["metadata"]["annotations"]) == found
    # The command line does the same.
    change = change_object(given, DEFAULTS, namespace="models", disabled=[])
    assert (change.injection is None) is (expected is None)
    assert given == untouched


def test_a_wrong_key_on_the_job_template_is_rejected_at_apply() -> None:
    given = cronjob(HANDLER, {"asya.sh/concurency": "2"})
    with pytest.raises(InjectionError, match=r"^asya.sh/concurency: unknown annotation; did you"):
        change_object(given, DEFAULTS, namespace="models", disabled=[])
    with pytest.raises(InjectionError, match=r"^asya.sh/concurency: unknown annotation; did you"):
        inject(get_template(propagate(given)), DEFAULTS)


def test_annotations_removed_from_the_job_template_are_removed_below() -> None:
    applied = propagate(cronjob(None, HANDLER))
    del applied["spec"]["jobTemplate"]["metadata"]
    assert propagate(applied) == cronjob(None, None)


def test_warns_which_level_of_a_cronjob_overrides_which() -> None:
    keys = [{"asya.sh/handler": text} for text in ("a.b", "c.d", "e.f")]
    assert find_overridden(cronjob(keys[0], keys[1], keys[2])) == (
        'asya.sh/handler: the job template sets "c.d", which overrides "a.b"',
        'asya.sh/handler: the pod template sets "e.f", which overrides "c.d"',
    )
    assert find_overridden(cronjob(keys[0], keys[0], keys[0])) == ()
    assert find_overridden(cronjob(keys[0], None, keys[1])) == (
        'asya.sh/handler: the pod template sets "c.d", which overrides "a.b"',
    )


@pytest.mark.parametrize("job", [[], "x", {"metadata": 1}, {"metadata": {"annotations": [1]}}])
def test_a_malformed_job_template_is_rejected(job: Any) -> None:
    item = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {}}
    item["spec"] = (
        {"jobTemplate": {**job, "spec": {"template": {"spec": {}}}}}
        if isinstance(job, dict)
        else {"jobTemplate": job}
    )
    with pytest.raises(InjectionError, match=r"is not a mapping; .* \(ObjectInvalid\)$"):
        propagate(item)


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
def test_resolves_annotations_on_both_levels(
    above: Object, below: Object, handler: str | None, kind: str
) -> None:
    own, template = (
        {f"asya.sh/{key}": text for key, text in each.items()} for each in (above, below)
    )
    pod = get_template(propagate(workload(own, template or None, kind)))
    result = inject(pod, ClusterDefaults("0123456789", {}))
    assert (result is not None) == (handler is not None)
    if result is not None:
        assert {"name": "ASYA_HANDLER", "value": handler} in result.pod["spec"]["containers"][0][
            "env"
        ]


def test_warns_only_about_known_keys() -> None:
    hostile = {"asya.sh/\x1b[31m": "a", "asya.sh/inject": "false"}
    assert find_overridden(workload(hostile, {"asya.sh/\x1b[31m": "b"})) == ()


def test_changing_the_result_does_not_change_the_input() -> None:
    given = workload({}, {"d": "e"})
    result = propagate(given)
    get_template(result).clear()
    assert given == workload({}, {"d": "e"})


OFF: Object = {"asya.sh/inject": "false"}
MIRROR = {"kubernetes.io/config.mirror": "x"}


def pod(annotations: Object | None = None, **metadata: Any) -> Object:
    metadata = {"annotations": annotations, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}}


def apps(item: Object) -> Object:
    return {"apiVersion": "apps/v1", **item}


SKIPPED = [
    pytest.param(pod(HANDLER), "", id="pod"),
    pytest.param(pod(HANDLER | OFF), 'asya.sh/inject is "false"', id="pod-switched-off"),
    pytest.param(pod(OFF | PROPAGATED), "", id="pod-switched-off-with-inherited-annotations"),
    pytest.param(pod(HANDLER | MIRROR), "it is the mirror of a static pod", id="mirror"),
    pytest.param(pod(HANDLER, deletionTimestamp="x"), "it is being deleted", id="deleted"),
    pytest.param(apps(workload(HANDLER)), "", id="workload"),
    pytest.param(apps(workload(OFF)), 'asya.sh/inject is "false"', id="workload-switched-off"),
    pytest.param(apps(workload(OFF, HANDLER)), "", id="workload-off-template-annotated"),
    pytest.param(apps(workload(HANDLER, OFF)), 'asya.sh/inject is "false" on the pod template',
                 id="template-switched-off"),
    pytest.param(apps(workload({}, OFF | PROPAGATED)), "", id="template-off-with-inherited"),
    pytest.param({"apiVersion": "apps/v1", "kind": "Pod"}, "its kind is not supported",
                 id="wrong-api-version"),
    pytest.param({"kind": ["x"], "metadata": 1}, "its kind is not supported", id="malformed"),
]  # fmt: skip


SKIPPED += [
    pytest.param(cronjob(OFF, None), 'asya.sh/inject is "false"', id="cronjob-switched-off"),
    pytest.param(cronjob(OFF, HANDLER), "", id="cronjob-off-job-template-annotated"),
    pytest.param(cronjob(None, HANDLER), "", id="cronjob-job-template-annotated"),
]


@pytest.mark.parametrize(("item", "reason"), SKIPPED)
def test_finds_why_an_object_is_skipped(item: Object, reason: str) -> None:
    assert find_skip_reason(item, "models", ["off"]) == reason
    if reason != "its kind is not supported":
        system = find_skip_reason(item, "kube-system", ["off"])
        assert system == "its namespace is never injected"
        labelled = find_skip_reason(item, "off", ["off"])
        assert labelled == "its namespace has the label asya.sh/injection: disabled"


def test_skips_the_replicaset_of_a_controller() -> None:
    item = apps(workload(HANDLER, kind="ReplicaSet"))
    assert find_skip_reason(item, "models", []) == ""
    item["metadata"]["ownerReferences"] = [{"kind": "Deployment", "controller": True}]
    assert find_skip_reason(item, "models", []) == "its controller manages the pod template"
