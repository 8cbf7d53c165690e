"""Whether a cluster is in order: what to look at, and what is said where a look is forbidden."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from asya_injector.annotations.table import PREFIX
from asya_injector.diagnostics import injector, workloads
from asya_injector.diagnostics.results import OK, UNKNOWN, WRONG, CheckResult
from asya_injector.kube_client import ApiError, Cluster
from asya_injector.kube_objects import WORKLOAD_KINDS, Object, find_by_name, get_mapping
from asya_injector.mutation.workload import DISABLED, is_disabled_namespace
from asya_injector.runtime_files import (
    CHART,
    CHART_SHA256,
    INJECTOR,
    RUNTIME_HASH_LABEL,
    RuntimeFiles,
)

_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_CLUSTER_IP_SERVICE = "kubernetes.io/service-name"


def check(
    cluster: Cluster, installed: RuntimeFiles, *, namespace: str = ""
) -> Iterator[CheckResult]:
    """Look at everything, rows as they come. namespace: whose pods and workloads; empty: all.

    installed: the runtime that this program brings. Raises ClusterError where nobody answers.
    """
    disabled = _disabled(cluster)
    found: Object | None = None
    try:
        found, row = injector.webhook_of(list(cluster.list(_WEBHOOKS)))
        yield row
    except ApiError as error:
        yield _unknown("webhook", error)
    if found:
        service = get_mapping(
            find_by_name(found["webhooks"], injector.POD_WEBHOOK) or {}, "clientConfig", "service"
        )
        release = str(service.get("namespace"))
        yield from _injector(cluster, found, str(service.get("name")), release)
        where = namespace or release
        yield from _looked("admission", lambda: [_admission(cluster, where, disabled)])
    charts: list[Object] = []
    try:
        charts = [
            item
            for item in cluster.list("/api/v1/configmaps", labels=_selector(CHART))
            if CHART_SHA256 in get_mapping(item, "metadata", "annotations")
        ]
        yield from injector.versions(charts, installed)
    except ApiError as error:
        yield _unknown("version", error)
    current = {
        str(get_mapping(item, "metadata", "annotations")[CHART_SHA256])[:10] for item in charts
    } or {installed.hash}
    yield from _looked(
        "pods",
        lambda: workloads.pods(
            cluster.list(_path("/api/v1", "pods", namespace)), current=current, disabled=disabled
        ),
    )
    yield from _looked(
        "workloads", lambda: workloads.workloads(_workloads(cluster, namespace), disabled=disabled)
    )


def _injector(
    cluster: Cluster, configuration: Object, service: str, release: str
) -> Iterator[CheckResult]:
    """The injector itself, in the namespace of its release."""
    items: list[Object] = []
    try:
        path = _path("/apis/apps/v1", "deployments", release)
        items = list(cluster.list(path, labels=_selector(INJECTOR)))
        yield from injector.deployments(items)
    except ApiError as error:
        yield _unknown("injector", error)
    slices = _path("/apis/discovery.k8s.io/v1", "endpointslices", release)
    selector = f"{_CLUSTER_IP_SERVICE}={service}"
    yield from _looked(
        "endpoints",
        lambda: [
            injector.endpoints(list(cluster.list(slices, labels=selector)), f"{release}/{service}")
        ],
    )
    secret = _secret_of(items)
    if not secret:
        return
    bundles = [
        str(get_mapping(webhook, "clientConfig").get("caBundle") or "")
        for webhook in configuration["webhooks"]
    ]
    yield from _looked(
        "certificate",
        lambda: [
            injector.certificate(
                cluster.get(f"{_path('/api/v1', 'secrets', release)}/{secret}").get("data") or {},
                bundles,
                host=f"{service}.{release}.svc",
                now=cluster.now,
                where=f"Secret {release}/{secret}",
            )
        ],
    )


def _secret_of(deployments: list[Object]) -> str:
    """The Secret that the injector's pods take their certificate from."""
    for item in deployments:
        spec = get_mapping(item, "spec", "template", "spec")
        for container in spec.get("containers") or []:
            said = find_by_name(container.get("env") or [], "INJECTOR_TLS_SECRET")
            if said and said.get("value"):
                return str(said["value"])
        for volume in spec.get("volumes") or []:
            if get_mapping(volume, "secret").get("secretName"):
                return str(volume["secret"]["secretName"])
    return ""


def _admission(cluster: Cluster, namespace: str, disabled: list[str]) -> CheckResult:
    """The whole way, tried by a pod that is not created."""
    if namespace in disabled:
        return CheckResult(
            "admission", OK, f"pods in {namespace} are let in as they are, by its label"
        )
    path = _path("/api/v1", "pods", namespace)
    try:
        admitted = cluster.create(path, _probe(), dry_run=True)
    except ApiError as error:
        if error.status == 403 and "cannot create resource" in str(error):
            raise
        return CheckResult(
            "admission",
            WRONG,
            f"an annotated pod is refused in {namespace} (dry run): {error}",
            "see the rows above",
        )
    version = get_mapping(admitted, "metadata", "labels").get(RUNTIME_HASH_LABEL)
    if not version:
        return CheckResult(
            "admission",
            WRONG,
            f"an annotated pod is let into {namespace} without the runtime (dry run)",
            f"is the namespace labelled {next(iter(DISABLED))}, or another selector in the way?",
        )
    return CheckResult(
        "admission", OK, f"an annotated pod in {namespace} gets runtime {version} (dry run)"
    )


def _probe() -> Object:
    """A pod that every policy lets in."""
    container = {
        "name": "check",
        "image": "asya-injector-check",
        "command": ["true"],
        "resources": {each: {"cpu": "1m", "memory": "1Mi"} for each in ("requests", "limits")},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "asya-injector-check-",
            "annotations": {PREFIX + "handler": "check.handler"},
        },
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }


def _disabled(cluster: Cluster) -> list[str]:
    """Namespaces that are switched off; none where they may not be seen."""
    try:
        spaces = [
            {**item, "kind": "Namespace"}
            for item in cluster.list("/api/v1/namespaces", labels=_selector(DISABLED))
        ]
    except ApiError:
        return []
    return [
        str(get_mapping(item, "metadata")["name"]) for item in filter(is_disabled_namespace, spaces)
    ]


def _workloads(cluster: Cluster, namespace: str) -> Iterator[Object]:
    for kind in WORKLOAD_KINDS:
        for item in cluster.list(_path(f"/apis/{kind.api_version}", kind.plural, namespace)):
            yield {**item, "kind": kind.name, "apiVersion": kind.api_version}


def _looked(look: str, rows: Callable[[], Iterable[CheckResult]]) -> Iterator[CheckResult]:
    try:
        yield from rows()
    except ApiError as error:
        yield _unknown(look, error)


def _unknown(look: str, error: ApiError) -> CheckResult:
    fix = "look with an account that may" if error.status == 403 else "try again"
    return CheckResult(look, UNKNOWN, str(error), fix)


def _path(api: str, resource: str, namespace: str) -> str:
    return f"{api}/namespaces/{namespace}/{resource}" if namespace else f"{api}/{resource}"


def _selector(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())
