"""Uninstalling leaves only what the docs list, and a new installation continues from there."""

import json

import pytest

from e2e.harness import RELEASE, SYSTEM, Cluster, bare_pod, until, workload

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}
OK = [{"status": "ok", "result": {}}]


def leftovers(cluster: Cluster) -> list[str]:
    """All objects of the cluster that have the release's label."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    kinds = [kind for kind in kinds if not kind.startswith(("events", "podmetrics", "nodemetrics"))]
    selector = f"app.kubernetes.io/instance={RELEASE}"
    words = ["get", ",".join(kinds), "-A", "-l", selector, "-o", "name", "--ignore-not-found"]
    return cluster.kubectl(*words).stdout.split()


@pytest.mark.alone
@pytest.mark.timeout(300)
def test_actors_survive_an_uninstall_and_an_installation_in_another_namespace_continues(
    changing: Cluster, namespace: str
) -> None:
    cluster = changing
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=ECHO), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    before = cluster.copies(namespace)
    assert len(before) == 1
    assert leftovers(cluster) != []
    cluster.uninstall()
    until("all objects of the release to be gone", lambda: not leftovers(cluster))
    left = cluster.get("-n", SYSTEM, "secrets,configmaps,leases,endpoints")["items"]
    names = {each["metadata"]["name"] for each in left}
    # Runtime ConfigMaps stay. One may belong to the pod of an earlier `helm test`.
    assert {name for name in names if not name.startswith("asya-runtime-")} == {"kube-root-ca.crt"}

    assert cluster.call(pod, {"payload": {}}) == OK
    cluster.restart_target(pod)
    assert cluster.call(pod, {"payload": {}}) == OK

    # Without an injector, annotations have no effect on new pods.
    plain = cluster.create(
        bare_pod("plain", cluster.model_image, ECHO), "-n", namespace, "-o", "json"
    )
    assert "asya.sh/injected" not in json.loads(plain.stdout)["metadata"]["annotations"]

    cluster.install(namespace="default")
    cluster.create(bare_pod("again", cluster.model_image, ECHO), "-n", namespace)
    assert cluster.copies(namespace) == before
    try:  # an actor in the injector's own namespace
        cluster.apply(workload("model", cluster.model_image, command=APP, annotations=ECHO))
        pod = cluster.ready_pod("default", "model")
        assert cluster.call(pod, {"payload": {}}) == OK
    finally:
        cluster.kubectl("delete", "deployment", "model", "--ignore-not-found")
        cluster.kubectl("delete", "configmap", "-l", "app.kubernetes.io/managed-by=asya-injector")
