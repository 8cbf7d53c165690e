"""Delete runtime ConfigMaps that no pod uses.

The order of reading prevents races. ConfigMaps are listed before pods, so that one created in
between is not on the list. Before the first deletion in a namespace, its pods are listed again.
The runtime of a running injector is always kept, because it may admit a pod at any time.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from asya_injector.diagnostics.variables import read_variables
from asya_injector.kube_client import ApiException, Cluster, describe_error
from asya_injector.kube_objects import Object, get_mapping
from asya_injector.mutation.workload import is_runtime_configmap
from asya_injector.runtime_files import (
    CHART,
    CHART_SHA256,
    FROM_MANIFEST,
    INJECTOR,
    MANAGED_BY,
    RUNTIME_HASH_LABEL,
    RUNTIME_VOLUME,
)
from asya_injector.runtime_image import RUNTIME_IMAGE_VARIABLE

_CHECKSUM = "checksum/runtime"

# Names of pods, by the `namespace/name` of a ConfigMap that they refer to.
References = dict[str, set[str]]


class PruneError(Exception):
    """What may be deleted cannot be determined; one line."""


@dataclass(frozen=True)
class PruneDecision:
    """Whether to delete a ConfigMap. reason: why it is kept, or why its deletion failed."""

    configmap: Object
    reason: str = ""
    failed: bool = False

    @property
    def name(self) -> str:
        """Namespace and name."""
        metadata = get_mapping(self.configmap, "metadata")
        return f"{metadata['namespace']}/{metadata['name']}"

    @property
    def delete(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reason


def prune(
    cluster: Cluster,
    *,
    older_than: dt.timedelta,
    dry_run: bool,
    release: str | None,
    namespace: str = "",
    keep: Iterable[str] = (),
) -> Iterator[PruneDecision]:
    """Delete unused runtime ConfigMaps; yield each decision after it was carried out.

    release: namespace of the chart's release; only its ConfigMaps and injectors tell which versions
        are current. Empty: nothing is installed. None: unknown, then `keep` is required.
    keep: hashes to keep, besides the current ones. Raises ApiException or PruneError, before
    anything was deleted, if the cluster cannot be read.
    """
    configmaps = _list_runtime_configmaps(cluster, namespace)
    keep = set(keep)
    charts = _find_chart_versions(cluster, release, required=not keep)
    references = _read_references(cluster.list("v1", "pods", namespace=namespace))
    injectors = _list_injectors(cluster, release)
    if injectors and all(map(_uses_image, injectors)):
        charts = set()  # no new pod mounts a ConfigMap
    current = keep | charts | _read_versions(injectors)
    refreshed: dict[str, References] = {}
    for configmap in configmaps:
        decision = decide(configmap, references, current, now=cluster.now, older_than=older_than)
        if decision.delete and not dry_run:
            where = configmap["metadata"]["namespace"]
            if where not in refreshed:
                refreshed[where] = _read_references(cluster.list("v1", "pods", namespace=where))
                current |= _read_versions(_list_injectors(cluster, release))
            decision = decide(
                configmap, refreshed[where], current, now=cluster.now, older_than=older_than
            )
            if decision.delete:
                decision = _delete(cluster, decision)
        yield decision


def decide(
    configmap: Object,
    references: References,
    current: set[str],
    *,
    now: dt.datetime,
    older_than: dt.timedelta,
) -> PruneDecision:
    """Decide on one ConfigMap."""
    decision = PruneDecision(configmap)
    metadata = get_mapping(configmap, "metadata")
    labels = get_mapping(metadata, "labels")
    pods = sorted(references.get(decision.name, ()))
    if pods:
        others = f" and {len(pods) - 1} more" if len(pods) > 1 else ""
        return replace(decision, reason=f"used by pod {pods[0]}{others}")
    version = str(metadata["name"]).removeprefix(f"{RUNTIME_VOLUME}-").partition("-")[0]
    if current & {version, labels.get(RUNTIME_HASH_LABEL)}:
        return replace(decision, reason="current version")
    if FROM_MANIFEST.items() <= labels.items():
        return replace(decision, reason="belongs to a manifest and is deleted with it")
    created = dt.datetime.fromisoformat(str(metadata["creationTimestamp"]))
    if now - created < older_than:
        return replace(decision, reason="created recently; a pod may be about to use it")
    return decision


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


def _list_runtime_configmaps(cluster: Cluster, namespace: str) -> list[Object]:
    items = cluster.list(
        "v1", "configmaps", namespace=namespace, labels=MANAGED_BY, metadata_only=True
    )
    # Each only once, and with its kind, which items of lists lack.
    found = {item["metadata"]["uid"]: {**item, "kind": "ConfigMap"} for item in items}
    return [item for item in found.values() if is_runtime_configmap(item)]


def _find_chart_versions(cluster: Cluster, release: str | None, *, required: bool) -> set[str]:
    """Hashes of the runtime in the charts of the release's namespace."""
    problem = "the namespace of the release is unknown"
    try:
        if release == "":
            return set()
        if release is not None:
            charts = cluster.list(
                "v1", "configmaps", namespace=release, labels=CHART, metadata_only=True
            )
            found = (get_mapping(item, "metadata", "annotations") for item in charts)
            return {str(each[CHART_SHA256])[:10] for each in found if each.get(CHART_SHA256)}
    except ApiException as error:
        problem = describe_error(error)
    if not required:
        return set()
    raise PruneError(
        f"cannot determine the current runtime version ({problem}); name the namespace with "
        "--release-namespace, or the version with --keep HASH"
    )


def _list_injectors(cluster: Cluster, release: str | None) -> list[Object]:
    """The pods of the release's injectors."""
    if not release:
        return []
    return list(cluster.list("v1", "pods", namespace=release, labels=INJECTOR))


def _read_versions(injectors: Iterable[Object]) -> set[str]:
    """Hashes of the runtime ConfigMaps that these injectors create."""
    found = (
        get_mapping(pod, "metadata", "annotations").get(_CHECKSUM)
        for pod in injectors
        if not _uses_image(pod)
    )
    return {str(checksum)[:10] for checksum in found if checksum}


def _uses_image(injector: Object) -> bool:
    """Whether the pods that an injector admits mount an image."""
    spec = get_mapping(injector, "spec")
    return any(image for (image,) in read_variables(spec, RUNTIME_IMAGE_VARIABLE))


def _read_references(pods: Iterable[Object]) -> References:
    references: References = defaultdict(set)
    for pod in pods:
        metadata = get_mapping(pod, "metadata")
        for name in find_references(pod):
            references[f"{metadata['namespace']}/{name}"].add(str(metadata["name"]))
    return references


def _delete(cluster: Cluster, decision: PruneDecision) -> PruneDecision:
    try:
        cluster.delete("v1", "configmaps", decision.configmap)
    except ApiException as error:
        if error.status == 409:
            return replace(decision, reason="changed since it was listed")
        if error.status != 404:
            return replace(decision, reason=describe_error(error), failed=True)
    return decision
