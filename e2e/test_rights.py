"""The injector may do what the design lists, and nothing else."""

import json
from typing import Any

import pytest
from harness import SYSTEM, Cluster, Object
from kubernetes import client
from kubernetes.client.exceptions import ApiException

ACCOUNT = f"system:serviceaccount:{SYSTEM}:asya-runtime"
GROUPS = ["system:serviceaccounts", f"system:serviceaccounts:{SYSTEM}", "system:authenticated"]
AS_INJECTOR = ["--as", ACCOUNT, *(word for group in GROUPS for word in ("--as-group", group))]


def config_map(name: str, labels: dict[str, str]) -> Object:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {}}


def rules(cluster: Cluster, account: str) -> list[tuple[Any, ...]]:
    """API groups, resources, names and verbs, as the API server lists them for an account."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": SYSTEM},
    }
    user = ["--as", f"system:serviceaccount:{SYSTEM}:{account}"]
    words = ["create", "-f", "-", "-o", "json", "--validate=false", *user]
    done = cluster.kubectl(*words, stdin=json.dumps(review))
    return [
        (rule["apiGroups"], rule["resources"], rule.get("resourceNames"), sorted(rule["verbs"]))
        for rule in json.loads(done.stdout)["status"]["resourceRules"]
    ]


def test_its_rights_are_those_of_the_design(cluster: Cluster) -> None:
    everybodys = rules(
        cluster, "default"
    )  # by Kubernetes' own default roles: each version has more
    ours = [rule for rule in rules(cluster, "asya-runtime") if rule not in everybodys]
    assert sorted(ours, key=repr) == sorted(
        [
            ([""], ["configmaps"], None, ["create", "patch"]),
            ([""], ["secrets"], None, ["create"]),
            ([""], ["secrets"], ["asya-runtime-tls"], ["get", "patch", "update"]),
            (
                ["admissionregistration.k8s.io"],
                ["mutatingwebhookconfigurations"],
                ["asya-runtime"],
                ["get", "patch"],
            ),
        ],
        key=repr,
    )


def test_the_policy_holds_its_config_maps_to_name_and_label(
    cluster: Cluster, namespace: str
) -> None:
    label = {"app.kubernetes.io/managed-by": "asya-injector"}

    def create(name: str, labels: dict[str, str]) -> bool:
        item = config_map(name, labels)
        done = cluster.create(item, "-n", namespace, "--dry-run=server", *AS_INJECTOR, check=False)
        if done.returncode:
            assert "ValidatingAdmissionPolicy" in done.stderr
        return done.returncode == 0

    assert create("asya-runtime-0123456789", label)
    assert not create("asya-runtime-0123456789", {})
    assert not create("other", label)
    cluster.create(config_map("asya-runtime-theirs", {}), "-n", namespace)
    injector: Any = client.ApiClient()
    injector.set_default_header("Impersonate-User", ACCOUNT)
    with pytest.raises(ApiException, match="ValidatingAdmissionPolicy"):
        client.CoreV1Api(injector).patch_namespaced_config_map(
            "asya-runtime-theirs",
            namespace,
            {"metadata": {"labels": label}, "data": {"a": "b"}},
            _content_type="application/merge-patch+json",
        )
