"""Faults of the injector and of the cluster, under a load of messages and pods: nothing is lost."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from e2e.harness import RELEASE, REPOSITORY, SYSTEM, Cluster, Pod, is_ready, run, until
from e2e.load.faults import (
    HOOK,
    KILLS,
    NODE,
    SMALL,
    WRAP,
    Property,
    Scene,
    fault,
    find_unfinished,
    kill,
    kill_in_container,
    run_ctr,
    run_in_node,
    uncordoned,
    wait_until_routed,
)
from e2e.load.ledger import Tolerance
from e2e.releases import stream

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

DEPLOYMENT = "deployment/asya-runtime"


def injector_pods(cluster: Cluster) -> list[Pod]:
    """The pods that are not terminating."""
    return [pod for pod in cluster.injector_pods() if not pod.metadata.deletion_timestamp]


def test_no_pod_is_admitted_without_injection_when_one_injector_of_two_is_killed(
    scene: Scene, record_property: Property
) -> None:
    kill_injectors(scene, record_property, "injector: one of two SIGKILLed", replicas=1)


def kill_injectors(scene: Scene, record: Property, name: str, *, replicas: int) -> None:
    scene.cluster.settle()
    pods = injector_pods(scene.cluster)
    with fault(scene, record, name, pods=Tolerance(rejections=True)):
        for pod in pods[:replicas]:
            kill(pod, "injector")
        wait_until_restarted(scene.cluster, pods[:replicas])
    scene.cluster.settle()


def wait_until_restarted(cluster: Cluster, pods: list[Pod]) -> None:
    """Wait until killed containers run again."""

    def are_restarted() -> bool:
        now = {pod.metadata.name: pod for pod in injector_pods(cluster)}
        return all(
            now[pod.metadata.name].status.container_statuses[0].restart_count
            > pod.status.container_statuses[0].restart_count
            and is_ready(now[pod.metadata.name])
            for pod in pods
        )

    until("the killed replicas to serve again", are_restarted)


def test_a_rolling_restart_rejects_no_pod_even_if_the_node_learns_of_it_late(
    scene: Scene, record_property: Property
) -> None:
    """The node goes on to lead connections to old replicas, more often than once in two seconds."""
    cluster = scene.cluster
    cluster.settle()
    old = {pod.metadata.name: pod.status.pod_ip for pod in cluster.injector_pods()}
    with requesting_pods(scene), fault(scene, record_property, "injector: rolling restart"):
        with connecting(*old.values()):
            with paused_kube_proxy(cluster):
                cluster.kubectl("-n", SYSTEM, "rollout", "restart", DEPLOYMENT)
                until(
                    "an old replica to answer 3 s after SIGTERM",
                    lambda: any(seconds_served_after_sigterm(cluster, name) > 3 for name in old),
                )
            wait_until_routed(cluster)
        until("all replicas to be new", lambda: not set(old) & set(cluster.injectors()))


@contextlib.contextmanager
def connecting(*addresses: str) -> Iterator[None]:
    """Connect to the webhook ports of these addresses from the node, five times a second.

    By an old route, the API server connects only if all its connections are in use or closed. How
    often that happens depends on how busy the machine is.
    """
    # `read` waits for 0.2 s, and fails otherwise when this side closes the pipe.
    connect = "for each; do (: </dev/tcp/$each/9443) & done"
    loop = f"while read -rt 0.2; (($? > 128)); do {connect}; done 2>/dev/null"
    words = ["docker", "exec", "-i", NODE, "timeout", "600", "bash", "-c", loop, "-", *addresses]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        yield
        assert process.poll() is None


@contextlib.contextmanager
def paused_kube_proxy(cluster: Cluster) -> Iterator[None]:
    """The node's rules do not change in the context."""
    selector = "k8s-app=kube-proxy"
    (proxy,) = cluster.core.list_namespaced_pod("kube-system", label_selector=selector).items
    run_ctr(proxy, "kube-proxy", "pause")
    try:
        yield
    finally:
        run_ctr(proxy, "kube-proxy", "resume")


def seconds_served_after_sigterm(cluster: Cluster, injector: str) -> float:
    """Seconds from SIGTERM to the last review of a replica; 0 before, or if it is gone."""
    log = cluster.kubectl("-n", SYSTEM, "logs", injector, check=False).stdout
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    times = {line["message"]: dt.datetime.fromisoformat(line["time"]) for line in lines}
    if "draining" not in times:
        return 0.0
    return (times.get("changed", times["draining"]) - times["draining"]).total_seconds()


def test_no_pod_is_admitted_without_injection_when_both_injectors_are_killed(
    scene: Scene, record_property: Property
) -> None:
    """The replicas are new ones here: the kubelet delays the second restart of a container."""
    kill_injectors(scene, record_property, "injector: both SIGKILLed", replicas=2)


def test_a_drain_evicts_one_replica_after_the_other_and_rejects_no_pod(
    scene: Scene, record_property: Property
) -> None:
    """The only node is uncordoned at once, because replacements need a node."""
    cluster = scene.cluster
    actors = [scene.pod(app) for app in (WRAP, HOOK)]
    old = {pod.metadata.name for pod in injector_pods(cluster) + actors}
    injectors = f"--pod-selector=app.kubernetes.io/instance={RELEASE}"
    words = ["kubectl", "drain", NODE, injectors, "--delete-emptydir-data", "--timeout=280s"]
    with (
        requesting_pods(scene),
        fault(scene, record_property, "drain: injectors and actors evicted"),
        uncordoned(cluster),
        subprocess.Popen(words, stdout=-1, stderr=-2, text=True) as drain,
    ):
        for pod in actors:
            evict(cluster, pod)

        def is_done() -> bool:
            cluster.kubectl("uncordon", NODE)
            return drain.poll() is not None

        until("the drain to end", is_done, seconds=300)
        assert drain.returncode == 0, drain.stdout and drain.stdout.read()

        def are_gone() -> bool:
            left = set(cluster.injectors())
            for app in (WRAP, HOOK):
                left |= {pod.metadata.name for pod in cluster.pods(scene.namespace, app)}
            return not old & left

        until("the evicted pods to be gone", are_gone)
    cluster.settle()


@contextlib.contextmanager
def requesting_pods(scene: Scene) -> Iterator[None]:
    """Request pods without a pause, to find gaps that the ledger misses; none is rejected."""
    with stream(scene.cluster, scene.namespace) as requested:
        yield
    assert (requested.rejected, requested.plain) == ([], 0)
    assert requested.injected > 10  # a busy machine answers few


def evict(cluster: Cluster, pod: Pod) -> None:
    name, namespace = pod.metadata.name, pod.metadata.namespace
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=namespace))
    cluster.core.create_namespaced_pod_eviction(name, namespace, body)


def test_the_api_server_can_be_killed(scene: Scene, record_property: Property) -> None:
    server = scene.cluster.core.read_namespaced_pod(f"kube-apiserver-{NODE}", "kube-system")
    began = server.status.container_statuses[0].restart_count
    with fault(
        scene,
        record_property,
        "API server SIGKILLed",
        pods=Tolerance(rejections=True, outages=True),
    ):
        kill(server, "kube-apiserver")

        def is_back() -> bool:
            try:
                now = scene.cluster.core.read_namespaced_pod(
                    f"kube-apiserver-{NODE}", "kube-system", _request_timeout=10
                )
            except Exception:  # unavailable, or still starting
                return False
            return bool(now.status.container_statuses[0].restart_count > began)

        until("the API server to be restarted", is_back, seconds=240)
        wait_until_routed(scene.cluster)
    scene.cluster.settle()


def test_the_kubelet_can_be_restarted(scene: Scene, record_property: Property) -> None:
    before = [scene.restarts(app) for app in (WRAP, HOOK, SMALL)]
    with fault(scene, record_property, "kubelet restarted"):
        restart_kubelet(scene.cluster)
    assert [scene.restarts(app) for app in (WRAP, HOOK, SMALL)] == before


def restart_kubelet(cluster: Cluster) -> None:
    lease = ["get", "lease", NODE, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"]
    run_in_node("systemctl", "restart", "kubelet")
    renewed = cluster.kubectl(*lease).stdout
    until("the kubelet to report", lambda: cluster.kubectl(*lease).stdout != renewed)


def test_an_upgrade_of_the_runtime_loses_no_message_and_no_pod(
    scene: Scene, record_property: Property, tmp_path: Path
) -> None:
    cluster = scene.cluster
    chart = tmp_path / "chart"
    shutil.copytree(REPOSITORY / "chart", chart)
    runtime = chart / "files/asya_runtime.py"
    runtime.write_text(runtime.read_text() + "# Another version of this file.\n")
    old = {app: runtime_hash(scene.pod(app)) for app in (WRAP, HOOK)}
    with fault(scene, record_property, "runtime upgraded, workload restarted"):
        upgrade(cluster, chart)
        cluster.kubectl("-n", scene.namespace, "rollout", "restart", f"deployment/{WRAP}")
        words = ["-n", scene.namespace, "rollout", "status", f"deployment/{WRAP}"]
        cluster.kubectl(*words, "--timeout=280s")
    new = {app: runtime_hash(scene.pod(app)) for app in (WRAP, HOOK)}
    assert new == {WRAP: new[WRAP], HOOK: old[HOOK]}
    assert new[WRAP] != old[WRAP]

    # Both versions are mounted now. A container that restarts finds the version of its pod.
    before = {app: scene.restarts(app) for app in (WRAP, SMALL)}
    with fault(scene, record_property, "runtime rolled back, both restarted", messages=KILLS):
        run("helm", "rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "5m", timeout=400)
        until("the old replicas to be gone", lambda: len(cluster.injectors()) == 2)
        restart_kubelet(cluster)
        words = ["-n", scene.namespace, "exec", f"deployment/{SMALL}", "-c", "model", "--", "true"]
        until("known pods", lambda: not cluster.kubectl(*words, check=False).returncode)
        for app in (WRAP, SMALL):
            kill_in_container(cluster, scene.pod(app), "asya_runtime.py", signal.SIGKILL)
            until("a restart", lambda app=app: scene.restarts(app) > before[app])  # type: ignore[misc]
    assert {app: runtime_hash(scene.pod(app)) for app in (WRAP, HOOK)} == new
    cluster.kubectl("-n", scene.namespace, "delete", "pod", scene.pod(WRAP).metadata.name)
    assert runtime_hash(scene.pod(WRAP)) == old[WRAP]
    cluster.settle()


def runtime_hash(pod: Pod) -> str:
    return str(pod.metadata.labels["asya.sh/runtime-hash"])


def upgrade(cluster: Cluster, chart: Path) -> None:
    """`helm upgrade` to a chart with other runtime files and the same values."""
    words = ["helm", "upgrade", "asya-runtime", str(chart), "--namespace", SYSTEM, "--wait"]
    run(*words, "--reuse-values", "--timeout", "5m", timeout=400)
    # Terminating replicas still answer, with the old runtime files.
    until("the old replicas to be gone", lambda: len(cluster.injectors()) == 2)


def test_the_log_of_every_sidecar_that_is_gone_is_complete(scene: Scene) -> None:
    """Otherwise, a message could be lost together with the log that shows it."""
    until("complete logs", lambda: not find_unfinished(scene))
