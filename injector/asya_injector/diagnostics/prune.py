"""Which copies of the runtime nobody needs any more, and their removal.

The order of looks matters: ConfigMaps first, then pods, so that a copy made in between is not on
the list; and the pods of a namespace once more right before something of it is deleted. A pod is
let in with the runtime of the injector that lets it in, so the runtime of no injector that is still
there is ever taken.
"""

from __future__ import annotations

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from asya_injector.kube_client import ApiError, Cluster
from asya_injector.kube_objects import Object, get_mapping
from asya_injector.mutation.workload import is_runtime_configmap
from asya_injector.runtime_files import (
    CHART,
    CHART_SHA256,
    FROM_MANIFEST,
    INJECTOR,
    MANAGED_BY,
    RUNTIME_HASH_LABEL,
)

_CHECKSUM = "checksum/runtime"

# Names of pods by the `namespace/name` of a ConfigMap that they refer to.
References = dict[str, set[str]]


@dataclass(frozen=True)
class PruneDecision:
    """A copy, whether it goes, and if not, why it stays. `failed` tells a removal that failed."""

    copy: Object
    why: str = ""
    failed: bool = False

    @property
    def name(self) -> str:
        """Namespace and name."""
        metadata = get_mapping(self.copy, "metadata")
        return f"{metadata['namespace']}/{metadata['name']}"

    @property
    def goes(self) -> bool:
        """Whether nothing speaks for it."""
        return not self.why


def prune(
    cluster: Cluster,
    *,
    older_than: dt.timedelta,
    dry_run: bool,
    namespace: str = "",
    keep: Iterable[str] = (),
) -> Iterator[PruneDecision]:
    """Remove what nobody needs; the verdicts on all copies, as they are carried out.

    keep: hashes that stay, besides what is found to be current. Raises ApiError where something
    cannot be looked at; then nothing was removed.
    """
    listed = cluster.list(
        _path("configmaps", namespace), labels=_selector(MANAGED_BY), metadata_only=True
    )
    # Items of lists come without their kind.
    copies = {item["metadata"]["uid"]: {**item, "kind": "ConfigMap"} for item in listed}
    current = set(keep) | _published(cluster, needed=not set(keep))
    references: References = defaultdict(set)
    for pod in cluster.list(_path("pods", namespace)):
        _note(pod, references)
        current |= _runtime_of_injector(pod)
    again: dict[str, References] = {}
    for copy in filter(is_runtime_configmap, copies.values()):
        verdict = decide(copy, references, current, now=cluster.now, older_than=older_than)
        if verdict.goes and not dry_run:
            where = get_mapping(copy, "metadata")["namespace"]
            if where not in again:
                again[where] = defaultdict(set)
                for pod in cluster.list(_path("pods", where)):
                    _note(pod, again[where])
                for pod in cluster.list(_path("pods", namespace), labels=_selector(INJECTOR)):
                    current |= _runtime_of_injector(pod)
            verdict = decide(copy, again[where], current, now=cluster.now, older_than=older_than)
            if verdict.goes:
                verdict = _removed(cluster, verdict)
        yield verdict


def decide(
    copy: Object,
    references: References,
    current: set[str],
    *,
    now: dt.datetime,
    older_than: dt.timedelta,
) -> PruneDecision:
    """Whether a copy stays, by what was seen."""
    verdict = PruneDecision(copy)
    metadata = get_mapping(copy, "metadata")
    pods = sorted(references.get(verdict.name, ()))
    if pods:
        others = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
        return replace(verdict, why=f"pod {pods[0]}{others} refers to it")
    version = str(metadata["name"]).rpartition("-")[2]
    if version in current or get_mapping(metadata, "labels").get(RUNTIME_HASH_LABEL) in current:
        return replace(verdict, why="it is current")
    if FROM_MANIFEST.items() <= get_mapping(metadata, "labels").items():
        return replace(verdict, why="manifests brought it, and it goes with them")
    created = dt.datetime.fromisoformat(str(metadata["creationTimestamp"]))
    if now - created < older_than:
        return replace(verdict, why="it is young: a pod may be on its way")
    return verdict


def find_references(pod: Object) -> set[str]:
    """Names of the ConfigMaps that a pod refers to, in any way."""
    found: set[str | None] = set()
    spec = get_mapping(pod, "spec")
    for volume in spec.get("volumes") or []:
        found.add(get_mapping(volume, "configMap").get("name"))
        for source in get_mapping(volume, "projected").get("sources") or []:
            found.add(get_mapping(source, "configMap").get("name"))
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in spec.get(kind) or []:
            for source in container.get("envFrom") or []:
                found.add(get_mapping(source, "configMapRef").get("name"))
            for variable in container.get("env") or []:
                found.add(get_mapping(variable, "valueFrom", "configMapKeyRef").get("name"))
    return {name for name in found if name}


def _runtime_of_injector(pod: Object) -> set[str]:
    """The hash that an injector's pod gives to others; nothing for any other pod."""
    checksum = get_mapping(pod, "metadata", "annotations").get(_CHECKSUM)
    is_injector = INJECTOR.items() <= get_mapping(pod, "metadata", "labels").items()
    return {str(checksum)[:10]} if checksum and is_injector else set()


def _note(pod: Object, references: References) -> None:
    metadata = get_mapping(pod, "metadata")
    for name in find_references(pod):
        references[f"{metadata['namespace']}/{name}"].add(str(metadata["name"]))


def _published(cluster: Cluster, *, needed: bool) -> set[str]:
    """Hashes of the versions that charts in the cluster hold."""
    try:
        charts = list(
            cluster.list("/api/v1/configmaps", labels=_selector(CHART), metadata_only=True)
        )
    except ApiError as error:
        if not needed:
            return set()
        message = f"which runtime is current cannot be seen ({error}); say it by --keep HASH"
        raise ApiError(error.status, message) from None
    found = (get_mapping(item, "metadata", "annotations").get(CHART_SHA256) for item in charts)
    return {str(sha256)[:10] for sha256 in found if sha256}


def _removed(cluster: Cluster, verdict: PruneDecision) -> PruneDecision:
    metadata = get_mapping(verdict.copy, "metadata")
    try:
        cluster.delete(
            f"{_path('configmaps', metadata['namespace'])}/{metadata['name']}", verdict.copy
        )
    except ApiError as error:
        if error.status == 409:
            return replace(verdict, why="it has changed meanwhile")
        if error.status != 404:
            return replace(verdict, why=str(error), failed=True)
    return verdict


def _path(resource: str, namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/{resource}" if namespace else f"/api/v1/{resource}"


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())
