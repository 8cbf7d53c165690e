"""Checks of annotated pods and workloads, from objects of the cluster. This module does no I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from asya_injector.annotations.parse import is_switched_off, merge, select_own
from asya_injector.annotations.table import INHERITED
from asya_injector.diagnostics.results import Finding
from asya_injector.diagnostics.sidecar import ChartSidecar
from asya_injector.errors import InjectionError
from asya_injector.kube_objects import (
    POD,
    Object,
    find_by_name,
    get_annotations,
    get_items,
    get_levels,
    get_mapping,
    get_template,
)
from asya_injector.mutation.workload import find_skip_reason, propagate
from asya_injector.runtime_files import RUNTIME_HASH_LABEL, RUNTIME_VOLUME


def check_pods(
    pods: Iterable[Object],
    *,
    current: Collection[str],
    sidecar: ChartSidecar,
    disabled: Collection[str],
    knows_image: bool = True,
) -> Iterator[Finding]:
    """Check that annotated pods have the runtime and the sidecar; report problems by owner.

    current: hashes of the current runtime. sidecar: of the chart. disabled: namespaces where
        injection is disabled.
    knows_image: `current` tells whether an image is the current one; without an injector, only the
        manifests do.
    """
    problems: Counter[tuple[str, str, str]] = Counter()
    healthy = 0
    for pod in pods:
        if not _should_be_actor(pod, disabled):
            continue
        problem = _find_problem(pod, current, knows_image=knows_image)
        problem = problem or sidecar.find_problem(pod)
        if problem:
            namespace = str(get_mapping(pod, "metadata").get("namespace"))
            problems[namespace, _find_owner(pod), problem] += 1
        else:
            healthy += 1
    for (namespace, owner, problem), count in sorted(problems.items()):
        restart = f"kubectl -n {namespace} {_choose_restart(owner)}"
        yield Finding(
            f"{namespace}: {owner} {problem} ({count} pod{'s' * (count > 1)})",
            f"{restart}; if the manifest was injected, inject it again",
        )
    if not problems:
        what = "runtime and sidecar" if sidecar.template else "runtime"
        yield Finding(f"actors with the current {what}: {healthy}")


def makes_actors(item: Object, disabled: Collection[str]) -> bool:
    """Whether a workload or its pod template is annotated, and not excluded.

    item: with its `kind` and `apiVersion`. disabled: namespaces where injection is disabled.
    """
    levels = [*get_levels(item), get_template(item)]
    if not any(select_own(get_annotations(level)) for level in levels):
        return False
    return not find_skip_reason(item, str(get_mapping(item, "metadata").get("namespace")), disabled)


def check_workloads(
    items: Iterable[Object], declared: Collection[str] = frozenset()
) -> Iterator[Finding]:
    """Check that annotations of workloads are propagated to their pod templates.

    items: those that make actors. declared: keys that the chart's sidecar declares.
    """
    healthy = failed = 0
    for item in items:
        metadata = get_mapping(item, "metadata")
        namespace = str(metadata.get("namespace"))
        if not select_own(get_annotations(item)):
            continue
        if _read_propagated(propagate(item, declared)) == _read_propagated(item):
            healthy += 1
            continue
        failed += 1
        workload = f"{str(item['kind']).lower()}/{metadata.get('name')}"
        fixes = {"CronJob": "apply it again"} | dict.fromkeys(
            ("Job", "ReplicaSet"), "delete it and create it again"
        )
        yield Finding(
            f"{namespace}: annotations of {workload} are not propagated to its pod template",
            fixes.get(item["kind"], f"kubectl -n {namespace} rollout restart {workload}"),
        )
    if not failed:
        yield Finding(f"workloads with propagated annotations: {healthy}")


def _should_be_actor(pod: Object, disabled: Collection[str]) -> bool:
    """Whether a pod is annotated, still there, and not excluded."""
    metadata = get_mapping(pod, "metadata")
    phase = get_mapping(pod, "status").get("phase")
    if phase in ("Succeeded", "Failed") or metadata.get("deletionTimestamp"):
        return False
    item = {**pod, "apiVersion": POD.api_version, "kind": POD.name}  # lists omit both
    if find_skip_reason(item, str(metadata.get("namespace")), disabled):
        return False
    try:
        annotations = merge(get_annotations(pod))
        return bool(annotations) and not is_switched_off(annotations)
    except InjectionError:
        return True


def _find_problem(pod: Object, current: Collection[str], *, knows_image: bool) -> str:
    version = get_mapping(pod, "metadata", "labels").get(RUNTIME_HASH_LABEL)
    volume = find_by_name(get_items(get_mapping(pod, "spec"), "volumes"), RUNTIME_VOLUME)
    if not version or not volume:
        return "is annotated, but runs without the runtime"
    if "image" in volume and not knows_image:
        return ""
    return "" if version in current else f"runs the old runtime {version}"


def _find_owner(pod: Object) -> str:
    """The `kind/name` of what to restart; for a ReplicaSet of a Deployment, the Deployment."""
    metadata = get_mapping(pod, "metadata")
    for owner in metadata.get("ownerReferences") or []:
        if owner.get("controller"):
            kind, name = str(owner.get("kind")), str(owner.get("name"))
            suffix = get_mapping(metadata, "labels").get("pod-template-hash")
            if kind == "ReplicaSet" and suffix and name.endswith(f"-{suffix}"):
                return f"deployment/{name.removesuffix(f'-{suffix}')}"
            return f"{kind.lower()}/{name}"
    return f"pod/{metadata.get('name')}"


def _choose_restart(owner: str) -> str:
    if owner.startswith(("deployment/", "statefulset/", "daemonset/")):
        return f"rollout restart {owner}"
    if owner.startswith("pod/"):
        return f"delete {owner}, and create it again"
    return f"replace {owner}"


def _read_propagated(workload: Object) -> str | None:
    return get_annotations(get_template(workload)).get(INHERITED)
