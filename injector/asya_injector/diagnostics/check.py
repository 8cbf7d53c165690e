"""Check the health of an installation: what is read from the cluster, and in which order."""

from collections.abc import Iterator

from asya_injector.annotations.table import PREFIX
from asya_injector.diagnostics import delivery, injector, workloads
from asya_injector.diagnostics.results import OK, UNKNOWN, WRONG, CheckResult, Finding
from asya_injector.diagnostics.sidecar import ChartSidecar
from asya_injector.kube_client import ApiException, Cluster, describe_error, get_reason
from asya_injector.kube_objects import WORKLOAD_KINDS, Object, find_by_name, get_mapping
from asya_injector.mutation.workload import DISABLED
from asya_injector.runtime_files import (
    CHART,
    CHART_SHA256,
    INJECTOR,
    RUNTIME_HASH_LABEL,
    RUNTIME_VOLUME,
    RuntimeFiles,
)
from asya_injector.runtime_image import Delivery

_SERVICE_LABEL = "kubernetes.io/service-name"


def check(
    cluster: Cluster, installed: RuntimeFiles, *, namespace: str = ""
) -> Iterator[CheckResult]:
    """Run all checks; yield the results as they come.

    installed: the runtime files of this program. namespace: whose pods and workloads are checked;
    empty: all. A check that the API server rejects is UNKNOWN; raises HTTPError if the API server
    does not answer.
    """
    checks = _Checks(cluster, installed, namespace)
    for name, run in {
        "webhook": checks.check_webhook,
        "injector": checks.check_deployments,
        "delivery": checks.check_delivery,
        "nodes": checks.check_nodes,
        "endpoints": checks.check_endpoints,
        "certificate": checks.check_certificate,
        "admission": checks.check_admission,
        "version": checks.check_versions,
        "pods": checks.check_pods,
        "workloads": checks.check_workloads,
        "configmaps": checks.check_configmaps,
    }.items():
        try:
            for finding in run():
                state = WRONG if finding.fix else OK
                yield CheckResult(name, state, finding.text, finding.fix)
        except ApiException as error:
            fix = "rerun with an account that has permission" if error.status == 403 else "retry"
            yield CheckResult(name, UNKNOWN, describe_error(error), fix)


class _Checks:
    """The checks; later ones use what earlier ones have found.

    Those of the injector yield nothing if no webhook configuration was found.
    """

    def __init__(self, cluster: Cluster, installed: RuntimeFiles, namespace: str) -> None:
        self._cluster = cluster
        self._installed = installed
        self._namespace = namespace
        self._disabled = _list_disabled_namespaces(cluster)
        self._configuration: Object = {}
        self._release = self._service = ""
        self._deployments: list[Object] = []
        self._delivery = Delivery()
        self._current = {installed.hash}
        self._sidecar = ChartSidecar()
        self._with_copy: set[str] = set()
        self._with_actors: set[str] | None = None  # until all workloads were read

    def check_webhook(self) -> Iterator[Finding]:
        """Check the webhook configuration; it names the Service and the release's namespace."""
        found = injector.find_webhook_configurations(
            self._cluster.list("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")
        )
        if found:
            self._configuration = found[0]
            self._release, self._service = injector.find_service(found)
        yield injector.check_webhooks(found)

    def check_deployments(self) -> Iterator[Finding]:
        if self._configuration:
            self._deployments = list(
                self._cluster.list(
                    "apps/v1", "deployments", namespace=self._release, labels=INJECTOR
                )
            )
            self._sidecar = ChartSidecar(self._deployments)
            yield from injector.check_deployments(self._deployments)

    def check_delivery(self) -> Iterator[Finding]:
        """Report what pods mount, which the Deployment tells."""
        self._delivery = delivery.find_delivery(self._deployments)
        if self._deployments:
            yield delivery.check_delivery(self._delivery)

    def check_nodes(self) -> Iterator[Finding]:
        """Check the nodes, if pods mount an image."""
        if self._delivery.image:
            yield from delivery.check_nodes(self._cluster.list("v1", "nodes"))

    def check_endpoints(self) -> Iterator[Finding]:
        if self._configuration:
            slices = self._cluster.list(
                "discovery.k8s.io/v1",
                "endpointslices",
                namespace=self._release,
                labels={_SERVICE_LABEL: self._service},
            )
            yield injector.check_endpoints(slices, f"{self._release}/{self._service}")

    def check_certificate(self) -> Iterator[Finding]:
        name = _find_secret(self._deployments)
        if name:
            secret = self._cluster.get("v1", "secrets", namespace=self._release, name=name)
            bundles = [
                str(get_mapping(webhook, "clientConfig").get("caBundle") or "")
                for webhook in self._configuration["webhooks"]
            ]
            yield injector.check_certificate(
                secret.get("data") or {},
                bundles,
                host=f"{self._service}.{self._release}.svc",
                now=self._cluster.now,
                secret=f"Secret {self._release}/{name}",
            )

    def check_admission(self) -> Iterator[Finding]:
        if self._configuration:
            namespace = self._namespace or self._release
            if namespace in self._disabled:
                yield Finding(f"injection is disabled by a label of namespace {namespace}")
            else:
                pod = _build_probe(has_sidecar=self._sidecar.template is not None)
                yield _try_admission(self._cluster, namespace, pod)

    def check_versions(self) -> Iterator[Finding]:
        """Check the chart's ConfigMaps, and their copies in the namespaces of actors.

        Those of the release have the current versions: anybody could write one elsewhere.
        """
        found = self._cluster.list("v1", "configmaps", namespace=self._release, labels=CHART)
        charts = [
            item for item in found if CHART_SHA256 in get_mapping(item, "metadata", "annotations")
        ]
        if charts and self._release:
            self._current = {
                str(get_mapping(item, "metadata", "annotations")[CHART_SHA256])[:10]
                for item in charts
            }
        hashes = (self._delivery.list_hashes(packaged) for packaged in self._current)
        self._current = set().union(*hashes)
        yield from injector.check_versions(charts, self._installed)
        for version in self._current if self._delivery.image is None else ():
            name = f"{RUNTIME_VOLUME}-{version}"
            copies = list(
                self._cluster.list("v1", "configmaps", namespace=self._namespace, name=name)
            )
            self._with_copy |= {str(item["metadata"]["namespace"]) for item in copies}
            yield from injector.check_copies(copies, version)

    def check_pods(self) -> Iterator[Finding]:
        pods = self._cluster.list("v1", "pods", namespace=self._namespace)
        yield from workloads.check_pods(
            pods,
            current=self._current,
            sidecar=self._sidecar,
            disabled=self._disabled,
            knows_image=bool(self._configuration),
        )

    def check_workloads(self) -> Iterator[Finding]:
        items = (
            {**item, "kind": kind.name, "apiVersion": kind.api_version}  # lists omit both
            for kind in WORKLOAD_KINDS
            for item in self._cluster.list(kind.api_version, kind.plural, namespace=self._namespace)
        )
        actors = [item for item in items if workloads.makes_actors(item, self._disabled)]
        self._with_actors = {str(item["metadata"]["namespace"]) for item in actors}
        yield from workloads.check_workloads(actors, self._sidecar.declared)

    def check_configmaps(self) -> Iterator[Finding]:
        """Check that a copy can be created where actors need one, as a quota may prevent it."""
        if not self._configuration or self._delivery.image or self._with_actors is None:
            return
        missing = sorted(self._with_actors - self._with_copy)
        problems = 0
        for namespace in missing:
            problem = _try_copy(self._cluster, namespace, self._installed)
            if problem:
                problems += 1
                yield problem
        if not problems:
            present = len(self._with_actors) - len(missing)
            yield Finding(
                f"namespaces with annotated workloads: {present} with a copy, "
                f"{len(missing)} where the first pod creates it"
            )


def _list_disabled_namespaces(cluster: Cluster) -> list[str]:
    """Names of the namespaces where injection is disabled; empty if they cannot be listed."""
    try:
        found = list(cluster.list("v1", "namespaces", labels=DISABLED))
    except ApiException:
        return []
    return [str(item["metadata"]["name"]) for item in found]


def _find_secret(deployments: list[Object]) -> str:
    """The name of the Secret with the injector's certificate; empty if there is none."""
    for item in deployments:
        spec = get_mapping(item, "spec", "template", "spec")
        for container in spec.get("containers") or []:
            variable = find_by_name(container.get("env") or [], "INJECTOR_TLS_SECRET") or {}
            if variable.get("value"):
                return str(variable["value"])
        for volume in spec.get("volumes") or []:
            if get_mapping(volume, "secret").get("secretName"):
                return str(volume["secret"]["secretName"])
    return ""


def _try_admission(cluster: Cluster, namespace: str, probe: Object) -> Finding:
    """Create an annotated pod in a dry run, to test the whole path."""
    pod = f"an annotated pod in namespace {namespace}"
    try:
        admitted = cluster.dry_run_create("v1", "pods", probe, namespace=namespace)
    except ApiException as error:
        _raise_if_unauthorized(error)
        message = describe_error(error)
        return Finding(f"{pod} is rejected (dry run): {message}", "see the rows above")
    version = get_mapping(admitted, "metadata", "labels").get(RUNTIME_HASH_LABEL)
    if version:
        return Finding(f"{pod} gets runtime {version} (dry run)")
    return Finding(
        f"{pod} is admitted without the runtime (dry run)",
        f"check the namespace for the label {next(iter(DISABLED))}, and the webhook's selectors",
    )


def _try_copy(cluster: Cluster, namespace: str, runtime_files: RuntimeFiles) -> Finding | None:
    """Create the runtime ConfigMap in a dry run; the result if the API server rejects it."""
    item = runtime_files.config_map()
    try:
        cluster.dry_run_create("v1", "configmaps", item, namespace=namespace)
    except ApiException as error:
        if get_reason(error) == "AlreadyExists":
            return None
        _raise_if_unauthorized(error)
        return Finding(
            f"{namespace}: ConfigMap {item['metadata']['name']} cannot be created (dry run), and "
            f"annotated pods are rejected without it: {describe_error(error)}",
            "change the quota or policy that the message names, or set the chart's "
            "runtime.delivery to image",
        )
    return None


def _raise_if_unauthorized(error: ApiException) -> None:
    """Raise it again if the account of the command line may not create such objects."""
    if error.status == 403 and "cannot create resource" in describe_error(error):
        raise error


def _build_probe(*, has_sidecar: bool) -> Object:
    """An annotated pod that every security policy admits.

    has_sidecar: the chart has a sidecar, which may need annotations that this pod does not have.
    """
    annotations = {PREFIX + "handler": "check.handler"}
    if has_sidecar:
        annotations[PREFIX + "sidecar"] = "false"
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
            "annotations": annotations,
        },
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }
