"""Faults under load: actors whose sidecars never run out of messages, pods that are asked for.

A fault says what it may do (`Promise`); the ledger says what it did.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from e2e.harness import Cluster, Object, Pod, run, until
from e2e.load.ledger import Promise, Row, State
from e2e.load.traffic import APP, Asking, Sending, actor, load

NODE = f"{os.environ.get('CLUSTER', 'asya')}-control-plane"
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


@contextlib.contextmanager
def staged(cluster: Cluster) -> Iterator[Scene]:
    """A namespace of its own with actors in both modes, and one that has little memory."""
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
    lost = losses(judged)
    assert not lost, "\n".join(lost)
    assert all(row.tally.done for row in judged), "a fault without load shows nothing"


def losses(rows: list[Row]) -> list[str]:
    return [f"{row.load}: {each}" for row in rows for each in row.tally.lost]


def without_an_account(scene: Scene) -> list[str]:
    """Pods that are gone and of whose messages some may be unknown, with what became of them."""
    listed: Any = scene.cluster.core.list_namespaced_pod(scene.namespace, label_selector="app")
    return scene.sending.unfinished({pod.metadata.name for pod in listed.items})


def node(*words: str, check: bool = True) -> str:
    """Run a program in the node."""
    return run("docker", "exec", NODE, *words, check=check).stdout


def until_routed(cluster: Cluster) -> None:
    """Wait until the node learns of new endpoints.

    Controllers and kube-proxy ask an API server that is away ever more rarely: over a minute has
    been seen after its return in which pods were ready and no rule led to them.
    """
    selector = {"component": "kube-apiserver", "tier": "control-plane"}
    service: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"generateName": "routed-"},
        "spec": {"selector": selector, "ports": [{"port": 443, "targetPort": 6443}]},
    }
    made: Any = cluster.core.create_namespaced_service("kube-system", service)
    # The body, as on some networks anybody answers for an address that no rule of the node has.
    words = ["curl", "-sk", "--max-time", "1", f"https://{made.spec.cluster_ip}/livez"]
    try:
        until("the node to route", lambda: node(*words, check=False) == "ok", seconds=120)
    finally:
        cluster.core.delete_namespaced_service(made.metadata.name, "kube-system")


def kill_within(cluster: Cluster, pod: Pod, word: str, number: int) -> None:
    """Signal the process of the model container whose last argument ends with a word."""
    program = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    if int(pid) != os.getpid() and len(words) < 5 and words[-2:][0].endswith(sys.argv[1]):
        print("found", flush=True)
        os.kill(int(pid), int(sys.argv[2]))
        sys.exit()
sys.exit("no such process")
"""
    words = ["-n", pod.metadata.namespace, "exec", pod.metadata.name, "-c", "model", "--"]
    words += ["python3", "-c", program, word, str(int(number))]
    done = cluster.kubectl(*words, check=False)
    # 137: where the container ends by it, this program can be gone before it has exited.
    assert (done.returncode, done.stdout) in ((0, "found\n"), (137, "found\n")), done
