"""Inject the runtime into a Pod, or into the pod template of a workload, as the webhooks do."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from asya_injector.annotations.parse import merge, parse_inherited, parse_values, select_own
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.table import BY_KEY, INHERITED, INJECTED, PREFIX
from asya_injector.errors import quote
from asya_injector.kube_objects import (
    POD,
    Object,
    find_kind,
    get_annotations,
    get_in,
    get_levels,
    get_mapping,
    get_template,
    replace_template,
    set_or_remove,
)
from asya_injector.mutation.inject import MIRROR, Injection, inject
from asya_injector.runtime_files import MANAGED_BY, is_runtime_configmap_name

SYSTEM_NAMESPACES = ("kube-system", "kube-public", "kube-node-lease")
DISABLED = {"asya.sh/injection": "disabled"}
# On a Job that was made from a CronJob by hand.
INSTANTIATED = "cronjob.kubernetes.io/instantiate"
# Others are rejected as unknown.
_PLAIN_KEY = re.compile(rf"{re.escape(PREFIX)}[a-z0-9-]{{1,63}}")
_OFF = {PREFIX + "inject": "false"}.items()


@dataclass(frozen=True, kw_only=True)
class ObjectChange:
    """The change of an object.

    after: equal to `before` if nothing changes.
    injection: of its pod; None if that does not become an actor. skip_reason: why not, as a clause
        that can follow "because".
    """

    before: Object
    after: Object
    injection: Injection | None = None
    skip_reason: str = ""
    warnings: tuple[str, ...] = ()


def change_object(
    item: Object, defaults: ClusterDefaults, *, namespace: str, disabled: Collection[str]
) -> ObjectChange:
    """Change a Kubernetes object of any kind; raises InjectionError.

    namespace: where the object will be. disabled: namespaces with the label `DISABLED`.
    """
    reason = find_skip_reason(item, namespace, disabled)
    if reason:
        return ObjectChange(before=item, after=item, skip_reason=reason)
    is_pod = find_kind(item) is POD
    after = item if is_pod else propagate(item, defaults.declared)
    warnings = () if is_pod else find_overridden(item)
    injection = inject(get_template(after), defaults, original=get_template(item))
    if injection:
        after = replace_template(after, injection.pod)
        warnings += injection.warnings
    else:
        reason = _explain_no_actor(item, get_annotations(get_template(after)))
    return ObjectChange(
        before=item, after=after, injection=injection, skip_reason=reason, warnings=warnings
    )


def find_skip_reason(item: Object, namespace: str, disabled: Collection[str]) -> str:
    """Why the API server does not send an object to the webhooks; empty if it does."""
    if find_kind(item) is None:
        return "its kind is not supported"
    reason = find_namespace_skip_reason(item, namespace, disabled)
    if reason:
        return reason
    if item["kind"] == "ReplicaSet" and any(map(_is_controller, _get_owners(item))):
        return "its controller manages the pod template"
    # In the cases above, the annotations may be malformed.
    levels = [get_annotations(level) for level in get_levels(item)]
    annotations, template = levels[0], get_annotations(get_template(item))
    below = [*levels[1:], template]
    if item["kind"] == "Pod" and MIRROR in annotations:
        return "it is the mirror of a static pod"
    if annotations.items() >= _OFF and not (any(map(select_own, below)) or INHERITED in template):
        return 'asya.sh/inject is "false"'
    place = "" if item["kind"] == "Pod" else " on the pod template"
    is_off = template.items() >= _OFF and INHERITED not in template
    return f'asya.sh/inject is "false"{place}' if is_off else ""


def propagate(workload: Object, declared: Collection[str] = frozenset()) -> Object:
    """A copy of a workload whose template has its `asya.sh/` annotations in `asya.sh/inherited`.

    declared: the keys that the sidecar of the cluster defaults declares.

    Those of a CronJob's Job template override those of the CronJob. `asya.sh/inherited` is removed
    when no level has annotations any more; in a Job of a CronJob it comes from the CronJob and
    stays. Annotations written by users do not change.
    """
    own = _merge_levels(workload, declared)
    template = get_template(workload)
    if not template:
        return workload
    present = get_annotations(template)
    if workload.get("kind") == "Job" and _is_of_cronjob(workload):
        own = parse_inherited(present) | own
    annotations = dict(present)
    if own:
        annotations[INHERITED] = json.dumps(own, sort_keys=True, separators=(",", ":"))
    else:
        annotations.pop(INHERITED, None)
    template = dict(template)
    if annotations != present:
        template["metadata"] = dict(get_mapping(template, "metadata"))
        set_or_remove(template["metadata"], "annotations", annotations)
    return replace_template(workload, template)


def find_overridden(workload: Object) -> tuple[str, ...]:
    """Warnings about annotations of a workload that have no effect.

    They are overridden by the Job template of a CronJob, or by the pod template. Or a Job looks
    like one of a CronJob, but nothing shows that it is.
    """
    levels = [select_own(get_annotations(level)) for level in get_levels(workload)]
    pod = get_annotations(get_template(workload))
    names = ("job template",) * (len(levels) - 1) + ("pod template",)
    warnings = []
    for index, (name, lower) in enumerate(zip(names, [*levels[1:], pod], strict=True)):
        upper: dict[str, str] = {}
        for level in levels[: index + 1]:
            upper |= level
        warnings += [
            f"{key}: the {name} sets {quote(lower[key])}, which overrides {quote(upper[key])}"
            for key in sorted(upper.keys() & lower.keys())
            if lower[key] != upper[key] and _PLAIN_KEY.fullmatch(key)
        ]
    is_copy = workload.get("kind") == "Job" and INHERITED in pod and not _is_of_cronjob(workload)
    if is_copy and not levels[0]:
        warnings.append(
            f"{INHERITED}: is ignored, because the Job has no owner of kind CronJob; to run its "
            f"pods as actors, annotate the Job with {PREFIX}handler"
        )
    return tuple(warnings)


def find_namespace_skip_reason(item: Object, namespace: str, disabled: Collection[str]) -> str:
    """Why pods of an object of any kind are not sent to the webhooks; empty if they are."""
    if namespace in SYSTEM_NAMESPACES:
        return "its namespace is never injected"
    if namespace in disabled:
        return "its namespace has the label asya.sh/injection: disabled"
    return "it is being deleted" if get_in(item, "metadata").get("deletionTimestamp") else ""


def get_namespace(item: Object) -> str:
    """The namespace that an object names; empty if it names none."""
    return str(get_in(item, "metadata").get("namespace") or "")


def is_runtime_configmap(item: Object) -> bool:
    """Whether an object is a runtime ConfigMap that the injector created."""
    return (
        item.get("kind") == "ConfigMap"
        and is_runtime_configmap_name(str(get_in(item, "metadata").get("name")))
        and MANAGED_BY.items() <= get_in(item, "metadata", "labels").items()
    )


def is_disabled_namespace(item: Object) -> bool:
    """Whether an object is a Namespace with the label `DISABLED`."""
    labels = get_in(item, "metadata", "labels")
    return item.get("kind") == "Namespace" and DISABLED.items() <= labels.items()


def _explain_no_actor(item: Object, annotations: dict[str, str]) -> str:
    """Why an object that is sent to the webhooks does not become an actor."""
    if merge(annotations):
        return "asya.sh/inject switches it off"
    if select_own(get_annotations(item)) and not get_template(item):
        return "it has no pod template"
    if INJECTED in annotations:
        return "its annotations were removed after the injection; run uninject"
    return "it has no asya.sh/ annotation"


def _merge_levels(workload: Object, declared: Collection[str]) -> dict[str, str]:
    """The annotations of a workload; those of a CronJob's Job template override its own."""
    merged: dict[str, str] = {}
    for level in get_levels(workload):
        merged |= select_own(get_annotations(level))
    if len(merged) > len(BY_KEY) + len(declared):
        parse_values(merged, declared)  # rejects the unknown ones
    return merged


def _is_of_cronjob(job: Object) -> bool:
    """Whether a Job was made from a CronJob: by its controller, by kubectl or by a dashboard.

    Not all of them make the CronJob the controller, and some only leave the annotation.
    """
    owners = _get_owners(job)
    is_owned = any(owner.get("kind") == "CronJob" or _is_controller(owner) for owner in owners)
    return is_owned or INSTANTIATED in get_annotations(job)


def _get_owners(item: Object) -> list[Object]:
    owners = get_in(item, "metadata").get("ownerReferences")
    return [get_in(owner) for owner in owners] if isinstance(owners, list) else []


def _is_controller(owner: Object) -> bool:
    return owner.get("controller") is True
