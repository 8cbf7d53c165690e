"""What `check` finds."""

import base64
import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.diagnostics import delivery, injector, workloads
from asya_injector.diagnostics.check import check
from asya_injector.diagnostics.results import OK, UNKNOWN, WRONG, Finding
from asya_injector.diagnostics.sidecar import ChartSidecar
from asya_injector.mutation.inject import inject
from asya_injector.mutation.workload import propagate
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.runtime_image import RuntimeImage
from asya_injector.tls.authority import create

from tests.injector.paged_api import NOW, Object, PagedApi, serve_paged_api

OLD, NEW = "0123456789", "abcdef0123"
HANDLER = {"asya.sh/handler": "a.b"}


def pod(version: str | None, namespace: str = "m", **metadata: Any) -> Object:
    labels = {"asya.sh/runtime-hash": version} if version else {}
    volumes = [{"name": "asya-runtime"}] if version else []
    named = {"name": "p", "namespace": namespace, "annotations": HANDLER, "labels": labels}
    return {"metadata": named | metadata, "spec": {"containers": [], "volumes": volumes}}


# --- The injector


def configuration(*bundles: str) -> Object:
    hooks = [
        {"name": name, "clientConfig": {"caBundle": bundle, "service": {"name": "s"}}}
        for name, bundle in zip(("pods.asya.sh", "workloads.asya.sh"), bundles, strict=True)
    ]
    return {"metadata": {"name": "asya-runtime"}, "webhooks": hooks}


@pytest.mark.parametrize(
    ("items", "state", "found"),
    [
        ([configuration("Q0E=", "Q0E=")], OK, "asya-runtime is installed"),
        ([configuration("Q0E=", "")], WRONG, "no caBundle for workloads.asya.sh"),
        ([], WRONG, "no webhook configuration contains pods.asya.sh"),
        (
            [{"metadata": {"name": "x"}, "webhooks": [{"name": "y"}]}],
            WRONG,
            "no webhook configuration",
        ),
        (
            [configuration("Q0E=", "Q0E=")] * 2,
            WRONG,
            "more than one configuration calls the injector",
        ),
    ],
)
def test_the_webhook_configuration(items: list[Object], state: str, found: str) -> None:
    finding = injector.check_webhooks(injector.find_webhook_configurations(items))
    assert found in finding.text
    assert bool(finding.fix) == (state != OK)


@pytest.mark.parametrize(
    ("replicas", "available", "state"),
    [(2, 2, OK), (2, 1, WRONG), (2, None, WRONG), (0, None, WRONG)],
)
def test_the_deployment(replicas: int, available: int | None, state: str) -> None:
    item = {
        "metadata": {"name": "d", "namespace": "s"},
        "spec": {"replicas": replicas},
        "status": {"availableReplicas": available},
    }
    (finding,) = injector.check_deployments([item])
    assert bool(finding.fix) == (state != OK)
    assert f"s/d: {available or 0} of {replicas} replicas available" in finding.text
    assert [bool(each.fix) for each in injector.check_deployments([])] == [True]


def test_the_endpoints() -> None:
    slices: list[Object] = [
        {"endpoints": [{"addresses": ["1"], "conditions": {"ready": True}}]},
        {"endpoints": None},
    ]
    assert injector.check_endpoints(slices, "s/x").fix == ""
    slices[0]["endpoints"][0]["conditions"]["ready"] = False
    assert injector.check_endpoints(slices, "s/x").fix != ""


HOST = "x.s.svc"


def check_certificate(
    *, days: float = 0, host: str = HOST, bundle: bytes = b"", damaged: bool = False
) -> str:
    pair = create([HOST], now=NOW)
    data = pair.to_secret() | ({"tls.crt": "AAAA"} if damaged else {})
    # One webhook with another CA is enough for pods to be rejected.
    bundles = [base64.b64encode(each).decode() for each in (pair.bundle, bundle or pair.bundle)]
    finding = injector.check_certificate(
        data, bundles, host=host, now=NOW + dt.timedelta(days=days), secret="s/tls"
    )
    assert ("valid until" in finding.text) == (not finding.fix)
    return finding.text


def test_the_certificate() -> None:
    end = f"{NOW + dt.timedelta(days=90):%Y-%m-%d}"
    assert check_certificate() == f"s/tls: valid until {end}, signed by a CA in caBundle"
    assert check_certificate(days=75) == f"s/tls: valid until {end}, signed by a CA in caBundle"
    assert check_certificate(days=77) == f"s/tls: expires on {end} and should have been renewed"
    assert check_certificate(days=91) == f"s/tls: expired on {end}"
    assert check_certificate(days=-1) == "s/tls: is not valid yet"
    assert check_certificate(host="y.s.svc") == "s/tls: is not valid for y.s.svc"
    assert check_certificate(damaged=True) == "s/tls: the certificate or caBundle cannot be parsed"
    other = create([HOST], now=NOW).bundle
    assert check_certificate(bundle=other) == "s/tls: is not signed by a CA in caBundle"
    empty = injector.check_certificate({}, [], host=HOST, now=NOW, secret="w")
    assert empty.text == "w: has no tls.crt"


def test_the_versions() -> None:
    mine, other = RuntimeFiles({"asya_runtime.py": "1"}), RuntimeFiles({"asya_runtime.py": "2"})

    def state(holds: RuntimeFiles, says: RuntimeFiles) -> str:
        annotations = {"asya.sh/runtime-sha256": says.sha256}
        item = {"metadata": {"annotations": annotations}, "data": dict(holds.files)}
        (finding,) = injector.check_versions([item], mine)
        return f"{'wrong' if finding.fix else 'ok'} {finding.text}"

    assert state(mine, mine).startswith("ok ")
    assert f"has runtime {other.hash}, this program has {mine.hash}" in state(other, other)
    assert "the content does not match its annotation asya.sh/runtime-sha256" in state(other, mine)


# --- Pods and workloads


def check_pods(*pods: Object) -> list[str]:
    findings = workloads.check_pods(pods, current={NEW}, sidecar=ChartSidecar(), disabled={"off"})
    return [f"{each.text} | {each.fix}" for each in findings]


def of_deployment(item: Object) -> Object:
    item["metadata"]["ownerReferences"] = [
        {"kind": "ReplicaSet", "name": "d-abc", "controller": True}
    ]
    item["metadata"]["labels"] = item["metadata"]["labels"] | {"pod-template-hash": "abc"}
    return item


FIX = "; if the manifest was injected, inject it again"


def test_actors_with_the_current_runtime_are_counted() -> None:
    finished = {**pod(OLD), "status": {"phase": "Succeeded"}}
    leaving = pod(OLD, deletionTimestamp="x")
    others = [finished, leaving, pod(OLD, "kube-system"), pod(OLD, "off"), pod(OLD, annotations={})]
    off = pod(None, annotations=HANDLER | {"asya.sh/inject": "no"})
    assert check_pods(pod(NEW), pod(NEW), *others, off) == ["actors with the current runtime: 2 | "]


def test_annotated_pods_without_the_runtime_or_with_an_old_one_are_reported_by_owner() -> None:
    found = check_pods(of_deployment(pod(OLD)), of_deployment(pod(OLD)), pod(None), pod(NEW))
    assert found == [
        f"m: deployment/d runs the old runtime {OLD} (2 pods) | "
        f"kubectl -n m rollout restart deployment/d{FIX}",
        "m: pod/p is annotated, but runs without the runtime (1 pod) | "
        f"kubectl -n m delete pod/p, and create it again{FIX}",
    ]


def test_a_pod_with_an_invalid_annotation_is_reported() -> None:
    assert check_pods(pod(None, annotations={"asya.sh/inherited": "{"}))[0].startswith(
        "m: pod/p is annotated, but runs without"
    )


def test_workloads_whose_annotations_are_not_propagated_are_reported() -> None:
    def workload(kind: str, annotations: Object) -> Object:
        metadata = {"name": "w", "namespace": "m", "annotations": annotations}
        api = "batch/v1" if kind in ("Job", "CronJob") else "apps/v1"
        spec: Object = {"template": {"spec": {}}}
        if kind == "CronJob":
            spec = {"jobTemplate": {"spec": spec}}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}

    old = workload("Deployment", HANDLER)
    cases = [
        (old, "kubectl -n m rollout restart deployment/w"),
        (workload("Job", HANDLER), "delete it and create it again"),
        (workload("ReplicaSet", HANDLER), "delete it and create it again"),
        (workload("CronJob", HANDLER), "apply it again"),
    ]
    items = [item for item, _ in cases]
    findings = list(workloads.check_workloads([*items, workload("Job", {})]))
    assert [each.fix for each in findings] == [fix for _, fix in cases]
    assert findings[0].text == (
        "m: annotations of deployment/w are not propagated to its pod template"
    )
    (finding,) = workloads.check_workloads([propagate(old), workload("Job", {})])
    assert finding == Finding("workloads with propagated annotations: 1")


def test_workloads_that_make_actors_are_annotated_on_any_level() -> None:
    def workload(kind: str, *levels: str, namespace: str = "m") -> Object:
        def metadata(level: str) -> Object:
            return {"annotations": HANDLER} if level in levels else {}

        spec: Object = {"template": {"metadata": metadata("template"), "spec": {}}}
        if kind == "CronJob":
            spec = {"jobTemplate": {"metadata": metadata("job"), "spec": spec}}
        named = {"name": "w", "namespace": namespace} | metadata("workload")
        api = "batch/v1" if kind == "CronJob" else "apps/v1"
        return {"apiVersion": api, "kind": kind, "metadata": named, "spec": spec}

    annotated = [
        *(workload("Deployment", level) for level in ("workload", "template")),
        *(workload("CronJob", level) for level in ("workload", "job", "template")),
    ]
    others = [workload("Deployment"), workload("CronJob")]
    others += [
        workload("Deployment", "template", namespace=name) for name in ("off", "kube-system")
    ]
    assert [each for each in annotated if not workloads.makes_actors(each, ["off"])] == []
    assert [each for each in others if workloads.makes_actors(each, ["off"])] == []


# --- All checks


@pytest.fixture
def server() -> Iterator[PagedApi]:
    with serve_paged_api() as server:
        yield server


RUNTIME = RuntimeFiles({"asya_runtime.py": "1"})
PART_OF = {"app.kubernetes.io/part-of": "asya-runtime"}
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
RELEASE_CONFIGMAPS = "/api/v1/namespaces/s/configmaps"
RELEASE_PODS = "/api/v1/namespaces/s/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/s/deployments"
NODES = "/api/v1/nodes"
COPIES = "/api/v1/namespaces/m/configmaps"


IMAGE = "registry.example.com/asya/injector:1"


def mount_image(server: PagedApi, reference: str = IMAGE, own: str = IMAGE) -> None:
    """Let the installation be one with `runtime.delivery: image`, on two nodes."""
    (deployment,) = server.lists[DEPLOYMENTS]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["env"] += [
        {"name": "INJECTOR_IMAGE", "value": own},
        {"name": "INJECTOR_RUNTIME_IMAGE", "value": reference},
    ]
    server.lists[NODES] = [node("a"), node("b")]


def node(name: str, runtime: str = "containerd://2.3.7", kubelet: str = "v1.36.0") -> Object:
    info = {"containerRuntimeVersion": runtime, "kubeletVersion": kubelet}
    return {"metadata": {"name": name}, "status": {"nodeInfo": info}}


def install(server: PagedApi) -> None:
    """Fill the server with an installation in namespace s, and two annotated objects in m."""
    pair = create([HOST], now=NOW)
    bundle = base64.b64encode(pair.bundle).decode()
    webhooks = configuration(bundle, bundle)
    for webhook in webhooks["webhooks"]:
        webhook["clientConfig"]["service"] = {"name": "x", "namespace": "s"}
    named = {"namespace": "s", "name": "x"}
    container = {"env": [{"name": "INJECTOR_TLS_SECRET", "value": "tls"}]}
    deployment = {
        "metadata": named | {"labels": PART_OF | {"app.kubernetes.io/name": "asya-injector"}},
        "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}},
        "status": {"availableReplicas": 1},
    }
    chart = {
        "metadata": named
        | {"labels": PART_OF, "annotations": {"asya.sh/runtime-sha256": RUNTIME.sha256}},
        "data": dict(RUNTIME.files),
    }
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "m", "annotations": HANDLER},
        "spec": {"template": {"spec": {}}},
    }
    server.lists = {
        WEBHOOKS: [webhooks],
        "/apis/apps/v1/namespaces/s/deployments": [deployment],
        "/apis/discovery.k8s.io/v1/namespaces/s/endpointslices": [
            {
                "metadata": {"labels": {"kubernetes.io/service-name": "x"}},
                "endpoints": [{"addresses": ["1"], "conditions": {"ready": True}}],
            }
        ],
        RELEASE_CONFIGMAPS: [chart],
        "/api/v1/pods": [pod(RUNTIME.hash)],
        "/apis/apps/v1/deployments": [propagate(workload)],
    }
    server.objects = {
        "/api/v1/namespaces/s/secrets/tls": {"data": pair.to_secret()},
        RELEASE_PODS: {"metadata": {"labels": {"asya.sh/runtime-hash": RUNTIME.hash}}},
        COPIES: RUNTIME.config_map(),
    }


def run_check(server: PagedApi, namespace: str = "") -> dict[str, tuple[str, str, str]]:
    results = check(server.connect(), RUNTIME, namespace=namespace)
    return {each.check: (each.state, each.found, each.fix) for each in results}


def test_a_healthy_installation_passes_all_checks(server: PagedApi) -> None:
    install(server)
    results = run_check(server)
    assert {name: state for name, (state, _, _) in results.items()} == dict.fromkeys(
        (
            "webhook",
            "injector",
            "delivery",
            "endpoints",
            "certificate",
            "admission",
            "version",
            "pods",
            "workloads",
            "configmaps",
        ),
        OK,
    )
    assert results["admission"][1] == (
        f"an annotated pod in namespace s gets runtime {RUNTIME.hash} (dry run)"
    )
    assert results["pods"][1] == "actors with the current runtime: 1"
    assert results["workloads"][1] == "workloads with propagated annotations: 1"
    assert results["configmaps"][1] == (
        "namespaces with annotated workloads: 0 with a copy, 1 where the first pod creates it"
    )
    created = [call.split(" ", 2) for call in server.calls if call.startswith("POST")]
    assert [path for _, path, _ in created] == [RELEASE_PODS, COPIES]
    assert json.loads(created[1][2]) == RUNTIME.config_map()


def test_without_a_webhook_configuration_the_injector_is_not_checked(server: PagedApi) -> None:
    install(server)
    server.lists[WEBHOOKS] = []
    server.lists["/api/v1/configmaps"] = server.lists[RELEASE_CONFIGMAPS]
    states = {name: state for name, (state, _, _) in run_check(server).items()}
    assert states == {"webhook": WRONG, "version": OK, "pods": OK, "workloads": OK}


@pytest.mark.parametrize(
    ("status", "fix"), [(403, "rerun with an account that has permission"), (500, "retry")]
)
def test_a_check_that_the_api_server_denies_is_unknown_and_the_others_run(
    server: PagedApi, status: int, fix: str
) -> None:
    install(server)
    paths = {
        "injector": "/apis/apps/v1/namespaces/s/deployments",
        "endpoints": "/apis/discovery.k8s.io/v1/namespaces/s/endpointslices",
        "version": RELEASE_CONFIGMAPS,
        "pods": "/api/v1/pods",
        "workloads": "/apis/batch/v1/cronjobs",
    }
    server.denied = {f"GET {path}": status for path in paths.values()}
    results = run_check(server)
    assert {name: results[name] for name in paths} == {
        name: (UNKNOWN, f"{path} is forbidden", fix) for name, path in paths.items()
    }
    # Without the Deployment, the Secret with the certificate is not known.
    assert results.keys() - paths.keys() == {"webhook", "admission"}


def test_the_current_runtime_is_that_of_the_chart(server: PagedApi) -> None:
    install(server)
    (chart,) = server.lists[RELEASE_CONFIGMAPS]
    chart["metadata"]["annotations"] = {"asya.sh/runtime-sha256": NEW + "f" * 54}
    server.lists["/api/v1/pods"] = [pod(NEW)]
    results = run_check(server)
    assert (results["version"][0], results["pods"][0]) == (WRONG, OK)
    server.lists["/api/v1/pods"] = [pod(RUNTIME.hash)]
    assert run_check(server)["pods"][0] == WRONG


def test_the_current_sidecar_is_that_of_the_chart(server: PagedApi) -> None:
    install(server)
    more = {f"asya.sh/key-{number}": {"env": f"KEY_{number}"} for number in range(40)}
    value: Object = {
        "container": {"name": "asya-sidecar", "image": "queue:1"},
        "annotations": {"asya.sh/queue": {"env": "QUEUE", "required": True}, **more},
    }
    (deployment,) = server.lists["/apis/apps/v1/namespaces/s/deployments"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["env"].append({"name": "INJECTOR_SIDECAR", "value": json.dumps(value)})
    actor = pod(None, annotations=HANDLER | {"asya.sh/queue": "q"})
    actor["spec"] = {"containers": [{"name": "model"}]}
    injection = inject(
        actor, ClusterDefaults(RUNTIME.hash, {}, sidecar=SidecarTemplate.parse(value))
    )
    assert injection is not None
    server.lists["/api/v1/pods"] = [injection.pod]
    (workload,) = server.lists["/apis/apps/v1/deployments"]
    workload["metadata"]["annotations"] = HANDLER | dict.fromkeys(value["annotations"], "q")
    server.lists["/apis/apps/v1/deployments"] = [propagate(workload, value["annotations"])]
    results = run_check(server)
    assert {name: state for name, (state, _, _) in results.items() if state != OK} == {}
    assert results["pods"][1] == "actors with the current runtime and sidecar: 1"
    (created,) = [call for call in server.calls if call.startswith(f"POST {RELEASE_PODS}")]
    assert '"asya.sh/sidecar": "false"' in created
    value["container"]["image"] = "queue:2"
    container["env"][-1]["value"] = json.dumps(value)
    assert run_check(server)["pods"] == (
        WRONG,
        "m: pod/p runs an older sidecar than the chart's (1 pod)",
        f"kubectl -n m delete pod/p, and create it again{FIX}",
    )


def test_a_configmap_outside_of_the_release_does_not_say_what_is_current(server: PagedApi) -> None:
    install(server)
    metadata = {"namespace": "x", "name": "x", "labels": PART_OF}
    metadata["annotations"] = {"asya.sh/runtime-sha256": NEW + "f" * 54}
    server.lists["/api/v1/configmaps"] = [{"metadata": metadata, "data": {}}]
    results = run_check(server)
    assert (results["version"][0], results["pods"][0]) == (OK, OK)
    server.lists["/api/v1/pods"] = [pod(NEW)]
    assert run_check(server)["pods"][0] == WRONG


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"data": {"asya_runtime.py": "x"}}, "has different content"),
        ({"data": None}, "has different content"),
        ({"binaryData": {"json.py": "eA=="}}, "has binaryData"),
        ({"immutable": False}, "is not immutable"),
        ({"immutable": None}, "is not immutable"),
        ({"metadata": {"labels": {}}}, "lacks the injector's label"),
        ({"metadata": {"deletionTimestamp": "x"}}, "is being deleted"),
    ],
)
def test_copies_that_keep_pods_away_are_reported(
    server: PagedApi, change: Object, problem: str
) -> None:
    install(server)
    copy: Object = RUNTIME.config_map()
    copy["metadata"] |= {"namespace": "m"} | change.get("metadata", {})
    copy |= {key: value for key, value in change.items() if key != "metadata"}
    other = copy | {"metadata": {"name": f"asya-runtime-{OLD}", "namespace": "m"}}
    server.lists["/api/v1/configmaps"] = [other, copy]
    state, found, fix = run_check(server)["version"]  # the last one
    name = f"asya-runtime-{RUNTIME.hash}"
    if not problem:
        assert state == OK
        return
    assert (state, found) == (WRONG, f"m/{name}: {problem}: annotated pods are rejected there")
    assert fix == f"kubectl delete configmap -n m {name}"
    mount_image(server)
    assert run_check(server)["version"][0] == OK


def test_namespaces_where_no_copy_can_be_created_are_reported(server: PagedApi) -> None:
    install(server)
    server.denied = {f"POST {COPIES}": 403}
    assert run_check(server)["configmaps"] == (
        WRONG,
        f"m: ConfigMap asya-runtime-{RUNTIME.hash} cannot be created (dry run), and annotated pods "
        f"are rejected without it: {COPIES} is forbidden",
        "change the quota or policy that the message names, or set the chart's runtime.delivery to "
        "image",
    )
    copy: Object = RUNTIME.config_map()
    copy["metadata"]["namespace"] = "m"
    server.lists["/api/v1/configmaps"] = [copy]  # a quota does not affect a copy that exists
    assert run_check(server)["configmaps"] == (
        OK,
        "namespaces with annotated workloads: 1 with a copy, 0 where the first pod creates it",
        "",
    )
    del server.lists["/api/v1/configmaps"]
    mount_image(server)
    assert "configmaps" not in run_check(server)


def test_the_certificate_is_compared_with_each_ca_bundle(server: PagedApi) -> None:
    install(server)
    other = base64.b64encode(create([HOST], now=NOW).bundle).decode()
    server.lists[WEBHOOKS][0]["webhooks"][1]["clientConfig"]["caBundle"] = other
    state, found, _ = run_check(server)["certificate"]
    assert (state, found) == (WRONG, "Secret s/tls: is not signed by a CA in caBundle")


def test_the_secret_of_a_mounted_certificate_is_found(server: PagedApi) -> None:
    install(server)
    (deployment,) = server.lists["/apis/apps/v1/namespaces/s/deployments"]
    deployment["spec"]["template"]["spec"] = {"volumes": [{"secret": {"secretName": "tls"}}]}
    assert run_check(server)["certificate"][0] == OK


def test_the_admission_of_a_pod(server: PagedApi) -> None:
    install(server)
    server.denied = {f"POST {RELEASE_PODS}": 500}
    assert run_check(server)["admission"] == (
        WRONG,
        f"an annotated pod in namespace s is rejected (dry run): {RELEASE_PODS} is forbidden",
        "see the rows above",
    )
    server.denied = {}
    server.objects[RELEASE_PODS] = {"metadata": {}}
    state, found, fix = run_check(server)["admission"]
    assert (state, found) == (
        WRONG,
        "an annotated pod in namespace s is admitted without the runtime (dry run)",
    )
    assert "asya.sh/injection" in fix
    off = {"metadata": {"name": "off", "labels": {"asya.sh/injection": "disabled"}}}
    server.lists["/api/v1/namespaces"] = [off]
    assert run_check(server, "off")["admission"] == (
        OK,
        "injection is disabled by a label of namespace off",
        "",
    )


# --- The runtime from an image


def test_with_an_image_the_nodes_are_checked_and_no_copy_is_needed(server: PagedApi) -> None:
    install(server)
    mount_image(server)
    results = run_check(server)
    assert {state for state, _, _ in results.values()} == {OK}
    assert (
        results["delivery"][1] == f"pods mount image {IMAGE}; copies of the ConfigMap: none needed"
    )
    assert results["nodes"][1] == "nodes that can mount images: 2"
    server.denied = {f"GET {NODES}": 403}
    assert run_check(server)["nodes"] == (
        UNKNOWN,
        f"{NODES} is forbidden",
        "rerun with an account that has permission",
    )


@pytest.mark.parametrize(
    ("runtime", "kubelet", "problem"),
    [
        ("containerd://2.2.0", "v1.35.0", ""),
        ("containerd://2.10.1+vendor", "v1.36.1-eks-1", ""),
        ("cri-o://1.33.0", "v1.37.0", ""),
        ("containerd://2.1.9", "v1.36.0", "container runtime containerd 2.1.9"),
        ("containerd://1.7.24~ds1", "v1.36.0", "container runtime containerd 1.7.24~ds1"),
        ("cri-o://1.32.9", "v1.36.0", "container runtime cri-o 1.32.9"),
        ("docker://27.0.1", "v1.36.0", "container runtime docker 27.0.1"),
        ("containerd://unreadable", "v1.36.0", "container runtime containerd unreadable"),
        ("", "", "container runtime unknown"),
        ("containerd://2.2.0", "v1.34.9", "kubelet v1.34.9"),
    ],
)
def test_nodes_that_cannot_mount_images_are_reported_by_version(
    runtime: str, kubelet: str, problem: str
) -> None:
    windows = node("w", "containerd://1.7.0")
    windows["status"]["nodeInfo"]["operatingSystem"] = "windows"
    nodes = [node("a"), node("b", runtime, kubelet), node("c", runtime, kubelet), windows]
    (finding,) = delivery.check_nodes(nodes)
    assert (finding.text, bool(finding.fix)) == (
        (f'nodes with {problem}, where actors do not start: "b", "c"', True)
        if problem
        else ("nodes that can mount images: 3", False)
    )


FOREIGN = "files:1@sha256:" + "fedcba9876543210" * 4


@pytest.mark.parametrize(
    ("reference", "label", "state"),
    [
        (IMAGE, RUNTIME.hash, OK),
        # Of a manifest that was injected with the reference only.
        (IMAGE, RuntimeImage(IMAGE).identify(), OK),
        (IMAGE, "fedcba9876", WRONG),
        (FOREIGN, "fedcba9876", OK),
        (FOREIGN, RUNTIME.hash, WRONG),
    ],
)
def test_the_image_tells_which_runtime_is_current(
    server: PagedApi, reference: str, label: str, state: str
) -> None:
    install(server)
    mount_image(server, reference)
    server.lists["/api/v1/pods"] = [pod(label)]
    assert run_check(server)["pods"][0] == state


def test_without_an_injector_only_the_manifest_knows_which_image_is_current(
    server: PagedApi,
) -> None:
    install(server)
    server.lists[WEBHOOKS] = []
    mounting = pod(OLD)
    mounting["spec"]["volumes"] = [{"name": "asya-runtime", "image": {"reference": IMAGE}}]
    server.lists["/api/v1/pods"] = [mounting]
    assert run_check(server)["pods"][:2] == (OK, "actors with the current runtime: 1")
    server.lists["/api/v1/pods"] = [pod(OLD)]
    assert run_check(server)["pods"][0] == WRONG
