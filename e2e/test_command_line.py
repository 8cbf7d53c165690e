"""The command line with a cluster: check, prune, and manifests that need no webhook."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.harness import (
    SYSTEM,
    Cluster,
    Object,
    bare_pod,
    limit_config_maps,
    run,
    switch_injection,
    until,
    workload,
)

ECHO = {"asya.sh/handler": "handlers.echo"}
APP = ["python3", "-m", "app"]
OLD = "0123456789"


def asya(*words: str, **how: Any) -> Any:
    """Run `asya-injector`, with any exit status."""
    return run(sys.executable, "-m", "asya_injector", *words, check=False, **how)


def run_check(*words: str) -> tuple[int, dict[str, list[Object]]]:
    """The exit status of `check`, and its rows by the name of the check."""
    done = asya("check", "-o", "json", *words)
    assert done.stderr == ""
    rows: dict[str, list[Object]] = {}
    for row in json.loads(done.stdout)["rows"]:
        rows.setdefault(row["check"], []).append(row)
    return done.returncode, rows


def old_copy(version: str = OLD, **labels: str) -> Object:
    label = {"app.kubernetes.io/managed-by": "asya-injector", **labels}
    metadata = {"name": f"asya-runtime-{version}", "labels": label}
    kind = {"apiVersion": "v1", "kind": "ConfigMap"}
    return {**kind, "metadata": metadata, "immutable": True, "data": {}}


def with_old_runtime(pod: Object, version: str = OLD) -> Object:
    pod["metadata"]["labels"]["asya.sh/runtime-hash"] = version
    source = {"name": "asya-runtime", "configMap": {"name": f"asya-runtime-{version}"}}
    pod["spec"]["volumes"] = [source]
    return pod


@pytest.mark.alone  # other releases would be in the table
def test_a_healthy_cluster_passes_all_checks(cluster: Cluster, namespace: str) -> None:
    cluster.create(bare_pod("model", cluster.model_image, ECHO), "-n", namespace)
    status, rows = run_check("-n", namespace)
    states = {check: [row["state"] for row in found] for check, found in rows.items()}
    checks = [
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
    ]
    assert states == {check: ["ok"] for check in checks}, rows
    assert status == 0
    assert rows["pods"][0]["found"] == "actors with the current runtime: 1"
    table = asya("check", "-n", namespace)
    assert table.returncode == 0
    assert [line.split()[:2] for line in table.stdout.splitlines()] == [
        [check, "ok"] for check in checks
    ]


def test_pods_and_workloads_that_the_injector_has_not_seen_are_found(
    cluster: Cluster, namespace: str
) -> None:
    switch_injection(cluster, namespace, on=False)
    sleeping = workload("asleep", cluster.model_image, annotations=ECHO)
    sleeping["spec"]["replicas"] = 0
    cluster.apply(
        bare_pod("plain", cluster.model_image, ECHO),
        with_old_runtime(bare_pod("old", cluster.model_image, ECHO)),
        sleeping,
        namespace=namespace,
    )
    # The exit status is not checked: another test may be renewing the injector's certificate.
    rows = run_check("-n", namespace)[1]
    assert [row["found"] for row in rows["pods"] + rows["workloads"]] == [
        "actors with the current runtime: 0",
        "workloads with propagated annotations: 0",
    ]
    switch_injection(cluster, namespace, on=True)
    status, rows = run_check("-n", namespace)
    assert status == 1
    assert sorted(row["found"] for row in rows["pods"]) == [
        f"{namespace}: pod/old runs the old runtime {OLD} (1 pod)",
        f"{namespace}: pod/plain is annotated, but runs without the runtime (1 pod)",
    ]
    (row,) = rows["workloads"]
    assert row["found"] == (
        f"{namespace}: annotations of deployment/asleep are not propagated to its pod template"
    )
    # The suggested fix works.
    cluster.kubectl(*row["fix"].removeprefix("kubectl ").split())
    assert run_check("-n", namespace)[1]["workloads"][0]["state"] == "ok"


def test_a_quota_that_keeps_pods_away_is_found(cluster: Cluster, namespace: str) -> None:
    asleep = workload("asleep", cluster.model_image, annotations=ECHO)
    asleep["spec"]["replicas"] = 0
    cluster.apply(asleep, namespace=namespace)
    limit_config_maps(cluster, namespace, 1)  # kube-root-ca.crt is one
    (row,) = run_check("-n", namespace)[1]["configmaps"]
    assert row["state"] == "wrong"
    assert "exceeded quota: few" in row["found"]
    cluster.kubectl("-n", namespace, "delete", "resourcequota/few")

    def states() -> list[str]:
        return [row["state"] for row in run_check("-n", namespace)[1]["configmaps"]]

    until("the API server to forget the quota", lambda: states() == ["ok"])


@pytest.fixture
def pruner(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[list[str]]:
    """Options for an account that has exactly the documented permissions."""
    role = f"e2e-prune-{namespace}"
    words = ["create", "clusterrole", role, "--verb=list"]
    cluster.kubectl(*words, "--resource=configmaps,pods")
    rule = {"op": "add", "path": "/rules/-", "value": {
        "apiGroups": [""], "resources": ["configmaps"], "verbs": ["delete"]}}  # fmt: skip
    cluster.kubectl("patch", "clusterrole", role, "--type=json", "-p", json.dumps([rule]))
    account = f"{namespace}:default"
    cluster.kubectl(
        "create", "clusterrolebinding", role, f"--clusterrole={role}", f"--serviceaccount={account}"
    )
    user = f"--as=system:serviceaccount:{account}"

    def may(*words: str) -> bool:
        return not cluster.kubectl("auth", "can-i", *words, "-A", user, check=False).returncode

    # The API server's own copy of the roles follows.
    until("the permissions", lambda: may("list", "pods") and may("delete", "configmaps"))
    token = cluster.kubectl("-n", namespace, "create", "token", "default").stdout.strip()
    kubeconfig = yaml.safe_load(cluster.kubectl("config", "view", "--raw", "--minify").stdout)
    kubeconfig["users"][0]["user"] = {"token": token}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    yield ["--kubeconfig", str(path), "-n", namespace]
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", role)


def test_prune_deletes_only_unused_config_maps_and_needs_only_the_documented_permissions(
    cluster: Cluster, namespace: str, pruner: list[str]
) -> None:
    cluster.create(bare_pod("model", cluster.model_image, ECHO), "-n", namespace)
    switch_injection(cluster, namespace, on=False)
    used, manifest = "aaaaaaaaaa", {"asya.sh/source": "manifest"}
    copies = [old_copy(), old_copy(used), old_copy("bbbbbbbbbb", **manifest)]
    user = with_old_runtime(bare_pod("user", cluster.model_image, {}), used)
    cluster.apply(*copies, user, namespace=namespace)
    present = cluster.get("-n", namespace, "configmaps")["items"]
    (current,) = [
        name
        for item in present
        if (name := item["metadata"]["name"]).startswith("asya-runtime-")
        and name not in [each["metadata"]["name"] for each in copies]
    ]
    prune = ["prune", *pruner, "--release-namespace", SYSTEM]
    assert asya(*prune).stdout.splitlines()[-1] == "0 deleted, 4 kept"  # all are new
    words = [*prune, "--older-than", "0s"]
    dry = asya(*words, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.splitlines()[-1] == "1 deleted (dry run), 3 kept"
    # The current one stays even without a pod that refers to it.
    cluster.kubectl("-n", namespace, "delete", "pod", "model", "--wait")
    done = asya(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted([
        f"{namespace}/asya-runtime-{OLD}: deleted",
        f"{namespace}/asya-runtime-{used}: kept, used by pod user",
        f"{namespace}/asya-runtime-bbbbbbbbbb: kept, belongs to a manifest and is deleted with it",
        f"{namespace}/{current}: kept, current version",
        "1 deleted, 3 kept",
    ])  # fmt: skip
    left = {
        item["metadata"]["name"] for item in cluster.get("-n", namespace, "configmaps")["items"]
    }
    assert left == {item["metadata"]["name"] for item in present} - {f"asya-runtime-{OLD}"}


def test_a_check_without_permission_is_unknown_and_shows_the_error(
    cluster: Cluster, namespace: str, pruner: list[str]
) -> None:
    status, rows = run_check(*pruner)
    assert status == 1
    states = {name: found[0]["state"] for name, found in rows.items()}
    assert states == {"webhook": "unknown", "version": "ok", "pods": "ok", "workloads": "unknown"}
    assert "cannot list resource" in rows["webhook"][0]["found"]


def test_injected_manifests_need_no_webhook(cluster: Cluster, namespace: str) -> None:
    switch_injection(cluster, namespace, on=False)
    model = workload("model", cluster.model_image, command=APP, annotations=ECHO)
    injected = asya("inject", "-n", namespace, stdin=json.dumps(model))
    summary = "asya-injector: 1 injected, 0 unchanged, 0 rejected\n"
    assert (injected.returncode, injected.stderr) == (0, summary)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=injected.stdout)
    pod = cluster.ready_pod(namespace, "model")
    assert cluster.call(pod, {"payload": {"a": 1}}) == [{"status": "ok", "result": {"a": 1}}]
    again = cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=injected.stdout).stdout
    assert all(line.endswith(" unchanged") for line in again.splitlines())
    assert asya("uninject", stdin=injected.stdout).stdout == json.dumps(model)
