"""Releases of the chart, changed in all documented ways while pods are requested."""

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from e2e.harness import RELEASE, REPOSITORY, SYSTEM, Cluster, bare_pod, container, until
from e2e.releases import CHART, ECHO, PREVIOUS, Release, create_certificate, stream

OK = [{"status": "ok", "result": {}}]
NO_ANSWER = 'failed calling webhook "pods.asya.sh"'


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_no_change_of_a_release_rejects_or_misses_a_pod(free: Cluster, namespace: str) -> None:
    release = Release(free)
    release.change("install", chart=PREVIOUS)
    with stream(free, namespace) as requested:
        bundles = free.ca_bundles()
        release.change("upgrade", "runtime.defaults.chunk-size=8192")
        free.settle()
        until("all webhooks to have the CA", lambda: free.ca_bundles() == bundles)
        pod = bare_pod("model", free.model_image, ECHO)
        made = free.create(pod, "-n", namespace, "--dry-run=server", "-o", "json")
        env = json.loads(made.stdout)["spec"]["containers"][0]["env"]
        assert {"name": "ASYA_CHUNK_SIZE", "value": "8192"} in env

        more = ("prune.enabled=true", "networkPolicy.enabled=true", "metrics.service.enabled=true")
        release.change("upgrade", "injector.logLevel=debug", *more)
        assert "the actor answers" in release.helm("test", RELEASE, "--logs")
        assert prune_once(free) == 0
        assert free.rights("asya-runtime-prune") == {
            ("configmaps", "", "delete list"),
            ("pods", "", "list"),
        }

        release.helm("rollback", RELEASE, "1", "--wait", "--timeout", "5m")
        release.change("upgrade")
        free.settle()

        # The previous CA stays trusted until no replica uses its certificate.
        ca, data = create_certificate(f"{RELEASE}.{SYSTEM}.svc")
        before = free.get("-n", SYSTEM, "secret/asya-runtime-tls")["data"]["ca.crt"]
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ours"}}
        free.apply(secret | {"stringData": data}, namespace=SYSTEM)
        both = ca + base64.b64decode(before).decode()
        release.change(
            "upgrade",
            "certificates.mode=existingSecret",
            "certificates.existingSecret.name=ours",
            f"certificates.existingSecret.caBundle={both}",
        )
        free.settle()
        assert "the actor answers" in release.helm("test", RELEASE, "--logs")
        assert free.rights("asya-runtime") == {("configmaps", "", "create patch")}
    assert (requested.rejected, requested.plain) == ([], 0)
    assert requested.injected > 50

    # In the other direction, the new injector has to create a CA first. Until the API server has
    # it, annotated pods are rejected. None is admitted without injection.
    with stream(free, namespace) as requested:
        release.change("upgrade")
        free.settle()
    errors = [json.loads(text)["message"] for text in requested.rejected]
    assert [text for text in errors if NO_ANSWER not in text] == []
    assert requested.plain == 0
    with stream(free, namespace) as requested:
        until("some pods", lambda: requested.injected + len(requested.rejected) > 20)
    assert (requested.rejected, requested.plain) == ([], 0)

    release.helm("uninstall", RELEASE, "--wait")
    free.settle(replicas=0)
    free.kubectl("-n", SYSTEM, "delete", "secret", "ours")
    kinds = "all,secrets,configmaps,roles,rolebindings,serviceaccounts,poddisruptionbudgets"
    left = {each["metadata"]["name"] for each in free.get("-n", SYSTEM, kinds)["items"]}
    # The runtime ConfigMap for the pod of `helm test` stays, like all of them.
    copies = {name for name in left if name.startswith("asya-runtime-")}
    assert left - copies <= {"default", "kube-root-ca.crt"}
    wide = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings"
    wide += ",validatingadmissionpolicies"
    label = f"app.kubernetes.io/instance={RELEASE}"
    assert free.kubectl("get", wide, "-l", label, "-o", "name").stdout == ""


def test_a_second_release_is_rejected_before_any_object_is_created(
    cluster: Cluster, namespace: str
) -> None:
    other = Release(cluster, namespace=namespace)
    with pytest.raises(
        AssertionError, match=r'(?s)asya-runtime.*"meta\.helm\.sh/release-namespace"'
    ):
        other.change("install", name="another")
    kinds = "deployments,services,serviceaccounts,secrets,configmaps,roles,pods"
    left = {each["metadata"]["name"] for each in cluster.get("-n", namespace, kinds)["items"]}
    assert {name for name in left if not name.startswith("sh.helm.release")} == {
        "default",
        "kube-root-ca.crt",
    }
    cluster.create(bare_pod("model", cluster.model_image, ECHO), "-n", namespace)


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_helm_3_installs_upgrades_tests_and_uninstalls(free: Cluster, namespace: str) -> None:
    release = Release(free, tool="helm3")
    release.change("install")
    with stream(free, namespace) as requested:
        release.change("upgrade", "injector.logLevel=debug", "prune.enabled=true")
        free.settle()
        assert "Succeeded" in release.helm("test", RELEASE)
    assert (requested.rejected, requested.plain) == ([], 0)
    assert requested.injected > 10

    # `helm test` fails if the webhook does not see its pod.
    release.change("upgrade", "webhook.namespaceSelector.matchLabels.actors=here")

    def is_skipped() -> bool:
        done = free.request_pod(SYSTEM)
        return not done.returncode and "asya.sh/injected" not in done.stdout

    until("the selector to be effective", is_skipped)
    with pytest.raises(AssertionError):
        release.helm("test", RELEASE)
    log = free.kubectl("-n", SYSTEM, "logs", f"{RELEASE}-test").stdout
    assert "this pod was admitted without the runtime" in log
    free.kubectl("-n", SYSTEM, "delete", "pod", f"{RELEASE}-test")
    release.helm("uninstall", RELEASE, "--wait")
    free.settle(replicas=0)


def test_without_the_injector_a_pod_can_mount_the_chart_s_config_map(
    cluster: Cluster, namespace: str
) -> None:
    release = Release(cluster, namespace=namespace)
    release.change("install", "injector.enabled=false", name="files")
    pod = bare_pod("model", cluster.model_image, {})
    (target,) = pod["spec"]["containers"]
    target |= {
        "command": ["python3", "/app/asya_runtime.py"],
        "env": [{"name": "ASYA_HANDLER", "value": "handlers.echo"}],
        "volumeMounts": [
            {
                "name": "asya-runtime",
                "mountPath": "/app/asya_runtime.py",
                "subPath": "asya_runtime.py",
            },
            {"name": "socket", "mountPath": "/tmp/sockets"},
        ],
    }
    sidecar = container("asya-sidecar", cluster.model_image, ["sleep", "600"])
    sidecar["env"] = [{"name": "ASYA_SOCKET_PATH", "value": "/tmp/sockets/app.sock"}]
    sidecar["volumeMounts"] = [{"name": "socket", "mountPath": "/tmp/sockets"}]
    pod["spec"]["containers"].append(sidecar)
    pod["spec"]["volumes"] = [
        {"name": "asya-runtime", "configMap": {"name": "asya-runtime"}},
        {"name": "socket", "emptyDir": {}},
    ]
    cluster.create(pod, "-n", namespace)
    ready = cluster.ready_pod(namespace, "model")
    words = ["-n", namespace, "model", "-c", "asya-sidecar"]
    program = "import socket; socket.socket(socket.AF_UNIX).connect('/tmp/sockets/app.sock')"
    until(
        "the socket",
        lambda: cluster.exec_python(*words, program=program, check=False).returncode == 0,
    )
    assert cluster.call(ready, {"payload": {}}) == OK
    release.helm("uninstall", "files")


def test_the_example_chart_makes_an_actor_without_the_injector(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    example = tmp_path / "examples/chart-with-helpers"
    shutil.copytree(REPOSITORY / "examples/chart-with-helpers", example)
    release = Release(cluster, namespace=namespace)
    release.helm("dependency", "update", str(example))
    images = f"image={cluster.model_image},sidecarImage={cluster.model_image}"
    words = ["--set", f"{images},handler=handlers.echo", "--wait", "--timeout", "5m"]
    template = example / "templates/deployment.yaml"
    text = template.read_text()
    # The model's image has no program that sends messages; the test does it.
    program = 'command: [sleep, "600"]\n          securityContext: *restricted'
    template.write_text(text.replace("securityContext: *restricted", program))
    release.helm("install", "sentiment", str(example), *words)
    pod = cluster.ready_pod(namespace, "sentiment")
    assert cluster.call(pod, {"payload": {}}) == OK
    release.helm("uninstall", "sentiment")


def prune_once(cluster: Cluster) -> int:
    """Run the job of the prune CronJob now; its exit status."""
    cluster.kubectl(
        *("-n", SYSTEM, "create", "job", "prune-now", "--from=cronjob/asya-runtime-prune")
    )

    def find_result() -> int | None:
        status = cluster.get("-n", SYSTEM, "job/prune-now")["status"]
        return 1 if status.get("succeeded") else 2 if status.get("failed") else None

    result = until("the prune job to end", find_result) - 1
    log = cluster.kubectl("-n", SYSTEM, "logs", "job/prune-now").stdout
    assert re.search(r"^\d+ deleted, \d+ kept$", log, re.M), log
    cluster.kubectl("-n", SYSTEM, "delete", "job", "prune-now")
    return result
