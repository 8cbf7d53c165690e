"""The change itself: a pod goes in, a pod that is an actor comes out. No I/O, no kopf, no API.

Every piece is worked out from the pod as it is, never from a mark that says "done", so a second
call changes nothing, and a call after another webhook handles just what that one added. A copy of a
pod that was an actor by other wishes is first given back its original, as far as its mark knows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from asya_injector import kube_objects
from asya_injector.annotations.parse import (
    BY_KEY,
    INHERITED,
    INJECTED,
    RUNTIME_HASH_LABEL,
    is_switched_off,
    merged,
    own,
    values,
)
from asya_injector.annotations.settings import Policy, Wishes
from asya_injector.errors import quoted
from asya_injector.kube_objects import (
    Object,
    mapping,
    name_of,
    opened,
    template_of,
    with_template,
)
from asya_injector.mutation import containers, environment, ownership, startup, volumes
from asya_injector.mutation.marks import Mark, Pieces, survey, without

# The API server's image of a static pod, which the kubelet runs from its own file.
MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What was done: the new pod, which container became the actor, how, and warnings."""

    pod: Object
    container: str
    mode: str
    warnings: tuple[str, ...]


def inject(pod: Object, policy: Policy) -> Injection | None:
    """The pod as an actor, or None where it did not ask to be one.

    pod: a Pod or a pod template as plain data; it is not changed, and shares with the result what
    is the same in both. Unknown fields are kept.
    Raises Refusal when it asks for what cannot be done.
    """
    annotations = kube_objects.annotations_of(pod)
    asked = merged(annotations)
    if not asked or is_switched_off(asked) or MIRROR in annotations:
        return None
    wishes = Wishes(values(asked), policy)
    mark = Mark.read(annotations)
    earlier = earlier_choice(pod, mark)
    if mark and mark.asked == wishes.digest:
        result = _inject(pod, wishes, earlier, mark.added, mark.volumes)
        if (result.container, result.mode) == (mark.container, mark.mode):
            return result
    # A copy of a pod that was an actor by other wishes: what those left is in the way of these.
    return _inject(without(pod, mark) if mark else pod, wishes, earlier)


def earlier_choice(pod: Object, mark: Mark | None) -> str:
    """The container that an earlier call made the actor; empty where there was none.

    Its mark says which, whatever another webhook has put in front of it since; where there is no
    mark, it is the one with the runtime's files.
    """
    if mark and kube_objects.named(
        kube_objects.items(kube_objects.mapping(pod, "spec"), "containers"), mark.container
    ):
        return mark.container
    return containers.with_runtime(pod)


def _inject(
    given: Object,
    wishes: Wishes,
    earlier: str,
    added: Pieces | None = None,
    added_volumes: Sequence[str] = (),
) -> Injection:
    """Add what is missing. added, added_volumes: what an earlier call with these wishes did."""
    pod = opened(given)
    model = containers.target(pod, wishes, earlier)
    sidecars = containers.sidecars(pod, model, wishes)
    containers.refuse_windows(pod)
    names = {name_of(container) for container in (model, *sidecars)}
    before = survey(given, names, name_of(model))
    path = environment.socket_path(model, wishes)
    volumes.mount_runtime(pod, model, wishes)
    shared = volumes.mount_socket(pod, model, sidecars, path)
    environment.tell_runtime(model, wishes, path=path, shared=shared)
    for sidecar in sidecars:
        environment.tell_sidecar(sidecar, path=path)
    mode = startup.start(pod, model, wishes)
    warnings = startup.add_probe(model, wishes)
    mark = Mark(
        container=name_of(model),
        mode=mode,
        runtime=wishes.policy.runtime_hash,
        asked=wishes.digest,
        added=_new(before, survey(pod, names, name_of(model)), added or {}),
        volumes=_new_names(ownership.volumes(given), ownership.volumes(pod), added_volumes),
    )
    metadata = mapping(pod, "metadata")
    label = {RUNTIME_HASH_LABEL: wishes.policy.runtime_hash}
    pod["metadata"] = {
        **metadata,
        "annotations": {**mapping(metadata, "annotations"), INJECTED: mark.text},
        "labels": {**mapping(metadata, "labels"), **label},
    }
    return Injection(pod=pod, container=mark.container, mode=mode, warnings=tuple(warnings))


def _new(before: Pieces, after: Pieces, added: Pieces) -> dict[str, list[str]]:
    """The pieces by container that are ours: new ones, and those of an earlier call."""
    news = {
        name: _new_names(before.get(name, ()), found, added.get(name, ()))
        for name, found in after.items()
    }
    return {name: found for name, found in news.items() if found}


def _new_names(before: Sequence[str], after: Sequence[str], added: Sequence[str]) -> list[str]:
    return [name for name in after if name not in before or name in added]


def inherit(workload: Object) -> Object:
    """The workload with its own `asya.sh/` annotations noted in its template, for its pods.

    The note follows them, and goes when they go; in a Job that a CronJob made it is the CronJob's,
    and stays. Keys that the user wrote are never touched.
    The workload given is not changed; the result shares with it what is the same in both.
    """
    handed_down = own(kube_objects.annotations_of(workload))
    template = template_of(workload)
    present = kube_objects.annotations_of(template)
    annotations = {key: value for key, value in present.items() if key != INHERITED}
    if handed_down:
        annotations[INHERITED] = json.dumps(handed_down, sort_keys=True, separators=(",", ":"))
    elif _is_job_of_a_controller(workload):
        annotations = present
    if annotations == present or not template:
        return with_template(workload, dict(template)) if template else workload
    metadata = dict(mapping(template, "metadata"))
    kube_objects.put(metadata, "annotations", annotations)
    return with_template(workload, {**template, "metadata": metadata})


def _is_job_of_a_controller(workload: Object) -> bool:
    owners = mapping(workload, "metadata").get("ownerReferences")
    return workload.get("kind") == "Job" and any(
        isinstance(owner, dict) and owner.get("controller") is True
        for owner in (owners if isinstance(owners, list) else [])
    )


def overridden(workload: Object) -> tuple[str, ...]:
    """Warnings for annotations of the workload that its template says otherwise; that one wins."""
    said = own(kube_objects.annotations_of(workload))
    template = kube_objects.annotations_of(template_of(workload))
    return tuple(
        f"{key}: {quoted(template[key])} on the pod template wins over {quoted(value)} here"
        for key, value in sorted(said.items())
        if key in BY_KEY and key in template and template[key] != value
    )
