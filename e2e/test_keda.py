"""Autoscaling of an actor behind a queue by KEDA, whose programs run in the cluster.

`make e2e-keda` builds them; `make e2e` does not include this module.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from e2e.harness import REPOSITORY, Cluster, Object, container, until

pytestmark = [pytest.mark.alone, pytest.mark.timeout(500)]

EXAMPLE = REPOSITORY / "examples/queue"
ACTOR = WORK = "identify"  # the Deployment and the queue of actors.yaml and scaledobject.yaml
RESULTS, DEAD_LETTERS = "results", f"{WORK}.dead"
PREFETCH = 10
MOST_PODS = 3

# Runs in a pod with the sidecar's image. A message is `{"payload": {...}}`.
CLIENT = """
import asyncio, json, os, sys
import aio_pika

async def send(channel, queue):
    def publish(line):
        message = aio_pika.Message(line.encode(), delivery_mode=2)
        return channel.default_exchange.publish(message, routing_key=queue, mandatory=True)
    await asyncio.gather(*map(publish, sys.stdin.read().splitlines()))

async def take(channel, queue):
    found = await channel.get_queue(queue, ensure=False)
    while message := await found.get(fail=False, no_ack=True):
        print(message.body.decode())

async def state(channel, queue):
    try:
        found = (await channel.declare_queue(queue, passive=True)).declaration_result
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return print(0, 0)
    print(found.message_count, found.consumer_count)

async def main(command, queue):
    async with await aio_pika.connect(os.environ["AMQP_URL"]) as connection:
        channel = await connection.channel(on_return_raises=True)
        await globals()[command](channel, queue)

asyncio.run(main(*sys.argv[1:]))
"""


def read_example(file: str) -> list[Object]:
    """The objects of a file of the example."""
    return list(yaml.safe_load_all((EXAMPLE / file).read_text()))


@dataclass
class Actor:
    """An actor behind a queue, which KEDA scales."""

    cluster: Cluster
    namespace: str

    def client(self, command: str, queue: str, stdin: str = "") -> str:
        pod = ("-n", self.namespace, "client")
        done = self.cluster.exec_python(
            *pod, program=CLIENT, arguments=(command, queue), stdin=stdin
        )
        return done.stdout

    def send(self, *payloads: Object) -> None:
        lines = [json.dumps({"payload": payload}) for payload in payloads]
        self.client("send", WORK, "\n".join(lines))

    def take(self, queue: str) -> Counter[str]:
        """How often each name of a message is in a queue, which is empty afterwards."""
        lines = self.client("take", queue).splitlines()
        return Counter(json.loads(line)["payload"]["name"] for line in lines)

    def messages(self, queue: str) -> int:
        """How many messages wait in a queue."""
        return int(self.client("state", queue).split()[0])

    def consumers(self) -> int:
        """How many pods take messages."""
        return int(self.client("state", WORK).split()[1])

    def replicas(self) -> int:
        """The number of pods that KEDA asks for."""
        found = self.cluster.get("-n", self.namespace, f"deployment/{ACTOR}")
        return int(found["spec"]["replicas"])

    def created(self) -> int:
        """The number of pods that were ever created."""
        words = ["-n", self.namespace, "get", "events", "-o", "name", "--field-selector"]
        return len(self.cluster.kubectl(*words, "reason=SuccessfulCreate").stdout.split())

    def rest(self) -> None:
        """Wait until all pods are gone."""
        words = ["-n", self.namespace, "get", "pods", "-l", f"app={ACTOR}", "-o", "name"]
        until(
            "no pods",
            lambda: self.replicas() == 0 and not self.cluster.kubectl(*words).stdout,
        )


@pytest.fixture(scope="module")
def keda(cluster: Cluster) -> Iterator[None]:
    """KEDA in the cluster."""
    objects = ["-f", os.environ["KEDA"]]
    cluster.kubectl("apply", "--server-side", *objects)
    try:
        words = ["--for=condition=Available", "--timeout=240s"]
        cluster.kubectl("-n", "keda", "wait", "deployment", "--all", *words, timeout=250)
        cluster.kubectl("wait", "apiservice/v1beta1.external.metrics.k8s.io", *words, timeout=250)
        yield
    finally:
        cluster.kubectl("delete", "--ignore-not-found", *objects)


@pytest.fixture
def actor(keda: None, free: Cluster, namespace: str) -> Iterator[Actor]:
    """A release with the sidecar of the example, a broker, an actor and its ScaledObject."""
    cluster = free
    images = dict(line.split() for line in os.environ["QUEUE_IMAGES"].splitlines())
    image = f"sidecar.container.image={images['sidecar']}"
    cluster.install(image, options=("--values", str(EXAMPLE / "values.yaml")))
    url = f"amqp://asya:asya@broker.{namespace}.svc:5672/"
    secret = {"username": "asya", "password": "asya", "url": url}
    broker = read_example("broker/broker.yaml")
    broker[-1]["spec"]["template"]["spec"]["containers"][0]["image"] = images["broker"]
    cluster.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "amqp"}, "stringData": secret},
        *broker,
        client(images["sidecar"]),
        deployment(cluster.model_image),
        namespace=namespace,
    )
    found = Actor(cluster, namespace)
    words = ["-n", namespace, "wait", "--timeout=240s"]
    cluster.kubectl(*words, "deployment/broker", "--for=condition=Available")
    cluster.kubectl(*words, "pod/client", "--for=condition=Ready")
    # The first pod creates the queue.
    until("a pod to take messages", lambda: found.consumers() == 1)
    cluster.apply(*scaled_object(), namespace=namespace)
    try:
        found.rest()
        yield found
    finally:  # KEDA has to remove its finalizers
        kinds = "scaledobjects,triggerauthentications"
        cluster.kubectl("-n", namespace, "delete", kinds, "--all", "--timeout=240s")


def client(image: str) -> Object:
    """A pod with a connection to the broker."""
    sleep = "import signal; signal.signal(15, lambda *_: exit()); signal.pause()"
    only = container("client", image, ["python3", "-c", sleep])
    reference = {"secretKeyRef": {"name": "amqp", "key": "url"}}
    only["env"] = [{"name": "AMQP_URL", "valueFrom": reference}]
    metadata = {"name": "client"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [only]}}


def deployment(image: str) -> Object:
    """The actor of scaledobject.yaml, with another model."""
    (found,) = [each for each in read_example("actors.yaml") if each["metadata"]["name"] == ACTOR]
    found["metadata"]["annotations"] |= {
        "asya.sh/handler": "handlers.call",
        "asya.sh/next": RESULTS,
        "asya.sh/prefetch": str(PREFETCH),
        "asya.sh/retries": "1",
    }
    found["metadata"]["annotations"].pop("asya.sh/batch-size")
    pod = found["spec"]["template"]["spec"]
    pod["containers"][0]["image"] = image
    pod["terminationGracePeriodSeconds"] = 60
    return found


def scaled_object() -> list[Object]:
    """The objects of scaledobject.yaml, with shorter times and fewer pods."""
    scaled, authentication = read_example("scaledobject.yaml")
    scaled["spec"] |= {
        "maxReplicaCount": MOST_PODS,
        "pollingInterval": 1,
        "cooldownPeriod": 3,
        "advanced": {
            "horizontalPodAutoscalerConfig": {
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}
            }
        },
    }
    return [scaled, authentication]


def test_pods_follow_the_length_of_the_queue_from_zero_to_many_and_back(actor: Actor) -> None:
    good = [{"name": f"good-{n}", "call": "slow", "seconds": 0.1} for n in range(600)]
    bad: list[Object] = [{"name": f"bad-{n}", "call": "nothing"} for n in range(5)]
    bad += [{"name": "tried again after 30 s", "call": "hog", "bytes": 1 << 60}]
    actor.send(*bad, *good)
    until(f"{MOST_PODS} pods to take messages", lambda: actor.consumers() == MOST_PODS)
    until("dead letters", lambda: actor.messages(DEAD_LETTERS) == len(bad))
    actor.rest()  # although there are dead letters
    assert actor.take(DEAD_LETTERS) == Counter(each["name"] for each in bad)
    assert actor.take(RESULTS) == Counter(each["name"] for each in good)
    assert actor.messages(WORK) == 0


def test_the_last_pod_answers_its_messages_before_it_ends(actor: Actor) -> None:
    # KEDA does not see these messages, because the pod takes all of them at once.
    slow = [{"name": str(n), "call": "slow", "seconds": 2} for n in range(PREFETCH)]
    created = actor.created()
    actor.send(*slow)
    until("a pod", lambda: actor.replicas() == 1)
    until("the pod to be stopped", lambda: actor.replicas() == 0)
    results = actor.take(RESULTS)
    assert results.total() < PREFETCH
    actor.rest()
    assert results + actor.take(RESULTS) == Counter(each["name"] for each in slow)
    assert actor.created() == created + 1
