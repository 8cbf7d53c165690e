"""The runtime ConfigMap of a namespace: created before the pod, and shared by all pods."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.harness import Cluster, Object, bare_pod, limit_config_maps, until

ECHO = {"asya.sh/handler": "handlers.echo"}
NOWHERE = {"example.com/no": "no"}  # no node matches: the pod is admitted, and not scheduled
# Whoever writes a ConfigMap with such a name is held to `immutable`.
HELD = "asya-runtime-0123456789"
FREE = (
    "asya-runtime-012345678",
    "asya-runtime-0123456789-01234567",
    "asya-runtime-0123456789.old",
    "my-asya-runtime-0123456789",
)


def hash_of(pod: Object) -> str:
    label: str = pod["metadata"]["labels"]["asya.sh/runtime-hash"]
    return label


def test_fifty_pods_at_once_in_a_new_namespace_share_one_config_map(
    cluster: Cluster, namespace: str
) -> None:
    def create(number: int) -> Object:
        pod = bare_pod(f"p{number}", cluster.model_image, ECHO)
        pod["spec"]["nodeSelector"] = NOWHERE
        made = cluster.core.create_namespaced_pod(namespace, pod)
        mounted = {v.name: v.config_map.name for v in made.spec.volumes if v.config_map}
        return {"hash": made.metadata.labels["asya.sh/runtime-hash"], "mounted": mounted}

    with ThreadPoolExecutor(max_workers=25) as pool:
        made = list(pool.map(create, range(50)))
    (copy,) = cluster.copies(namespace)
    name = copy["metadata"]["name"]
    expected = {"hash": name.rpartition("-")[2], "mounted": {"asya-runtime": name}}
    assert made == [expected] * 50


def test_a_full_quota_does_not_keep_pods_away_if_the_config_map_exists(
    cluster: Cluster, namespace: str
) -> None:
    cluster.create(bare_pod("first", cluster.model_image, ECHO), "-n", namespace)
    assert len(cluster.copies(namespace)) == 1
    limit_config_maps(cluster, namespace, 2)  # kube-root-ca.crt is the other
    time.sleep(1.5)  # longer than the injector remembers
    cluster.create(bare_pod("second", cluster.model_image, ECHO), "-n", namespace)


def test_a_pod_is_rejected_with_advice_if_the_config_map_cannot_be_created(
    cluster: Cluster, namespace: str
) -> None:
    limit_config_maps(cluster, namespace, 1)  # kube-root-ca.crt is one
    pod = bare_pod("model", cluster.model_image, ECHO)
    done = cluster.create(pod, "-n", namespace, check=False)
    assert done.returncode == 1
    # The quota is named in the injector's log alone: the rejection may answer a forged review.
    assert "check the namespace's quotas" in done.stderr
    assert "few" not in done.stderr
    assert done.stderr.rstrip().endswith("(RuntimeConfigMapUnavailable)")
    assert cluster.get("-n", namespace, "pods")["items"] == []
    # A failure is not cached.
    cluster.kubectl("-n", namespace, "delete", "resourcequota/few")
    until(
        "the pod to be admitted",
        lambda: cluster.create(pod, "-n", namespace, check=False).returncode == 0,
    )


def test_a_terminating_namespace_rejects_pods_and_gets_no_config_map(
    cluster: Cluster, namespace: str
) -> None:
    held = {"name": "held", "finalizers": ["example.com/hold"]}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held}, "-n", namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    try:
        pod = bare_pod("model", cluster.model_image, ECHO)
        done = cluster.create(pod, "-n", namespace, check=False)
        assert "because it is being terminated" in done.stderr
        assert cluster.copies(namespace) == []
    finally:
        free = '{"metadata": {"finalizers": null}}'
        cluster.kubectl("-n", namespace, "patch", "configmap/held", "-p", free)


def config_map(name: str, **fields: object) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **fields}


def test_nobody_may_create_a_runtime_configmap_that_can_be_changed(
    cluster: Cluster, namespace: str
) -> None:
    for mutable in (config_map(HELD), config_map(HELD, immutable=False)):
        done = cluster.create(mutable, "-n", namespace, check=False)
        assert done.returncode == 1
        assert "must be immutable" in done.stderr
    cluster.create(config_map(HELD, immutable=True, data={"a": "b"}), "-n", namespace)
    change = ["-n", namespace, "patch", "configmap", HELD, "-p"]
    assert cluster.kubectl(*change, '{"immutable": null}', check=False).returncode == 1
    assert cluster.kubectl(*change, '{"data": {"a": "c"}}', check=False).returncode == 1
    cluster.kubectl("-n", namespace, "label", "configmap", HELD, "a=b")


def test_other_config_maps_may_be_changed(cluster: Cluster, namespace: str) -> None:
    for name in FREE:
        cluster.create(config_map(name), "-n", namespace)
        cluster.kubectl("-n", namespace, "patch", "configmap", name, "-p", '{"data": {"a": "b"}}')
    generated = config_map("")
    generated["metadata"] = {"generateName": "asya-runtime-0123456789-"}
    cluster.create(generated, "-n", namespace)


def test_a_runtime_configmap_can_be_deleted_in_every_way(cluster: Cluster, namespace: str) -> None:
    """By name, as one of a collection, and with a finalizer, whose removal is an update."""

    def create(**metadata: object) -> None:
        item = config_map(HELD, immutable=True)
        item["metadata"] |= metadata
        cluster.create(item, "-n", namespace)

    create()
    cluster.kubectl("-n", namespace, "delete", "configmap", HELD)
    create(labels={"a": "b"})
    cluster.core.delete_collection_namespaced_config_map(namespace, label_selector="a=b")
    until("the collection to be deleted", lambda: not cluster.copies(namespace))
    create(finalizers=["example.com/hold"])
    cluster.kubectl("-n", namespace, "delete", "configmap", HELD, "--wait=false")
    free = '{"metadata": {"finalizers": null}}'
    cluster.kubectl("-n", namespace, "patch", "configmap", HELD, "-p", free)
    until("the finalizer to be removed", lambda: not cluster.copies(namespace))


@pytest.mark.timeout(300)
def test_a_namespace_with_runtime_config_maps_can_be_deleted(cluster: Cluster) -> None:
    name = f"e2e-{os.urandom(4).hex()}"
    cluster.make_namespace(name)
    cluster.create(config_map(HELD, immutable=True), "-n", name)
    for free in FREE:
        cluster.create(config_map(free), "-n", name)
    cluster.kubectl("delete", "namespace", name, "--timeout=280s")
