"""What is lost when the injector, or the cluster itself, fails while messages and pods come in:
nothing that was promised.
"""

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
from faults import (
    HOOK,
    KILLS,
    NODE,
    SMALL,
    WRAP,
    Property,
    Scene,
    fault,
    kill_within,
    node,
    until_routed,
    without_an_account,
)
from harness import RELEASE, REPOSITORY, SYSTEM, Cluster, Pod, is_ready, run, until
from kubernetes import client
from ledger import Promise
from releases import stream

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

DEPLOYMENT = "deployment/asya-runtime"


def kill(pod: Pod, container: str) -> None:
    """SIGKILL a container's process 1 from outside, as the kernel would."""
    task(pod, container, "kill", "--signal", "SIGKILL")


def task(pod: Pod, container: str, *words: str) -> None:
    """Have the node's container engine do something with a container."""
    status = next(each for each in pod.status.container_statuses if each.name == container)
    identifier = status.container_id.removeprefix("containerd://")
    node("ctr", "--namespace", "k8s.io", "tasks", *words, identifier)


def injector_pods(cluster: Cluster) -> list[Pod]:
    """Those that stay."""
    return [pod for pod in cluster.injector_pods() if not pod.metadata.deletion_timestamp]


def test_one_injector_of_two_that_is_killed_lets_no_pod_in_bare(
    scene: Scene, record_property: Property
) -> None:
    injectors_killed(scene, record_property, "injector: one of two SIGKILLed", replicas=1)


def injectors_killed(scene: Scene, record: Property, name: str, *, replicas: int) -> None:
    pods = injector_pods(scene.cluster)
    assert len(pods) == 2
    with fault(scene, record, name, pods=Promise(refusals=True)):
        for pod in pods[:replicas]:
            kill(pod, "injector")
        until_restarted(scene.cluster, pods[:replicas])
    scene.cluster.settle()


def until_restarted(cluster: Cluster, pods: list[Pod]) -> None:
    """Wait until containers that were killed run again."""

    def restarted() -> bool:
        now = {pod.metadata.name: pod for pod in injector_pods(cluster)}
        return all(
            now[pod.metadata.name].status.container_statuses[0].restart_count
            > pod.status.container_statuses[0].restart_count
            and is_ready(now[pod.metadata.name])
            for pod in pods
        )

    until("the killed replicas to serve again", restarted, seconds=90)


def test_a_rolling_restart_refuses_nobody_though_the_node_learns_late_of_it(
    scene: Scene, record_property: Property
) -> None:
    cluster = scene.cluster
    old = cluster.injectors()
    with asking_without_a_pause(scene), fault(scene, record_property, "injector: rolling restart"):
        with kube_proxy_held(cluster):
            cluster.kubectl("-n", SYSTEM, "rollout", "restart", DEPLOYMENT)
            until(
                "an old one to answer 3 s after it was told to stop",
                lambda: any(answered_after_leaving(cluster, name) > 3 for name in old),
                seconds=90,
            )
        until(
            "all replicas to be new ones",
            lambda: not set(old) & set(cluster.injectors()),
            seconds=90,
        )


@contextlib.contextmanager
def kube_proxy_held(cluster: Cluster) -> Iterator[None]:
    """The node's rules stay as they are."""
    selector = "k8s-app=kube-proxy"
    (proxy,) = cluster.core.list_namespaced_pod("kube-system", label_selector=selector).items
    task(proxy, "kube-proxy", "pause")
    try:
        yield
    finally:
        task(proxy, "kube-proxy", "resume")


def answered_after_leaving(cluster: Cluster, injector: str) -> float:
    """Seconds from SIGTERM to the last review that it answered; 0 before it, or of who is gone."""
    log = cluster.kubectl("-n", SYSTEM, "logs", injector, check=False).stdout
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    times = {line["message"]: dt.datetime.fromisoformat(line["time"]) for line in lines}
    if "draining" not in times:
        return 0.0
    return (times.get("changed", times["draining"]) - times["draining"]).total_seconds()


def test_both_injectors_that_are_killed_let_no_pod_in_bare(
    scene: Scene, record_property: Property
) -> None:
    """New ones by now: who is killed twice is kept waiting."""
    injectors_killed(scene, record_property, "injector: both SIGKILLed", replicas=2)


def test_a_drain_waits_for_its_turn_and_refuses_nobody(
    scene: Scene, record_property: Property
) -> None:
    """The only node takes pods again at once, or nothing could take the place of those that go."""
    cluster = scene.cluster
    actors = [scene.pod(app) for app in (WRAP, HOOK)]
    old = {pod.metadata.name for pod in injector_pods(cluster) + actors}
    injectors = f"--pod-selector=app.kubernetes.io/instance={RELEASE}"
    words = ["kubectl", "drain", NODE, injectors, "--delete-emptydir-data", "--timeout=90s"]
    with (
        asking_without_a_pause(scene),
        fault(scene, record_property, "drain: injectors and actors evicted"),
        uncordoned(cluster),
        subprocess.Popen(words, stdout=-1, stderr=-2, text=True) as drain,
    ):
        for pod in actors:
            evict(cluster, pod)

        def ended() -> bool:
            cluster.kubectl("uncordon", NODE)
            return drain.poll() is not None

        until("the drain to end", ended, seconds=100)
        assert drain.returncode == 0, drain.stdout and drain.stdout.read()

        def gone() -> bool:
            left = set(cluster.injectors())
            for app in (WRAP, HOOK):
                left |= {pod.metadata.name for pod in cluster.pods(scene.namespace, app)}
            return not old & left

        until("the evicted to be gone", gone)
    cluster.settle()


@contextlib.contextmanager
def asking_without_a_pause(scene: Scene) -> Iterator[None]:
    """Beside the ledger's pods, more of them than could slip through a gap; none may be refused."""
    with stream(scene.cluster, scene.namespace) as asked:
        yield
    assert (asked.refused, asked.plain) == ([], 0)
    assert asked.injected > 50


@contextlib.contextmanager
def uncordoned(cluster: Cluster) -> Iterator[None]:
    """The node takes pods afterwards, whatever happens."""
    try:
        yield
    finally:
        cluster.kubectl("uncordon", NODE)


def evict(cluster: Cluster, pod: Pod) -> None:
    name, namespace = pod.metadata.name, pod.metadata.namespace
    body = client.V1Eviction(metadata=client.V1ObjectMeta(name=name, namespace=namespace))
    cluster.core.create_namespaced_pod_eviction(name, namespace, body)


def test_the_api_server_can_be_killed(scene: Scene, record_property: Property) -> None:
    server = scene.cluster.core.read_namespaced_pod(f"kube-apiserver-{NODE}", "kube-system")
    began = server.status.container_statuses[0].restart_count
    with fault(
        scene, record_property, "API server SIGKILLed", pods=Promise(refusals=True, outages=True)
    ):
        kill(server, "kube-apiserver")

        def back() -> bool:
            try:
                now = scene.cluster.core.read_namespaced_pod(
                    f"kube-apiserver-{NODE}", "kube-system", _request_timeout=2
                )
            except Exception:  # away, or not yet itself
                return False
            return bool(now.status.container_statuses[0].restart_count > began)

        until("the API server to be another process", back, seconds=120)
        until_routed(scene.cluster)
    scene.cluster.settle()


def test_the_kubelet_can_be_restarted(scene: Scene, record_property: Property) -> None:
    before = [scene.restarts(app) for app in (WRAP, HOOK, SMALL)]
    with fault(scene, record_property, "kubelet restarted"):
        restart_kubelet(scene.cluster)
    assert [scene.restarts(app) for app in (WRAP, HOOK, SMALL)] == before


def restart_kubelet(cluster: Cluster) -> None:
    lease = ["get", "lease", NODE, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"]
    node("systemctl", "restart", "kubelet")
    renewed = cluster.kubectl(*lease).stdout
    until("the kubelet to report", lambda: cluster.kubectl(*lease).stdout != renewed)


def test_an_upgrade_of_the_runtime_meets_no_message_and_no_pod(
    scene: Scene, record_property: Property, tmp_path: Path
) -> None:
    cluster = scene.cluster
    chart = tmp_path / "chart"
    shutil.copytree(REPOSITORY / "chart", chart)
    runtime = chart / "files/asya_runtime.py"
    runtime.write_text(runtime.read_text() + "# Another version of this file.\n")
    old = {app: runtime_of(scene.pod(app)) for app in (WRAP, HOOK)}
    with fault(scene, record_property, "runtime upgraded, workload restarted"):
        upgrade(cluster, chart)
        cluster.kubectl("-n", scene.namespace, "rollout", "restart", f"deployment/{WRAP}")
        words = ["-n", scene.namespace, "rollout", "status", f"deployment/{WRAP}"]
        cluster.kubectl(*words, "--timeout=90s", timeout=100)
    new = {app: runtime_of(scene.pod(app)) for app in (WRAP, HOOK)}
    assert new == {WRAP: new[WRAP], HOOK: old[HOOK]}
    assert new[WRAP] != old[WRAP]

    # Both versions are mounted now; each pod's own one is there when its container starts again.
    before = {app: scene.restarts(app) for app in (WRAP, SMALL)}
    with fault(scene, record_property, "runtime rolled back, both restarted", messages=KILLS):
        run("helm", "rollback", RELEASE, "-n", SYSTEM, "--wait", "--timeout", "3m", timeout=200)
        until("the old replicas to be gone", lambda: len(cluster.injectors()) == 2)
        restart_kubelet(cluster)
        words = ["-n", scene.namespace, "exec", f"deployment/{SMALL}", "-c", "model", "--", "true"]
        until("it to know its pods", lambda: not cluster.kubectl(*words, check=False).returncode)
        for app in (WRAP, SMALL):
            kill_within(cluster, scene.pod(app), "asya_runtime.py", signal.SIGKILL)
            until("it to be restarted", lambda app=app: scene.restarts(app) == before[app] + 1)  # type: ignore[misc]
    assert {app: runtime_of(scene.pod(app)) for app in (WRAP, HOOK)} == new
    cluster.kubectl("-n", scene.namespace, "delete", "pod", scene.pod(WRAP).metadata.name)
    assert runtime_of(scene.pod(WRAP)) == old[WRAP]
    cluster.settle()


def runtime_of(pod: Pod) -> str:
    return str(pod.metadata.labels["asya.sh/runtime-hash"])


def upgrade(cluster: Cluster, chart: Path) -> None:
    """`helm upgrade` to a chart with other files, all else as it was."""
    words = ["helm", "upgrade", "asya-runtime", str(chart), "--namespace", SYSTEM, "--wait"]
    run(*words, "--reuse-values", "--timeout", "3m", timeout=200)
    # Those on their way out answer, with the runtime that they have, until everybody knows.
    until("the old replicas to be gone", lambda: len(cluster.injectors()) == 2)


def test_every_sidecar_that_is_gone_gave_a_whole_account(scene: Scene) -> None:
    """Without this, a message could be lost with the log that would have said so."""
    assert without_an_account(scene) == []
