"""What `check` and `prune` print, and how they end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
    server.denied = {"GET /api/v1/configmaps": 403}
    assert run("prune", "-n", "m") == Done(
        1,
        "",
        "asya-injector: cannot determine the current runtime version (/api/v1/configmaps is "
        "forbidden); name it with --keep HASH\n",
    )
    assert run("prune", "-n", "m", "--keep", OLD) == Done(0, "0 deleted, 0 kept\n", "")
