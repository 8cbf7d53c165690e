"""Install, upgrade, uninstall, install again: nothing is left behind but what the docs name."""

import json
from collections.abc import Iterator

import pytest
from harness import RELEASE, SYSTEM, Cluster, bare_pod, until, workload

pytestmark = pytest.mark.alone

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}
OK = [{"status": "ok", "result": {}}]


@pytest.fixture
def reinstalled(cluster: Cluster) -> Iterator[Cluster]:
    """The release is in its usual place again after the test, whatever the test does."""
    yield cluster
    cluster.uninstall()
    cluster.install()


def leftovers(cluster: Cluster) -> list[str]:
    """All objects of the cluster that carry the release's label."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").stdout.split()
    kinds = [kind for kind in kinds if not kind.startswith(("events", "podmetrics", "nodemetrics"))]
    selector = f"app.kubernetes.io/instance={RELEASE}"
    words = ["get", ",".join(kinds), "-A", "-l", selector, "-o", "name", "--ignore-not-found"]
    return cluster.kubectl(*words).stdout.split()


def test_what_runs_outlives_the_injector_and_nothing_else_of_it_is_left(
    reinstalled: Cluster, namespace: str
) -> None:
    cluster = reinstalled
    cluster.apply(
        workload("model", cluster.model_image, command=APP, template=ECHO), namespace=namespace
    )
    pod = cluster.ready_pod(namespace, "model")
    assert leftovers(cluster) != []
    cluster.uninstall()
    until("all of the release to be gone", lambda: not leftovers(cluster))
    left = cluster.get("-n", SYSTEM, "secrets,configmaps,leases,endpoints")["items"]
    names = {each["metadata"]["name"] for each in left}
    # Copies of the runtime stay: one may be here for the pod of an earlier `helm test`.
    copies = {name for name in names if name.startswith("asya-runtime-")}
    assert names - copies == {"kube-root-ca.crt"}

    assert cluster.call(pod, {"payload": {}}) == OK
    cluster.restart_model(pod)
    assert cluster.call(pod, {"payload": {}}) == OK

    # Nobody reads the annotations any more: new pods are plain ones.
    plain = cluster.create(
        bare_pod("plain", cluster.model_image, ECHO), "-n", namespace, "-o", "json"
    )
    assert "asya.sh/injected" not in json.loads(plain.stdout)["metadata"]["annotations"]


def test_installed_again_it_serves_again_with_the_same_copy_of_the_runtime(
    reinstalled: Cluster, namespace: str
) -> None:
    cluster = reinstalled
    cluster.create(bare_pod("first", cluster.model_image, ECHO), "-n", namespace)
    copies = cluster.get("-n", namespace, "configmaps")
    cluster.uninstall()
    cluster.install()
    cluster.create(bare_pod("second", cluster.model_image, ECHO), "-n", namespace)
    assert cluster.get("-n", namespace, "configmaps")["items"] == copies["items"]
    cluster.ready_pod(namespace, "second")


def test_an_upgrade_keeps_the_certificate_and_lets_pods_in_all_the_time(
    reinstalled: Cluster, namespace: str
) -> None:
    cluster = reinstalled
    name = f"mutatingwebhookconfiguration/{RELEASE}"
    before = cluster.get(name)["webhooks"][0]["clientConfig"]["caBundle"]
    cluster.install("runtime.defaults.chunk-size=8192", verb="upgrade")
    assert cluster.get(name)["webhooks"][0]["clientConfig"]["caBundle"] == before
    # Those on their way out answer until everybody knows that they leave.
    until(
        "the old replicas to be gone",
        lambda: len(cluster.injectors()) == 2,
    )
    cluster.create(bare_pod("model", cluster.model_image, ECHO), "-n", namespace)
    env = cluster.get("-n", namespace, "pod/model")["spec"]["containers"][0]["env"]
    assert {"name": "ASYA_CHUNK_SIZE", "value": "8192"} in env


def test_it_can_live_in_the_default_namespace_beside_the_model(reinstalled: Cluster) -> None:
    cluster = reinstalled
    cluster.uninstall()
    cluster.install(namespace="default")
    try:
        model = workload("model", cluster.model_image, command=APP, annotations=ECHO)
        cluster.apply(model)
        pod = cluster.ready_pod("default", "model")
        assert cluster.call(pod, {"payload": {}}) == OK
    finally:
        cluster.kubectl("delete", "deployment", "model", "--ignore-not-found")
        cluster.kubectl("delete", "configmap", "-l", "app.kubernetes.io/managed-by=asya-injector")
