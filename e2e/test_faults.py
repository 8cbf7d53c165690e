"""What is lost when a part is killed while messages and pods come in: nothing that was promised.

One load for all of them: actors in both modes whose sidecars never run out of messages, and
annotated pods that are asked for. Each fault says what it may do (`Promise`); the ledger says what
it did.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from asya_injector.certificates import KeyPair, created
from harness import RELEASE, REPOSITORY, SYSTEM, Cluster, Pod, is_ready, run, serial, until
from kubernetes import client
from ledger import Promise, Row, State
from releases import stream
from traffic import APP, Asking, Sending, actor, load, long_message

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

NODE = f"{os.environ.get('CLUSTER', 'asya')}-control-plane"
DEPLOYMENT = "deployment/asya-runtime"
WRAP, HOOK, SMALL = "wrap", "hook", "small"
NOTHING = Promise()
KILLS = Promise(cuts=True)
Property = Callable[[str, object], None]


@dataclass
class Scene:
    """The cluster under load."""

    cluster: Cluster
    namespace: str
    sending: Sending
    asking: Asking

    def pod(self, app: str) -> Pod:
        return self.cluster.ready_pod(self.namespace, app)

    def restarts(self, app: str) -> int:
        (pod,) = self.cluster.pods(self.namespace, app)
        statuses = pod.status.container_statuses
        return int(next(each for each in statuses if each.name == "model").restart_count)

    def settle(self, apps: tuple[str, ...], *, seconds: float = 90) -> None:
        """Wait until every actor has answered, and a pod was admitted, that began after now."""
        now = time.time()
        for app in apps:
            until(
                f"{app} to answer again",
                lambda app=app: self.sending.answered_since(app, now),  # type: ignore[misc]
                seconds=seconds,
            )

        def admits() -> bool:
            history = list(self.asking.ledger.histories.values())[-2:]
            return any(
                events[0].at > now and events[-1].state == State.INJECTED for events in history
            )

        until("a pod to be admitted again", admits, seconds=seconds)


@pytest.fixture(scope="module")
def scene(cluster: Cluster) -> Iterator[Scene]:
    namespace = f"e2e-faults-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    image = cluster.model_image
    actors = [
        actor(WRAP, image, command=APP),
        actor(HOOK, image, command=None),
        actor(SMALL, image, command=APP, memory="96Mi"),
    ]
    with load(cluster, namespace, *actors) as (sending, asking):
        yield Scene(cluster, namespace, sending, asking)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@contextlib.contextmanager
def fault(
    scene: Scene,
    record_property: Property,
    name: str,
    *,
    messages: Promise = NOTHING,
    pods: Promise = NOTHING,
    apps: tuple[str, ...] = (WRAP, HOOK, SMALL),
) -> Iterator[None]:
    """Do a fault inside; after it, wait until everybody is served, and judge all that it met."""
    began = time.time()
    yield
    scene.settle(apps)

    def rows() -> list[Row]:
        return [
            Row(name, "messages", scene.sending.ledger().tally(messages, since=began)),
            Row(name, "pods", scene.asking.ledger.tally(pods, since=began)),
        ]

    with contextlib.suppress(AssertionError):  # what is said again just now is not lost
        until("nothing to be on its way", lambda: not losses(rows()), seconds=10)
    judged = rows()
    for row in judged:
        record_property("row", json.dumps(row.cells()))
    assert losses(judged) == []
    assert all(row.tally.done for row in judged), "a fault without load shows nothing"


def losses(rows: list[Row]) -> list[str]:
    return [f"{row.load}: {each}" for row in rows for each in row.tally.lost]


def node(*words: str) -> str:
    """Run a program in the node."""
    return run("docker", "exec", NODE, *words).stdout


def kill(pod: Pod, container: str, number: str = "SIGKILL") -> None:
    """Signal a container's process 1 from outside, as the kernel would."""
    status = next(each for each in pod.status.container_statuses if each.name == container)
    identifier = status.container_id.removeprefix("containerd://")
    node("ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", number, identifier)


def kill_within(cluster: Cluster, pod: Pod, word: str, number: int) -> None:
    """Signal the process of the model container whose last argument ends with a word."""
    program = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    if int(pid) != os.getpid() and len(words) < 5 and words[-2:][0].endswith(sys.argv[1]):
        os.kill(int(pid), int(sys.argv[2]))
        sys.exit()
sys.exit("no such process")
"""
    words = ["-n", pod.metadata.namespace, "exec", pod.metadata.name, "-c", "model", "--"]
    cluster.kubectl(*words, "python3", "-c", program, word, str(int(number)))


def injector_pods(cluster: Cluster) -> list[Pod]:
    """Those that stay."""
    return [pod for pod in cluster.injector_pods() if not pod.metadata.deletion_timestamp]


# --------------------------------------------------------------------------------------
# The injector and what it needs. No message notices any of this.
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("replicas", [1, 2])
def test_injectors_that_are_killed_let_no_pod_in_bare(
    scene: Scene, record_property: Property, replicas: int
) -> None:
    pods = injector_pods(scene.cluster)
    assert len(pods) == 2
    name = "injector: one of two SIGKILLed" if replicas == 1 else "injector: both SIGKILLed"
    with fault(scene, record_property, name, pods=Promise(refusals=True)):
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


def test_a_rolling_restart_refuses_nobody(scene: Scene, record_property: Property) -> None:
    old = {pod.metadata.name for pod in injector_pods(scene.cluster)}
    with asking_without_a_pause(scene), fault(scene, record_property, "injector: rolling restart"):
        scene.cluster.kubectl("-n", SYSTEM, "rollout", "restart", DEPLOYMENT)
        until(
            "all replicas to be new ones",
            lambda: not old & set(scene.cluster.injectors()),
            seconds=90,
        )


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


@pytest.mark.parametrize("part", ["certificate", "CA"])
def test_what_is_due_is_renewed_unnoticed(
    scene: Scene, record_property: Property, part: str
) -> None:
    core = scene.cluster.core
    secret = core.read_namespaced_secret("asya-runtime-tls", SYSTEM)
    before, now = KeyPair.from_secret(secret.data), dt.datetime.now(dt.UTC)
    # A certificate for other names is due at once, by the same rule as one that is about to end.
    due = before.renewed(["elsewhere.svc"], now=now)
    if part == "CA":  # of ten years, of which it has had nearly all; the present one is trusted too
        aged = created(["elsewhere.svc"], now=now - dt.timedelta(days=3600))
        due = replace(aged, bundle=aged.bundle + before.bundle)
    with fault(scene, record_property, f"injector: {part} renewed"):
        secret.data = due.to_secret()
        core.replace_namespaced_secret("asya-runtime-tls", SYSTEM, secret)
        serials = {serial(before.certificate), serial(due.certificate)}

        def renewed() -> int:
            now = core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data["tls.crt"]
            return (serial(base64.b64decode(now)) not in serials) and serial(base64.b64decode(now))

        fresh = until("another certificate", renewed)
        until(
            "both replicas to have loaded it",
            lambda: scene.cluster.serials_shown() == {fresh},
        )
    after = KeyPair.from_secret(core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data)
    kept = after.bundle == before.bundle
    assert kept if part == "certificate" else after.bundle.endswith(before.bundle) and not kept


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
    scene.cluster.settle()


# --------------------------------------------------------------------------------------
# Actors. No pod that is asked for notices any of this.
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_runtime_that_is_killed_comes_back(
    scene: Scene, record_property: Property, app: str
) -> None:
    pod, before = scene.pod(app), scene.restarts(app)
    with fault(scene, record_property, f"runtime SIGKILLed, {app} mode", messages=KILLS):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_within(scene.cluster, pod, "asya_runtime.py", signal.SIGKILL)
        # By the kubelet where it goes with the container, by its supervisor where it does not.
        more = 1 if app == WRAP else 0
        until("it to be restarted", lambda: scene.restarts(app) == before + more)
    assert scene.restarts(app) == before + more


def test_a_container_that_is_killed_for_its_memory_comes_back(
    scene: Scene, record_property: Property
) -> None:
    before = scene.restarts(SMALL)
    with fault(scene, record_property, "container OOM-killed by its limit", messages=KILLS):
        long_message(scene.cluster, scene.pod(SMALL), signal.SIGUSR2)
        until("the container to be restarted", lambda: scene.restarts(SMALL) == before + 1)
    (pod,) = scene.cluster.pods(scene.namespace, SMALL)
    status = next(each for each in pod.status.container_statuses if each.name == "model")
    assert status.last_state.terminated.exit_code == 137
    assert cut(scene, pod) == 1


def cut(scene: Scene, pod: Pod) -> int:
    """How many messages of a pod's sidecar were cut."""
    histories = scene.sending.ledger().histories
    return sum(
        any(event.state == State.CUT for event in history)
        for thing, history in histories.items()
        if thing.startswith(f"{pod.metadata.name}-kept")
    )


def test_an_application_that_exits_leaves_no_message_unanswered(
    scene: Scene, record_property: Property
) -> None:
    pod, before = scene.pod(WRAP), scene.restarts(WRAP)
    with fault(scene, record_property, "application exits, message in hand"):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        kill_within(scene.cluster, pod, "app", signal.SIGTERM)
        until("the container to be restarted", lambda: scene.restarts(WRAP) == before + 1)


@pytest.mark.parametrize("app", [WRAP, HOOK])
def test_a_pod_that_is_deleted_answers_what_it_has_in_hand(
    scene: Scene, record_property: Property, app: str
) -> None:
    pod = scene.pod(app)
    with fault(scene, record_property, f"SIGTERM, message in hand, {app} mode"):
        long_message(scene.cluster, pod, signal.SIGUSR1)
        words = ["-n", scene.namespace, "delete", "pod", pod.metadata.name, "--timeout=60s"]
        scene.cluster.kubectl(*words)
    living = {each.metadata.name for each in scene.cluster.pods(scene.namespace, app)}
    assert pod.metadata.name not in living


def test_a_configmap_that_is_deleted_is_missed_by_nobody(
    scene: Scene, record_property: Property
) -> None:
    cluster, namespace = scene.cluster, scene.namespace
    before = scene.restarts(SMALL)
    words = ["-n", namespace, "get", "configmaps", "-o", "name"]
    with fault(scene, record_property, "ConfigMap deleted by hand", messages=KILLS):
        label = "app.kubernetes.io/managed-by=asya-injector"
        cluster.kubectl("-n", namespace, "delete", "configmaps", "-l", label)
        # A container that starts again has what it had.
        kill_within(cluster, scene.pod(SMALL), "asya_runtime.py", signal.SIGKILL)
        until("the container to be restarted", lambda: scene.restarts(SMALL) == before + 1)
        # The next pod brings it back.
        until(
            "the ConfigMap to be there again",
            lambda: "configmap/asya-runtime-" in cluster.kubectl(*words).stdout,
        )
    scene.pod(SMALL)


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


def test_a_namespace_that_is_deleted_goes_and_can_be_made_again(
    scene: Scene, record_property: Property
) -> None:
    cluster = scene.cluster
    name = f"{scene.namespace}-gone"
    cluster.make_namespace(name)
    try:
        began = time.time()
        item = actor(WRAP, cluster.model_image, command=APP)
        until(  # a kubelet that was restarted calls its pods unready until it has looked at them
            "workloads to be admitted",
            lambda: cluster.apply(item, namespace=name, check=False).returncode == 0,
        )
        with load(cluster, name, item) as (sending, asking):
            pod = cluster.ready_pod(name, WRAP)
            long_message(cluster, pod, signal.SIGUSR1)
            cluster.kubectl("delete", "namespace", name, "--timeout=90s", timeout=100)
            asking.stop()
            assert sending.unfinished(set()) == []
            promise = Promise(refusals=True)
            messages = sending.ledger().tally(NOTHING, since=began)
            # The pod that is asked for at the end is refused for ever, and says why.
            histories = asking.ledger.histories
            last = histories.pop(list(histories)[-1])
            assert {event.state for event in last} <= {State.ASKED, State.REFUSED}
            pods = asking.ledger.tally(promise, since=began)
            for row in (Row("namespace deleted", "messages", messages),
                        Row("namespace deleted", "pods", pods)):  # fmt: skip
                record_property("row", json.dumps(row.cells()))
            assert [*messages.lost, *pods.lost] == []
        cluster.make_namespace(name)
        with load(cluster, name, item) as (sending, _):
            assert sending.answered_since(WRAP, began)
    finally:
        cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


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
    listed: Any = scene.cluster.core.list_namespaced_pod(scene.namespace, label_selector="app")
    assert scene.sending.unfinished({pod.metadata.name for pod in listed.items}) == []
