"""Which containers of a pod are meant: the one with the handler, and the sidecars."""

from __future__ import annotations

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
from asya_injector.runtime_files import RUNTIME_VOLUME

KUBECTL_DEFAULT = "kubectl.kubernetes.io/default-container"
_OS = ("kubernetes.io/os", "beta.kubernetes.io/os")


def find_with_runtime(pod: Object) -> str:
    """The container that has the runtime's files; else empty."""
    for container in get_items(get_mapping(pod, "spec"), "containers"):
        if find_by_name(get_items(container, "volumeMounts"), RUNTIME_VOLUME):
            return get_name(container)
    return ""


def find_target(pod: Object, wishes: Settings, earlier: str) -> Object:
    """The container that becomes the actor, as it stands in the pod."""
    containers = get_items(get_mapping(pod, "spec"), "containers")
    if not containers:
        raise InjectionError(
            "spec.containers",
            "the pod has no containers",
            fix="add the one with the handler's code",
            reason=Reason.OBJECT_INVALID,
        )
    _refuse_equal_names(pod)
    wanted = wishes.annotated.get("container")
    if wanted:
        return _find(pod, PREFIX + "container", wanted)
    found = earlier and find_by_name(containers, earlier)
    if found:
        return found
    wanted = get_annotations(pod).get(KUBECTL_DEFAULT)
    return _find(pod, KUBECTL_DEFAULT, wanted) if wanted else containers[0]


def find_sidecars(pod: Object, model: Object, wishes: Settings) -> list[Object]:
    """The containers that share the socket with the model's, as they stand in the pod.

    Names from the chart's values are taken where they occur; those of an annotation must exist.
    """
    # Init containers can be sidecars too: native ones, with restartPolicy Always.
    candidates = [
        container
        for container in all_containers(pod)
        if container is not model and not _only_initialises(pod, container)
    ]
    found = []
    for wanted in filter(None, wishes["sidecars"].split(",")):
        sidecar = find_by_name(candidates, wanted)
        if sidecar:
            found.append(sidecar)
        elif "sidecars" in wishes.annotated:
            what = f"no container {quote(wanted)} beside {quote(get_name(model))} in this pod"
            if wanted == model.get("name"):
                what = f"{quote(wanted)} is the container with the handler"
            elif find_by_name(all_containers(pod), wanted):
                what = f"{quote(wanted)} is an init container, which ends before the pod serves"
            raise _not_found(
                PREFIX + "sidecars", what, wanted, candidates, Reason.SIDECAR_NOT_FOUND
            )
    return found


def reject_windows(pod: Object) -> None:
    """The runtime needs Unix sockets."""
    spec = get_mapping(pod, "spec")
    selector = get_mapping(spec, "nodeSelector")
    systems = [
        get_string(get_mapping(spec, "os"), "name"),
        *(get_string(selector, label) for label in _OS),
    ]
    required = get_mapping(
        spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = get_items(required, "nodeSelectorTerms")
    if "windows" in systems or (terms and all(map(_wants_windows, terms))):
        raise InjectionError(
            PREFIX + "handler",
            "the pod is for Windows, the runtime needs Unix sockets",
            fix="run it on Linux nodes, or remove the annotation",
            reason=Reason.WINDOWS_UNSUPPORTED,
        )


def _wants_windows(term: Object) -> bool:
    return any(
        get_string(rule, "key") in _OS
        and get_string(rule, "operator") == "In"
        and get_strings(rule, "values") == ["windows"]
        for rule in get_items(term, "matchExpressions")
    )


def _only_initialises(pod: Object, container: Object) -> bool:
    inits = get_items(get_mapping(pod, "spec"), "initContainers")
    return container.get("restartPolicy") != "Always" and any(item is container for item in inits)


def _refuse_equal_names(pod: Object) -> None:
    seen = set()
    for name in map(get_name, all_containers(pod)):
        if name in seen:
            raise InjectionError(
                "spec.containers",
                f"two containers have the name {quote(name)}",
                fix="give each a name of its own",
                reason=Reason.OBJECT_INVALID,
            )
        seen.add(name)


def _find(pod: Object, key: str, wanted: str) -> Object:
    containers = get_items(get_mapping(pod, "spec"), "containers")
    found = find_by_name(containers, wanted)
    if found:
        return found
    what = f"no container {quote(wanted)} in this pod"
    initial = find_by_name(get_items(get_mapping(pod, "spec"), "initContainers"), wanted)
    if initial:
        what = f"{quote(wanted)} is an init container, which ends before the pod serves"
        if initial.get("restartPolicy") == "Always":
            what = f"{quote(wanted)} is a native sidecar, which cannot hold the handler"
    raise _not_found(key, what, wanted, containers, Reason.CONTAINER_NOT_FOUND)


def _not_found(
    key: str, what: str, wanted: str, candidates: list[Object], reason: Reason
) -> InjectionError:
    names = [get_name(container) for container in candidates if get_name(container) != wanted]
    fallback = f"there is {join(names) or 'no other container'}"
    fix = suggest(wanted, names, fallback=fallback)
    return InjectionError(key, what, fix=fix, reason=reason)
