"""What `prune` deletes and keeps."""

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

import pytest
from asya_injector.diagnostics.prune import PruneError, decide, find_references, prune

from tests.injector.paged_api import NOW, Object, PagedApi, serve_paged_api

OLD, NEW = "0123456789", "abcdef0123"
TEN_MINUTES = dt.timedelta(minutes=10)
HANDLER = {"asya.sh/handler": "a.b"}


def configmap(
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


@pytest.mark.parametrize(
    ("item", "references", "reason"),
    [
        (configmap(OLD), {}, ""),
        (configmap(OLD), {f"m/asya-runtime-{OLD}": {"p"}}, "used by pod p"),
        (
            configmap(OLD),
            {f"m/asya-runtime-{OLD}": {"q", "p", "r"}},
            "used by pod p and 2 more",
        ),
        (configmap(OLD), {f"other/asya-runtime-{OLD}": {"p"}}, ""),
        (configmap(NEW), {}, "current version"),
        (configmap(OLD, age=599), {}, "created recently; a pod may be about to use it"),
        (configmap(OLD, age=600), {}, ""),
        (
            configmap(OLD, labels={"asya.sh/source": "manifest"}),
            {},
            "belongs to a manifest and is deleted with it",
        ),
    ],
)
def test_a_configmap_is_deleted_unless_there_is_a_reason_to_keep_it(
    item: Object, references: dict[str, set[str]], reason: str
) -> None:
    decision = decide(item, references, {NEW}, now=NOW, older_than=TEN_MINUTES)
    assert (decision.reason, decision.delete) == (reason, reason == "")


def test_every_kind_of_reference_to_a_configmap_is_found() -> None:
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


@pytest.fixture
def server() -> Iterator[PagedApi]:
    with serve_paged_api() as server:
        yield server


RELEASE_CONFIGMAPS = "/api/v1/namespaces/s/configmaps"
RELEASE_PODS = "/api/v1/namespaces/s/pods"
CONFIGMAPS, PODS = "/api/v1/configmaps", "/api/v1/pods"
PART_OF = {"app.kubernetes.io/part-of": "asya-runtime"}
CHART = {
    "metadata": {
        "name": "asya-runtime",
        "namespace": "s",
        "labels": PART_OF,
        "annotations": {"asya.sh/runtime-sha256": NEW + "f" * 54},
    }
}


def run_prune(server: PagedApi, **options: Any) -> dict[str, str]:
    """The reason for each ConfigMap that was kept, "" for those that were deleted."""
    options = {"older_than": TEN_MINUTES, "dry_run": False, "release": "s", **options}
    return {
        decision.name.replace("asya-runtime-", ""): "failed: " * decision.failed + decision.reason
        for decision in prune(server.connect(), **options)
    }


def test_only_unused_configmaps_are_deleted_and_only_if_unchanged(server: PagedApi) -> None:
    server.lists = {
        CONFIGMAPS: [
            *(configmap(OLD, namespace) for namespace in ("a", "b", "c", "d", "e")),
            configmap(NEW, "a"),
        ],
        RELEASE_CONFIGMAPS: [CHART],
        PODS: [pod(OLD, "b"), pod(OLD, "d"), pod(None, "e")],
        "/api/v1/namespaces/d/pods": [pod(OLD, "d")],
    }
    dry = run_prune(server, dry_run=True)
    assert not [call for call in server.calls if call.startswith("DELETE")]
    assert run_prune(server) == dry == {
        f"a/{OLD}": "", f"b/{OLD}": "used by pod p", f"c/{OLD}": "",
        f"d/{OLD}": "used by pod p", f"e/{OLD}": "", f"a/{NEW}": "current version",
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
    server: PagedApi,
) -> None:
    server.lists = {CONFIGMAPS: [configmap(OLD)], RELEASE_CONFIGMAPS: [CHART]}

    def add_pod() -> None:
        server.lists["/api/v1/namespaces/m/pods"] = [pod(OLD)]

    server.after = {PODS: add_pod}
    assert run_prune(server) == {f"m/{OLD}": "used by pod p"}
    assert [call.split("?")[0] for call in server.calls][:3] == [
        f"GET {CONFIGMAPS}", f"GET {RELEASE_CONFIGMAPS}", f"GET {PODS}",
    ]  # fmt: skip
    assert not [call for call in server.calls if call.startswith("DELETE")]


def test_the_runtime_of_a_running_injector_is_kept(server: PagedApi) -> None:
    injector = pod(None, "s", annotations={"checksum/runtime": OLD + "0" * 54})
    injector["metadata"]["labels"] = PART_OF | {"app.kubernetes.io/name": "asya-injector"}
    server.lists = {
        CONFIGMAPS: [configmap(OLD)],
        RELEASE_CONFIGMAPS: [CHART],
        RELEASE_PODS: [injector],
    }
    assert run_prune(server) == {f"m/{OLD}": "current version"}
    assert run_prune(server, namespace="m") == {}
    server.lists["/api/v1/namespaces/m/configmaps"] = [configmap(OLD)]
    assert run_prune(server, namespace="m") == {f"m/{OLD}": "current version"}
    injector["metadata"]["labels"] = {}
    assert run_prune(server) == {f"m/{OLD}": ""}


def test_configmaps_and_pods_outside_of_the_release_do_not_keep_a_version(
    server: PagedApi,
) -> None:
    forged = {"metadata": CHART["metadata"] | {"namespace": "x"}}
    forged["metadata"]["annotations"] = {"asya.sh/runtime-sha256": OLD + "f" * 54}
    injector = pod(None, "x", annotations={"checksum/runtime": OLD + "0" * 54})
    injector["metadata"]["labels"] = PART_OF | {"app.kubernetes.io/name": "asya-injector"}
    server.lists = {
        CONFIGMAPS: [configmap(OLD), forged],
        RELEASE_CONFIGMAPS: [CHART],
        "/api/v1/namespaces/x/configmaps": [forged],
        PODS: [injector],
        "/api/v1/namespaces/x/pods": [injector],
    }
    assert run_prune(server, release="x") == {f"m/{OLD}": "current version"}
    assert run_prune(server) == {f"m/{OLD}": ""}


def test_without_a_chart_or_an_injector_no_version_is_current(server: PagedApi) -> None:
    server.lists = {CONFIGMAPS: [configmap(OLD), configmap(NEW)]}
    assert run_prune(server, keep=[OLD]) == {f"m/{OLD}": "current version", f"m/{NEW}": ""}


@pytest.mark.parametrize("status", [404, 409, 403])
def test_a_deletion_that_is_late_or_forbidden_is_reported_and_the_others_continue(
    server: PagedApi, status: int
) -> None:
    server.lists = {CONFIGMAPS: [configmap(OLD, "a"), configmap(OLD, "b")]}
    path = f"/api/v1/namespaces/a/configmaps/asya-runtime-{OLD}"
    server.denied = {f"DELETE {path}": status}
    expected = {404: "", 409: "changed since it was listed", 403: f"failed: {path} is forbidden"}
    assert run_prune(server) == {f"a/{OLD}": expected[status], f"b/{OLD}": ""}


def test_without_permission_to_find_the_current_version_it_must_be_named(
    server: PagedApi,
) -> None:
    server.lists = {"/api/v1/namespaces/m/configmaps": [configmap(OLD), configmap(NEW)]}
    server.denied = {f"GET {RELEASE_CONFIGMAPS}": 403}
    for release in ("s", None):
        with pytest.raises(PruneError, match="--release-namespace, or the version with --keep"):
            run_prune(server, namespace="m", release=release)
    assert run_prune(server, namespace="m", keep=[NEW]) == {
        f"m/{OLD}": "",
        f"m/{NEW}": "current version",
    }


@pytest.mark.parametrize(
    ("deliveries", "deleted"),
    [((), False), (("configMap",), False), (("image", "configMap"), False), (("image",), True)],
)
def test_the_current_version_is_not_needed_if_pods_mount_an_image(
    server: PagedApi, deliveries: tuple[str, ...], deleted: bool
) -> None:
    image = {"env": [{"name": "INJECTOR_RUNTIME_IMAGE", "value": "injector:1"}]}
    server.lists[CONFIGMAPS] = [configmap(NEW)]
    server.lists[RELEASE_CONFIGMAPS] = [CHART]
    labels = PART_OF | {"app.kubernetes.io/name": "asya-injector"}
    metadata = {"labels": labels, "annotations": {"checksum/runtime": NEW + "f" * 54}}
    server.lists[RELEASE_PODS] = [
        {"metadata": metadata, "spec": {"containers": [image if each == "image" else {}]}}
        for each in deliveries
    ]
    kept = "" if deleted else "current version"
    assert run_prune(server) == {f"m/{NEW}": kept}
