"""Actors in pods that another webhook changes too, before or after the injector."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.harness import Cluster, Object, bare_pod, until, workload
from e2e.releases import create_certificate

PROGRAMS = Path(__file__).parent / "launcher"
NAME = "launcher"
WHOAMI = {"asya.sh/handler": "handlers.whoami"}
APP = ["/opt/venv/bin/python3", "-m", "app"]
# The API server calls webhook configurations in the order of their names.
ORDERS = {"before": "a", "after": "z"}
# The container's command, and whether the other webhook comes before or after the injector. Without
# a command, the injector chooses hooks, and the other webhook knows the image's ENTRYPOINT.
PODS = {
    "command-before": (APP, "before"),
    "command-after": (APP, "after"),
    "entrypoint-before": (None, "before"),
    "entrypoint-after": (None, "after"),
}


@pytest.mark.timeout(300)
def test_an_actor_runs_inside_the_launcher_of_another_webhook_and_gets_its_secrets(
    cluster: Cluster, namespace: str
) -> None:
    items = {}
    for name, (command, order) in PODS.items():
        item = workload(name, cluster.images["init"], template=WHOAMI, command=command)
        template = item["spec"]["template"]
        template["metadata"]["labels"]["launcher"] = order
        template["spec"]["containers"][0]["env"] = [{"name": "TOKEN", "value": "vault:models"}]
        items[name] = item
    with other_webhook(cluster, namespace):
        cluster.apply(*items.values(), namespace=namespace)
        pods = {name: cluster.ready_pod(namespace, name) for name in items}
    for name, pod in pods.items():
        target = pod.spec.containers[0]
        wrapper = [APP[0], "-I", "-S", "/opt/asya/asya_entrypoint.py", "--"]
        assert target.command + target.args == ["/vault/vault-env", *wrapper, *APP], name
        (reply,) = cluster.call(pod, {"payload": {}})
        seen = {key: reply["result"][key] for key in ("executable", "token")}
        assert seen == {"executable": APP[0], "token": "secret of models"}, name


@contextlib.contextmanager
def other_webhook(cluster: Cluster, namespace: str) -> Iterator[None]:
    """The other webhook, for the pods of a namespace that have the label `launcher`."""
    ca, data = create_certificate(f"{NAME}.{namespace}.svc")
    programs = {path.name: path.read_text() for path in PROGRAMS.iterdir() if path.is_file()}
    mounts = [{"name": name, "mountPath": f"/{name}"} for name in ("code", "tls")]
    command = ["python3", "/code/webhook.py", *APP]
    server = bare_pod(NAME, cluster.model_image, {}, command=command, volumeMounts=mounts)
    server["spec"]["volumes"] = [
        {"name": "code", "configMap": {"name": NAME}},
        {"name": "tls", "secret": {"secretName": NAME}},
    ]
    ports = [{"port": 443, "targetPort": 8443}]
    cluster.apply(
        build("ConfigMap", data=programs),
        build("Secret", stringData=data),
        build("Service", spec={"selector": {"app": NAME}, "ports": ports}),
        server,
        namespace=namespace,
    )
    configurations = [
        build_configuration(f"{letter}-{namespace}", order, namespace, ca)
        for order, letter in ORDERS.items()
    ]
    cluster.ready_pod(namespace, NAME)
    cluster.apply(*configurations)
    try:
        for order in ORDERS:
            until("the other webhook", lambda order=order: launches(cluster, namespace, order))  # type: ignore[misc]
        yield
    finally:
        names = [each["metadata"]["name"] for each in configurations]
        cluster.kubectl("delete", "mutatingwebhookconfigurations", *names)


def build(kind: str, **fields: Any) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": NAME}, **fields}


def build_configuration(name: str, order: str, namespace: str, ca: str) -> Object:
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["pods"],
        "operations": ["CREATE"],
    }
    webhook = {
        "name": "launcher.example.com",
        "clientConfig": {
            "service": {"name": NAME, "namespace": namespace},
            "caBundle": base64.b64encode(ca.encode()).decode(),
        },
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "objectSelector": {"matchLabels": {"launcher": order}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [webhook],
    }


def launches(cluster: Cluster, namespace: str, order: str) -> bool:
    """Whether the other webhook changes a pod now."""
    env = [{"name": "TOKEN", "value": "vault:models"}]
    pod = bare_pod("requested", cluster.model_image, {}, env=env)
    pod["metadata"]["labels"]["launcher"] = order
    words = ["-n", namespace, "--dry-run=server", "-o", "json"]
    done = cluster.create(pod, *words, check=False)
    if done.returncode:
        return False
    command: list[str] = json.loads(done.stdout)["spec"]["containers"][0]["command"]
    return command == ["/vault/vault-env"]
