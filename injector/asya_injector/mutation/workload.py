"""What comes of one object of a manifest: a pod changed, a workload's template changed, or nothing.

The same functions as the webhooks', in the order in which an object would meet them: a workload is
noted in its template, then the pod that the template describes is made an actor.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from asya_injector.annotations.parse import INHERITED, PREFIX, own
from asya_injector.annotations.settings import Policy
from asya_injector.kube_objects import Object, template_of, with_template
from asya_injector.mutation.inject import MIRROR, Injection, inherit, inject, overridden
from asya_injector.runtime_files import MANAGED_BY, is_copy_name

WORKLOADS = {
    "Deployment": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ReplicaSet": "apps/v1",
    "Job": "batch/v1",
    "CronJob": "batch/v1",
}
SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")
DISABLED = {"asya.sh/injection": "disabled"}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What comes of an object.

    after: the object as it shall be, equal to `before` where nothing is done.
    injection: what was done to its pod; None where that does not become an actor.
    left: then the reason, as a sentence's end. warnings: what the webhook would warn of.
    """

    before: Object
    after: Object
    injection: Injection | None = None
    left: str = ""
    warnings: tuple[str, ...] = ()


def change(
    item: Object, policy: Policy, *, namespace: str = "", disabled: Collection[str] = ()
) -> Change:
    """What comes of a Kubernetes object of any kind; raises Refusal.

    namespace: where it will be; disabled: those labelled `asya.sh/injection: disabled`.
    """
    reason = left_alone(item, namespace or namespace_of(item), disabled)
    if reason:
        asks = not _is_ours(item) and _asks(item)
        told = (f"{item.get('kind')} is left as it is: {reason}",) if asks else ()
        return Change(before=item, after=item, left=reason, warnings=told)
    after = item if item["kind"] == "Pod" else inherit(item)
    injection = inject(after if item["kind"] == "Pod" else template_of(after), policy)
    warnings: tuple[str, ...] = () if item["kind"] == "Pod" else overridden(item)
    if injection is None:
        left = "its annotations switch it off" if _asks(item) else "it has no asya.sh/ annotation"
        return Change(before=item, after=after, left=left, warnings=warnings)
    after = injection.pod if item["kind"] == "Pod" else with_template(after, injection.pod)
    warnings += injection.warnings
    return Change(before=item, after=after, injection=injection, warnings=warnings)


def is_pod_or_workload(item: Any) -> bool:
    """Whether an object is of a kind that the webhooks look at."""
    return isinstance(item, dict) and _is_ours(item)


def glimpse(node: Any, *path: str) -> Object:
    """The mapping at a path of what may be anything; empty where there is none."""
    for step in path:
        node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def pod_of(item: Object) -> Object:
    """The pod, or the template that stands for the pods of a workload."""
    inside = ("jobTemplate", "spec") if item.get("kind") == "CronJob" else ()
    return item if item.get("kind") == "Pod" else glimpse(item, "spec", *inside, "template")


def namespace_of(item: Object) -> str:
    """The namespace that an object names; empty where it names none."""
    return str(glimpse(item, "metadata").get("namespace") or "")


def annotations_of(item: Object) -> dict[str, Any]:
    """An object's annotations."""
    found = glimpse(item, "metadata", "annotations")
    return {key: value for key, value in found.items() if isinstance(key, str)}


def is_copy(item: Object) -> bool:
    """Whether an object is a ConfigMap with a version of the runtime, as the injector makes it."""
    return (
        item.get("kind") == "ConfigMap"
        and is_copy_name(str(glimpse(item, "metadata").get("name")))
        and MANAGED_BY.items() <= glimpse(item, "metadata", "labels").items()
    )


def is_disabled_namespace(item: Object) -> bool:
    """Whether an object is a Namespace that is never touched by its label."""
    labels = glimpse(item, "metadata", "labels")
    return item.get("kind") == "Namespace" and DISABLED.items() <= labels.items()


def _is_ours(item: Object) -> bool:
    kind = item.get("kind")
    expected = "v1" if kind == "Pod" else WORKLOADS.get(str(kind))
    return expected is not None and item.get("apiVersion") == expected


def left_alone(item: Object, namespace: str, disabled: Collection[str]) -> str:
    """Why the API server would not send this object to the webhooks; empty where it would."""
    if not _is_ours(item):
        return "not a kind that becomes an actor by itself"
    annotations, template = annotations_of(item), annotations_of(pod_of(item))
    owners = glimpse(item, "metadata").get("ownerReferences")
    off = {PREFIX + "inject": "false"}.items()
    reasons = {
        f"namespace {namespace} is never touched": namespace in SYSTEM_NAMESPACES,
        f"namespace {namespace} is labelled asya.sh/injection: disabled": namespace in disabled,
        "it is being deleted": glimpse(item, "metadata").get("deletionTimestamp"),
        "it is the mirror of a static pod": item["kind"] == "Pod" and MIRROR in annotations,
        "its template is its controller's": item["kind"] == "ReplicaSet"
        and any(
            glimpse(owner).get("controller")
            for owner in (owners if isinstance(owners, list) else [])
        ),
        "it is switched off": off <= annotations.items() and not _carries_ours(template),
        "its template is switched off": off <= template.items() and INHERITED not in template,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _asks(item: Object) -> bool:
    """Whether an object, or the template in it, carries an annotation of ours."""
    return _carries_ours(annotations_of(item)) or _carries_ours(annotations_of(pod_of(item)))


def _carries_ours(annotations: Object) -> bool:
    return bool(own(annotations)) or INHERITED in annotations
