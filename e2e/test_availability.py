"""An outage of the injector delays annotated pods only, and ends without intervention."""

import json
from typing import Any

import pytest

from e2e.harness import Cluster, Object, bare_pod, until, workload

pytestmark = pytest.mark.alone

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}


def test_an_outage_delays_annotated_pods_only_and_needs_no_intervention(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        workload("actor", cluster.model_image, command=APP, annotations=ECHO),
        workload("other", cluster.model_image, command=APP),
        namespace=namespace,
    )
    before = cluster.ready_pod(namespace, "actor")
    cluster.ready_pod(namespace, "other")
    with cluster.without_injectors():
        check_outage(cluster, namespace, before)
    words = ["-n", namespace, "rollout", "status", "deployment/actor", "--timeout=120s"]
    cluster.kubectl(*words, timeout=130)
    for pod in cluster.pods(namespace, "actor"):
        assert cluster.call(pod, {"payload": {}}) == [{"status": "ok", "result": {}}]


def check_outage(cluster: Cluster, namespace: str, before: Any) -> None:
    # Running actors serve, and other pods are created as usual.
    assert cluster.call(before, {"payload": {}}) == [{"status": "ok", "result": {}}]
    cluster.create(bare_pod("plain", cluster.model_image, {}), "-n", namespace)
    cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/other")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/other", "--timeout=60s")

    # Annotated pods are rejected with the reason, and none is created without the runtime.
    rejected = cluster.create(
        bare_pod("annotated", cluster.model_image, ECHO), "-n", namespace, check=False
    )
    assert 'failed calling webhook "pods.asya.sh"' in rejected.stderr
    cluster.kubectl("-n", namespace, "scale", "deployment/actor", "--replicas=2")
    until(
        "an event that names the webhook",
        lambda: any(
            'failed calling webhook "pods.asya.sh"' in message
            for message in cluster.events(namespace)
        ),
    )
    assert [pod.metadata.uid for pod in cluster.pods(namespace, "actor")] == [before.metadata.uid]


def test_during_an_outage_workloads_can_be_scaled_rolled_out_and_rolled_back(
    cluster: Cluster, namespace: str
) -> None:
    item = workload("model", cluster.model_image, command=APP, annotations=ECHO)
    item["spec"]["replicas"] = 0  # this test needs no pods
    cluster.apply(item, namespace=namespace)
    where = ["-n", namespace]

    def env() -> list[Object]:
        pod = cluster.get(*where, "deployment/model")["spec"]["template"]["spec"]
        return list(pod["containers"][0].get("env", []))

    def set_env(revision: int) -> None:
        words = ["set", "env", "deployment/model", "-c", "model", f"REVISION={revision}"]
        cluster.kubectl(*where, *words)

    set_env(2)
    until("the second revision", lambda: cluster.replica_sets(namespace) == 2)
    with cluster.without_injectors():
        cluster.kubectl(*where, "scale", "deployment/model", "--replicas=1")
        api = f"/apis/apps/v1/namespaces/{namespace}/deployments/model/scale"
        scale = json.loads(cluster.kubectl("get", "--raw", api).stdout)
        del scale["metadata"]["resourceVersion"]
        scale["spec"]["replicas"] = 2  # as a HorizontalPodAutoscaler does it
        cluster.kubectl("replace", "--raw", api, "-f", "-", stdin=json.dumps(scale))
        cluster.kubectl(*where, "patch", "deployment/model", "-p", '{"spec": {"replicas": 0}}')
        cluster.kubectl(*where, "label", "deployment/model", "team=a")
        history = cluster.kubectl(*where, "rollout", "history", "deployment/model").stdout
        assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["1", "2"]
        cluster.kubectl(*where, "rollout", "undo", "deployment/model")
        assert env() == []
        set_env(3)
        until("the third revision", lambda: cluster.replica_sets(namespace) == 3)
        # A change that the pods need cannot be propagated now.
        words = ["annotate", "--overwrite", "deployment/model", "asya.sh/handler=handlers.slow"]
        rejected = cluster.kubectl(*where, *words, check=False)
        assert 'failed calling webhook "workloads.asya.sh"' in rejected.stderr
    template = cluster.get(*where, "deployment/model")["spec"]["template"]
    assert json.loads(template["metadata"]["annotations"]["asya.sh/inherited"]) == ECHO
    assert env() == [{"name": "REVISION", "value": "3"}]


def test_a_removed_ca_bundle_is_restored(cluster: Cluster, namespace: str) -> None:
    name = "mutatingwebhookconfiguration/asya-runtime"
    before = cluster.get(name)["webhooks"][0]["clientConfig"]["caBundle"]
    remove = '[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]'
    cluster.kubectl("patch", name, "--type=json", "-p", remove)
    until(
        "the caBundle to be restored",
        lambda: cluster.get(name)["webhooks"][0]["clientConfig"].get("caBundle") == before,
    )
    cluster.create(bare_pod("first", cluster.model_image, ECHO), "-n", namespace)
