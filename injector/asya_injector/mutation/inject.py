"""The change itself: a pod goes in, a pod that is an actor comes out. No I/O, no kopf, no API.

Every piece is worked out from the pod as it is, never from a mark that says "done", so a second
call changes nothing, and a call after another webhook handles just what that one added. A copy of a
pod that was an actor by other wishes is first given back its original, as far as its mark knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from asya_injector.annotations.parse import is_switched_off, merge, parse_values
from asya_injector.annotations.settings import ClusterDefaults, Settings
from asya_injector.annotations.table import INJECTED
from asya_injector.kube_objects import (
    Object,
    find_by_name,
    get_annotations,
    get_items,
    get_mapping,
    get_name,
    shallow_copy,
)
from asya_injector.mutation import containers, environment, ownership, startup, volumes
from asya_injector.mutation.ownership import (
    InjectionRecord,
    OwnedByContainer,
    list_owned_by_container,
    remove_injection,
)
from asya_injector.runtime_files import RUNTIME_HASH_LABEL

# The API server's image of a static pod, which the kubelet runs from its own file.
MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What was done: the new pod, which container became the actor, how, and warnings."""

    pod: Object
    container: str
    mode: str
    warnings: tuple[str, ...]


def inject(pod: Object, policy: ClusterDefaults) -> Injection | None:
    """The pod as an actor, or None where it did not ask to be one.

    pod: a Pod or a pod template as plain data; it is not changed, and shares with the result what
    is the same in both. Unknown fields are kept.
    Raises Refusal when it asks for what cannot be done.
    """
    annotations = get_annotations(pod)
    asked = merge(annotations)
    if not asked or is_switched_off(asked) or MIRROR in annotations:
        return None
    wishes = Settings(parse_values(asked), policy)
    mark = InjectionRecord.read(annotations)
    earlier = find_injected_container(pod, mark)
    if mark and mark.asked == wishes.digest:
        result = _inject(pod, wishes, earlier, mark.added, mark.volumes)
        if (result.container, result.mode) == (mark.container, mark.mode):
            return result
    # A copy of a pod that was an actor by other wishes: what those left is in the way of these.
    return _inject(remove_injection(pod, mark) if mark else pod, wishes, earlier)


def find_injected_container(pod: Object, mark: InjectionRecord | None) -> str:
    """The container that an earlier call made the actor; empty where there was none.

    Its mark says which, whatever another webhook has put in front of it since; where there is no
    mark, it is the one with the runtime's files.
    """
    if mark and find_by_name(get_items(get_mapping(pod, "spec"), "containers"), mark.container):
        return mark.container
    return containers.find_with_runtime(pod)


def _inject(
    given: Object,
    wishes: Settings,
    earlier: str,
    added: OwnedByContainer | None = None,
    added_volumes: Sequence[str] = (),
) -> Injection:
    """Add what is missing. added, added_volumes: what an earlier call with these wishes did."""
    pod = shallow_copy(given)
    model = containers.find_target(pod, wishes, earlier)
    sidecars = containers.find_sidecars(pod, model, wishes)
    containers.reject_windows(pod)
    names = {get_name(container) for container in (model, *sidecars)}
    before = list_owned_by_container(given, names, get_name(model))
    path = environment.resolve_socket_path(model, wishes)
    volumes.mount_runtime(pod, model, wishes)
    shared = volumes.mount_socket(pod, model, sidecars, path)
    environment.set_runtime_env(model, wishes, path=path, shared=shared)
    for sidecar in sidecars:
        environment.set_sidecar_env(sidecar, path=path)
    mode = startup.configure_startup(pod, model, wishes)
    warnings = startup.add_probe(model, wishes)
    mark = InjectionRecord(
        container=get_name(model),
        mode=mode,
        runtime=wishes.policy.runtime_hash,
        asked=wishes.digest,
        added=_new(before, list_owned_by_container(pod, names, get_name(model)), added or {}),
        volumes=_new_names(
            ownership.list_owned_volumes(given), ownership.list_owned_volumes(pod), added_volumes
        ),
    )
    metadata = get_mapping(pod, "metadata")
    label = {RUNTIME_HASH_LABEL: wishes.policy.runtime_hash}
    pod["metadata"] = {
        **metadata,
        "annotations": {**get_mapping(metadata, "annotations"), INJECTED: mark.text},
        "labels": {**get_mapping(metadata, "labels"), **label},
    }
    return Injection(pod=pod, container=mark.container, mode=mode, warnings=tuple(warnings))


def _new(
    before: OwnedByContainer, after: OwnedByContainer, added: OwnedByContainer
) -> dict[str, list[str]]:
    """The pieces by container that are ours: new ones, and those of an earlier call."""
    news = {
        name: _new_names(before.get(name, ()), found, added.get(name, ()))
        for name, found in after.items()
    }
    return {name: found for name, found in news.items() if found}


def _new_names(before: Sequence[str], after: Sequence[str], added: Sequence[str]) -> list[str]:
    return [name for name in after if name not in before or name in added]
