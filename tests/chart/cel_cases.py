"""Objects, and by which webhook the API server must ask the injector about them.

What decides is the CEL in the chart's matchConditions, which only an API server evaluates.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

NONE, OF_PODS, OF_WORKLOADS, OF_TEMPLATES = "", "pods", "workloads", "templates"
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
OFF = {"asya.sh/inject": "false"}
NOTE = {"asya.sh/inherited": '{"asya.sh/handler":"my_app.handler.predict"}'}
OTHER_NOTE = {"asya.sh/inherited": '{"asya.sh/handler":"my_app.handler.other"}'}
OTHERS = {"example.com/asya.sh": "x", "asya.shop/handler": "x", "xasya.sh/handler": "x"}
VERSIONS = {"Pod": "v1", "Job": "batch/v1", "CronJob": "batch/v1"}
# Restricted PodSecurity is no concern of these cases, but may be enforced where they are tried.
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
    """One request: `new` is created or, where there is an `old`, takes its place.

    webhook: the one that is called, by the first part of its name; empty if none is.
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
    image: str = "model",
    replicas: int | None = None,
    labels: dict[str, str] | None = None,
    **metadata: Any,
) -> Object:
    """An object that the API server accepts, with annotations of its own and of its template."""
    shared: Object = {"name": "case"} | ({"labels": labels} if labels else {})
    shared |= {} if own is None else {"annotations": own}
    whole: Object = {"apiVersion": VERSIONS.get(kind, "apps/v1"), "kind": kind}
    whole["metadata"] = shared | metadata
    spec: Object = copy.deepcopy(POD)
    spec["containers"][0]["image"] = image
    if kind == "Pod":
        return whole | {"spec": spec}
    pod: Object = {"metadata": {"labels": {"app": "case"}}, "spec": spec}
    if template is not None:
        pod["metadata"]["annotations"] = template
    if kind == "Job":
        return whole | {"spec": {"template": pod}}
    if kind == "CronJob":
        job = {"spec": {"template": pod}}
        # A year that has no 31st of February: never.
        return whole | {"spec": {"schedule": "0 0 31 2 *", "suspend": True, "jobTemplate": job}}
    del spec["restartPolicy"]
    body: Object = {"selector": {"matchLabels": {"app": "case"}}, "template": pod}
    if kind == "StatefulSet":
        body["serviceName"] = "case"
    if kind == "DaemonSet":  # which has no replicas to be set to 0: its pods would be seen too
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
    Case("pod-with-no-annotation-at-all-but-the-field", NONE, build("Pod", {})),
    Case("pod-with-annotations-of-others", NONE, build("Pod", OTHERS)),
    Case("pod-with-a-label-of-ours", NONE, build("Pod", labels={"asya.sh/runtime-hash": "0"})),
    Case("pod-with-handler", OF_PODS, build("Pod", HANDLER)),
    Case("pod-with-a-misspelt-key", OF_PODS, build("Pod", {"asya.sh/handlr": "a.b"})),
    Case("pod-with-an-inherited-note", OF_PODS, build("Pod", NOTE)),
    Case("pod-switched-off", NONE, build("Pod", HANDLER | OFF)),
    Case("pod-switched-on", OF_PODS, build("Pod", HANDLER | {"asya.sh/inject": "true"})),
    Case(
        "pod-switched-by-a-wrong-word", OF_PODS, build("Pod", HANDLER | {"asya.sh/inject": "nope"})
    ),
]

CREATED = [
    Case(f"{kind}-{where}".lower(), webhook, build(kind, own, template))
    for kind in WORKLOADS
    for where, webhook, own, template in (
        ("without-annotations", NONE, None, None),
        ("with-annotations-of-others", NONE, OTHERS, OTHERS),
        ("annotated-itself", OF_WORKLOADS, HANDLER, None),
        ("annotated-in-its-template", OF_WORKLOADS, None, HANDLER),
        ("with-a-misspelt-key-in-its-template", OF_WORKLOADS, OTHERS, {"asya.sh/handlr": "a.b"}),
        ("switched-off-in-its-template", NONE, HANDLER, OFF),
        ("switched-off-in-its-template-that-has-a-note", OF_WORKLOADS, HANDLER, OFF | NOTE),
        ("switched-off-itself", NONE, HANDLER | OFF, None),
        ("switched-off-itself-with-an-annotated-template", OF_WORKLOADS, OFF, HANDLER),
        ("switched-off-everywhere", NONE, OFF, HANDLER | OFF),
    )
]

# Kinds that are sent on UPDATE; the templates of Jobs are immutable.
UPDATED = [
    Case(f"{kind}-{what}".lower(), webhook, new, old)
    for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "CronJob")
    for what, webhook, old, new in (
        ("same-again", NONE, build(kind, HANDLER), build(kind, HANDLER)),
        ("label-changed", NONE, build(kind, HANDLER), build(kind, HANDLER, labels={"a": "b"})),
        (
            "annotation-of-others-changed",
            NONE,
            build(kind, HANDLER | {"a": "b"}, HANDLER),
            build(kind, HANDLER | {"a": "c"}, HANDLER),
        ),
        ("image-changed", OF_WORKLOADS, build(kind, HANDLER), build(kind, HANDLER, image="newer")),
        (
            "image-changed-under-a-note",
            OF_TEMPLATES,
            build(kind, HANDLER, NOTE),
            build(kind, HANDLER, NOTE, image="newer"),
        ),
        (
            "image-changed-annotated-in-its-template",
            OF_TEMPLATES,
            build(kind, None, HANDLER),
            build(kind, None, HANDLER, image="newer"),
        ),
        ("note-lost", OF_WORKLOADS, build(kind, HANDLER, NOTE), build(kind, HANDLER)),
        (
            "note-changed",
            OF_WORKLOADS,
            build(kind, HANDLER, NOTE),
            build(kind, HANDLER, OTHER_NOTE),
        ),
        ("image-changed-unannotated", NONE, build(kind), build(kind, image="newer")),
        ("annotation-added", OF_WORKLOADS, build(kind), build(kind, HANDLER)),
        (
            "annotation-added-beside-others",
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
            "annotation-taken-away",
            OF_WORKLOADS,
            build(kind, HANDLER, NOTE),
            build(kind, None, NOTE),
        ),
        ("last-annotation-taken-away", OF_WORKLOADS, build(kind, HANDLER), build(kind)),
        ("template-annotation-added", OF_TEMPLATES, build(kind), build(kind, None, HANDLER)),
        ("template-annotation-taken-away", NONE, build(kind, None, HANDLER), build(kind)),
        (
            "template-annotation-taken-away-own-stays",
            OF_WORKLOADS,
            build(kind, HANDLER, HANDLER),
            build(kind, HANDLER),
        ),
        (
            "switched-off",
            OF_WORKLOADS,
            build(kind, HANDLER, NOTE),
            build(kind, HANDLER | OFF, NOTE),
        ),
        (
            "template-switched-off-under-its-note",
            OF_TEMPLATES,
            build(kind, HANDLER, NOTE),
            build(kind, HANDLER, NOTE | OFF),
        ),
        ("switched-off-nothing-to-convey", NONE, build(kind, HANDLER), build(kind, HANDLER | OFF)),
        ("switched-on", OF_WORKLOADS, build(kind, HANDLER | OFF, NOTE), build(kind, HANDLER, NOTE)),
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
        "replicaset-of-an-owner-that-is-no-controller",
        OF_WORKLOADS,
        build("ReplicaSet", HANDLER, ownerReferences=_owner(controller=False)),
    ),
    Case(
        "replicaset-of-an-owner-that-does-not-say",
        OF_WORKLOADS,
        build("ReplicaSet", HANDLER, ownerReferences=_owner()),
    ),
]

CASES = [*PODS, *CREATED, *UPDATED, *SPECIAL]
