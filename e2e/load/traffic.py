"""Load on actors and on the injector: sidecars that send messages, and requests for pods.

The handler and the sidecar's program are the files in `pods/`. Pods mount them from a ConfigMap, so
that images need not contain them.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from e2e.harness import SIDECAR, Cluster, Object, Pod, container, until, workload
from e2e.load.ledger import MESSAGE, POD, Event, Ledger, State

PODS = Path(__file__).parent / "pods"
HANDLER = {"asya.sh/handler": "actor.answer"}
APP = ["python3", "-m", "app"]
_REASONS = {
    "failed calling webhook": "webhook unavailable",
    "being terminated": "namespace terminating",
}
# The answers of an API server that has just started and has not read everything it needs.
_STARTING = (401, 403, 429, 500, 503, 504)


def actor(
    name: str,
    image: str,
    *,
    command: Sequence[str] | None,
    pause: float = 0.1,
    memory: str | None = None,
    memory_limit: str = "0",
) -> Object:
    """An actor and its sidecar, whose clients pause for `pause` seconds between two messages.

    memory: the container's limit; memory_limit: the setting.
    """
    template = HANDLER | {"asya.sh/memory-limit": memory_limit}
    item = workload(name, image, template=template, command=list(command) if command else None)
    spec = item["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 12
    spec["volumes"] = [{"name": "code", "configMap": {"name": "code"}}]
    target, sidecar = spec["containers"]
    target["volumeMounts"] = [{"name": "code", "mountPath": "/code"}]
    target["env"] = [{"name": "PYTHONPATH", "value": "/code"}]
    if memory:
        target["resources"] = {"limits": {"memory": memory}}
    sidecar["command"] = ["python3", "/code/sidecar.py", str(pause)]
    sidecar["volumeMounts"] = [{"name": "code", "mountPath": "/code"}]
    return item


def code_config_map() -> Object:
    """The ConfigMap that `actor` mounts."""
    data = {path.name: path.read_text() for path in PODS.glob("*.py")}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": data}


def gated(name: str, image: str) -> Object:
    """An annotated pod that reaches the injector like any other, and is never scheduled."""
    spec = {
        "containers": [container("model", image, list(APP)), container(SIDECAR, image, list(APP))],
        "schedulingGates": [{"name": "example.com/never"}],
        "terminationGracePeriodSeconds": 0,
    }
    metadata = {"name": name, "annotations": HANDLER}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def judge_admitted(pod: Object) -> State:
    """The state of an admitted pod that was made by `gated`."""
    target, sidecar = pod["spec"]["containers"]
    volumes = {each["name"] for each in pod["spec"].get("volumes", [])}
    parts = [
        "asya.sh/injected" in pod["metadata"]["annotations"],
        "asya.sh/runtime-hash" in pod["metadata"].get("labels", {}),
        {"asya-runtime", "asya-socket"} <= volumes,
        any(each["name"] == "ASYA_HANDLER" for each in target.get("env", [])),
        any("asya_entrypoint.py" in word for word in target["command"]),
        any(each["name"] == "asya-runtime" for each in target["volumeMounts"]),
        any(each["name"] == "asya-socket" for each in sidecar["volumeMounts"]),
        "readinessProbe" in target,
    ]
    if all(parts):
        return State.INJECTED
    return State.PARTIAL if any(parts) else State.UNCHANGED


class PodRequests(threading.Thread):
    """Creates annotated pods, one by one, each until it is admitted, and deletes them."""

    def __init__(self, cluster: Cluster, namespace: str, *, rate: float = 5.0) -> None:
        super().__init__(daemon=True)
        self.ledger = Ledger(POD)
        self._cluster = cluster
        self._namespace = namespace
        self._pause = 1 / rate
        self._ending = threading.Event()
        self._api: Any = client.CoreV1Api(client.ApiClient())
        self._number = 0

    def run(self) -> None:
        while not self._ending.is_set():
            began = time.time()
            self._number += 1
            name = f"requested-{self._number}"
            while not self._request(name) and not self._ending.wait(0.2):
                pass
            self._ending.wait(max(0.0, self._pause - (time.time() - began)))

    def stop(self) -> None:
        self._ending.set()
        self.join(100)

    def _request(self, name: str) -> bool:
        """Whether the pod was admitted, injected or not."""
        requested = Event(time.time(), name, State.REQUESTED)
        try:
            state, detail = self._create(name)
        except (ApiException, HTTPError, OSError):
            state, detail = State.UNKNOWN, "API server"
        self.ledger.record([requested, Event(time.time(), name, state, detail)])
        return state in (State.INJECTED, State.UNCHANGED, State.PARTIAL)

    def _create(self, name: str) -> tuple[State, str]:
        """The state of the pod, and the reason; raises if the API server does not answer."""
        how = {"_preload_content": False, "_request_timeout": (10, 30)}
        try:
            pod = gated(name, self._cluster.model_image)
            made = self._api.create_namespaced_pod(self._namespace, pod, **how)
        except ApiException as error:
            if error.status != 409 or "AlreadyExists" not in (error.body or ""):
                print(f"{name} rejected:", error.body)  # pytest shows it if that was not tolerated
                detail = find_reason(error)
                if detail == "other" and error.status in _STARTING:
                    raise
                return State.REJECTED, detail
            # An earlier request that was not answered has created it.
            made = self._api.read_namespaced_pod(name, self._namespace, **how)
        state = judge_admitted(json.loads(made.data))
        self._remove(name)
        return state, ""

    def _remove(self, name: str) -> None:
        with contextlib.suppress(ApiException, HTTPError, OSError):
            self._api.delete_namespaced_pod(
                name, self._namespace, grace_period_seconds=0, _request_timeout=(10, 30)
            )


def find_reason(error: ApiException) -> str:
    """Why a pod was rejected, in two words for the table; the injector's own reason code if any."""
    text = str(error.body or "")
    for words, short in _REASONS.items():
        if words in text:
            return short
    codes = re.findall(r"\((\w+)\)", text) if "denied the request" in text else []
    return str(codes[-1]) if codes else "other"


class Messages(threading.Thread):
    """Follows the logs of all sidecars of a namespace, which report each attempt.

    A log is read while its pod runs, so that it is complete when the pod is gone. If the connection
    breaks, the log is read again from its beginning.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self._namespace = namespace
        self._ending = threading.Event()
        self._logs: dict[str, list[str]] = {}
        self._apps: dict[str, str] = {}
        self._followers: list[threading.Thread] = []
        self._api: Any = client.CoreV1Api(client.ApiClient())

    def run(self) -> None:
        while not self._ending.wait(0.3):
            with contextlib.suppress(ApiException, HTTPError, OSError):
                self._find_sidecars()

    def stop(self) -> None:
        self._ending.set()
        for thread in (self, *self._followers):
            thread.join(100)

    def _find_sidecars(self) -> None:
        for pod in self._api.list_namespaced_pod(
            self._namespace, label_selector="app", _request_timeout=(2, 5)
        ).items:
            statuses = pod.status.container_statuses or []
            started = any(each.name == SIDECAR and each.state.running for each in statuses)
            if started and pod.metadata.name not in self._logs:
                self._logs[pod.metadata.name] = []
                self._apps[pod.metadata.name] = pod.metadata.labels["app"]
                follow = threading.Thread(
                    target=self._follow, args=[pod.metadata.name], daemon=True
                )
                follow.start()
                self._followers.append(follow)

    def _follow(self, pod: str) -> None:
        """Read until the sidecar has printed `end`, or its pod is gone."""
        api: Any = client.CoreV1Api(client.ApiClient())
        while not self._ending.is_set():
            lines: list[str] = []
            with contextlib.suppress(HTTPError, OSError):
                try:
                    stream = api.read_namespaced_pod_log(
                        pod,
                        self._namespace,
                        container=SIDECAR,
                        follow=True,
                        _preload_content=False,
                        _request_timeout=(2, 15),
                    )
                except ApiException as error:
                    # A kubelet that has just started does not know its pods yet.
                    if error.status == 404 and not self._exists(api, pod):
                        return
                    self._ending.wait(0.3)
                    continue
                rest = b""
                for part in stream.stream(amt=None):
                    *whole, rest = (rest + part).split(b"\n")
                    lines += [each.decode() for each in whole]
                    if len(lines) >= len(self._logs[pod]):
                        self._logs[pod] = lines
                    if self._ending.is_set():
                        stream.close()
                        return
            if lines and lines[-1].startswith("end "):
                return
            self._ending.wait(0.3)

    def _exists(self, api: Any, pod: str) -> bool:
        try:
            api.read_namespaced_pod(pod, self._namespace, _request_timeout=(2, 5))
        except ApiException as error:
            return bool(error.status != 404)
        return True

    def ledger(self, app: str | None = None) -> Ledger:
        """The history of every message so far, of one application or all."""
        ledger = Ledger(MESSAGE)
        for pod, lines in self._logs.items():
            if app in (None, self._apps[pod]):
                for line in lines:
                    ledger.record(parse_attempt(line))
        return ledger

    def unfinished(self, living: set[str]) -> list[str]:
        """The pods that are gone and whose log does not end with the number of its lines."""
        return [
            pod
            for pod, lines in self._logs.items()
            if pod not in living and (not lines or lines[-1] != f"end {len(lines) - 1}")
        ]

    def answered_since(self, app: str, moment: float) -> bool:
        """Whether a message that was sent after the moment has been answered."""
        for pod, lines in list(self._logs.items()):
            if self._apps[pod] == app and lines:
                for line in lines[-5:]:
                    words = line.split(maxsplit=5)
                    if words[0] == "answered" and float(words[2]) > moment:
                        return True
        return False


def parse_attempt(line: str) -> list[Event]:
    """The events in one line of a sidecar's log."""
    if line.startswith("end "):
        return []
    state, name, began, sent, ended, detail = line.split(maxsplit=5)
    events = [Event(float(began), name, State.WAITING)]
    if state == State.WAITING:  # the next attempt begins with waiting too
        return events
    if state == State.UNDELIVERED:
        return [*events, Event(float(ended), name, State.UNDELIVERED)]
    return [
        *events,
        Event(float(sent), name, State.SENT),
        Event(float(ended), name, State(state), detail),
    ]


@contextlib.contextmanager
def generate_load(
    cluster: Cluster, namespace: str, *actors: Object, pods_per_second: float = 5.0
) -> Iterator[tuple[Messages, PodRequests]]:
    """Send messages to these actors and request pods while the context is open."""
    cluster.apply(code_config_map(), *actors, namespace=namespace)
    messages = Messages(cluster, namespace)
    pods = PodRequests(cluster, namespace, rate=pods_per_second)
    messages.start()
    try:
        for each in actors:
            name = each["metadata"]["name"]
            cluster.ready_pod(namespace, name)
            until(f"{name} to answer", lambda name=name: messages.answered_since(name, 0))  # type: ignore[misc]
        pods.start()
        yield messages, pods
    finally:
        if pods.is_alive():
            pods.stop()
        messages.stop()


def send_long_message(cluster: Cluster, pod: Pod, number: int) -> None:
    """Make the pod's sidecar send a long message, and wait until the actor has received it.

    number: SIGUSR1; or SIGUSR2 for a message that exhausts the memory.
    """
    namespace, name = pod.metadata.namespace, pod.metadata.name

    def read_log(previous: bool) -> str:
        with contextlib.suppress(ApiException):  # there is none, or the container restarts
            read = cluster.core.read_namespaced_pod_log
            return str(read(name, namespace, container="model", previous=previous))
        return ""

    def received() -> set[str]:
        # The message may have ended the container already.
        text = read_log(previous=True) + read_log(previous=False)
        return set(re.findall(r"^received: (\S+)$", text, re.M))

    before = received()
    program = f"import os; os.kill(1, {int(number)})"
    cluster.exec_python("-n", namespace, name, "-c", SIDECAR, program=program)
    until("the actor to receive the message", lambda: received() - before)
