"""Without the injector nothing runs half done, nobody else notices, and it mends itself."""

from collections.abc import Iterator

import pytest
from harness import SYSTEM, Cluster, bare_pod, until, workload

pytestmark = pytest.mark.alone

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}


@pytest.fixture
def scaled(cluster: Cluster) -> Iterator[None]:
    """Whatever the test does, two replicas serve again after it."""
    yield
    scale(cluster, 2)


def scale(cluster: Cluster, replicas: int) -> None:
    words = ["-n", SYSTEM, "scale", "deployment/asya-runtime", f"--replicas={replicas}"]
    cluster.kubectl(*words)

    def settled() -> bool:
        slices = cluster.get("-n", SYSTEM, "endpointslices")["items"]
        endpoints = [each for part in slices for each in part["endpoints"] or []]
        ready = [each for each in endpoints if each["conditions"]["ready"]]
        return len(cluster.injectors()) == replicas and len(ready) == replicas

    until(f"{replicas} replicas of the injector", settled, seconds=90)


@pytest.mark.usefixtures("scaled")
def test_an_outage_holds_up_annotated_pods_alone_and_ends_by_itself(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        workload("actor", cluster.model_image, command=APP, annotations=ECHO),
        workload("other", cluster.model_image, command=APP),
        namespace=namespace,
    )
    before = cluster.ready_pod(namespace, "actor")
    cluster.ready_pod(namespace, "other")
    scale(cluster, 0)

    # What runs goes on; what nobody asked us about is made as ever.
    assert cluster.call(before, {"payload": {}}) == [{"status": "ok", "result": {}}]
    cluster.create(bare_pod("plain", cluster.model_image, {}), "-n", namespace)
    cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/other")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/other", "--timeout=60s")

    # Whoever asks for an actor is told, and gets none without its runtime.
    refused = cluster.create(
        bare_pod("asks", cluster.model_image, ECHO), "-n", namespace, check=False
    )
    assert 'failed calling webhook "pods.asya.sh"' in refused.stderr
    cluster.kubectl("-n", namespace, "scale", "deployment/actor", "--replicas=2")
    until(
        "an event that names the webhook",
        lambda: any(
            'failed calling webhook "pods.asya.sh"' in message
            for message in cluster.events(namespace)
        ),
    )
    assert [pod.metadata.uid for pod in cluster.pods(namespace, "actor")] == [before.metadata.uid]

    scale(cluster, 2)
    words = ["-n", namespace, "rollout", "status", "deployment/actor", "--timeout=120s"]
    cluster.kubectl(*words, timeout=130)
    for pod in cluster.pods(namespace, "actor"):
        assert cluster.call(pod, {"payload": {}}) == [{"status": "ok", "result": {}}]


@pytest.mark.usefixtures("scaled")
def test_a_rolling_restart_refuses_no_pod_and_misses_none(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", SYSTEM, "rollout", "restart", "deployment/asya-runtime")
    number = 0

    def rolled_out() -> bool:
        nonlocal number
        number += 1
        pod = bare_pod(f"p{number}", cluster.model_image, ECHO)
        made = cluster.create(pod, "-n", namespace, "--dry-run=server", "-o", "name")
        assert made.stdout.strip() == f"pod/p{number}"
        status = cluster.get("-n", SYSTEM, "deployment/asya-runtime")["status"]
        return bool(status.get("updatedReplicas") == 2 and len(cluster.injectors()) == 2)

    until("the rolling restart", rolled_out, seconds=90)
    assert number > 5


def test_trust_that_is_taken_away_by_hand_comes_back(cluster: Cluster, namespace: str) -> None:
    name = "mutatingwebhookconfiguration/asya-runtime"
    before = cluster.get(name)["webhooks"][0]["clientConfig"]["caBundle"]
    remove = '[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]'
    cluster.kubectl("patch", name, "--type=json", "-p", remove)
    until(
        "the caBundle to be restored",
        lambda: cluster.get(name)["webhooks"][0]["clientConfig"].get("caBundle") == before,
    )
    cluster.create(bare_pod("first", cluster.model_image, ECHO), "-n", namespace)

    secret = ["-n", SYSTEM, "secret/asya-runtime-tls"]
    kept = cluster.get(*secret)["data"]
    cluster.kubectl("delete", *secret)
    words = ["get", *secret, "-o", "json", "--ignore-not-found"]
    until("the Secret to be put back", lambda: cluster.kubectl(*words).stdout)
    assert cluster.get(*secret)["data"] == kept
    cluster.kubectl("patch", *secret, "-p", '{"data": {"tls.key": "AAAA"}}')
    until("the Secret to be mended", lambda: cluster.get(*secret)["data"] == kept)
    cluster.create(bare_pod("second", cluster.model_image, ECHO), "-n", namespace)
