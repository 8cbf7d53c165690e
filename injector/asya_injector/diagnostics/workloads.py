"""Are the actors in order: pods and workloads that ask to be one, judged. No I/O in this module."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from asya_injector.annotations.parse import is_switched_off, merge, select_own
from asya_injector.annotations.table import INHERITED, PREFIX
from asya_injector.diagnostics.results import OK, WRONG, CheckResult
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import (
    Object,
    find_by_name,
    get_annotations,
    get_items,
    get_mapping,
    get_template,
)
from asya_injector.mutation.workload import find_skip_reason, propagate
from asya_injector.runtime_files import RUNTIME_HASH_LABEL, RUNTIME_VOLUME


def pods(
    found: Iterable[Object], *, current: Collection[str], disabled: Collection[str]
) -> Iterator[CheckResult]:
    """Findings about pods. current: hashes that are no old runtime; disabled: namespaces."""
    groups: dict[tuple[str, str, str], int] = {}
    good = 0
    for pod in found:
        state = _state({**pod, "apiVersion": "v1", "kind": "Pod"}, current, disabled)
        if state:
            key = (str(get_mapping(pod, "metadata").get("namespace")), _owner(pod), state)
            groups[key] = groups.get(key, 0) + 1
        elif state is not None:
            good += 1
    for (namespace, owner, state), count in sorted(groups.items()):
        yield CheckResult(
            "pods",
            WRONG,
            f"{namespace}: {count} of {owner} {state}",
            f"kubectl -n {namespace} {_again(owner)}; where its manifest was injected, inject anew",
        )
    if not groups:
        yield CheckResult("pods", OK, f"{good} actors, all with the current runtime")


def workloads(found: Iterable[Object], *, disabled: Collection[str]) -> Iterator[CheckResult]:
    """Findings about workloads whose own annotations have not reached their template.

    found: of all kinds, each with its `kind` and `apiVersion`.
    """
    count = wrong = 0
    for item in found:
        metadata = get_mapping(item, "metadata")
        if find_skip_reason(item, str(metadata.get("namespace")), disabled) or not select_own(
            get_annotations(item)
        ):
            continue
        count += 1
        if get_annotations(get_template(propagate(item))).get(INHERITED) == get_annotations(
            get_template(item)
        ).get(INHERITED):
            continue
        wrong += 1
        namespace, kind = metadata.get("namespace"), str(item["kind"]).lower()
        remedy = f"kubectl -n {namespace} rollout restart {kind}/{metadata.get('name')}"
        if kind in ("job", "cronjob", "replicaset"):
            remedy = "apply it anew" if kind == "cronjob" else "delete it and create it anew"
        yield CheckResult(
            "workloads",
            WRONG,
            f"{namespace}: {kind}/{metadata.get('name')} is annotated, its template does not know",
            remedy,
        )
    if not wrong:
        yield CheckResult("workloads", OK, f"{count} annotated, all known to their templates")


def _state(pod: Object, current: Collection[str], disabled: Collection[str]) -> str | None:
    """What is wrong with a pod; empty if nothing, None if it is no actor and need not be."""
    metadata = get_mapping(pod, "metadata")
    phase = get_mapping(pod, "status").get("phase")
    if phase in ("Succeeded", "Failed") or metadata.get("deletionTimestamp"):
        return None
    if find_skip_reason(pod, str(metadata.get("namespace")), disabled):
        return None
    try:
        asked = merge(get_annotations(pod))
        if not asked or is_switched_off(asked):
            return None
    except InjectionError:
        asked = {PREFIX: ""}
    version = get_mapping(metadata, "labels").get(RUNTIME_HASH_LABEL)
    if (
        not find_by_name(get_items(get_mapping(pod, "spec"), "volumes"), RUNTIME_VOLUME)
        or not version
    ):
        return "runs without the runtime, though annotated"
    if version not in current:
        return f"runs the old runtime {version}"
    return ""


def _owner(pod: Object) -> str:
    """What to restart, as `kind/name`: the Deployment where a ReplicaSet is one's."""
    metadata = get_mapping(pod, "metadata")
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("controller"):
            kind, name = str(owner.get("kind")), str(owner.get("name"))
            suffix = get_mapping(metadata, "labels").get("pod-template-hash")
            if kind == "ReplicaSet" and suffix and name.endswith(f"-{suffix}"):
                return f"deployment/{name.removesuffix(f'-{suffix}')}"
            return f"{kind.lower()}/{name}"
    return f"pod/{metadata.get('name')}"


def _again(owner: str) -> str:
    if owner.startswith(("deployment/", "statefulset/", "daemonset/")):
        return f"rollout restart {owner}"
    return f"delete {owner}, and create it anew" if owner.startswith("pod/") else f"replace {owner}"
