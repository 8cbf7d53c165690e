"""Which containers of a pod are meant: the one with the handler, and the sidecars."""

from __future__ import annotations

from asya_injector import kube_objects
from asya_injector.annotations.parse import PREFIX
from asya_injector.annotations.settings import RUNTIME_VOLUME, Wishes
from asya_injector.errors import Reason, Refusal, listed, quoted, suggestion
from asya_injector.kube_objects import (
    Object,
    everyone,
    items,
    mapping,
    name_of,
    named,
    text,
    words,
)

KUBECTL_DEFAULT = "kubectl.kubernetes.io/default-container"
_OS = ("kubernetes.io/os", "beta.kubernetes.io/os")


def with_runtime(pod: Object) -> str:
    """The container that has the runtime's files; else empty."""
    for container in items(mapping(pod, "spec"), "containers"):
        if named(items(container, "volumeMounts"), RUNTIME_VOLUME):
            return name_of(container)
    return ""


def target(pod: Object, wishes: Wishes, earlier: str) -> Object:
    """The container that becomes the actor, as it stands in the pod."""
    containers = items(mapping(pod, "spec"), "containers")
    if not containers:
        raise Refusal(
            "spec.containers",
            "the pod has no containers",
            fix="add the one with the handler's code",
            reason=Reason.OBJECT_INVALID,
        )
    _refuse_equal_names(pod)
    wanted = wishes.annotated.get("container")
    if wanted:
        return _find(pod, PREFIX + "container", wanted)
    found = earlier and named(containers, earlier)
    if found:
        return found
    wanted = kube_objects.annotations_of(pod).get(KUBECTL_DEFAULT)
    return _find(pod, KUBECTL_DEFAULT, wanted) if wanted else containers[0]


def sidecars(pod: Object, model: Object, wishes: Wishes) -> list[Object]:
    """The containers that share the socket with the model's, as they stand in the pod.

    Names from the chart's values are taken where they occur; those of an annotation must exist.
    """
    # Init containers can be sidecars too: native ones, with restartPolicy Always.
    candidates = [
        container
        for container in everyone(pod)
        if container is not model and not _only_initialises(pod, container)
    ]
    found = []
    for wanted in filter(None, wishes["sidecars"].split(",")):
        sidecar = named(candidates, wanted)
        if sidecar:
            found.append(sidecar)
        elif "sidecars" in wishes.annotated:
            what = f"no container {quoted(wanted)} beside {quoted(name_of(model))} in this pod"
            if wanted == model.get("name"):
                what = f"{quoted(wanted)} is the container with the handler"
            elif named(everyone(pod), wanted):
                what = f"{quoted(wanted)} is an init container, which ends before the pod serves"
            raise _not_found(
                PREFIX + "sidecars", what, wanted, candidates, Reason.SIDECAR_NOT_FOUND
            )
    return found


def refuse_windows(pod: Object) -> None:
    """The runtime needs Unix sockets."""
    spec = mapping(pod, "spec")
    selector = mapping(spec, "nodeSelector")
    systems = [text(mapping(spec, "os"), "name"), *(text(selector, label) for label in _OS)]
    required = mapping(
        spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = items(required, "nodeSelectorTerms")
    if "windows" in systems or (terms and all(map(_wants_windows, terms))):
        raise Refusal(
            PREFIX + "handler",
            "the pod is for Windows, the runtime needs Unix sockets",
            fix="run it on Linux nodes, or remove the annotation",
            reason=Reason.WINDOWS_UNSUPPORTED,
        )


def _wants_windows(term: Object) -> bool:
    return any(
        text(rule, "key") in _OS
        and text(rule, "operator") == "In"
        and words(rule, "values") == ["windows"]
        for rule in items(term, "matchExpressions")
    )


def _only_initialises(pod: Object, container: Object) -> bool:
    inits = items(mapping(pod, "spec"), "initContainers")
    return container.get("restartPolicy") != "Always" and any(item is container for item in inits)


def _refuse_equal_names(pod: Object) -> None:
    seen = set()
    for name in map(name_of, everyone(pod)):
        if name in seen:
            raise Refusal(
                "spec.containers",
                f"two containers have the name {quoted(name)}",
                fix="give each a name of its own",
                reason=Reason.OBJECT_INVALID,
            )
        seen.add(name)


def _find(pod: Object, key: str, wanted: str) -> Object:
    containers = items(mapping(pod, "spec"), "containers")
    found = named(containers, wanted)
    if found:
        return found
    what = f"no container {quoted(wanted)} in this pod"
    initial = named(items(mapping(pod, "spec"), "initContainers"), wanted)
    if initial:
        what = f"{quoted(wanted)} is an init container, which ends before the pod serves"
        if initial.get("restartPolicy") == "Always":
            what = f"{quoted(wanted)} is a native sidecar, which cannot hold the handler"
    raise _not_found(key, what, wanted, containers, Reason.CONTAINER_NOT_FOUND)


def _not_found(
    key: str, what: str, wanted: str, candidates: list[Object], reason: Reason
) -> Refusal:
    names = [name_of(container) for container in candidates if name_of(container) != wanted]
    fallback = f"there is {listed(names) or 'no other container'}"
    fix = suggestion(wanted, names, fallback=fallback)
    return Refusal(key, what, fix=fix, reason=reason)
