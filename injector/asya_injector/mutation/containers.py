"""Select the containers of a pod: the target, which holds the handler, and its sidecars."""

from asya_injector.annotations.settings import Settings
from asya_injector.annotations.table import PREFIX
from asya_injector.errors import InjectionError, Reason, join, quote, suggest
from asya_injector.kube_objects import (
    Object,
    all_containers,
    find_by_name,
    get_annotations,
    get_items,
    get_mapping,
    get_name,
    get_string,
    get_strings,
)
from asya_injector.mutation.injection_record import InjectionRecord
from asya_injector.runtime_files import RUNTIME_VOLUME

KUBECTL_DEFAULT = "kubectl.kubernetes.io/default-container"
_OS_LABELS = ("kubernetes.io/os", "beta.kubernetes.io/os")


def find_injected(pod: Object, record: InjectionRecord | None) -> str:
    """The container that an earlier injection made the actor; empty if there is none.

    The record names it, even if another webhook has added containers since. Without a record, it is
    the container that mounts the runtime files.
    """
    containers = get_items(get_mapping(pod, "spec"), "containers")
    if record and find_by_name(containers, record.container):
        return record.container
    for container in containers:
        if find_by_name(get_items(container, "volumeMounts"), RUNTIME_VOLUME):
            return get_name(container)
    return ""


def find_target(pod: Object, settings: Settings, injected: str) -> tuple[Object, str]:
    """The container that becomes the actor, not a copy, and why.

    injected: the result of `find_injected`.
    """
    containers = get_items(get_mapping(pod, "spec"), "containers")
    if not containers:
        raise InjectionError(
            "spec.containers",
            "the pod has no containers",
            fix="add the container with the handler",
            reason=Reason.OBJECT_INVALID,
        )
    _reject_duplicate_names(pod)
    named = settings.annotated.get("container")
    if named:
        return _find(pod, PREFIX + "container", named), f"{PREFIX}container names it"
    found = injected and find_by_name(containers, injected)
    if found:
        return found, "it already has the runtime"
    named = get_annotations(pod).get(KUBECTL_DEFAULT)
    if named:
        return _find(pod, KUBECTL_DEFAULT, named), f"{KUBECTL_DEFAULT} names it"
    return containers[0], "it is the first container"


def find_sidecars(
    pod: Object, target: Object, settings: Settings, own: Object | None = None
) -> list[Object]:
    """The containers that share the socket with the target, not copies.

    Those named by an annotation must exist; those named by the chart's values need not. own: the
    sidecar of the cluster defaults, which need not be named.
    """
    present = {get_name(container): container for container in all_containers(pod)}
    candidates = _find_candidates(pod, target)
    by_name = {get_name(container): container for container in candidates}
    found = []
    for name in filter(None, settings["sidecars"].split(",")):
        sidecar = by_name.get(name)
        if sidecar is not None:
            found.append(sidecar)
        elif "sidecars" in settings.annotated:
            what = f"no container {quote(name)} beside {quote(get_name(target))} in this pod"
            if name == target.get("name"):
                what = f"{quote(name)} is the container with the handler"
            elif name in present:
                what = f"{quote(name)} is an init container, which ends before the pod serves"
            raise _not_found(PREFIX + "sidecars", what, name, candidates, Reason.SIDECAR_NOT_FOUND)
    if own is not None and not any(each is own for each in found):
        found.append(own)
    return found


def reject_windows(pod: Object) -> None:
    """Reject a pod for Windows nodes."""
    spec = get_mapping(pod, "spec")
    selector = get_mapping(spec, "nodeSelector")
    systems = [
        get_string(get_mapping(spec, "os"), "name"),
        *(get_string(selector, label) for label in _OS_LABELS),
    ]
    required = get_mapping(
        spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = get_items(required, "nodeSelectorTerms")
    if "windows" in systems or (terms and all(map(_requires_windows, terms))):
        raise InjectionError(
            PREFIX + "handler",
            "the pod requires Windows, but the runtime needs Unix sockets",
            fix="run it on Linux nodes, or remove the annotation",
            reason=Reason.WINDOWS_UNSUPPORTED,
        )


def _requires_windows(term: Object) -> bool:
    return any(
        get_string(rule, "key") in _OS_LABELS
        and get_string(rule, "operator") == "In"
        and get_strings(rule, "values") == ["windows"]
        for rule in get_items(term, "matchExpressions")
    )


def _find_candidates(pod: Object, target: Object) -> list[Object]:
    """The containers and native sidecars other than the target, in the order of the pod."""
    spec = get_mapping(pod, "spec")
    # Native sidecars are init containers with restartPolicy Always.
    native = [
        container
        for container in get_items(spec, "initContainers")
        if container.get("restartPolicy") == "Always"
    ]
    others = [each for each in get_items(spec, "containers") if each is not target]
    return native + others


def _reject_duplicate_names(pod: Object) -> None:
    seen = set()
    for name in map(get_name, all_containers(pod)):
        if name in seen:
            raise InjectionError(
                "spec.containers",
                f"two containers have the name {quote(name)}",
                fix="give each container a unique name",
                reason=Reason.OBJECT_INVALID,
            )
        seen.add(name)


def _find(pod: Object, key: str, name: str) -> Object:
    spec = get_mapping(pod, "spec")
    containers = get_items(spec, "containers")
    found = find_by_name(containers, name)
    if found:
        return found
    what = f"no container {quote(name)} in this pod"
    init = find_by_name(get_items(spec, "initContainers"), name)
    if init:
        what = f"{quote(name)} is an init container, which ends before the pod serves"
        if init.get("restartPolicy") == "Always":
            what = f"{quote(name)} is a native sidecar, which cannot hold the handler"
    raise _not_found(key, what, name, containers, Reason.CONTAINER_NOT_FOUND)


def _not_found(
    key: str, what: str, name: str, candidates: list[Object], reason: Reason
) -> InjectionError:
    others = [get_name(container) for container in candidates if get_name(container) != name]
    fallback = f"available: {join(others)}" if others else "the pod has no other container"
    return InjectionError(key, what, fix=suggest(name, others, fallback=fallback), reason=reason)
