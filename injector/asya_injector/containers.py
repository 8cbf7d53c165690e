"""Which containers of a pod are meant: the one with the handler, and the sidecars."""

from __future__ import annotations

from asya_injector.annotations import PREFIX
from asya_injector.pods import Object, mapping, name_of, named
from asya_injector.policy import RUNTIME_VOLUME, Wishes
from asya_injector.refusal import Reason, Refusal, quoted, suggestion

KUBECTL_DEFAULT = "kubectl.kubernetes.io/default-container"


def target(pod: Object, wishes: Wishes) -> Object:
    """The container that becomes the actor, as it stands in the pod."""
    containers = _containers(pod)
    wanted = wishes.annotated.get("container")
    if wanted:
        return _find(pod, PREFIX + "container", wanted)
    for container in containers:
        # The choice of an earlier call; a container that another webhook has put in front of it
        # since changes nothing.
        if named(container.get("volumeMounts"), RUNTIME_VOLUME):
            return container
    wanted = mapping(pod, "metadata", "annotations").get(KUBECTL_DEFAULT)
    return _find(pod, KUBECTL_DEFAULT, wanted) if wanted else containers[0]


def sidecars(pod: Object, model: Object, wishes: Wishes) -> list[Object]:
    """The containers that share the socket with the model's, as they stand in the pod.

    Names from the chart's values are taken where they occur; those of an annotation must exist.
    """
    # Init containers can be sidecars too: native ones, with restartPolicy Always.
    native = [
        container
        for container in mapping(pod, "spec").get("initContainers") or []
        if container.get("restartPolicy") == "Always"
    ]
    candidates = native + [item for item in _containers(pod) if item is not model]
    found = []
    for wanted in filter(None, wishes["sidecars"].split(",")):
        sidecar = named(candidates, wanted)
        if sidecar:
            found.append(sidecar)
        elif "sidecars" in wishes.annotated:
            what = f"no container {quoted(wanted)} beside {quoted(name_of(model))} in this pod"
            if wanted == model.get("name"):
                what = f"{quoted(wanted)} is the container with the handler"
            raise _not_found(
                PREFIX + "sidecars", what, wanted, candidates, Reason.SIDECAR_NOT_FOUND
            )
    return found


def refuse_windows(pod: Object) -> None:
    """The runtime needs Unix sockets."""
    spec = mapping(pod, "spec")
    systems = (
        mapping(spec, "os").get("name"),
        mapping(spec, "nodeSelector").get("kubernetes.io/os"),
    )
    if "windows" in systems:
        raise Refusal(
            PREFIX + "handler",
            "the pod is for Windows, the runtime needs Unix sockets",
            fix="run it on Linux nodes, or remove the annotation",
            reason=Reason.WINDOWS_UNSUPPORTED,
        )


def _containers(pod: Object) -> list[Object]:
    containers: list[Object] = mapping(pod, "spec").get("containers") or []
    if not containers:
        raise Refusal(
            "spec.containers",
            "the pod has no containers",
            fix="add the one with the handler's code",
            reason=Reason.OBJECT_INVALID,
        )
    return containers


def _find(pod: Object, key: str, wanted: str) -> Object:
    containers = _containers(pod)
    found = named(containers, wanted)
    if found:
        return found
    what = f"no container {quoted(wanted)} in this pod"
    if named(mapping(pod, "spec").get("initContainers"), wanted):
        what = f"{quoted(wanted)} is an init container, which ends before the pod serves"
    raise _not_found(key, what, wanted, containers, Reason.CONTAINER_NOT_FOUND)


def _not_found(
    key: str, what: str, wanted: str, candidates: list[Object], reason: Reason
) -> Refusal:
    names = [name_of(container) for container in candidates if name_of(container) != wanted]
    listed = f"there is {', '.join(map(quoted, names)) or 'no other container'}"
    fix = suggestion(wanted, names, fallback=listed)
    return Refusal(key, what, fix=fix, reason=reason)
