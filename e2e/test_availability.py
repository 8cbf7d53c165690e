"""An outage of the injector delays annotated pods only, and ends without intervention.

The tests share one outage. The last of them ends it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from asya_injector.tls.authority import create

from e2e.conftest import restore_release
from e2e.harness import Cluster, Object, Pod, bare_pod, until, workload
from e2e.test_command_line import run_check
from e2e.test_matching import Sender, create_old_objects, request_of
from tests.chart.cel_cases import CASES

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

APP = ["python3", "-m", "app"]
ECHO = {"asya.sh/handler": "handlers.echo"}
OK = [{"status": "ok", "result": {}}]


@dataclass
class Outage:
    """A cluster without injectors; its namespace has workloads that are older than the outage.

    An actor and another application have a pod. `model` has two revisions and no pods.
    """

    cluster: Cluster
    namespace: str
    actor: Pod
    end: Callable[[], None]

    def env(self) -> list[Object]:
        """The variables in the template of `model`."""
        item = self.cluster.get("-n", self.namespace, "deployment/model")
        return list(item["spec"]["template"]["spec"]["containers"][0].get("env", []))


@pytest.fixture(scope="module")
def outage(cluster: Cluster) -> Iterator[Outage]:
    """The outage that the tests of this module share."""
    restore_release(cluster)
    namespace = f"e2e-outage-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    idle = workload("model", cluster.model_image, command=APP, annotations=ECHO)
    idle["spec"]["replicas"] = 0
    cluster.apply(
        workload("actor", cluster.model_image, command=APP, annotations=ECHO),
        workload("other", cluster.model_image, command=APP),
        idle,
        namespace=namespace,
    )
    until("the first revisions", lambda: cluster.replica_sets(namespace) == 3)
    set_env(cluster, namespace, 2)
    until("the second revision", lambda: cluster.replica_sets(namespace) == 4)
    actor = cluster.ready_pod(namespace, "actor")
    cluster.ready_pod(namespace, "other")
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.without_injectors())
        yield Outage(cluster, namespace, actor, stack.close)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def set_env(cluster: Cluster, namespace: str, revision: int) -> None:
    words = ["set", "env", "deployment/model", "-c", "model", f"REVISION={revision}"]
    cluster.kubectl("-n", namespace, *words)


def test_without_an_injector_only_objects_that_need_a_change_are_rejected(
    outage: Outage, namespace: str
) -> None:
    sender = Sender(namespace)
    create_old_objects(outage.cluster, namespace, sender, sender.find_failing_webhook)
    rejected = {case.id: sender.find_failing_webhook(*request_of(case)) for case in CASES}
    expected = {"pods": "pods.asya.sh", "workloads": "workloads.asya.sh"}
    assert rejected == {case.id: expected.get(case.webhook, "") for case in CASES}


def test_during_an_outage_workloads_can_be_scaled_rolled_out_and_rolled_back(
    outage: Outage,
) -> None:
    cluster, where = outage.cluster, ["-n", outage.namespace]
    before = cluster.replica_sets(outage.namespace)
    cluster.kubectl(*where, "scale", "deployment/model", "--replicas=1")
    api = f"/apis/apps/v1/namespaces/{outage.namespace}/deployments/model/scale"
    scale = json.loads(cluster.kubectl("get", "--raw", api).stdout)
    del scale["metadata"]["resourceVersion"]
    scale["spec"]["replicas"] = 2  # as a HorizontalPodAutoscaler does it
    cluster.kubectl("replace", "--raw", api, "-f", "-", stdin=json.dumps(scale))
    cluster.kubectl(*where, "patch", "deployment/model", "-p", '{"spec": {"replicas": 0}}')
    cluster.kubectl(*where, "label", "deployment/model", "team=a")
    history = cluster.kubectl(*where, "rollout", "history", "deployment/model").stdout
    assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["1", "2"]
    cluster.kubectl(*where, "rollout", "undo", "deployment/model")
    assert outage.env() == []
    set_env(cluster, outage.namespace, 3)
    until("the third revision", lambda: cluster.replica_sets(outage.namespace) == before + 1)
    # A change that the pods need cannot be propagated now.
    words = ["annotate", "--overwrite", "deployment/model", "asya.sh/handler=handlers.slow"]
    rejected = cluster.kubectl(*where, *words, check=False)
    assert 'failed calling webhook "workloads.asya.sh"' in rejected.stderr
    template = cluster.get(*where, "deployment/model")["spec"]["template"]
    assert json.loads(template["metadata"]["annotations"]["asya.sh/inherited"]) == ECHO
    assert outage.env() == [{"name": "REVISION", "value": "3"}]


def test_an_unreachable_injector_is_found(outage: Outage, namespace: str) -> None:
    other = create(["x.svc"], now=dt.datetime.now(dt.UTC)).bundle
    path = "/webhooks/0/clientConfig/caBundle"
    change = {"op": "replace", "path": path, "value": base64.b64encode(other).decode()}
    configuration = "mutatingwebhookconfiguration/asya-runtime"
    outage.cluster.kubectl("patch", configuration, "--type=json", "-p", json.dumps([change]))
    status, rows = run_check("-n", namespace)
    assert status == 1
    wrong = {name: found[0]["found"] for name, found in rows.items() if found[0]["state"] != "ok"}
    assert sorted(wrong) == ["admission", "certificate", "endpoints", "injector"]
    assert wrong["certificate"].endswith("is not signed by a CA in caBundle")
    assert "has no ready address" in wrong["endpoints"]
    assert 'failed calling webhook "pods.asya.sh"' in wrong["admission"]


def test_an_outage_delays_annotated_pods_only_and_needs_no_intervention(
    outage: Outage, namespace: str
) -> None:
    """Controllers retry a rejected pod with growing delays, so the outage ends soon after."""
    cluster = outage.cluster
    check_outage(outage)
    outage.end()
    words = ["-n", outage.namespace, "rollout", "status", "deployment/actor", "--timeout=280s"]
    cluster.kubectl(*words)
    for pod in cluster.pods(outage.namespace, "actor"):
        assert cluster.call(pod, {"payload": {}}) == OK
    until("all checks to pass again", lambda: run_check("-n", namespace)[0] == 0)


def check_outage(outage: Outage) -> None:
    cluster, namespace, before = outage.cluster, outage.namespace, outage.actor
    # Running actors serve, and other pods are created as usual.
    assert cluster.call(before, {"payload": {}}) == OK
    cluster.create(bare_pod("plain", cluster.model_image, {}), "-n", namespace)
    cluster.kubectl("-n", namespace, "rollout", "restart", "deployment/other")
    cluster.kubectl("-n", namespace, "rollout", "status", "deployment/other", "--timeout=240s")

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


def test_a_removed_ca_bundle_is_restored(cluster: Cluster, namespace: str) -> None:
    name = "mutatingwebhookconfiguration/asya-runtime"
    before = cluster.get(name)["webhooks"][0]["clientConfig"]["caBundle"]
    remove = '[{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]'
    cluster.kubectl("patch", name, "--type=json", "-p", remove)
    until(
        "the caBundle to be restored",
        lambda: cluster.get(name)["webhooks"][0]["clientConfig"].get("caBundle") == before,
    )
    # The API server's own copy of the webhooks follows.
    until("a pod to be admitted", lambda: cluster.admits(namespace))
