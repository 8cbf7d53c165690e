"""What `check` and `prune` make of what they see; the API server's side is spoken over HTTP."""

import base64
import contextlib
import datetime as dt
import email.utils
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from asya_injector.diagnostics import injector, workloads
from asya_injector.diagnostics.prune import PruneDecision, decide, find_references, prune
from asya_injector.diagnostics.results import OK, WRONG
from asya_injector.kube_client import ApiError, Cluster
from asya_injector.mutation.workload import propagate
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.tls.authority import create
from kubernetes import client

Object = dict[str, Any]
NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
OLD, NEW = "0123456789", "abcdef0123"
TEN_MINUTES = dt.timedelta(minutes=10)
HANDLER = {"asya.sh/handler": "a.b"}


def copy_of(
    version: str, namespace: str = "m", *, age: float = 3600, labels: Object | None = None
) -> Object:
    created_at = NOW - dt.timedelta(seconds=age)
    return {
        "kind": "ConfigMap",
        "metadata": {
            "name": f"asya-runtime-{version}",
            "namespace": namespace,
            "uid": f"{namespace}-{version}",
            "resourceVersion": "7",
            "creationTimestamp": created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "labels": {"app.kubernetes.io/managed-by": "asya-injector"} | (labels or {}),
        },
    }


def pod(version: str | None, namespace: str = "m", **metadata: Any) -> Object:
    labels = {"asya.sh/runtime-hash": version} if version else {}
    source = {"name": "asya-runtime", "configMap": {"name": f"asya-runtime-{version}"}}
    volumes = [source] if version else []
    named = {"name": "p", "namespace": namespace, "annotations": HANDLER, "labels": labels}
    return {"metadata": named | metadata, "spec": {"containers": [], "volumes": volumes}}


# --- prune


@pytest.mark.parametrize(
    ("item", "references", "why"),
    [
        (copy_of(OLD), {}, ""),
        (copy_of(OLD), {f"m/asya-runtime-{OLD}": {"p"}}, "pod p refers to it"),
        (copy_of(OLD), {f"m/asya-runtime-{OLD}": {"q", "p", "r"}}, "pod p and 2 more refers to it"),
        (copy_of(OLD), {f"other/asya-runtime-{OLD}": {"p"}}, ""),
        (copy_of(NEW), {}, "it is current"),
        (copy_of(OLD, age=599), {}, "it is young: a pod may be on its way"),
        (copy_of(OLD, age=600), {}, ""),
        (
            copy_of(OLD, labels={"asya.sh/source": "manifest"}),
            {},
            "manifests brought it, and it goes",
        ),
    ],
)
def test_a_copy_goes_only_if_nothing_speaks_for_it(
    item: Object, references: dict[str, set[str]], why: str
) -> None:
    verdict = decide(item, references, {NEW}, now=NOW, older_than=TEN_MINUTES)
    assert verdict.why.startswith(why)
    assert verdict.goes == (why == "")


def test_every_way_to_refer_to_a_configmap_counts() -> None:
    def ref(name: str) -> Object:
        return {"configMapRef": {"name": name}}

    key = {"valueFrom": {"configMapKeyRef": {"name": "e", "key": "k"}}}
    spec = {
        "volumes": [
            {"configMap": {"name": "a"}},
            {"projected": {"sources": [{"configMap": {"name": "b"}}, {"secret": {"name": "no"}}]}},
            {"emptyDir": {}},
        ],
        "containers": [{"envFrom": [ref("c")], "env": [{"name": "X", "value": "no"}, key]}],
        "initContainers": [{"envFrom": [ref("d")]}],
        "ephemeralContainers": [{"envFrom": [ref("f")]}],
    }
    assert find_references({"spec": spec}) == {"a", "b", "c", "d", "e", "f"}
    assert find_references({"spec": {}}) == set()


class ApiServer(http.server.ThreadingHTTPServer):
    """An API server's way to list, page by page, and to delete; `answers` are made in order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lists: dict[str, list[Object]] = {}
        self.calls: list[str] = []
        self.page = 2
        self.expired = 0
        self.denied: dict[str, int] = {}
        self.after: dict[str, Any] = {}
        # The Date header; some proxies drop it.
        self.date: str | None = email.utils.format_datetime(NOW, usegmt=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        assert isinstance(self.server, ApiServer)
        if keyword != "Date":
            super().send_header(keyword, value)
        elif self.server.date is not None:
            super().send_header(keyword, self.server.date)

    def do_GET(self) -> None:
        server, (path, query) = self._called()
        token = int(query.get("continue", ["0"])[0])
        if token and server.expired:
            server.expired -= 1
            self._answer(410, {"message": "expired"})
            return
        found = [item for item in server.lists.get(path, []) if self._is_selected(item, query)]
        server.after.get(path, lambda: None)()
        end = token + server.page
        metadata = {"continue": str(end)} if end < len(found) else {}
        self._answer(200, {"items": found[token:end], "metadata": metadata})

    def do_DELETE(self) -> None:
        self._called()
        self._answer(200, {})

    def _called(self) -> tuple[ApiServer, tuple[str, dict[str, list[str]]]]:
        server = self.server
        assert isinstance(server, ApiServer)
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        server.calls.append(f"{self.command} {address.path}{' ' * bool(body)}{body}")
        status = server.denied.get(f"{self.command} {address.path}")
        if status:
            self._answer(status, {"message": f"{address.path} is forbidden"})
            raise ConnectionAbortedError
        return server, (address.path, parse_qs(address.query))

    def _is_selected(self, item: Object, query: dict[str, list[str]]) -> bool:
        words = query.get("labelSelector", [""])[0].split(",")
        labels = item["metadata"].get("labels", {})
        return all(
            labels.get(key) == value for key, _, value in (w.partition("=") for w in words if w)
        )

    def _answer(self, status: int, body: Object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionAbortedError):
            super().handle()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def connected(server: ApiServer) -> Cluster:
    settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    settings.retries = False
    return Cluster(client.ApiClient(settings))


@pytest.mark.parametrize("date", [None, "", "yesterday", "Tue, 99 Nov 2026 12:00:00 GMT"])
def test_without_a_readable_date_in_an_answer_the_local_clock_is_used(
    server: ApiServer, date: str | None
) -> None:
    cluster = connected(server)
    cluster.get("/api/v1/pods")
    assert cluster.now == NOW
    server.date = date
    before = dt.datetime.now(dt.UTC)
    cluster.get("/api/v1/pods")
    assert before <= cluster.now <= dt.datetime.now(dt.UTC)


CONFIG_MAPS, PODS = "/api/v1/configmaps", "/api/v1/pods"
PART_OF = {"app.kubernetes.io/part-of": "asya-runtime"}
CHART = {
    "metadata": {
        "name": "asya-runtime",
        "namespace": "s",
        "labels": PART_OF,
        "annotations": {"asya.sh/runtime-sha256": NEW + "f" * 54},
    }
}


def pruned(server: ApiServer, **how: Any) -> dict[str, str]:
    words: Object = {"older_than": TEN_MINUTES, "dry_run": False} | how
    verdicts: list[PruneDecision] = list(prune(connected(server), **words))
    return {
        verdict.name.replace("asya-runtime-", ""): ("failed: " if verdict.failed else "")
        + verdict.why
        for verdict in verdicts
    }


def test_only_what_no_pod_needs_is_deleted_and_only_as_it_was_seen(server: ApiServer) -> None:
    server.lists = {
        CONFIG_MAPS: [
            *(copy_of(OLD, namespace) for namespace in ("a", "b", "c", "d", "e")),
            copy_of(NEW, "a"),
            CHART,
        ],
        PODS: [pod(OLD, "b"), pod(OLD, "d"), pod(None, "e")],
        "/api/v1/namespaces/d/pods": [pod(OLD, "d")],
    }
    dry = pruned(server, dry_run=True)
    assert not [call for call in server.calls if call.startswith("DELETE")]
    assert pruned(server) == dry == {
        f"a/{OLD}": "", f"b/{OLD}": "pod p refers to it", f"c/{OLD}": "",
        f"d/{OLD}": "pod p refers to it", f"e/{OLD}": "", f"a/{NEW}": "it is current",
    }  # fmt: skip
    deleted = [call.split(" ", 2) for call in server.calls if call.startswith("DELETE")]
    assert [path for _, path, _ in deleted] == [
        f"/api/v1/namespaces/{namespace}/configmaps/asya-runtime-{OLD}" for namespace in "ace"
    ]
    assert json.loads(deleted[0][2])["preconditions"] == {
        "uid": f"a-{OLD}",
        "resourceVersion": "7",
    }


def test_configmaps_are_listed_before_pods_and_pods_again_before_a_deletion(
    server: ApiServer,
) -> None:
    server.lists = {CONFIG_MAPS: [copy_of(OLD), CHART]}

    def arrive() -> None:
        server.lists["/api/v1/namespaces/m/pods"] = [pod(OLD)]

    server.after = {PODS: arrive}
    assert pruned(server) == {OLD.join(["m/", ""]): "pod p refers to it"}
    assert [call.split("?")[0] for call in server.calls][:3] == [
        f"GET {CONFIG_MAPS}", f"GET {CONFIG_MAPS}", f"GET {PODS}",
    ]  # fmt: skip
    assert not [call for call in server.calls if call.startswith("DELETE")]


def test_what_an_injector_that_is_still_there_gives_out_stays(server: ApiServer) -> None:
    injector = pod(None, "s", annotations={"checksum/runtime": OLD + "0" * 54})
    injector["metadata"]["labels"] = PART_OF | {"app.kubernetes.io/name": "asya-injector"}
    server.lists = {CONFIG_MAPS: [copy_of(OLD), CHART], PODS: [injector]}
    assert pruned(server) == {f"m/{OLD}": "it is current"}
    injector["metadata"]["labels"] = {}
    assert pruned(server) == {f"m/{OLD}": ""}


def test_without_an_injector_nothing_is_current(server: ApiServer) -> None:
    server.lists = {CONFIG_MAPS: [copy_of(OLD), copy_of(NEW)]}
    assert pruned(server, keep=[OLD]) == {f"m/{OLD}": "it is current", f"m/{NEW}": ""}


def test_a_list_that_the_server_forgot_is_begun_anew(server: ApiServer) -> None:
    server.lists = {CONFIG_MAPS: [copy_of(OLD, each) for each in "abcde"]}
    server.expired = 2
    assert len(pruned(server)) == 5
    server.expired = 9
    with pytest.raises(ApiError, match="expired"):
        pruned(server)


@pytest.mark.parametrize("status", [404, 409, 403])
def test_a_deletion_that_comes_too_late_or_is_forbidden_is_told_and_the_rest_goes_on(
    server: ApiServer, status: int
) -> None:
    server.lists = {CONFIG_MAPS: [copy_of(OLD, "a"), copy_of(OLD, "b")]}
    path = f"/api/v1/namespaces/a/configmaps/asya-runtime-{OLD}"
    server.denied = {f"DELETE {path}": status}
    told = {404: "", 409: "it has changed meanwhile", 403: f"failed: {path} is forbidden"}
    assert pruned(server) == {f"a/{OLD}": told[status], f"b/{OLD}": ""}


def test_in_one_namespace_with_rights_there_alone_the_current_version_must_be_said(
    server: ApiServer,
) -> None:
    server.lists = {"/api/v1/namespaces/m/configmaps": [copy_of(OLD), copy_of(NEW)]}
    server.denied = {f"GET {CONFIG_MAPS}": 403}
    with pytest.raises(ApiError, match="say it by --keep HASH"):
        pruned(server, namespace="m")
    assert pruned(server, namespace="m", keep=[NEW]) == {
        f"m/{OLD}": "",
        f"m/{NEW}": "it is current",
    }


# --- check: the injector


def configuration(*bundles: str) -> Object:
    hooks = [
        {"name": name, "clientConfig": {"caBundle": bundle, "service": {"name": "s"}}}
        for name, bundle in zip(("pods.asya.sh", "workloads.asya.sh"), bundles, strict=True)
    ]
    return {"metadata": {"name": "asya-runtime"}, "webhooks": hooks}


@pytest.mark.parametrize(
    ("items", "state", "found"),
    [
        ([configuration("Q0E=", "Q0E=")], OK, "asya-runtime is in place"),
        ([configuration("Q0E=", "")], WRONG, "no caBundle for workloads.asya.sh"),
        ([], WRONG, "no configuration with a webhook pods.asya.sh"),
        ([{"metadata": {"name": "x"}, "webhooks": [{"name": "y"}]}], WRONG, "no configuration"),
        ([configuration("Q0E=", "Q0E=")] * 2, WRONG, "several configurations call it"),
    ],
)
def test_the_webhook_configuration(items: list[Object], state: str, found: str) -> None:
    _, row = injector.webhook_of(items)
    assert row.state == state
    assert found in row.found
    assert bool(row.fix) == (state != OK)


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
    (row,) = injector.deployments([item])
    assert row.state == state
    assert f"s/d: {available or 0} of {replicas} available" in row.found
    assert [each.state for each in injector.deployments([])] == [WRONG]


def test_the_endpoints() -> None:
    slices: list[Object] = [
        {"endpoints": [{"addresses": ["1"], "conditions": {"ready": True}}]},
        {"endpoints": None},
    ]
    assert injector.endpoints(slices, "s/x").state == OK
    slices[0]["endpoints"][0]["conditions"]["ready"] = False
    assert injector.endpoints(slices, "s/x").state == WRONG


HOST = "x.s.svc"


def judged_certificate(
    *, days: float = 0, host: str = HOST, bundle: bytes = b"", damaged: bool = False
) -> str:
    pair = create([HOST], now=NOW)
    data = pair.to_secret() | ({"tls.crt": "AAAA"} if damaged else {})
    # One webhook with the CA of another certificate is enough for pods to be refused.
    bundles = [base64.b64encode(each).decode() for each in (pair.bundle, bundle or pair.bundle)]
    row = injector.certificate(
        data, bundles, host=host, now=NOW + dt.timedelta(days=days), where="s/tls"
    )
    assert (row.state == OK) == (not row.fix)
    return row.found


def test_the_certificate() -> None:
    end = f"{NOW + dt.timedelta(days=90):%Y-%m-%d}"
    assert judged_certificate() == f"s/tls: valid until {end}, trusted by caBundle"
    assert judged_certificate(days=75) == f"s/tls: valid until {end}, trusted by caBundle"
    assert judged_certificate(days=77) == f"s/tls: ends on {end} and should have been renewed"
    assert judged_certificate(days=91) == f"s/tls: ended on {end}"
    assert judged_certificate(days=-1) == "s/tls: is not valid yet"
    assert judged_certificate(host="y.s.svc") == "s/tls: is not for y.s.svc"
    assert judged_certificate(damaged=True) == "s/tls: certificate or caBundle cannot be read"
    other = create([HOST], now=NOW).bundle
    assert judged_certificate(bundle=other) == "s/tls: is not signed by a CA of caBundle"
    assert (
        injector.certificate({}, [], host=HOST, now=NOW, where="w").found == "w: holds no tls.crt"
    )


def test_the_versions() -> None:
    mine, other = RuntimeFiles({"asya_runtime.py": "1"}), RuntimeFiles({"asya_runtime.py": "2"})

    def state(holds: RuntimeFiles, says: RuntimeFiles) -> str:
        annotations = {"asya.sh/runtime-sha256": says.sha256}
        item = {"metadata": {"annotations": annotations}, "data": dict(holds.files)}
        (row,) = injector.versions([item], mine)
        return f"{row.state} {row.found}"

    assert state(mine, mine).startswith("ok ")
    assert f"holds runtime {other.hash}, this program brings {mine.hash}" in state(other, other)
    assert "its content is not what its asya.sh/runtime-sha256 says" in state(other, mine)


# --- check: the actors


def seen(*pods: Object) -> list[str]:
    rows = workloads.pods(pods, current={NEW}, disabled={"off"})
    return [f"{row.state} {row.found} | {row.fix}" for row in rows]


def of_deployment(item: Object) -> Object:
    item["metadata"]["ownerReferences"] = [
        {"kind": "ReplicaSet", "name": "d-abc", "controller": True}
    ]
    item["metadata"]["labels"] = item["metadata"]["labels"] | {"pod-template-hash": "abc"}
    return item


FIX = "; where its manifest was injected, inject anew"


def test_actors_with_the_current_runtime_are_counted() -> None:
    finished = {**pod(OLD), "status": {"phase": "Succeeded"}}
    leaving = pod(OLD, deletionTimestamp="x")
    others = [finished, leaving, pod(OLD, "kube-system"), pod(OLD, "off"), pod(OLD, annotations={})]
    off = pod(None, annotations=HANDLER | {"asya.sh/inject": "no"})
    assert seen(pod(NEW), pod(NEW), *others, off) == [
        "ok 2 actors, all with the current runtime | "
    ]


def test_annotated_pods_without_the_runtime_or_with_an_old_one_are_told_by_owner() -> None:
    found = seen(of_deployment(pod(OLD)), of_deployment(pod(OLD)), pod(None), pod(NEW))
    assert found == [
        f"wrong m: 2 of deployment/d runs the old runtime {OLD} | "
        f"kubectl -n m rollout restart deployment/d{FIX}",
        "wrong m: 1 of pod/p runs without the runtime, though annotated | "
        f"kubectl -n m delete pod/p, and create it anew{FIX}",
    ]


def test_an_annotation_that_cannot_be_read_is_still_an_annotated_pod() -> None:
    assert seen(pod(None, annotations={"asya.sh/inherited": "{"}))[0].startswith(
        "wrong m: 1 of pod/p"
    )


def test_workloads_whose_template_does_not_know_are_told() -> None:
    def workload(kind: str, annotations: Object) -> Object:
        metadata = {"name": "w", "namespace": "m", "annotations": annotations}
        api = "batch/v1" if kind == "Job" else "apps/v1"
        return {
            "apiVersion": api,
            "kind": kind,
            "metadata": metadata,
            "spec": {"template": {"spec": {}}},
        }

    old = workload("Deployment", HANDLER)
    rows = list(
        workloads.workloads([old, workload("Job", HANDLER), workload("Job", {})], disabled=())
    )
    assert [(row.state, row.fix) for row in rows] == [
        (WRONG, "kubectl -n m rollout restart deployment/w"),
        (WRONG, "delete it and create it anew"),
    ]
    (row,) = workloads.workloads([propagate(old), workload("Job", {})], disabled=())
    assert (row.state, row.found) == (OK, "1 annotated, all known to their templates")
    assert [row.state for row in workloads.workloads([old], disabled=["m"])] == [OK]
