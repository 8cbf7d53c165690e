"""What comes of one object of a manifest: a pod changed, a workload's template changed, or nothing.

The same functions as the webhooks', in the order in which an object would meet them: a workload is
noted in its template, then the pod that the template describes is made an actor.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from asya_injector.annotations.parse import select_own
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import BY_KEY, INHERITED, PREFIX
from asya_injector.errors import quote
from asya_injector.kube_objects import (
    Object,
    get_annotations,
    get_in,
    get_mapping,
    get_template,
    replace_template,
    set_or_remove,
)
from asya_injector.mutation.inject import MIRROR, Injection, inject
from asya_injector.runtime_files import MANAGED_BY, is_runtime_configmap_name

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
class ObjectChange:
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


def change_object(
    item: Object, policy: ClusterDefaults, *, namespace: str = "", disabled: Collection[str] = ()
) -> ObjectChange:
    """What comes of a Kubernetes object of any kind; raises Refusal.

    namespace: where it will be; disabled: those labelled `asya.sh/injection: disabled`.
    """
    reason = find_skip_reason(item, namespace or get_namespace(item), disabled)
    if reason:
        asks = not _is_ours(item) and _asks(item)
        told = (f"{item.get('kind')} is left as it is: {reason}",) if asks else ()
        return ObjectChange(before=item, after=item, left=reason, warnings=told)
    after = item if item["kind"] == "Pod" else propagate(item)
    injection = inject(after if item["kind"] == "Pod" else get_template(after), policy)
    warnings: tuple[str, ...] = () if item["kind"] == "Pod" else find_overridden(item)
    if injection is None:
        left = "its annotations switch it off" if _asks(item) else "it has no asya.sh/ annotation"
        return ObjectChange(before=item, after=after, left=left, warnings=warnings)
    after = injection.pod if item["kind"] == "Pod" else replace_template(after, injection.pod)
    warnings += injection.warnings
    return ObjectChange(before=item, after=after, injection=injection, warnings=warnings)


def is_pod_or_workload(item: Any) -> bool:
    """Whether an object is of a kind that the webhooks look at."""
    return isinstance(item, dict) and _is_ours(item)


def find_pod(item: Object) -> Object:
    """The pod, or the template that stands for the pods of a workload."""
    inside = ("jobTemplate", "spec") if item.get("kind") == "CronJob" else ()
    return item if item.get("kind") == "Pod" else get_in(item, "spec", *inside, "template")


def get_namespace(item: Object) -> str:
    """The namespace that an object names; empty where it names none."""
    return str(get_in(item, "metadata").get("namespace") or "")


def read_annotations(item: Object) -> dict[str, Any]:
    """An object's annotations."""
    found = get_in(item, "metadata", "annotations")
    return {key: value for key, value in found.items() if isinstance(key, str)}


def is_runtime_configmap(item: Object) -> bool:
    """Whether an object is a ConfigMap with a version of the runtime, as the injector makes it."""
    return (
        item.get("kind") == "ConfigMap"
        and is_runtime_configmap_name(str(get_in(item, "metadata").get("name")))
        and MANAGED_BY.items() <= get_in(item, "metadata", "labels").items()
    )


def is_disabled_namespace(item: Object) -> bool:
    """Whether an object is a Namespace that is never touched by its label."""
    labels = get_in(item, "metadata", "labels")
    return item.get("kind") == "Namespace" and DISABLED.items() <= labels.items()


def _is_ours(item: Object) -> bool:
    kind = item.get("kind")
    expected = "v1" if kind == "Pod" else WORKLOADS.get(str(kind))
    return expected is not None and item.get("apiVersion") == expected


def find_skip_reason(item: Object, namespace: str, disabled: Collection[str]) -> str:
    """Why the API server would not send this object to the webhooks; empty where it would."""
    if not _is_ours(item):
        return "not a kind that becomes an actor by itself"
    annotations, template = read_annotations(item), read_annotations(find_pod(item))
    owners = get_in(item, "metadata").get("ownerReferences")
    off = {PREFIX + "inject": "false"}.items()
    reasons = {
        f"namespace {namespace} is never touched": namespace in SYSTEM_NAMESPACES,
        f"namespace {namespace} is labelled asya.sh/injection: disabled": namespace in disabled,
        "it is being deleted": get_in(item, "metadata").get("deletionTimestamp"),
        "it is the mirror of a static pod": item["kind"] == "Pod" and MIRROR in annotations,
        "its template is its controller's": item["kind"] == "ReplicaSet"
        and any(
            get_in(owner).get("controller")
            for owner in (owners if isinstance(owners, list) else [])
        ),
        "it is switched off": off <= annotations.items() and not _carries_ours(template),
        "its template is switched off": off <= template.items() and INHERITED not in template,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _asks(item: Object) -> bool:
    """Whether an object, or the template in it, carries an annotation of ours."""
    return _carries_ours(read_annotations(item)) or _carries_ours(read_annotations(find_pod(item)))


def _carries_ours(annotations: Object) -> bool:
    return bool(select_own(annotations)) or INHERITED in annotations


def propagate(workload: Object) -> Object:
    """The workload with its own `asya.sh/` annotations noted in its template, for its pods.

    The note follows them, and goes when they go; in a Job that a CronJob made it is the CronJob's,
    and stays. Keys that the user wrote are never touched.
    The workload given is not changed; the result shares with it what is the same in both.
    """
    handed_down = select_own(get_annotations(workload))
    template = get_template(workload)
    present = get_annotations(template)
    annotations = {key: value for key, value in present.items() if key != INHERITED}
    if handed_down:
        annotations[INHERITED] = json.dumps(handed_down, sort_keys=True, separators=(",", ":"))
    elif _is_job_of_a_controller(workload):
        annotations = present
    if annotations == present or not template:
        return replace_template(workload, dict(template)) if template else workload
    metadata = dict(get_mapping(template, "metadata"))
    set_or_remove(metadata, "annotations", annotations)
    return replace_template(workload, {**template, "metadata": metadata})


def _is_job_of_a_controller(workload: Object) -> bool:
    owners = get_mapping(workload, "metadata").get("ownerReferences")
    return workload.get("kind") == "Job" and any(
        isinstance(owner, dict) and owner.get("controller") is True
        for owner in (owners if isinstance(owners, list) else [])
    )


def find_overridden(workload: Object) -> tuple[str, ...]:
    """Warnings for annotations of the workload that its template says otherwise; that one wins."""
    said = select_own(get_annotations(workload))
    template = get_annotations(get_template(workload))
    return tuple(
        f"{key}: {quote(template[key])} on the pod template wins over {quote(value)} here"
        for key, value in sorted(said.items())
        if key in BY_KEY and key in template and template[key] != value
    )
