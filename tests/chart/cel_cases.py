"""Admission requests, and the webhook that the API server must call for each.

The matchConditions of the chart decide this, in CEL, which only an API server evaluates.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

NONE, OF_PODS, OF_WORKLOADS, OF_TEMPLATES = "", "pods", "workloads", "templates"
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
OFF = {"asya.sh/inject": "false"}
PROPAGATED = {"asya.sh/inherited": '{"asya.sh/handler":"my_app.handler.predict"}'}
OTHER_PROPAGATED = {"asya.sh/inherited": '{"asya.sh/handler":"my_app.handler.other"}'}
OTHERS = {
    "example.com/asya.sh": "x",
    "example.com/link": "https://asya.sh/",
    "asya.shop/handler": "x",
    "xasya.sh/handler": '{"asya.sh/handler":"x"}, "asya.sh/handler":"x"',
}
VERSIONS = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}
# Satisfies Pod Security `restricted`, which a cluster may enforce.
POD: Object = {
    "restartPolicy": "Never",
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "model",
            "image": "model",
            "command": ["true"],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
}


@dataclass(frozen=True)
class Case:
    """A request that creates `new`, or updates `old` to `new`.

    webhook: the first part of the name of the webhook that must be called; empty for none.
    """

    id: str
    webhook: str
    new: Object
    old: Object | None = None


def build(
    kind: str = "Deployment",
    own: dict[str, str] | None = None,
    template: dict[str, str] | None = None,
    *,
    job: dict[str, str] | None = None,
    image: str = "model",
    replicas: int | None = None,
    labels: dict[str, str] | None = None,
    **metadata: Any,
) -> Object:
    """A valid object with annotations `own`, and `template` on its pod template.

    job: annotations of a CronJob's Job template.
    """
    shared: Object = {"name": "case"} | ({"labels": labels} if labels else {})
    shared |= {} if own is None else {"annotations": own}
    whole: Object = {"apiVersion": VERSIONS.get(kind, "apps/v1"), "kind": kind}
    whole["metadata"] = shared | metadata
    spec: Object = copy.deepcopy(POD)
    spec["containers"][0]["image"] = image
    if kind == "Pod":
        return whole | {"spec": spec}
    pod: Object = {"metadata": {"labels": {"app": "case"}}, "spec": spec}
    body: Object
    if template is not None:
        pod["metadata"]["annotations"] = template
    if kind == "Job":
        return whole | {"spec": {"template": pod}}
    if kind == "CronJob":
        body = {"spec": {"template": pod}} | ({"metadata": {"annotations": job}} if job else {})
        # The 31st of February: never.
        return whole | {"spec": {"schedule": "0 0 31 2 *", "suspend": True, "jobTemplate": body}}
    del spec["restartPolicy"]
    body = {"selector": {"matchLabels": {"app": "case"}}, "template": pod}
    if kind == "StatefulSet":
        body["serviceName"] = "case"
    if kind == "DaemonSet":  # it has no replicas to set to 0, and its pods would be admitted too
        spec["nodeSelector"] = {"example.com/no-such-node": "true"}
    if kind != "DaemonSet":
        body["replicas"] = 0 if replicas is None else replicas
    return whole | {"spec": body}


def _owner(**more: Any) -> list[Object]:
    who = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}
    return [who | {"uid": "3e0c0b5e-0d5c-4f10-8a3c-1b3cf6a8d9f1"} | more]


WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob")

PODS = [
    Case("pod-without-annotations", NONE, build("Pod")),
    Case("pod-with-empty-annotations", NONE, build("Pod", {})),
    Case("pod-with-other-annotations", NONE, build("Pod", OTHERS)),
    Case(
        "pod-with-a-label-with-our-prefix", NONE, build("Pod", labels={"asya.sh/runtime-hash": "0"})
    ),
    Case("pod-with-handler", OF_PODS, build("Pod", HANDLER)),
    Case("pod-with-a-misspelt-annotation", OF_PODS, build("Pod", {"asya.sh/handlr": "a.b"})),
    Case("pod-with-propagated-annotations", OF_PODS, build("Pod", PROPAGATED)),
    Case("pod-disabled", NONE, build("Pod", HANDLER | OFF)),
    Case("pod-enabled", OF_PODS, build("Pod", HANDLER | {"asya.sh/inject": "true"})),
    Case(
        "pod-with-an-invalid-inject-annotation",
        OF_PODS,
        build("Pod", HANDLER | {"asya.sh/inject": "nope"}),
    ),
]

CREATED = [
    Case(f"{kind}-{where}".lower(), webhook, build(kind, own, template))
    for kind in WORKLOADS
    for where, webhook, own, template in (
        ("without-annotations", NONE, None, None),
        ("with-other-annotations", NONE, OTHERS, OTHERS),
        ("annotated-itself", OF_WORKLOADS, HANDLER, None),
        ("annotated-in-its-template", OF_WORKLOADS, None, HANDLER),
        (
            "with-a-misspelt-annotation-in-its-template",
            OF_WORKLOADS,
            OTHERS,
            {"asya.sh/handlr": "a.b"},
        ),
        ("disabled-in-its-template", NONE, HANDLER, OFF),
        (
            "disabled-in-its-template-while-propagated",
            OF_WORKLOADS,
            HANDLER,
            OFF | PROPAGATED,
        ),
        ("disabled-itself", NONE, HANDLER | OFF, None),
        ("disabled-itself-with-an-annotated-template", OF_WORKLOADS, OFF, HANDLER),
        ("disabled-everywhere", NONE, OFF, HANDLER | OFF),
    )
]

# Kinds whose updates are sent; the pod templates of Jobs are immutable.
UPDATED = [
    Case(f"{kind}-{what}".lower(), webhook, new, old)
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "CronJob")
    for what, webhook, old, new in (
        ("unchanged", NONE, build(kind, HANDLER), build(kind, HANDLER)),
        ("label-changed", NONE, build(kind, HANDLER), build(kind, HANDLER, labels={"a": "b"})),
        (
            "other-annotation-changed",
            NONE,
            build(kind, HANDLER | {"a": "b"}, HANDLER),
            build(kind, HANDLER | {"a": "c"}, HANDLER),
        ),
        ("image-changed", OF_WORKLOADS, build(kind, HANDLER), build(kind, HANDLER, image="newer")),
        (
            "image-changed-while-propagated",
            OF_TEMPLATES,
            build(kind, HANDLER, PROPAGATED),
            build(kind, HANDLER, PROPAGATED, image="newer"),
        ),
        (
            "image-changed-annotated-in-its-template",
            OF_TEMPLATES,
            build(kind, None, HANDLER),
            build(kind, None, HANDLER, image="newer"),
        ),
        (
            "propagated-annotations-lost",
            OF_WORKLOADS,
            build(kind, HANDLER, PROPAGATED),
            build(kind, HANDLER),
        ),
        (
            "propagated-annotations-changed",
            OF_WORKLOADS,
            build(kind, HANDLER, PROPAGATED),
            build(kind, HANDLER, OTHER_PROPAGATED),
        ),
        ("image-changed-unannotated", NONE, build(kind), build(kind, image="newer")),
        ("annotation-added", OF_WORKLOADS, build(kind), build(kind, HANDLER)),
        (
            "annotation-added-to-others",
            OF_WORKLOADS,
            build(kind, OTHERS),
            build(kind, OTHERS | HANDLER),
        ),
        (
            "annotation-changed",
            OF_WORKLOADS,
            build(kind, HANDLER),
            build(kind, {"asya.sh/handler": "my_app.handler.other"}),
        ),
        (
            "annotation-removed",
            OF_WORKLOADS,
            build(kind, HANDLER, PROPAGATED),
            build(kind, None, PROPAGATED),
        ),
        ("last-annotation-removed", OF_WORKLOADS, build(kind, HANDLER), build(kind)),
        ("template-annotation-added", OF_TEMPLATES, build(kind), build(kind, None, HANDLER)),
        ("template-annotation-removed", NONE, build(kind, None, HANDLER), build(kind)),
        (
            "only-template-annotation-removed",
            OF_WORKLOADS,
            build(kind, HANDLER, HANDLER),
            build(kind, HANDLER),
        ),
        (
            "disabled",
            OF_WORKLOADS,
            build(kind, HANDLER, PROPAGATED),
            build(kind, HANDLER | OFF, PROPAGATED),
        ),
        (
            "template-disabled-while-propagated",
            OF_TEMPLATES,
            build(kind, HANDLER, PROPAGATED),
            build(kind, HANDLER, PROPAGATED | OFF),
        ),
        ("disabled-nothing-to-propagate", NONE, build(kind, HANDLER), build(kind, HANDLER | OFF)),
        (
            "enabled",
            OF_WORKLOADS,
            build(kind, HANDLER | OFF, PROPAGATED),
            build(kind, HANDLER, PROPAGATED),
        ),
    )
]

# A CronJob has a third level, its Job template.
JOB_TEMPLATES = [
    Case(f"cronjob-{what}", webhook, new, old)
    for what, webhook, old, new in (
        ("with-other-annotations-on-its-job-template", NONE, None, build("CronJob", job=OTHERS)),
        ("annotated-on-its-job-template", OF_WORKLOADS, None, build("CronJob", job=HANDLER)),
        (
            "with-a-misspelt-key-on-its-job-template",
            OF_WORKLOADS,
            None,
            build("CronJob", job={"asya.sh/handlr": "a.b"}),
        ),
        (
            "disabled-but-annotated-on-its-job-template",
            OF_WORKLOADS,
            None,
            build("CronJob", OFF, job=HANDLER),
        ),
        (
            "job-template-unchanged",
            NONE,
            build("CronJob", job=HANDLER),
            build("CronJob", job=HANDLER, labels={"a": "b"}),
        ),
        (
            "other-job-annotation-changed",
            NONE,
            build("CronJob", HANDLER, PROPAGATED, job={"a": "b"}),
            build("CronJob", HANDLER, PROPAGATED, job={"a": "c"}),
        ),
        ("job-annotation-added", OF_WORKLOADS, build("CronJob"), build("CronJob", job=HANDLER)),
        (
            "job-annotation-changed",
            OF_WORKLOADS,
            build("CronJob", None, PROPAGATED, job=HANDLER),
            build("CronJob", None, PROPAGATED, job={"asya.sh/handler": "my_app.handler.other"}),
        ),
        (
            "job-annotation-removed",
            OF_WORKLOADS,
            build("CronJob", None, PROPAGATED, job=HANDLER),
            build("CronJob", None, PROPAGATED),
        ),
        (
            "image-changed-annotated-on-its-job-template",
            OF_WORKLOADS,
            build("CronJob", job=HANDLER),
            build("CronJob", job=HANDLER, image="newer"),
        ),
        (
            "image-changed-while-job-level-is-propagated",
            OF_TEMPLATES,
            build("CronJob", None, PROPAGATED, job=HANDLER),
            build("CronJob", None, PROPAGATED, job=HANDLER, image="newer"),
        ),
    )
]

SPECIAL = [
    Case(
        "scaled",
        NONE,
        build(own=HANDLER, template=HANDLER, replicas=1),
        build(own=HANDLER, template=HANDLER, replicas=0),
    ),
    Case(
        "replicaset-of-a-controller",
        NONE,
        build("ReplicaSet", HANDLER, HANDLER, ownerReferences=_owner(controller=True)),
    ),
    Case(
        "replicaset-of-an-owner-that-is-not-a-controller",
        OF_WORKLOADS,
        build("ReplicaSet", HANDLER, ownerReferences=_owner(controller=False)),
    ),
    Case(
        "replicaset-of-an-owner-without-controller-field",
        OF_WORKLOADS,
        build("ReplicaSet", HANDLER, ownerReferences=_owner()),
    ),
]

CASES = [*PODS, *CREATED, *UPDATED, *JOB_TEMPLATES, *SPECIAL]
