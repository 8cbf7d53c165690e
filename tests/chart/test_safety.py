"""What the chart's objects may do, and what they must not stand in the way of."""

import re
from pathlib import Path

import pytest
from asya_injector.version import MANAGED_BY, Payload
from asya_injector.webhook import PODS, WORKLOADS
from charts import CASES, SYSTEM, Object, case, objects, render

NAME = "asya-runtime"


@pytest.fixture(scope="module")
def rendered() -> dict[str, Object]:
    """The default rendering by kind; each kind is there once."""
    found = objects(render({}))
    assert len({kind for kind, _, _ in found}) == len(found)
    return {kind: item for (kind, _, _), item in found.items()}


def test_its_rights_are_those_of_the_design(rendered: dict[str, Object]) -> None:
    webhooks = "admissionregistration.k8s.io"
    assert rendered["ClusterRole"]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch"]},
        {
            "apiGroups": [webhooks],
            "resources": ["mutatingwebhookconfigurations"],
            "resourceNames": [rendered["MutatingWebhookConfiguration"]["metadata"]["name"]],
            "verbs": ["get", "patch"],
        },
    ]
    assert rendered["Role"]["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [rendered["Secret"]["metadata"]["name"]],
            "verbs": ["get", "update", "patch"],
        },
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
    ]


@pytest.mark.parametrize("kind", ["Role", "ClusterRole"])
def test_the_rights_are_the_injectors_alone(rendered: dict[str, Object], kind: str) -> None:
    binding = rendered[f"{kind}Binding"]
    account = rendered["ServiceAccount"]["metadata"]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind}
    assert binding["roleRef"] == role | {"name": rendered[kind]["metadata"]["name"]}
    who = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    assert binding["subjects"] == [who]
    spec = rendered["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == account["name"]


def test_the_policy_is_about_the_injectors_account(rendered: dict[str, Object]) -> None:
    spec = rendered["ValidatingAdmissionPolicy"]["spec"]
    account = rendered["ServiceAccount"]["metadata"]
    user = f"system:serviceaccount:{account['namespace']}:{account['name']}"
    (condition,) = spec["matchConditions"]
    assert condition["expression"] == f"request.userInfo.username == '{user}'"
    assert spec["failurePolicy"] == "Fail"
    assert rendered["ValidatingAdmissionPolicyBinding"]["spec"] == {
        "policyName": rendered["ValidatingAdmissionPolicy"]["metadata"]["name"],
        "validationActions": ["Deny"],
    }


def test_the_policy_lets_through_what_the_injector_writes(rendered: dict[str, Object]) -> None:
    metadata = Payload({"a": "b"}).config_map()["metadata"]
    (label,) = MANAGED_BY.items()
    for each in rendered["ValidatingAdmissionPolicy"]["spec"]["validations"]:
        (prefix,) = re.findall(r"name\.startsWith\('([^']+)'\)", each["expression"])
        assert metadata["name"].startswith(prefix)
        assert re.findall(r"labels\['([^']+)'\] == '([^']+)'", each["expression"]) == [label]


def test_the_secret_is_empty_and_the_ca_is_nobodys_but_the_injectors(
    rendered: dict[str, Object],
) -> None:
    secret = rendered["Secret"]
    assert secret["type"] == "Opaque"
    assert not {"data", "stringData"} & set(secret)
    for webhook in rendered["MutatingWebhookConfiguration"]["webhooks"]:
        assert set(webhook["clientConfig"]) == {"service"}


def rule(group: str, operations: list[str], *resources: str) -> Object:
    return {
        "apiGroups": [group],
        "apiVersions": ["v1"],
        "resources": list(resources),
        "operations": operations,
        "scope": "Namespaced",
    }


def test_the_webhooks_are_those_of_the_design(rendered: dict[str, Object]) -> None:
    both = ["CREATE", "UPDATE"]
    rules = {
        "pods": [rule("", ["CREATE"], "pods")],
        "workloads": [
            rule("apps", both, "deployments", "statefulsets", "daemonsets", "replicasets"),
            rule("batch", both, "cronjobs"),
            rule("batch", ["CREATE"], "jobs"),
        ],
    }
    spared = ["kube-system", "kube-public", "kube-node-lease"]
    excluded = [
        {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": spared},
        {"key": "asya.sh/injection", "operator": "NotIn", "values": ["disabled"]},
    ]
    found = [dict(each) for each in rendered["MutatingWebhookConfiguration"]["webhooks"]]
    for each in found:
        assert each.pop("matchConditions")
    service = {"name": NAME, "namespace": SYSTEM, "port": 443}
    assert found == [
        {
            "name": f"{name}.asya.sh",
            "clientConfig": {"service": service | {"path": f"/{name}"}},
            "rules": rules[name],
            "matchPolicy": "Equivalent",
            "namespaceSelector": {"matchExpressions": excluded},
            "failurePolicy": "Fail",
            "timeoutSeconds": 5,
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "NoneOnDryRun",
            "admissionReviewVersions": ["v1"],
        }
        for name in rules
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_injector_meets_restricted_pod_security(name: str, chart: Path) -> None:
    namespace, _ = CASES[name]
    found = objects(case(name, chart))
    pod = found["Deployment", namespace, NAME]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"configMap", "emptyDir"}
    assert not [port for port in container["ports"] if "hostPort" in port]


@pytest.mark.parametrize("name", CASES)
def test_the_injector_never_waits_for_itself(name: str, chart: Path) -> None:
    namespace, _ = CASES[name]
    deployment = objects(case(name, chart))["Deployment", namespace, NAME]
    template = deployment["spec"]["template"]["metadata"]
    keys = [*deployment["metadata"].get("annotations", {}), *template["annotations"]]
    assert not [key for key in keys if key.startswith("asya.sh/")]


@pytest.mark.parametrize("name", CASES)
def test_whatever_selects_pods_selects_the_injectors_and_by_nothing_that_changes(
    name: str, chart: Path
) -> None:
    namespace, _ = CASES[name]
    found = objects(case(name, chart))
    spec = found["Deployment", namespace, NAME]["spec"]
    selected = spec["selector"]["matchLabels"]
    assert set(selected) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    assert selected.items() <= spec["template"]["metadata"]["labels"].items()
    assert found["Service", namespace, NAME]["spec"]["selector"] == selected
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == selected
    budget = found.get(("PodDisruptionBudget", namespace, NAME))
    assert (budget is None) == (spec["replicas"] < 2)
    if budget:
        assert budget["spec"]["selector"]["matchLabels"] == selected


def test_the_webhooks_paths_are_those_that_the_injector_answers(
    rendered: dict[str, Object],
) -> None:
    webhooks = rendered["MutatingWebhookConfiguration"]["webhooks"]
    paths = [each["clientConfig"]["service"]["path"] for each in webhooks]
    assert paths == [f"/{PODS}", f"/{WORKLOADS}"]
