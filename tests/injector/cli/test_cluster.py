"""What `check` and `prune` print, and how they end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asya_injector.cli import cluster

from tests.injector.commands import Done, asya
from tests.injector.paged_api import PagedApi, serve_paged_api

Command = Callable[..., Done]
OLD, USED = "0123456789", "abcdef0123"


@pytest.fixture
def server() -> Iterator[PagedApi]:
    with serve_paged_api() as server:
        yield server


@pytest.fixture
def run(server: PagedApi, tmp_path: Path) -> Command:
    """Run a command with the server as its cluster."""
    kubeconfig = server.write_kubeconfig(tmp_path / "kubeconfig")
    return lambda *words, **environ: asya(*words, "--kubeconfig", kubeconfig, **environ)


def configmap(version: str) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"asya-runtime-{version}",
            "namespace": "m",
            "uid": version,
            "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app.kubernetes.io/managed-by": "asya-injector"},
        }
    }


def pod(version: str) -> dict[str, Any]:
    volume = {"name": "asya-runtime", "configMap": {"name": f"asya-runtime-{version}"}}
    return {"metadata": {"name": "p", "namespace": "m"}, "spec": {"volumes": [volume]}}


# --- check


def test_check_prints_a_row_for_each_result_and_the_fix_below(run: Command) -> None:
    done = run("check")
    assert (done.status, done.err) == (1, "")
    assert done.out.splitlines() == [
        "webhook      wrong    no webhook configuration contains pods.asya.sh: annotated pods are "
        "not injected",
        " " * 22 + "helm install asya-runtime, unless you only use `asya-injector inject`",
        "pods         ok       actors with the current runtime: 0",
        "workloads    ok       workloads with propagated annotations: 0",
    ]


def test_check_prints_json_for_programs(run: Command) -> None:
    done = run("check", "-o", "json")
    assert (done.status, done.err) == (1, "")
    report = json.loads(done.out)
    assert len(report["runtime"]) == 10
    assert [row["check"] for row in report["rows"]] == ["webhook", "pods", "workloads"]
    assert report["rows"][1] == {
        "check": "pods",
        "state": "ok",
        "found": "actors with the current runtime: 0",
        "fix": "",
    }


def test_check_of_one_namespace_reads_no_other(run: Command, server: PagedApi) -> None:
    run("check", "-n", "m")
    assert "GET /api/v1/namespaces/m/pods" in server.calls
    assert "GET /apis/apps/v1/namespaces/m/deployments" in server.calls
    assert "GET /api/v1/pods" not in server.calls


def test_names_from_the_cluster_cannot_forge_terminal_sequences(
    run: Command, server: PagedApi
) -> None:
    item = pod(OLD)
    item["metadata"] |= {"name": "\x1b[2J\nok", "annotations": {"asya.sh/handler": "a.b"}}
    server.lists["/api/v1/pods"] = [item]
    done = run("check")
    assert "m: pod/ [2J ok is annotated" in done.out
    assert all(line.isprintable() for line in done.out.splitlines())


@pytest.mark.parametrize("command", ["check", "prune"])
def test_an_unreachable_cluster_is_one_line_and_status_2(run: Command, command: str) -> None:
    done = run(command, "--context", "elsewhere")
    assert (done.status, done.out) == (2, "")
    assert done.err == (
        "asya-injector: cluster unreachable: the API server did not answer: [Errno 111] Connection "
        "refused\n"
    )
    done = run(command, "--context", "none")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("asya-injector: cluster unreachable: Invalid kube-config")
    assert done.err.endswith("; see --kubeconfig\n")


# --- prune


def test_prune_prints_a_line_for_each_configmap_and_a_summary(
    run: Command, server: PagedApi
) -> None:
    server.lists = {
        "/api/v1/configmaps": [configmap(OLD), configmap(USED)],
        "/api/v1/pods": [pod(USED)],
    }
    assert run("prune", "--dry-run") == Done(
        0,
        f"m/asya-runtime-{OLD}: deleted (dry run)\n"
        f"m/asya-runtime-{USED}: kept, used by pod p\n"
        "1 deleted (dry run), 1 kept\n",
        "",
    )
    assert run("prune") == Done(
        0,
        f"m/asya-runtime-{OLD}: deleted\nm/asya-runtime-{USED}: kept, used by pod p\n"
        "1 deleted, 1 kept\n",
        "",
    )
    path = f"/api/v1/namespaces/m/configmaps/asya-runtime-{OLD}"
    server.denied = {f"DELETE {path}": 403}
    assert run("prune") == Done(
        1,
        f"m/asya-runtime-{USED}: kept, used by pod p\n0 deleted, 1 kept\n",
        f"m/asya-runtime-{OLD}: not deleted: {path} is forbidden\n",
    )


@pytest.mark.parametrize("path", ["/api/v1/pods", "/api/v1/configmaps"])
def test_prune_without_permission_to_read_the_cluster_deletes_nothing(
    run: Command, server: PagedApi, path: str
) -> None:
    server.lists = {"/api/v1/configmaps": [configmap(OLD)]}
    server.denied = {f"GET {path}": 403}
    assert run("prune") == Done(1, "", f"asya-injector: {path} is forbidden\n")
    assert not [call for call in server.calls if call.startswith("DELETE")]


def test_prune_that_cannot_find_the_current_version_says_how_to_name_it(
    run: Command, server: PagedApi
) -> None:
    webhooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    configmaps = "/api/v1/namespaces/s/configmaps"
    server.denied = {f"GET {webhooks}": 403, f"GET {configmaps}": 403}
    hint = "; name the namespace with --release-namespace, or the version with --keep HASH\n"
    line = "asya-injector: cannot determine the current runtime version"
    unknown = f"{line} (the namespace of the release is unknown){hint}"
    assert run("prune", "-n", "m") == Done(1, "", unknown)
    denied = f"{line} ({configmaps} is forbidden){hint}"
    assert run("prune", "-n", "m", "--release-namespace", "s") == Done(1, "", denied)
    assert run("prune", "-n", "m", "--keep", OLD) == Done(0, "0 deleted, 0 kept\n", "")


def test_prune_finds_the_release_by_the_webhook_or_by_its_own_namespace(
    run: Command, server: PagedApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webhooks = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
    service = {"service": {"namespace": "s", "name": "x"}}
    webhook = {"name": "pods.asya.sh", "clientConfig": service}
    server.lists = {webhooks: [{"metadata": {"name": "x"}, "webhooks": [webhook]}]}
    assert run("prune").status == 0
    assert any("/namespaces/s/configmaps" in call for call in server.calls)
    (tmp_path / "namespace").write_text("own\n")
    monkeypatch.setattr(cluster, "_OWN_NAMESPACE", tmp_path / "namespace")
    server.denied = {f"GET {webhooks}": 403}
    assert run("prune").status == 0
    assert any("/namespaces/own/configmaps" in call for call in server.calls)
