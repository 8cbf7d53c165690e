"""The runtime as an image volume: namespaces get no copies and cannot affect actors."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from asya_injector.runtime_files import RUNTIME_VOLUME
from asya_injector.runtime_image import RUNTIME_FOLDER

from e2e.harness import (
    IMAGE_DELIVERY,
    REPOSITORY,
    SYSTEM,
    Cluster,
    Object,
    Pod,
    bare_pod,
    limit_config_maps,
    run,
    switch_injection,
    workload,
)
from e2e.load.faults import NODE
from e2e.test_command_line import run_check
from e2e.test_matrix import assert_replies, variants
from e2e.test_runtime_configmap import config_map

pytestmark = pytest.mark.usefixtures("image_volumes")

ECHO = {"asya.sh/handler": "handlers.echo"}
APP = ["python3", "-m", "app"]
MODES: dict[str, list[str] | None] = {"wrap": APP, "hook": None}
OK = [{"status": "ok", "result": {}}]
RUNTIME = ("asya_runtime.py", "asya_entrypoint.py")


def actors(cluster: Cluster) -> list[Object]:
    """An actor in each mode."""
    image = cluster.model_image
    return [workload(mode, image, template=ECHO, command=MODES[mode]) for mode in MODES]


def sources(cluster: Cluster, namespace: str) -> dict[str, Object]:
    """The volume with the runtime, without its name, of the pod of each application."""
    pods = cluster.get("-n", namespace, "pods")["items"]
    found = {}
    for pod in pods:
        (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == RUNTIME_VOLUME]
        app = pod["metadata"]["labels"]["app"]
        found[app] = {key: value for key, value in volume.items() if key != "name"}
    return found


def from_image(image: str) -> Object:
    return {"image": {"reference": image, "pullPolicy": "IfNotPresent"}}


def assert_restarts(cluster: Cluster, namespace: str) -> None:
    """Assert that the actors answer, and answer again after a restart of their containers."""
    for mode in MODES:
        pod = cluster.ready_pod(namespace, mode)
        assert cluster.call(pod, {"payload": {}}) == OK
        cluster.restart_target(pod)
        assert cluster.call(pod, {"payload": {}}) == OK


def upgrade(cluster: Cluster, *values: str) -> None:
    """Upgrade the release to these values, and wait until no replica has others."""
    cluster.install(*values, verb="upgrade")
    cluster.settle()


@contextlib.contextmanager
def upgraded(cluster: Cluster, *values: str) -> Iterator[None]:
    """The release with other values in the context."""
    upgrade(cluster, *values)
    try:
        yield
    finally:
        upgrade(cluster, IMAGE_DELIVERY)


@pytest.mark.alone
@pytest.mark.timeout(500)
def test_an_actor_starts_in_every_form_of_image_and_pod(
    image_release: Cluster, namespace: str
) -> None:
    cluster = image_release
    table = variants(cluster)
    del table["one-file"]  # one file of an image cannot be mounted
    del table["must-be-process-1"]  # mounts a ConfigMap
    cluster.apply(*(item for item, _ in table.values()), namespace=namespace)
    assert_replies(cluster, namespace, table)
    volumes = sources(cluster, namespace)
    assert volumes == {name: from_image(cluster.injector_image) for name in table}
    assert cluster.copies(namespace) == []


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_quotas_and_config_maps_of_the_namespace_have_no_effect(
    image_release: Cluster, namespace: str
) -> None:
    cluster = image_release
    shown = cluster.create(
        bare_pod("model", cluster.model_image, ECHO),
        *("-n", namespace, "--dry-run=server", "-o", "json"),
    )
    version = json.loads(shown.stdout)["metadata"]["labels"]["asya.sh/runtime-hash"]
    poisoned = config_map(f"asya-runtime-{version}", data=dict.fromkeys(RUNTIME, "import evil"))
    cluster.create(poisoned, "-n", namespace)
    limit_config_maps(cluster, namespace, 2)  # kube-root-ca.crt is the other
    cluster.apply(*actors(cluster), namespace=namespace)
    assert_restarts(cluster, namespace)
    (copy,) = cluster.copies(namespace)
    assert copy["data"] == poisoned["data"]


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_the_injector_has_no_permission_outside_its_namespace_but_its_webhooks(
    image_release: Cluster,
) -> None:
    cluster = image_release
    webhooks = "mutatingwebhookconfigurations.admissionregistration.k8s.io"
    everywhere = {(webhooks, "asya-runtime", "get patch")}
    namespaces = {each["metadata"]["name"] for each in cluster.get("namespaces")["items"]}
    others = namespaces - {SYSTEM}
    found = {each: cluster.rights("asya-runtime", namespace=each) for each in others}
    assert found == dict.fromkeys(others, everywhere)
    accounts = cluster.get("-n", SYSTEM, "serviceaccounts")["items"]
    assert {each["metadata"]["name"] for each in accounts} == {"default", "asya-runtime"}
    assert cluster.rights("asya-runtime") == everywhere | {
        ("secrets", "", "create"),
        ("secrets", "asya-runtime-tls", "get patch update"),
    }


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_a_healthy_cluster_passes_all_checks(image_release: Cluster, namespace: str) -> None:
    cluster = image_release
    cluster.create(bare_pod("model", cluster.model_image, ECHO), "-n", namespace)
    status, rows = run_check("-n", namespace)
    found = {
        check: row["found"]
        for check in ("delivery", "nodes", "pods")
        for row in rows.get(check, [])
    }
    image = cluster.injector_image
    assert found == {
        "delivery": f"pods mount image {image}; copies of the ConfigMap: none needed",
        "nodes": "nodes that can mount images: 1",
        "pods": "actors with the current runtime: 1",
    }
    assert status == 0, rows


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_an_upgrade_of_the_runtime_changes_new_pods_only(
    image_release: Cluster, namespace: str, tmp_path: Path
) -> None:
    cluster = image_release
    newer = build_newer_injector(cluster, tmp_path)
    repository, tag = newer.rsplit(":", 1)
    cluster.apply(*actors(cluster), namespace=namespace)
    before = {mode: runtime_hash(cluster.ready_pod(namespace, mode)) for mode in MODES}
    image = (f"injector.image.repository={repository}", f"injector.image.tag={tag}")
    with upgraded(cluster, IMAGE_DELIVERY, *image):
        assert_restarts(cluster, namespace)
        old = sources(cluster, namespace)
        replace_pods(cluster, namespace)
        after = {mode: runtime_hash(cluster.ready_pod(namespace, mode)) for mode in MODES}
        assert_restarts(cluster, namespace)
        new = sources(cluster, namespace)
    assert (old, new) == (
        dict.fromkeys(MODES, from_image(cluster.injector_image)),
        dict.fromkeys(MODES, from_image(newer)),
    )
    assert set(before.values()).isdisjoint(after.values())


def build_newer_injector(cluster: Cluster, folder: Path) -> str:
    """The injector's image with another version of the runtime."""
    text = (REPOSITORY / "runtime/asya_runtime.py").read_text()
    (folder / "asya_runtime.py").write_text(text + "# Another version of this file.\n")
    (folder / "Dockerfile").write_text(
        f"ARG PYTHON_IMAGE\nFROM ${{PYTHON_IMAGE}}\nCOPY asya_runtime.py /{RUNTIME_FOLDER}/\n"
    )
    return build_image("asya/e2e-injector", folder, PYTHON_IMAGE=cluster.injector_image)


def build_image(name: str, folder: Path, **env: str) -> str:
    """Build an image, and load it into the node."""
    script = REPOSITORY / "e2e/cluster/image.sh"
    return run(str(script), name, str(folder), env=os.environ | env).stdout.strip()


def replace_pods(cluster: Cluster, namespace: str) -> None:
    """Replace the pods of both modes, and wait until the old ones are gone."""
    pods = [cluster.ready_pod(namespace, mode) for mode in MODES]
    cluster.kubectl("-n", namespace, "delete", "pods", *(pod.metadata.name for pod in pods))


def runtime_hash(pod: Pod) -> str:
    return str(pod.metadata.labels["asya.sh/runtime-hash"])


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_running_pods_keep_the_delivery_with_which_they_were_created(
    image_release: Cluster, namespace: str
) -> None:
    cluster = image_release
    cluster.apply(*actors(cluster), namespace=namespace)
    for mode in MODES:
        cluster.ready_pod(namespace, mode)
    by_image = dict.fromkeys(MODES, from_image(cluster.injector_image))
    with upgraded(cluster, "runtime.delivery=configMap"):
        assert_restarts(cluster, namespace)
        assert sources(cluster, namespace) == by_image
        replace_pods(cluster, namespace)
        assert_restarts(cluster, namespace)
        by_copy = sources(cluster, namespace)
        (copy,) = cluster.copies(namespace)
    name = copy["metadata"]["name"]
    copied = {"configMap": {"name": name, "defaultMode": 0o444}}
    assert by_copy == dict.fromkeys(MODES, copied)
    assert_restarts(cluster, namespace)
    assert sources(cluster, namespace) == by_copy
    replace_pods(cluster, namespace)
    assert_restarts(cluster, namespace)
    assert sources(cluster, namespace) == by_image


@pytest.mark.alone
@pytest.mark.timeout(250)
def test_actors_that_a_drain_evicts_start_again(image_release: Cluster, namespace: str) -> None:
    """The only node is uncordoned as soon as the old pods are gone."""
    cluster = image_release
    cluster.apply(*actors(cluster), namespace=namespace)
    old = {mode: cluster.ready_pod(namespace, mode).metadata.uid for mode in MODES}
    selector = "--pod-selector=app in (wrap, hook)"
    words = ["drain", NODE, selector, "--delete-emptydir-data", "--timeout=90s"]
    try:
        cluster.kubectl(*words)
    finally:
        cluster.kubectl("uncordon", NODE)
    assert_restarts(cluster, namespace)
    new = {mode: cluster.ready_pod(namespace, mode).metadata.uid for mode in MODES}
    assert [mode for mode in MODES if new[mode] == old[mode]] == []
    by_image = dict.fromkeys(MODES, from_image(cluster.injector_image))
    assert sources(cluster, namespace) == by_image


@pytest.mark.alone
def test_actors_survive_an_uninstall(image_release: Cluster, namespace: str) -> None:
    """The last test of the release."""
    cluster = image_release
    cluster.apply(*actors(cluster), namespace=namespace)
    for mode in MODES:
        cluster.ready_pod(namespace, mode)
    by_image = dict.fromkeys(MODES, from_image(cluster.injector_image))
    assert sources(cluster, namespace) == by_image
    cluster.uninstall()
    assert_restarts(cluster, namespace)
    left = cluster.get("-n", SYSTEM, "secrets,configmaps,leases")["items"]
    names = {each["metadata"]["name"] for each in left}
    assert {name for name in names if not name.startswith("asya-runtime-")} == {"kube-root-ca.crt"}


def inject(item: Object, namespace: str, image: str) -> str:
    """The manifests of an actor that `asya-injector inject` makes, which need no webhook."""
    words = ["inject", "-n", namespace, "--delivery", "image", "--runtime-image", image]
    program = (sys.executable, "-m", "asya_injector")
    return run(*program, *words, stdin=json.dumps(item)).stdout


@pytest.mark.timeout(300)
def test_helm_releases_in_one_namespace_share_no_object(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    switch_injection(cluster, namespace, on=False)
    for mode, item in zip(MODES, actors(cluster), strict=True):
        chart = tmp_path / mode
        (chart / "templates").mkdir(parents=True)
        (chart / "Chart.yaml").write_text(f"apiVersion: v2\nname: {mode}\nversion: 0.1.0\n")
        manifests = inject(item, namespace, cluster.injector_image)
        (chart / "templates/actor.yaml").write_text(manifests)
        run("helm", "install", mode, str(chart), "--namespace", namespace)
    assert_restarts(cluster, namespace)
    assert cluster.copies(namespace) == []
    run("helm", "uninstall", "wrap", "--namespace", namespace, "--wait")
    run("helm", "upgrade", "hook", str(tmp_path / "hook"), "--namespace", namespace)
    cluster.restart_target(pod := cluster.ready_pod(namespace, "hook"))
    assert cluster.call(pod, {"payload": {}}) == OK
