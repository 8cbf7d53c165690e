"""The injector has the documented permissions, and no others."""

from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from e2e.harness import SYSTEM, Cluster, Object

ACCOUNT = f"system:serviceaccount:{SYSTEM}:asya-runtime"


def config_map(name: str, labels: dict[str, str]) -> Object:
    metadata = {"name": name, "labels": labels}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}
    return item | {"immutable": True}


def test_the_injector_has_exactly_the_documented_permissions(cluster: Cluster) -> None:
    assert cluster.rights("asya-runtime") == {
        ("configmaps", "", "create patch"),
        ("secrets", "", "create"),
        ("secrets", "asya-runtime-tls", "get patch update"),
        ("mutatingwebhookconfigurations.admissionregistration.k8s.io", "asya-runtime", "get patch"),
    }


def test_the_policy_restricts_its_config_maps_by_name_and_label(
    cluster: Cluster, namespace: str
) -> None:
    label = {"app.kubernetes.io/managed-by": "asya-injector"}

    def create(name: str, labels: dict[str, str]) -> bool:
        item = config_map(name, labels)
        words = ["-n", namespace, "--dry-run=server", "--as", ACCOUNT]
        done = cluster.create(item, *words, check=False)
        if done.returncode:
            assert "ValidatingAdmissionPolicy" in done.stderr
        return done.returncode == 0

    assert create("asya-runtime-0123456789", label)
    assert not create("asya-runtime-0123456789", {})
    assert not create("other", label)
    cluster.create(config_map("asya-runtime-theirs", {}) | {"immutable": False}, "-n", namespace)
    injector: Any = client.ApiClient()
    injector.set_default_header("Impersonate-User", ACCOUNT)
    with pytest.raises(ApiException, match="ValidatingAdmissionPolicy"):
        client.CoreV1Api(injector).patch_namespaced_config_map(
            "asya-runtime-theirs",
            namespace,
            {"metadata": {"labels": label}, "data": {"a": "b"}},
            _content_type="application/merge-patch+json",
        )
