"""What the chart's objects may do, and what they must not stand in the way of."""

import base64
import re
from pathlib import Path

import pytest
from asya_injector.runtime_files import MANAGED_BY, RuntimeFiles
from asya_injector.webhook.admission import PODS, TEMPLATES, WORKLOADS

from tests.chart.charts import CA, CASES, SYSTEM, Object, case, nested, objects, render

NAME = "asya-runtime"
WITH_INJECTOR = [name for name in CASES if name not in ("config-maps-alone", "nothing")]
# Asked for by name, at the price of Pod Security `restricted`.
UNRESTRICTED = ("host-network", "contexts-taken-away")


@pytest.fixture(scope="module")
def rendered() -> dict[str, Object]:
    """The default rendering by kind; each kind is there once."""
    return by_kind(render({}))


def by_kind(text: str) -> dict[str, Object]:
    found = objects(text)
    assert len({kind for kind, _, _ in found}) == len(found)
    return {kind: item for (kind, _, _), item in found.items()}


def injectors(name: str, chart: Path) -> Object:
    """The injector's Deployment in one of the CASES."""
    (found,) = [
        item for (kind, _, _), item in objects(case(name, chart)).items() if kind == "Deployment"
    ]
    result: Object = found
    return result


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


@pytest.mark.parametrize("mode", ["cert-manager", "existing-secret"])
def test_with_a_certificate_of_others_it_writes_config_maps_alone(mode: str, chart: Path) -> None:
    found = objects(case(mode, chart))
    config_maps = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "patch"]}
    assert found["ClusterRole", "", NAME]["rules"] == [config_maps]
    assert not {"Role", "RoleBinding", "Secret"} & {kind for kind, _, _ in found}


def test_prune_has_rights_of_its_own(chart: Path) -> None:
    usual, found = objects(case("defaults", chart)), objects(case("prune", chart))
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
    # And nothing of the injector's is changed by it.
    assert {key: found[key] for key in usual} == usual


def test_all_rights_are_in_these_objects(chart: Path) -> None:
    rights = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
    for name in CASES:
        found = sorted((kind, who) for kind, _, who in objects(case(name, chart)) if kind in rights)
        known = {(kind, NAME) for kind in rights} | {
            (kind, f"{NAME}-prune") for kind in ("ClusterRole", "ClusterRoleBinding")
        }
        assert set(found) <= known
        assert not (name == "accounts-of-others" and found)


def test_accounts_of_others_are_used_wherever_ours_would_be(chart: Path) -> None:
    found = objects(case("accounts-of-others", chart))
    assert [key for key in found if key[0] == "ServiceAccount"] == [
        ("ServiceAccount", SYSTEM, "asya-runtime-prune")
    ]
    spec = found["Deployment", SYSTEM, NAME]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "theirs"
    (condition,) = found["ValidatingAdmissionPolicy", "", NAME]["spec"]["matchConditions"]
    assert f"'system:serviceaccount:{SYSTEM}:theirs'" in condition["expression"]


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
    metadata = RuntimeFiles({"a": "b"}).config_map()["metadata"]
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
        "templates": [
            rule("apps", ["UPDATE"], "deployments", "statefulsets", "daemonsets", "replicasets"),
            rule("batch", ["UPDATE"], "cronjobs"),
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
            "failurePolicy": "Ignore" if name == "templates" else "Fail",
            "timeoutSeconds": 5,
            "reinvocationPolicy": "IfNeeded",
            "sideEffects": "NoneOnDryRun",
            "admissionReviewVersions": ["v1"],
        }
        for name in rules
    ]


def pods(text: str) -> list[Object]:
    """All pods of a rendering: metadata and spec, of the injector, the prune job and the test."""
    found = []
    for (kind, _, _), item in objects(text).items():
        if kind == "Deployment":
            found.append(item["spec"]["template"])
        elif kind == "CronJob":
            found.append(item["spec"]["jobTemplate"]["spec"]["template"])
        elif kind == "Pod":
            found.append(item)
    return found


@pytest.mark.parametrize("name", [name for name in WITH_INJECTOR if name not in UNRESTRICTED])
def test_all_pods_meet_restricted_pod_security(name: str, chart: Path) -> None:
    found = [pod["spec"] for pod in pods(case(name, chart))]
    assert len(found) == 1 + (name != "accounts-of-others") + (
        name in ("prune", "labelled", "accounts-of-others")
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


def test_contexts_can_be_taken_away_by_field_and_as_a_whole(chart: Path) -> None:
    for tool in ("helm", "helm3"):
        for pod in pods(case("contexts-taken-away", chart, tool)):
            (container,) = pod["spec"]["containers"]
            assert "securityContext" not in pod["spec"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_the_injector_never_waits_for_itself(name: str, chart: Path) -> None:
    for (kind, _, _), item in objects(case(name, chart)).items():
        keys = list(item["metadata"].get("annotations", {}))
        if kind == "Deployment":
            keys += item["spec"]["template"]["metadata"]["annotations"]
        if kind not in ("ConfigMap", "Pod"):  # the one has the runtime's digest, the other asks
            assert not [key for key in keys if key.startswith("asya.sh/")]


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_whatever_selects_pods_selects_the_injectors_and_by_nothing_that_changes(
    name: str, chart: Path
) -> None:
    namespace, _ = CASES[name]
    found = objects(case(name, chart))
    spec = found["Deployment", namespace, NAME]["spec"]
    selected = spec["selector"]["matchLabels"]
    assert set(selected) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
    by_selector = [pod for pod in pods(case(name, chart)) if selects(selected, pod)]
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
    assert has_budget == (spec["replicas"] > 1 and name != "contexts-taken-away")


def selects(labels: dict[str, str], item: Object) -> bool:
    return bool(labels.items() <= item["metadata"]["labels"].items())


def test_a_service_monitor_finds_the_one_port_with_metrics(chart: Path) -> None:
    found = objects(case("watched", chart))
    monitor = found["ServiceMonitor", SYSTEM, NAME]["spec"]
    (endpoint,) = monitor["endpoints"]
    services = [
        item
        for (kind, _, _), item in found.items()
        if kind == "Service" and selects(monitor["selector"]["matchLabels"], item)
    ]
    ports = [port for item in services for port in item["spec"]["ports"]]
    (port,) = [port for port in ports if port["name"] == endpoint["port"]]
    (container,) = found["Deployment", SYSTEM, NAME]["spec"]["template"]["spec"]["containers"]
    named = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert named[port["targetPort"]] == 9090


def test_a_network_policy_lets_the_api_server_in_from_anywhere(chart: Path) -> None:
    def ingress(name: str) -> list[Object]:
        found = objects(case(name, chart))
        result: list[Object] = found["NetworkPolicy", SYSTEM, NAME]["spec"]["ingress"]
        return result

    webhook, metrics = ingress("watched")
    assert webhook == {"ports": [{"port": "webhook", "protocol": "TCP"}]}
    assert metrics["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]
    assert [set(each) for each in ingress("metrics-service")] == [{"ports"}, {"ports"}]


@pytest.mark.parametrize("name", WITH_INJECTOR)
def test_exclusions_cannot_be_dropped(name: str, chart: Path) -> None:
    (configuration,) = [
        item
        for (kind, _, _), item in objects(case(name, chart)).items()
        if kind == "MutatingWebhookConfiguration"
    ]
    spared = ["kube-system", "kube-public", "kube-node-lease"]
    for webhook in configuration["webhooks"]:
        expressions = webhook["namespaceSelector"]["matchExpressions"]
        assert expressions[:2] == [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": spared},
            {"key": "asya.sh/injection", "operator": "NotIn", "values": ["disabled"]},
        ]
        assert len(webhook["matchConditions"]) >= 3


def test_selectors_are_added_to_the_exclusions(chart: Path) -> None:
    found = objects(case("selectors", chart))
    for webhook in found["MutatingWebhookConfiguration", "", NAME]["webhooks"]:
        namespaces = webhook["namespaceSelector"]
        assert namespaces["matchLabels"] == {"models": "yes"}
        assert namespaces["matchExpressions"][2:] == [
            {"key": "team", "operator": "In", "values": ["a", "b"]}
        ]
        assert webhook["objectSelector"] == {"matchLabels": {"actors": "yes"}}
        assert (webhook["failurePolicy"], webhook["timeoutSeconds"]) == ("Ignore", 10)
    # And the test's pod is one of those that are looked at.
    assert selects({"actors": "yes"}, found["Pod", SYSTEM, f"{NAME}-test"])


def test_each_mode_has_one_writer_of_the_ca_bundle(chart: Path) -> None:
    def configuration(name: str) -> tuple[Object, set[str]]:
        (found,) = [
            item
            for (kind, _, _), item in objects(case(name, chart)).items()
            if kind == "MutatingWebhookConfiguration"
        ]
        bundles = {each["clientConfig"].get("caBundle", "") for each in found["webhooks"]}
        return found["metadata"], bundles

    for name in ("defaults", "cert-manager", "existing-secret-with-cainjector"):
        assert configuration(name)[1] == {""}
    metadata, bundles = configuration("existing-secret")
    assert bundles == {base64.b64encode(CA.encode()).decode()}
    # Not even one that is left over from another mode: the injector's would be taken over.
    left_over = nested("certificates/existingSecret/caBundle", CA)
    for mode in ("self", "certManager"):
        left_over["certificates"]["mode"] = mode
        text = render(left_over, chart=chart)
        assert not re.search(r"^ *caBundle:", text, re.M), mode
    # Else an upgrade that changes the mode would be a conflict with the injector.
    assert metadata["name"] != configuration("defaults")[0]["name"]
    asked = configuration("cert-manager")[0]["annotations"]["cert-manager.io/inject-ca-from"]
    assert ("Certificate", *asked.split("/")) in objects(case("cert-manager", chart))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("cert-manager", "asya-runtime-cert-manager"),
        ("cert-manager-with-an-issuer", "asya-runtime-cert-manager"),
        ("existing-secret", "our-certificate"),
    ],
)
def test_files_of_a_certificate_come_from_where_the_mode_says(
    name: str, secret: str, chart: Path
) -> None:
    pod = injectors(name, chart)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {each["name"]: each.get("value") for each in container["env"]}
    (volume,) = [each for each in pod["volumes"] if each["name"] == "tls"]
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "tls"]
    assert volume["secret"]["secretName"] == secret
    assert (env["INJECTOR_TLS_MODE"], env["INJECTOR_TLS_DIRECTORY"]) == (
        "files",
        mount["mountPath"],
    )
    assert not {"INJECTOR_TLS_SECRET", "INJECTOR_WEBHOOK_CONFIGURATION"} & set(env)


def test_cert_manager_signs_by_a_ca_that_outlives_renewals(chart: Path) -> None:
    found = objects(case("cert-manager", chart))
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
    own = objects(case("cert-manager-with-an-issuer", chart))
    assert [key[0] for key in own if key[0] in ("Issuer", "Certificate")] == ["Certificate"]
    assert own["Certificate", "default", NAME]["spec"]["issuerRef"] == {
        "name": "corporate",
        "kind": "ClusterIssuer",
    }


def test_common_labels_and_annotations_are_everywhere_but_in_selectors(chart: Path) -> None:
    found = objects(case("labelled", chart))
    for item in found.values():
        assert item["metadata"]["labels"]["team"] == (
            "watch" if item["kind"] == "ServiceMonitor" else "models"
        )
        assert item["metadata"]["annotations"]["example.com/contact"] == "us"
    for pod in pods(case("labelled", chart)):
        assert pod["metadata"]["labels"]["team"] == "models"
    account = found["ServiceAccount", SYSTEM, NAME]
    assert account["metadata"]["annotations"]["example.com/role"] == "none"


def test_no_hook_but_the_test(chart: Path) -> None:
    for name in CASES:
        for (kind, _, _), item in objects(case(name, chart)).items():
            hook = item["metadata"].get("annotations", {}).get("helm.sh/hook")
            assert hook == ("test" if kind == "Pod" else None)


def test_the_test_is_made_of_the_injectors_own_image(chart: Path) -> None:
    for name in WITH_INJECTOR:
        images = {pod["spec"]["containers"][0]["image"] for pod in pods(case(name, chart))}
        assert len(images) == 1, name


def test_the_webhooks_paths_are_those_that_the_injector_answers(
    rendered: dict[str, Object],
) -> None:
    webhooks = rendered["MutatingWebhookConfiguration"]["webhooks"]
    paths = [each["clientConfig"]["service"]["path"] for each in webhooks]
    assert paths == [f"/{PODS}", f"/{WORKLOADS}", f"/{TEMPLATES}"]
