"""The runtime from an image that the node does not have: pulled with credentials, or gone.

The manifests come from the command line, so the tests need no release that mounts images.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from asya_injector.runtime_image import RUNTIME_FOLDER

from e2e.harness import (
    REPOSITORY,
    Cluster,
    bare_pod,
    switch_injection,
    until,
    workload,
)
from e2e.load.faults import run_in_node
from e2e.test_image_volume import APP, ECHO, MODES, OK, RUNTIME, actors, build_image, inject

pytestmark = pytest.mark.usefixtures("image_volumes")

CTR = ("ctr", "--namespace", "k8s.io")
# Nothing listens on this port of the node.
UNREACHABLE = "localhost:5999/asya/e2e-runtime"
REGISTRY = (REPOSITORY / "e2e/load/pods/registry.py").read_text()
USER, PASSWORD = "e2e", "not-secret"
NO_CREDENTIALS = ("authorization failed", "no basic auth credentials")


def waiting(cluster: Cluster, namespace: str, app: str) -> tuple[str, str]:
    """Why the target of an application's pod does not run: the reason and the message."""
    for pod in cluster.pods(namespace, app):
        for status in pod.status.container_statuses or []:
            if status.name == "model" and status.state.waiting:
                return status.state.waiting.reason, status.state.waiting.message or ""
    return "", ""


def wait_for_pull_error(cluster: Cluster, namespace: str, app: str, *words: str) -> None:
    """Wait until the pod says in the kubelet's words that an image cannot be pulled."""

    def is_shown() -> bool:
        reason, message = waiting(cluster, namespace, app)
        is_failed = reason in {"ErrImagePull", "ImagePullBackOff"}
        return is_failed and all(word in message for word in words)

    until(f"an image error of {app} with {words}", is_shown)


@pytest.mark.timeout(300)
def test_a_container_whose_image_is_gone_restarts_when_the_image_is_back(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    for name in RUNTIME:
        (tmp_path / name).write_text((REPOSITORY / "runtime" / name).read_text())
    dockerfile = f"FROM scratch\nCOPY {' '.join(RUNTIME)} /{RUNTIME_FOLDER}/\n"
    (tmp_path / "Dockerfile").write_text(dockerfile)
    image = build_image(UNREACHABLE, tmp_path)
    switch_injection(cluster, namespace, on=False)
    for item in actors(cluster):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=inject(item, namespace, image))
    pods = {mode: cluster.ready_pod(namespace, mode) for mode in MODES}
    remove_from_node(image)
    for pod in pods.values():  # the mount in a running container stays
        assert cluster.call(pod, {"payload": {}}) == OK
        cluster.end_target(pod)
    for mode in MODES:
        wait_for_pull_error(cluster, namespace, mode, image)
    build_image(UNREACHABLE, tmp_path)
    for mode, before in pods.items():
        pod = cluster.ready_pod(namespace, mode)
        assert pod.metadata.uid == before.metadata.uid
        assert cluster.call(pod, {"payload": {}}) == OK
        counts = {each.name: each.restart_count for each in pod.status.container_statuses}
        assert counts == {"model": 1, "asya-sidecar": 0}


def remove_from_node(image: str) -> None:
    """Remove an image, under all its names, from the node's container runtime."""
    rows = [line.split() for line in run_in_node(*CTR, "images", "list").splitlines()[1:]]
    (digest,) = {row[2] for row in rows if row[0] == image}
    names = [row[0] for row in rows if row[2] == digest]
    run_in_node(*CTR, "images", "remove", "--sync", *names)


@pytest.mark.timeout(300)
def test_a_pod_needs_credentials_for_the_image_of_a_private_registry(
    cluster: Cluster, namespace: str
) -> None:
    """Also if another pod has pulled the image: from Kubernetes 1.35 on, the kubelet asks again."""
    switch_injection(cluster, namespace, on=False)
    host = f"{namespace}.private.example.com"
    image = f"{host}/asya/runtime:1"
    with node_registry(host, f"http://{serve_image(cluster, namespace)}:5000"):
        start_actor(cluster, namespace, image, "before")
        wait_for_pull_error(cluster, namespace, "before", image, *NO_CREDENTIALS)
        create_login(cluster, namespace, host)
        # A pod keeps the pull secrets with which it was created.
        start_actor(cluster, namespace, image, "named", imagePullSecrets=[{"name": "login"}])
        assert cluster.call(cluster.ready_pod(namespace, "named"), {"payload": {}}) == OK
        start_actor(cluster, namespace, image, "without")
        wait_for_pull_error(cluster, namespace, "without", image, *NO_CREDENTIALS)
        account = json.dumps({"imagePullSecrets": [{"name": "login"}]})
        cluster.kubectl("-n", namespace, "patch", "serviceaccount", "default", "-p", account)
        for app in ("before", "without"):
            (old,) = cluster.pods(namespace, app)
            cluster.kubectl("-n", namespace, "delete", "pod", old.metadata.name)
            assert cluster.call(cluster.ready_pod(namespace, app), {"payload": {}}) == OK


def start_actor(
    cluster: Cluster, namespace: str, image: str, name: str, **pod_fields: object
) -> None:
    """Create an actor whose runtime comes from an image."""
    model = workload(name, cluster.model_image, template=ECHO, command=APP)
    model["spec"]["template"]["spec"] |= pod_fields
    manifests = inject(model, namespace, image)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=manifests)


def serve_image(cluster: Cluster, namespace: str) -> str:
    """Run a registry that asks for a login and has the runtime files; its address."""
    blobs = {name: base64.b64encode(data).decode() for name, data in build_blobs().items()}
    metadata = {"name": "blobs"}
    item = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": blobs}
    cluster.create(item, "-n", namespace)
    command = ["python3", "-c", REGISTRY, "/blobs", USER, PASSWORD]
    mounts = [{"name": "blobs", "mountPath": "/blobs"}]
    pod = bare_pod("registry", cluster.model_image, {}, command=command, volumeMounts=mounts)
    pod["spec"]["volumes"] = [{"name": "blobs", "configMap": {"name": "blobs"}}]
    cluster.create(pod, "-n", namespace)
    return str(cluster.ready_pod(namespace, "registry").status.pod_ip)


def build_blobs() -> dict[str, bytes]:
    """The files of an image with the runtime files: the manifest, and blobs named by digest."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in RUNTIME:
            archive.add(REPOSITORY / "runtime" / name, f"{RUNTIME_FOLDER}/{name}")
    layer = packed.getvalue()
    config = {
        "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    kinds = {"config": "config.v1+json", "layer": "layer.v1.tar"}
    contents = {"config": json.dumps(config).encode(), "layer": layer}
    blobs = {hashlib.sha256(data).hexdigest(): data for data in contents.values()}
    described = {
        name: {
            "mediaType": f"application/vnd.oci.image.{kinds[name]}",
            "digest": f"sha256:{hashlib.sha256(data).hexdigest()}",
            "size": len(data),
        }
        for name, data in contents.items()
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described["config"],
        "layers": [described["layer"]],
    }
    return {**blobs, "manifest.json": json.dumps(manifest).encode()}


def create_login(cluster: Cluster, namespace: str, host: str) -> None:
    """Create the Secret `login` with the credentials of the registry."""
    words = ["create", "secret", "docker-registry", "login", f"--docker-server={host}"]
    login = [f"--docker-username={USER}", f"--docker-password={PASSWORD}"]
    cluster.kubectl("-n", namespace, *words, *login)


@contextlib.contextmanager
def node_registry(host: str, url: str) -> Iterator[None]:
    """The node asks this URL for the images of a host."""
    folder = f"/etc/containerd/certs.d/{host}"
    write = f"mkdir -p {folder} && echo 'server = \"{url}\"' >{folder}/hosts.toml"
    run_in_node("sh", "-ec", write)
    try:
        yield
    finally:
        run_in_node("rm", "-r", folder)
