"""The pipeline of examples/queue under faults: messages from a broker, through two actors.

`make e2e-queue` builds its images and runs this module; `make e2e` does not include it. The faults
come in the order of the tests, under one stream of messages, which the last test counts.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import yaml

from e2e.harness import (
    REPOSITORY,
    SIDECAR,
    Cluster,
    Object,
    Pod,
    container,
    is_ready,
    until,
)
from e2e.load.faults import NODE, kill, uncordoned
from e2e.load.queue import Flow
from e2e.load.traffic import PODS

pytestmark = [pytest.mark.alone, pytest.mark.timeout(240)]

MESSAGES = 2000
FIRST, SECOND, FEED, BROKER = "first", "second", "feed", "broker"
BATCH = 16
METRICS = 9464
Property = Callable[[str, object], None]


@dataclass
class Pipeline:
    """A broker, two actors and the feed in a namespace."""

    cluster: Cluster
    namespace: str

    def pod(self, app: str) -> Pod:
        return self.cluster.ready_pod(self.namespace, app)

    def flow(self) -> Flow:
        """What the feed has sent and received until now."""
        name = self.pod(FEED).metadata.name
        return Flow.parse(self.cluster.kubectl("-n", self.namespace, "logs", name).stdout)

    def signal_feed(self, number: signal.Signals) -> None:
        words = ["-n", self.namespace, "exec", self.pod(FEED).metadata.name, "--", "python3", "-c"]
        self.cluster.kubectl(*words, f"import os; os.kill(1, {int(number)})")

    def restarts(self, app: str, name: str) -> int:
        (pod,) = self.cluster.pods(self.namespace, app)
        status = pod.status
        statuses = [*(status.init_container_statuses or []), *(status.container_statuses or [])]
        return int(next(each for each in statuses if each.name == name).restart_count)

    def kill(self, app: str, name: str) -> None:
        """SIGKILL a container, and wait until it has been restarted."""
        before = self.restarts(app, name)
        kill(self.pod(app), name)
        until(f"{name} to restart", lambda: self.restarts(app, name) > before)

    def metrics(self, app: str, port: int) -> str:
        name = self.pod(app).metadata.name
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}:{port}/proxy/metrics"
        return self.cluster.kubectl("get", "--raw", path).stdout


def images() -> dict[str, str]:
    return dict(line.split() for line in os.environ["QUEUE_IMAGES"].splitlines())


def secret(namespace: str) -> Object:
    url = f"amqp://test:test@broker.{namespace}.svc:5672/"
    data = {"username": "test", "password": "test", "url": url}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "amqp"},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def deployment(name: str, annotations: dict[str, str], target: Object, *volumes: Object) -> Object:
    """A Deployment without a sidecar."""
    target["volumeMounts"] = [{"name": "code", "mountPath": "/code"}]
    target["volumeMounts"] += [{"name": each["name"], "mountPath": "/state"} for each in volumes]
    code = {"name": "code", "configMap": {"name": "code"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [target], "volumes": [code, *volumes]},
            },
        },
    }


def actor(name: str, image: str, **annotations: str) -> Object:
    """An actor by annotation alone, with a directory that survives its restarts."""
    keys = {f"asya.sh/{key.replace('_', '-')}": value for key, value in annotations.items()}
    keys |= {"asya.sh/handler": f"stages.{name}", "asya.sh/queue": name}
    target = container("model", image, ["python3", "-m", "app"])
    target["env"] = [{"name": "PYTHONPATH", "value": "/code:/srv"}]
    target["resources"] = {"limits": {"memory": "160Mi"}}
    return deployment(name, keys, target, {"name": "state", "emptyDir": {}})


def feed(image: str) -> Object:
    target = container("feed", image, ["python3", "/code/feed.py"])
    reference = {"secretKeyRef": {"name": "amqp", "key": "url"}}
    target["env"] = [{"name": "AMQP_URL", "valueFrom": reference}]
    return deployment(FEED, {}, target)


def broker(image: str) -> list[Object]:
    """The broker of the example."""
    text = (REPOSITORY / "examples/queue/broker/broker.yaml").read_text()
    return list(yaml.safe_load_all(text.replace("rabbitmq:4", image)))


@pytest.fixture(scope="module")
def pipeline(cluster: Cluster) -> Iterator[Pipeline]:
    built = images()
    values = str(REPOSITORY / "examples/queue/values.yaml")
    image = f"sidecar.container.image={built['sidecar']}"
    cluster.install(image, verb="upgrade", options=("--values", values))
    namespace = f"e2e-queue-{os.urandom(3).hex()}"
    cluster.make_namespace(namespace)
    code = {path.name: path.read_text() for path in PODS.glob("*.py")}
    cluster.apply(
        secret(namespace),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": code},
        *broker(built["broker"]),
        actor(FIRST, cluster.model_image, batch_size=str(BATCH), metrics_port=str(METRICS)),
        actor(SECOND, cluster.model_image),
        feed(built["sidecar"]),
        namespace=namespace,
    )
    pipeline = Pipeline(cluster, namespace)
    for app in (BROKER, FIRST, SECOND, FEED):
        pipeline.pod(app)
    until("results", lambda: pipeline.flow().results)
    yield pipeline
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@contextlib.contextmanager
def fault(pipeline: Pipeline, record_property: Property, name: str) -> Iterator[None]:
    """Do a fault in the context; then wait for the results of all that was sent until then."""
    began = time.time()
    yield
    ended = time.time()
    until(
        "a message that was sent afterwards to have a result",
        lambda: pipeline.flow().answered_since(ended),
    )
    settled = time.time()
    with contextlib.suppress(AssertionError):  # counted as lost
        until("all results", lambda: not pipeline.flow().lost(began, settled), seconds=100)
    flow = pipeline.flow()
    record_property("queue-row", json.dumps(flow.cells(name, began, settled)))
    assert flow.lost(began, settled) == []


def test_actors_get_their_sidecar_by_annotation_alone(pipeline: Pipeline) -> None:
    for app in (FIRST, SECOND):
        spec = pipeline.pod(app).spec
        assert [each.name for each in spec.containers] == ["model"]
        assert [each.name for each in spec.init_containers] == [SIDECAR]
        assert {"name": "QUEUE", "value": app} in [
            {"name": each.name, "value": each.value} for each in spec.init_containers[0].env
        ]


@pytest.mark.parametrize("app", [FIRST, SECOND])
def test_a_sidecar_can_be_killed(pipeline: Pipeline, record_property: Property, app: str) -> None:
    with fault(pipeline, record_property, f"sidecar SIGKILLed, {app} actor"):
        pipeline.kill(app, SIDECAR)


def test_an_actor_can_be_killed(pipeline: Pipeline, record_property: Property) -> None:
    with fault(pipeline, record_property, "model's container SIGKILLed"):
        pipeline.kill(FIRST, "model")


def test_an_actor_can_be_killed_for_its_memory(
    pipeline: Pipeline, record_property: Property
) -> None:
    before = pipeline.restarts(FIRST, "model")
    with fault(pipeline, record_property, "model's container OOM-killed during a batch"):
        pipeline.signal_feed(signal.SIGUSR1)
        until("the kill", lambda: pipeline.restarts(FIRST, "model") > before)
    (pod,) = pipeline.cluster.pods(pipeline.namespace, FIRST)
    status = pod.status.container_statuses[0]
    ended = status.last_state.terminated
    assert ended is None or ended.reason == "OOMKilled"  # removed by the kubelet: test_gpu.py


def test_the_broker_can_be_killed(pipeline: Pipeline, record_property: Property) -> None:
    with fault(pipeline, record_property, "broker SIGKILLed"):
        pipeline.kill(BROKER, BROKER)


def test_the_injectors_can_be_killed_while_an_actor_is_replaced(
    pipeline: Pipeline, record_property: Property
) -> None:
    cluster = pipeline.cluster
    old = pipeline.pod(SECOND).metadata.name
    with fault(pipeline, record_property, "both injectors SIGKILLed, actor's pod deleted"):
        for pod in cluster.injector_pods():
            kill(pod, "injector")
        cluster.kubectl("-n", pipeline.namespace, "delete", "pod", old, "--wait=false")

        def is_replaced() -> bool:
            pods = cluster.pods(pipeline.namespace, SECOND)
            return any(is_ready(pod) and pod.metadata.name != old for pod in pods)

        until("another pod of the actor", is_replaced)
    assert [each.name for each in pipeline.pod(SECOND).spec.init_containers] == [SIDECAR]
    cluster.settle()


def test_a_drain_moves_the_actors(pipeline: Pipeline, record_property: Property) -> None:
    """The only node is uncordoned at once, because the replacements need a node."""
    cluster = pipeline.cluster
    old = {pipeline.pod(app).metadata.name for app in (FIRST, SECOND)}
    selector = f"--pod-selector=app in ({FIRST}, {SECOND})"
    words = ["kubectl", "drain", NODE, selector, "--delete-emptydir-data", "--timeout=280s"]
    with (
        fault(pipeline, record_property, "drain: both actors evicted"),
        uncordoned(cluster),
        subprocess.Popen(words, stdout=-1, stderr=-2, text=True) as drain,
    ):

        def is_done() -> bool:
            cluster.kubectl("uncordon", NODE)
            return drain.poll() is not None

        until("the drain to end", is_done, seconds=300)
        assert drain.returncode == 0, drain.stdout and drain.stdout.read()
        now = {pipeline.pod(app).metadata.name for app in (FIRST, SECOND)}
        assert not old & now


def test_of_all_messages_none_is_lost_and_poison_is_in_the_dead_letter_queue(
    pipeline: Pipeline, record_property: Property
) -> None:
    until("enough messages", lambda: len(pipeline.flow().sent) >= MESSAGES, seconds=180)
    batches = re.findall(
        r"^asya_batch_size_(count|sum) (\S+)$", pipeline.metrics(FIRST, METRICS), re.M
    )
    calls, messages = (float(value) for _, value in sorted(batches))
    assert messages > calls > 0, "no batch had two messages"
    pipeline.signal_feed(signal.SIGUSR2)
    until("the feed to end", lambda: pipeline.flow().is_complete)
    flow = pipeline.flow()
    record_property("queue-row", json.dumps(flow.cells("all of them", 0.0, time.time())))
    poison = {name for name in flow.sent if int(name[1:]) % 100 == 99}
    assert set(flow.results) == set(flow.sent) - poison
    assert {name: set(reasons) for name, reasons in flow.dead.items()} == {
        name: {"poison"} for name in poison
    }
    # A message that was handled twice has results with equal identifiers.
    assert {name: ids for name, ids in flow.identifiers.items() if len(ids) > 1} == {}
