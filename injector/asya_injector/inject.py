"""The change itself: a pod goes in, a pod that is an actor comes out. No I/O, no kopf, no API.

Every piece is worked out from the pod as it is, never from a mark that says "done", so a second
call changes nothing, and a call after another webhook handles just what that one added.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

from asya_injector import containers, environment, start, volumes
from asya_injector.annotations import (
    INHERITED,
    INJECTED,
    RUNTIME_HASH_LABEL,
    is_switched_off,
    merged,
    own,
    values,
)
from asya_injector.pods import Object, mapping, name_of, template_of
from asya_injector.policy import Policy, Wishes
from asya_injector.refusal import quoted


@dataclass(frozen=True, kw_only=True)
class Injection:
    """What was done: the new pod, which container became the actor, how, and warnings."""

    pod: Object
    container: str
    mode: str
    warnings: tuple[str, ...]


def inject(pod: Object, policy: Policy) -> Injection | None:
    """The pod as an actor, or None where it did not ask to be one.

    pod: a Pod or a pod template as plain data; it is not changed, unknown fields are kept.
    Raises Refusal when it asks for what cannot be done.
    """
    asked = merged(mapping(pod, "metadata", "annotations"))
    if not asked or is_switched_off(asked):
        return None
    wishes = Wishes(values(asked), policy)
    pod = copy.deepcopy(pod)
    model = containers.target(pod, wishes)
    sidecars = containers.sidecars(pod, model, wishes)
    containers.refuse_windows(pod)
    path = environment.socket_path(model, wishes)
    volumes.mount_runtime(pod, model, wishes)
    shared = volumes.mount_socket(pod, model, sidecars, path)
    environment.tell_runtime(model, wishes, path=path, shared=shared)
    for sidecar in sidecars:
        environment.tell_sidecar(sidecar, path=path)
    mode = start.start(pod, model, wishes)
    warnings = start.add_probe(model, wishes)
    note = {"container": name_of(model), "mode": mode, "runtime": policy.runtime_hash}
    metadata = mapping(pod, "metadata")
    pod["metadata"] = {
        **metadata,
        "annotations": {
            **mapping(metadata, "annotations"),
            INJECTED: json.dumps(note, separators=(",", ":")),
        },
        "labels": {**mapping(metadata, "labels"), RUNTIME_HASH_LABEL: policy.runtime_hash},
    }
    return Injection(pod=pod, container=name_of(model), mode=mode, warnings=tuple(warnings))


def inherit(workload: Object) -> Object:
    """The workload with its own `asya.sh/` annotations noted in its template, for its pods.

    The note follows them, and goes when they go. Keys that the user wrote are never touched.
    """
    handed_down = own(mapping(workload, "metadata", "annotations"))
    result = copy.deepcopy(workload)
    template = template_of(result)
    metadata = mapping(template, "metadata")
    annotations = {
        key: value for key, value in mapping(metadata, "annotations").items() if key != INHERITED
    }
    if handed_down:
        annotations[INHERITED] = json.dumps(handed_down, sort_keys=True, separators=(",", ":"))
    if annotations != mapping(metadata, "annotations"):
        template["metadata"] = {**metadata, "annotations": annotations}
        if not annotations:
            del template["metadata"]["annotations"]
    return result


def overridden(workload: Object) -> tuple[str, ...]:
    """Warnings for annotations of the workload that its template says otherwise; that one wins."""
    template = mapping(template_of(workload), "metadata", "annotations")
    return tuple(
        f"{key}: {quoted(template[key])} on the pod template wins over {quoted(value)} here"
        for key, value in sorted(own(mapping(workload, "metadata", "annotations")).items())
        if key in template and template[key] != value
    )
