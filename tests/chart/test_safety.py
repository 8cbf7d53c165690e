"""Permissions, webhooks, pod security and selectors of the chart's objects."""

import base64
import re
from pathlib import Path

import pytest
from asya_injector.runtime_files import MANAGED_BY, RuntimeFiles
from asya_injector.webhook.admission import PODS, TEMPLATES, WORKLOADS

from tests.chart import cel_cases
from tests.chart.charts import (
    CA,
    CASES,
    REPOSITORY,
    SYSTEM,
    Object,
    case_objects,
    find_by_name,
    find_object,
    load_objects,
    render,
    render_case,
    value_at,
)

NAME = "asya-runtime"
IMMUTABLE = "asya-runtime-immutable"
WITH_INJECTOR = [name for name in CASES if name not in ("no-injector", "empty")]
# Pods mount an image, so the injector writes no copies.
FROM_IMAGE = ("runtime-from-image", "runtime-from-another-image")
# Values that give up Pod Security `restricted`.
UNRESTRICTED = ("host-network", "null-security-contexts")
EXCLUSIONS = [
    {
        "key": "kubernetes.io/metadata.name",
        "operator": "NotIn",
        "values": ["kube-system", "kube-public", "kube-node-lease"],
    },
    {"key": "asya.sh/injection", "operator": "NotIn", "values": ["disabled"]},
]


@pytest.fixture(scope="module")
def rendered() -> dict[str, Object]:
    """Objects of the default rendering by kind, without those of the policy for immutability."""
    found = {key: item for key, item in load_objects(render({})).items() if key[2] != IMMUTABLE}
    assert len({kind for kind, _, _ in found}) == len(found)
    return {kind: item for (kind, _, _), item in found.items()}


# --- Permissions ------------------------------------------------------------------------------


CONFIG_MAPS = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch"]}
OWN_WEBHOOKS = {
    "apiGroups": ["admissionregistration.k8s.io"],
    "resources": ["mutatingwebhookconfigurations"],
    "resourceNames": [NAME],
    "verbs": ["get", "patch"],
}
OWN_SECRET = [
    {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [f"{NAME}-tls"],
        "verbs": ["get", "update", "patch"],
    },
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
]


@pytest.mark.parametrize(
    ("name", "in_cluster", "in_namespace"),
    [
        ("defaults", [CONFIG_MAPS, OWN_WEBHOOKS], OWN_SECRET),
        ("cert-manager", [CONFIG_MAPS], []),
        ("existing-secret", [CONFIG_MAPS], []),
        # Nothing outside its namespace but its own webhook configuration.
        ("runtime-from-image", [OWN_WEBHOOKS], OWN_SECRET),
        ("runtime-from-another-image", [], []),  # with cert-manager
    ],
)
def test_the_injector_has_only_the_documented_permissions(
    name: str, in_cluster: list[Object], in_namespace: list[Object], chart: Path
) -> None:
    found = case_objects(name, chart)
    rules = {key: item["rules"] for key, item in found.items() if "rules" in item}
    assert rules == {
        key: expected
        for key, expected in (
            (("ClusterRole", "", NAME), in_cluster),
            (("Role", SYSTEM, NAME), in_namespace),
        )
        if expected
    }
    bound = {
        (kind.removesuffix("Binding"), where, who) for kind, where, who in found if "Bind" in kind
    }
    policies = {key for key in bound if key[0] == "ValidatingAdmissionPolicy"}
    assert bound - policies == set(rules)
    assert (not policies) == (name in FROM_IMAGE)
    assert (("Secret", SYSTEM, f"{NAME}-tls") in found) == bool(in_namespace)
    config_maps = [key for key in found if key[0] == "ConfigMap"]
    assert len(config_maps) == (name != "runtime-from-another-image")


def test_with_an_image_the_webhooks_have_no_side_effects_and_nothing_is_pruned(chart: Path) -> None:
    for name in FROM_IMAGE:
        found = case_objects(name, chart)
        webhooks = found["MutatingWebhookConfiguration", "", NAME]["webhooks"]
        assert [each["sideEffects"] for each in webhooks] == ["None"] * 3
        assert not [key for key in found if key[0] in ("CronJob", "ValidatingAdmissionPolicy")]


def test_prune_has_a_separate_account_and_role(chart: Path) -> None:
    default, found = case_objects("defaults", chart), case_objects("prune", chart)
    name = "asya-runtime-prune"
    assert found["ClusterRole", "", name]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "delete"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ]
    (subject,) = found["ClusterRoleBinding", "", name]["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}
    assert found["ClusterRoleBinding", "", name]["roleRef"]["name"] == name
    job = found["CronJob", SYSTEM, name]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert job["serviceAccountName"] == name
    # The other objects do not change.
    assert {key: found[key] for key in default} == default


@pytest.mark.parametrize("name", CASES)
def test_no_other_object_grants_permissions(name: str, chart: Path) -> None:
    kinds = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    expected = {(kind, NAME) for kind in kinds} | {
        (kind, f"{NAME}-prune") for kind in ("ClusterRole", "ClusterRoleBinding")
    }
    found = {(kind, who) for kind, _, who in case_objects(name, chart) if kind in kinds}
    assert found <= (set() if name == "existing-accounts" else expected)


def test_an_existing_account_replaces_the_charts_account(chart: Path) -> None:
    found = case_objects("existing-accounts", chart)
    assert [key for key in found if key[0] == "ServiceAccount"] == [
        ("ServiceAccount", SYSTEM, "asya-runtime-prune")
    ]
    spec = found["Deployment", SYSTEM, NAME]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "theirs"
    (condition,) = found["ValidatingAdmissionPolicy", "", NAME]["spec"]["matchConditions"]
    assert f"'system:serviceaccount:{SYSTEM}:theirs'" in condition["expression"]


@pytest.mark.parametrize("kind", ["Role", "ClusterRole"])
def test_roles_are_bound_only_to_the_injectors_account(
    rendered: dict[str, Object], kind: str
) -> None:
    binding = rendered[f"{kind}Binding"]
    account = rendered["ServiceAccount"]["metadata"]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind}
    assert binding["roleRef"] == role | {"name": rendered[kind]["metadata"]["name"]}
    who = {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    assert binding["subjects"] == [who]
    spec = rendered["Deployment"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == account["name"]


def test_the_admission_policy_restricts_the_injectors_account(rendered: dict[str, Object]) -> None:
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


def test_the_admission_policy_allows_the_runtime_config_maps(rendered: dict[str, Object]) -> None:
    metadata = RuntimeFiles({"a": "b"}).config_map()["metadata"]
    (label,) = MANAGED_BY.items()
    for each in rendered["ValidatingAdmissionPolicy"]["spec"]["validations"]:
        (prefix,) = re.findall(r"name\.startsWith\('([^']+)'\)", each["expression"])
        assert metadata["name"].startswith(prefix)
        assert re.findall(r"labels\['([^']+)'\] == '([^']+)'", each["expression"]) == [label]


@pytest.mark.parametrize("name", [name for name in WITH_INJECTOR if name not in FROM_IMAGE])
def test_runtime_config_maps_of_all_users_must_be_immutable(name: str, chart: Path) -> None:
    found = case_objects(name, chart)
    spec = found["ValidatingAdmissionPolicy", "", IMMUTABLE]["spec"]
    assert found["ValidatingAdmissionPolicyBinding", "", IMMUTABLE]["spec"] == {
        "policyName": IMMUTABLE,
        "validationActions": ["Deny"],
    }
    assert spec["failurePolicy"] == "Fail"
    # Not DELETE: it stays free.
    assert spec["matchConstraints"] == {
        "resourceRules": [rule("", ["CREATE", "UPDATE"], "configmaps")]
    }
    named, not_deleting = [each["expression"] for each in spec["matchConditions"]]
    assert named.startswith("has(object.metadata.name) && object.metadata.name.matches('")
    assert not_deleting == "!has(object.metadata.deletionTimestamp)"
    (validation,) = spec["validations"]
    assert validation["expression"] == "has(object.immutable) && object.immutable"


@pytest.mark.parametrize(
    ("name", "held"),
    [
        (RuntimeFiles({"a": "b"}).config_map()["metadata"]["name"], True),
        ("asya-runtime-0123456789", True),
        ("asya-runtime", False),
        ("asya-runtime-012345678", False),
        ("asya-runtime-0123456789a", False),
        ("asya-runtime-012345678g", False),
        ("asya-runtime-0123456789-01234567", False),
        ("my-asya-runtime-0123456789", False),
        ("asya-runtime-0123456789.old", False),
    ],
)
def test_only_runtime_config_maps_must_be_immutable(name: str, held: bool, chart: Path) -> None:
    spec = case_objects("defaults", chart)["ValidatingAdmissionPolicy", "", IMMUTABLE]["spec"]
    (pattern,) = re.findall(r"matches\('(.+)'\)", spec["matchConditions"][0]["expression"])
    assert bool(re.search(pattern, name)) == held


def test_certificate_and_ca_bundle_are_left_to_the_injector(
    rendered: dict[str, Object],
) -> None:
    secret = rendered["Secret"]
    assert secret["type"] == "Opaque"
    assert not {"data", "stringData"} & set(secret)
    for webhook in rendered["MutatingWebhookConfiguration"]["webhooks"]:
        assert set(webhook["clientConfig"]) == {"service"}


# --- Webhooks ---------------------------------------------------------------------------------


def rule(group: str, operations: list[str], *resources: str) -> Object:
    return {
        "apiGroups": [group],
        "apiVersions": ["v1"],
        "resources": list(resources),
        "operations": operations,
        "scope": "Namespaced",
    }


def test_the_webhooks_have_the_documented_rules_and_policies(rendered: dict[str, Object]) -> None:
    both = ["CREATE", "UPDATE"]
    rules = {
        "pods": [rule("", ["CREATE"], "pods")],
        "workloads": [
            rule("apps", both, "deployments", "statefulsets", "daemonsets", "replicasets"),
            rule("batch", both, "cronjobs"),
            rule("batch", ["CREATE"], "jobs"),
        ],
        "templates": [
            rule("apps", ["UPDATE"], "deployments", "statefulsets", "daemonsets", "replicasets"),
            rule("batch", ["UPDATE"], "cronjobs"),
        ],
    }
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
            "namespaceSelector": {"matchExpressions": EXCLUSIONS},
            "failurePolicy": "Ignore" if name == "templates" else "Fail",
            "timeoutSeconds": 5,
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "NoneOnDryRun",
            "admissionReviewVersions": ["v1"],
        }
        for name in rules
    ]


def conditions(rendered: dict[str, Object]) -> dict[str, str]:
    """The match condition of each webhook, on one line."""
    found = {}
    for each in rendered["MutatingWebhookConfiguration"]["webhooks"]:
        (condition,) = each["matchConditions"]  # the API server evaluates all of them
        found[condition["name"]] = " ".join(condition["expression"].split())
    return found


def test_each_webhook_has_one_condition_that_begins_with_a_search_for_our_prefix(
    rendered: dict[str, Object],
) -> None:
    found = conditions(rendered)
    assert list(found) == ["needs-injection", "needs-propagation", "needs-validation"]
    for expression in found.values():
        guard, operator, _ = expression.partition(".contains('asya.sh/') && ")
        assert operator
        assert guard.startswith("'%s'.format([")
        assert guard.endswith("])")
        assert "||" not in expression_outside_parentheses(expression)


def expression_outside_parentheses(text: str) -> str:
    """Removes what is in parentheses and brackets."""
    while (shorter := re.sub(r"[(\[][^()\[\]]*[)\]]", "", text)) != text:
        text = shorter
    return text


def test_no_condition_takes_quadratic_time_for_annotations(rendered: dict[str, Object]) -> None:
    for expression in conditions(rendered).values():
        over_keys = re.findall(r"(\w+)\(key, ([^)]*\))", expression)
        assert over_keys
        for macro, body in over_keys:
            assert macro == "map"
            assert not re.search(r"&&|\|\|| \? ", body)


# --- Pods -------------------------------------------------------------------------------------


def pods(text: str) -> list[Object]:
    """Pods of a rendering with metadata and spec: of the injector, the prune job and the test."""
    found = []
    for (kind, _, _), item in load_objects(text).items():
        if kind == "Deployment":
            found.append(item["spec"]["template"])
        elif kind == "CronJob":
            found.append(item["spec"]["jobTemplate"]["spec"]["template"])
        elif kind == "Pod":
            found.append(item)
    return found


@pytest.mark.parametrize("name", [name for name in WITH_INJECTOR if name not in UNRESTRICTED])
def test_all_pods_satisfy_pod_security_restricted(name: str, chart: Path) -> None:
    found = [pod["spec"] for pod in pods(render_case(name, chart))]
    assert len(found) == 1 + (name != "existing-accounts") + (
        name in ("prune", "common-labels", "existing-accounts")
    )
    for pod in found:
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
        kinds = {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "secret"}
        assert not [port for port in container.get("ports", ()) if "hostPort" in port]


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_null_removes_a_security_context_or_a_field_of_it(tool: str, chart: Path) -> None:
    for pod in pods(render_case("null-security-contexts", chart, tool)):
        (container,) = pod["spec"]["containers"]
        assert "securityContext" not in pod["spec"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_the_injector_does_not_inject_its_own_pods(name: str, chart: Path) -> None:
    for (kind, _, _), item in case_objects(name, chart).items():
        keys = list(item["metadata"].get("annotations", {}))
        if kind == "Deployment":
            keys += item["spec"]["template"]["metadata"]["annotations"]
        if kind not in (
            "ConfigMap",
            "Pod",
        ):  # the digest of the runtime files; the actor of `helm test`
            assert not [key for key in keys if key.startswith("asya.sh/")]


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_all_selectors_match_only_the_injectors_pods_by_constant_labels(
    name: str, chart: Path
) -> None:
    namespace, _ = CASES[name]
    found = case_objects(name, chart)
    spec = found["Deployment", namespace, NAME]["spec"]
    selected = spec["selector"]["matchLabels"]
    assert set(selected) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    by_selector = [pod for pod in pods(render_case(name, chart)) if selects(selected, pod)]
    assert by_selector == [spec["template"]]
    (spread,) = spec["template"]["spec"]["topologySpreadConstraints"]
    selectors = [spread["labelSelector"]["matchLabels"]]
    for (kind, _, _), item in found.items():
        if kind == "Service":
            selectors.append(item["spec"]["selector"])
        elif kind == "PodDisruptionBudget":
            selectors.append(item["spec"]["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            selectors.append(item["spec"]["podSelector"]["matchLabels"])
    assert selectors == [selected] * len(selectors)
    has_budget = ("PodDisruptionBudget", namespace, NAME) in found
    assert has_budget == (spec["replicas"] > 1 and name != "null-security-contexts")


def selects(labels: dict[str, str], item: Object) -> bool:
    return bool(labels.items() <= item["metadata"]["labels"].items())


def test_the_service_monitor_selects_only_the_metrics_port(chart: Path) -> None:
    found = case_objects("monitoring", chart)
    monitor = found["ServiceMonitor", SYSTEM, NAME]["spec"]
    (endpoint,) = monitor["endpoints"]
    services = [
        item
        for (kind, _, _), item in found.items()
        if kind == "Service" and selects(monitor["selector"]["matchLabels"], item)
    ]
    ports = [port for item in services for port in item["spec"]["ports"]]
    port = find_by_name(ports, endpoint["port"])
    (container,) = found["Deployment", SYSTEM, NAME]["spec"]["template"]["spec"]["containers"]
    named = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert named[port["targetPort"]] == 9090


def test_the_network_policy_admits_any_source_to_the_webhook_port_by_default(chart: Path) -> None:
    def ingress(name: str) -> list[Object]:
        found = case_objects(name, chart)
        result: list[Object] = found["NetworkPolicy", SYSTEM, NAME]["spec"]["ingress"]
        return result

    webhook, metrics = ingress("monitoring")
    assert webhook == {"ports": [{"port": "webhook", "protocol": "TCP"}]}
    assert metrics["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]
    assert [set(each) for each in ingress("metrics-service")] == [{"ports"}, {"ports"}]


def test_the_network_policy_admits_only_given_sources_to_the_webhook_port() -> None:
    api_server = {"ipBlock": {"cidr": "192.0.2.10/32"}}
    values = {"networkPolicy": {"enabled": True, "webhookFrom": [api_server]}}
    webhook, metrics = find_object(render(values), "NetworkPolicy")["spec"]["ingress"]
    assert webhook == {"ports": [{"port": "webhook", "protocol": "TCP"}], "from": [api_server]}
    assert metrics == {"ports": [{"port": "http", "protocol": "TCP"}]}


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_system_namespaces_are_excluded_with_any_values(name: str, chart: Path) -> None:
    configuration = find_object(render_case(name, chart), "MutatingWebhookConfiguration")
    for webhook in configuration["webhooks"]:
        assert webhook["namespaceSelector"]["matchExpressions"][:2] == EXCLUSIONS


def test_selectors_are_added_to_the_exclusions(chart: Path) -> None:
    found = case_objects("selectors", chart)
    for webhook in found["MutatingWebhookConfiguration", "", NAME]["webhooks"]:
        namespaces = webhook["namespaceSelector"]
        assert namespaces["matchLabels"] == {"models": "yes"}
        assert namespaces["matchExpressions"][2:] == [
            {"key": "team", "operator": "In", "values": ["a", "b"]}
        ]
        assert webhook["objectSelector"] == {"matchLabels": {"actors": "yes"}}
        assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Ignore", 10)
    # The pod of `helm test` matches, too.
    assert selects({"actors": "yes"}, found["Pod", SYSTEM, f"{NAME}-test"])


# --- Certificates -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        ("defaults", ""),
        ("cert-manager", ""),
        ("existing-secret-with-cainjector", ""),
        ("existing-secret", base64.b64encode(CA.encode()).decode()),
    ],
)
def test_the_chart_sets_the_ca_bundle_only_with_an_existing_secret(
    name: str, bundle: str, chart: Path
) -> None:
    configuration = find_object(render_case(name, chart), "MutatingWebhookConfiguration")
    bundles = {each["clientConfig"].get("caBundle", "") for each in configuration["webhooks"]}
    assert bundles == {bundle}


@pytest.mark.parametrize("mode", ["self", "certManager"])
def test_a_ca_bundle_in_the_values_of_another_mode_is_not_rendered(mode: str, chart: Path) -> None:
    values = value_at("certificates", {"mode": mode, "existingSecret": {"caBundle": CA}})
    assert not re.search(r"^ *caBundle:", render(values, chart=chart), re.M)


def test_with_an_existing_secret_the_webhook_configuration_has_another_name(chart: Path) -> None:
    """With the same name, an upgrade that changes the mode would conflict with the injector."""
    names = [
        find_object(render_case(name, chart), "MutatingWebhookConfiguration")["metadata"]["name"]
        for name in ("defaults", "existing-secret")
    ]
    assert names == ["asya-runtime", "asya-runtime-external-ca"]


def test_cainjector_takes_the_ca_from_the_charts_certificate(chart: Path) -> None:
    found = case_objects("cert-manager", chart)
    metadata = found["MutatingWebhookConfiguration", "", NAME]["metadata"]
    source = metadata["annotations"]["cert-manager.io/inject-ca-from"]
    assert ("Certificate", *source.split("/")) in found


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("cert-manager", "asya-runtime-cert-manager"),
        ("cert-manager-with-an-issuer", "asya-runtime-cert-manager"),
        ("existing-secret", "our-certificate"),
    ],
)
def test_the_injector_mounts_the_certificate_of_the_mode(
    name: str, secret: str, chart: Path
) -> None:
    deployment = find_object(render_case(name, chart), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    assert find_by_name(pod["volumes"], "tls")["secret"]["secretName"] == secret
    mount = find_by_name(container["volumeMounts"], "tls")
    assert env["INJECTOR_TLS_MODE"] == "files"
    assert env["INJECTOR_TLS_DIRECTORY"] == mount["mountPath"]
    assert not {"INJECTOR_TLS_SECRET", "INJECTOR_WEBHOOK_CONFIGURATION"} & set(env)


def test_cert_manager_signs_with_a_ca_that_survives_renewals(chart: Path) -> None:
    found = case_objects("cert-manager", chart)
    leaf = found["Certificate", SYSTEM, NAME]["spec"]
    issuer = found["Issuer", SYSTEM, leaf["issuerRef"]["name"]]["spec"]
    (ca,) = [
        item["spec"]
        for (kind, _, _), item in found.items()
        if kind == "Certificate" and item["spec"].get("isCA")
    ]
    assert issuer == {"ca": {"secretName": ca["secretName"]}}
    assert found["Issuer", SYSTEM, ca["issuerRef"]["name"]]["spec"] == {"selfSigned": {}}
    assert leaf["dnsNames"] == [f"{NAME}.{SYSTEM}.svc"]
    assert leaf["secretName"] != ca["secretName"]


def test_with_an_issuer_of_the_user_the_chart_creates_no_ca(chart: Path) -> None:
    found = case_objects("cert-manager-with-an-issuer", chart)
    assert [key[0] for key in found if key[0] in ("Issuer", "Certificate")] == ["Certificate"]
    assert found["Certificate", "default", NAME]["spec"]["issuerRef"] == {
        "name": "corporate",
        "kind": "ClusterIssuer",
    }


# --- Memory -----------------------------------------------------------------------------------


def test_the_memory_limit_exceeds_the_documented_sum(rendered: dict[str, Object]) -> None:
    page = (REPOSITORY / "docs/operations.md").read_text()
    _, _, section = page.partition("## Memory of the injector\n")
    rows = re.findall(r"^\| (.+) \| (\d+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    *parts, (last, total) = [(what, int(mebibytes)) for what, mebibytes in rows]
    assert last == "sum"
    assert sum(mebibytes for _, mebibytes in parts) == total
    (container,) = rendered["Deployment"]["spec"]["template"]["spec"]["containers"]
    limit = container["resources"]["limits"]["memory"]
    assert total < int(limit.removesuffix("Mi"))
    assert f"`{limit}`" in section


# --- Labels, annotations and hooks ------------------------------------------------------------


def test_common_labels_and_annotations_are_on_all_objects_but_not_in_selectors(chart: Path) -> None:
    found = case_objects("common-labels", chart)
    for item in found.values():
        assert item["metadata"]["labels"]["team"] == (
            "watch" if item["kind"] == "ServiceMonitor" else "models"
        )
        assert item["metadata"]["annotations"]["example.com/contact"] == "us"
    for pod in pods(render_case("common-labels", chart)):
        assert pod["metadata"]["labels"]["team"] == "models"
    account = found["ServiceAccount", SYSTEM, NAME]
    assert account["metadata"]["annotations"]["example.com/role"] == "none"


@pytest.mark.parametrize("name", CASES)
def test_only_the_test_pod_is_a_hook(name: str, chart: Path) -> None:
    for (kind, _, _), item in case_objects(name, chart).items():
        hook = item["metadata"].get("annotations", {}).get("helm.sh/hook")
        assert hook == ("test" if kind == "Pod" else None)


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_all_pods_use_the_injector_image(name: str, chart: Path) -> None:
    images = {pod["spec"]["containers"][0]["image"] for pod in pods(render_case(name, chart))}
    assert len(images) == 1


def test_the_injector_serves_the_paths_of_the_webhooks(rendered: dict[str, Object]) -> None:
    webhooks = rendered["MutatingWebhookConfiguration"]["webhooks"]
    paths = [each["clientConfig"]["service"]["path"] for each in webhooks]
    assert paths == [f"/{PODS}", f"/{WORKLOADS}", f"/{TEMPLATES}"]


def test_the_names_of_admission_cases_fit_into_the_cluster() -> None:
    """The tests in the cluster make objects of these names; a CronJob's has at most 52 letters."""
    limits = {"CronJob": 52}
    too_long = [
        case.id for case in cel_cases.CASES if len(case.id) > limits.get(case.new["kind"], 63)
    ]
    assert too_long == []
