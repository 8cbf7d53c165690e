"""Faults under load: each declares what it may do (`Tolerance`), and the ledger judges it."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from asya_injector.tls.authority import KeyPair, create
from kubernetes.client.exceptions import ApiException

from e2e.harness import SYSTEM, Cluster, Object, Pod, run, serial, until
from e2e.load.ledger import Row, State, Tolerance
from e2e.load.traffic import APP, Messages, PodRequests, actor, generate_load

NODE = f"{os.environ.get('CLUSTER', 'asya')}-control-plane"
WRAP, HOOK, SMALL, LIMITED = "wrap", "hook", "small", "limited"
NOTHING = Tolerance()
KILLS = Tolerance(cuts=True)
ERRORS = Tolerance(rejections=True)
Property = Callable[[str, object], None]


@dataclass
class Scene:
    """The cluster under load."""

    cluster: Cluster
    namespace: str
    messages: Messages
    pod_requests: PodRequests

    def pod(self, app: str) -> Pod:
        return self.cluster.ready_pod(self.namespace, app)

    def restarts(self, app: str) -> int:
        """How often the target container has restarted; a start that failed counts too."""
        (pod,) = self.cluster.pods(self.namespace, app)
        statuses = pod.status.container_statuses
        return int(next(each for each in statuses if each.name == "model").restart_count)

    def settle(self, apps: tuple[str, ...], *, seconds: float = 180) -> None:
        """Wait until every actor answers a new message, and a new pod is injected."""
        now = time.time()
        for app in apps:
            until(
                f"{app} to answer again",
                lambda app=app: self.messages.answered_since(app, now),  # type: ignore[misc]
                seconds=seconds,
            )

        def admits() -> bool:
            history = list(self.pod_requests.ledger.histories.values())[-2:]
            return any(
                events[0].at > now and events[-1].state == State.INJECTED for events in history
            )

        until("a pod to be admitted again", admits, seconds=seconds)


@contextlib.contextmanager
def staged(cluster: Cluster) -> Iterator[Scene]:
    """A namespace under load: an actor in each mode, and two with little memory."""
    namespace = f"e2e-faults-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    image = cluster.model_image
    actors = [
        actor(WRAP, image, command=APP),
        actor(HOOK, image, command=None),
        actor(SMALL, image, command=APP, memory="96Mi"),
        actor(LIMITED, image, command=APP, memory="256Mi", memory_limit="90%"),
    ]
    with generate_load(cluster, namespace, *actors) as (messages, pod_requests):
        yield Scene(cluster, namespace, messages, pod_requests)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@contextlib.contextmanager
def fault(
    scene: Scene,
    record_property: Property,
    name: str,
    *,
    messages: Tolerance = NOTHING,
    pods: Tolerance = NOTHING,
    apps: tuple[str, ...] = (WRAP, HOOK, SMALL, LIMITED),
) -> Iterator[None]:
    """Do a fault in the context; then wait until all are served again, and judge the load."""
    began = time.time()
    yield
    scene.settle(apps)

    judged: list[Row] = []

    def is_done() -> bool:
        judged[:] = [
            Row(name, "messages", scene.messages.ledger().tally(messages, since=began)),
            Row(name, "pods", scene.pod_requests.ledger.tally(pods, since=began)),
        ]
        return not losses(judged)

    with contextlib.suppress(AssertionError):  # a message that is being retried is not lost
        until("all messages and pods to be done", is_done, seconds=30)
    for row in judged:
        record_property("row", json.dumps(row.cells()))
    lost = losses(judged)
    assert not lost, "\n".join(lost)
    assert all(row.tally.done for row in judged), "a fault without load proves nothing"


def losses(rows: list[Row]) -> list[str]:
    return [f"{row.load}: {each}" for row in rows for each in row.tally.lost]


def find_unfinished(scene: Scene) -> list[str]:
    """The pods that are gone and whose log may be incomplete."""
    listed: Any = scene.cluster.core.list_namespaced_pod(scene.namespace, label_selector="app")
    return scene.messages.unfinished({pod.metadata.name for pod in listed.items})


def run_in_node(*words: str, check: bool = True) -> str:
    """Run a program in the node, and return its output."""
    return run("docker", "exec", NODE, *words, check=check).stdout


def kill(pod: Pod, container: str) -> None:
    """SIGKILL process 1 of a container from outside, as the kernel does."""
    run_ctr(pod, container, "kill", "--signal", "SIGKILL")


def run_ctr(pod: Pod, container: str, *words: str) -> None:
    """Run a task command of the node's container engine for a container, or a native sidecar."""
    statuses = [*(pod.status.init_container_statuses or []), *pod.status.container_statuses]
    status = next(each for each in statuses if each.name == container)
    identifier = status.container_id.removeprefix("containerd://")
    run_in_node("ctr", "--namespace", "k8s.io", "tasks", *words, identifier)


@contextlib.contextmanager
def uncordoned(cluster: Cluster) -> Iterator[None]:
    """The node accepts pods after the context, also after a failure."""
    try:
        yield
    finally:
        cluster.kubectl("uncordon", NODE)


def wait_until_routed(cluster: Cluster) -> None:
    """Wait until the node routes to new endpoints.

    Controllers and kube-proxy retry an unavailable API server with growing delays. After its return
    it has taken more than a minute until the node had rules for pods that were ready.
    """
    selector = {"component": "kube-apiserver", "tier": "control-plane"}
    name = f"routing-{os.urandom(3).hex()}"
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"selector": selector, "ports": [{"port": 443, "targetPort": 6443}]},
    }
    words = ["-n", "kube-system", f"service/{name}"]

    def find_address() -> str:
        # An API server that has just started rejects some requests until it has read all it needs.
        cluster.apply(service, namespace="kube-system", check=False)
        address = ["get", *words, "-o", "jsonpath={.spec.clusterIP}"]
        return cluster.kubectl(*address, check=False).stdout

    address = until("a Service", find_address)
    # The body is checked: on some networks a proxy answers for addresses without a rule.
    ask = ["curl", "-sk", "--max-time", "5", f"https://{address}/livez"]
    try:
        until("the node to route", lambda: run_in_node(*ask, check=False) == "ok", seconds=240)
    finally:
        cluster.kubectl("delete", *words)


def kill_in_container(cluster: Cluster, pod: Pod, word: str, number: int) -> None:
    """Signal the process of the target container whose last argument ends with a word."""
    program = """
import os, sys, time
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:  # it has ended: probes come and go
        continue
    if int(pid) != os.getpid() and len(words) < 5 and words[-2:][0].endswith(sys.argv[1]):
        this = os.getpid()
        if os.fork() == 0:  # the container may end with the signal, which must not cut this exec
            os.closerange(0, 3)
            while os.getppid() == this:
                time.sleep(0.005)
            os.kill(int(pid), int(sys.argv[2]))
            os._exit(0)
        sys.exit()
sys.exit("no such process")
"""
    words = ["-n", pod.metadata.namespace, pod.metadata.name, "-c", "model"]
    cluster.exec_python(*words, program=program, arguments=(word, str(int(number))))


def renew_certificate(cluster: Cluster, *, part: str = "certificate", seconds: float = 180) -> None:
    """Make the injector renew its certificate or its CA; wait until both replicas use the new one.

    A certificate for other names is renewed at once, like one that is about to expire.
    """

    def put() -> set[int] | None:
        secret = cluster.core.read_namespaced_secret("asya-runtime-tls", SYSTEM)
        before, now = KeyPair.from_secret(secret.data), dt.datetime.now(dt.UTC)
        due = before.renew(["elsewhere.svc"], now=now)
        if part == "CA":  # valid for ten years, nearly over; the current CA is trusted too
            aged = create(["elsewhere.svc"], now=now - dt.timedelta(days=3600))
            due = replace(aged, bundle=aged.bundle + before.bundle)
        secret.data = due.to_secret()
        try:
            cluster.core.replace_namespaced_secret("asya-runtime-tls", SYSTEM, secret)
        except ApiException as error:
            if error.status != 409:  # an injector was faster
                raise
            return None
        return {serial(before.certificate), serial(due.certificate)}

    serials = until("a certificate that is due", put)

    def renewed() -> int:
        now = cluster.core.read_namespaced_secret("asya-runtime-tls", SYSTEM).data["tls.crt"]
        return (serial(base64.b64decode(now)) not in serials) and serial(base64.b64decode(now))

    fresh = until("another certificate", renewed, seconds=seconds)
    until(
        "both replicas to use it",
        lambda: cluster.certificate_serials() == {fresh},
        seconds=seconds,
    )
