"""`make demo-queue`: files of this repository through a queue, two actors, and more queues.

Needs a cluster, KUBECONFIG, kubectl and helm on PATH, INJECTOR_IMAGE (name:tag) and QUEUE_IMAGES
(the output of e2e/cluster/queue-images.sh). Exits with 0 only if every file's type is right. It can
be run again at any time, also beside `make demo`; `make demo-clean` removes what both created.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path, PurePath
from typing import Any

import aio_pika
import yaml
from asya_queue.messages import content_type, decode, encode

from examples import demo
from examples.demo import LABEL, DemoError, MissingError, headline, run
from examples.queue.picture import Picture

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
NAMESPACE = "demo-queue"
WHERE = ("-n", NAMESPACE)
FILES = 200
LARGEST = 1_000_000  # bytes
# What the model says of files with these names.
TYPES = {
    ".py": "python",
    ".sh": "shell",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".md": "markdown",
    ".go": "go",
    ".svg": "svg",
    ".tgz": "gzip",
    ".toml": "toml",
}
# To the model, pages with more shell sessions than text may not be Markdown.
SKIPPED = "docs/*.md"
ROUTE = {"actors": ["identify", "sort", "results"], "current": 0}
SHELVES = ("shelf-code", "shelf-text", "shelf-others")
QUEUES = ("identify", "sort", "results", *SHELVES, "identify.dead", "sort.dead")
# It has no `data`, so that the handler rejects it.
WRONG = {"payload": {"name": "no-data.txt"}, "route": ROUTE}
SECONDS = 60  # for all messages


def install_broker(images: dict[str, str]) -> None:
    """Start a broker in a new namespace."""
    headline("Start a broker, with its address in a Secret")
    options = "--ignore-not-found --wait --timeout=100s"
    run("kubectl", "delete", "namespace", NAMESPACE, *options.split())
    run("kubectl", "create", "namespace", NAMESPACE)
    run("kubectl", "label", "namespace", NAMESPACE, LABEL)
    password = secrets.token_urlsafe(16)
    url = f"amqp://demo:{password}@broker.{NAMESPACE}.svc:5672/"
    data = {"username": "demo", "password": password, "url": url}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "amqp"}}
    run("kubectl", "apply", *WHERE, "-f", "-", stdin=json.dumps({**secret, "stringData": data}))
    apply("broker/broker.yaml", {"rabbitmq:4": images["broker"]})


def apply(name: str, images: dict[str, str]) -> None:
    """Apply a file of this folder, with images that were built here."""
    print(f"$ kubectl apply -n {NAMESPACE} -f examples/queue/{name}   # with these images")
    documents = list(yaml.safe_load_all((HERE / name).read_text()))
    for document in documents:
        for container in find_containers(document):
            container["image"] = images[container["image"]]
    print(run("kubectl", "apply", *WHERE, "-f", "-", stdin=yaml.safe_dump_all(documents)), end="")


def find_containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The containers of a workload."""
    template = document.get("spec", {}).get("template", {})
    found: list[dict[str, Any]] = template.get("spec", {}).get("containers", [])
    return found


def install_chart(images: dict[str, str]) -> None:
    """Install the chart with the values of this folder, or upgrade an installed release."""
    headline("Install asya-runtime with a sidecar for all actors")
    demo.install(
        f" --values examples/queue/values.yaml --set sidecar.container.image={images['sidecar']}"
    )


def deploy(images: dict[str, str]) -> None:
    """Deploy the two actors, and show what the injector has added."""
    headline("Deploy two actors: only annotations, no sidecar in the Deployments")
    apply("actors.yaml", {"model": images["model"]})
    for name in ("broker", "identify", "sort"):
        demo.kubectl("rollout", "status", *WHERE, f"deployment/{name}", "--timeout=100s")
    containers = "{.metadata.name}: {.spec.containers[*].name} + {.spec.initContainers[*].name}"
    line = "jsonpath={range .items[*]}" + containers + '{"\\n"}{end}'
    demo.kubectl("get", "pods", *WHERE, "-l", "app in (identify, sort)", "-o", line)


@contextmanager
def forwarded() -> Iterator[int]:
    """A port of this machine that leads to the broker."""
    command = ["kubectl", "port-forward", *WHERE, "service/broker", ":5672", "--address=127.0.0.1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()  # Forwarding from 127.0.0.1:12345 -> 5672
            if "->" not in line:
                raise DemoError("kubectl port-forward: no port")
            yield int(line.split()[2].rpartition(":")[2])
        finally:
            process.terminate()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel of the broker."""
    data = demo.get_json("get", "secret", "amqp", *WHERE)["data"]
    password = base64.b64decode(data["password"]).decode()
    async with await aio_pika.connect(f"amqp://demo:{password}@127.0.0.1:{port}/") as connection:
        yield await connection.channel(on_return_raises=True)


def choose_files() -> list[str]:
    """Files of the repository whose type is known from their names, of all types in turn."""
    by_type: dict[str, list[str]] = {}
    for name in run("git", "ls-files").splitlines():
        path = PurePath(name)
        size = (REPO / name).stat().st_size if path.suffix in TYPES else 0
        if 0 < size <= LARGEST and not path.match(SKIPPED):
            by_type.setdefault(TYPES[path.suffix], []).append(name)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_type.values()))
    return [name for name in in_turn if name][:FILES]


async def send_files(port: int) -> None:
    """Send the files and a wrong message, and watch the queues until all have arrived."""
    files = choose_files()
    headline(f"Send {len(files)} files of this repository, and one wrong message")
    async with connected(port) as channel:
        for name in QUEUES:
            await channel.declare_queue(name, durable=True)
        picture = Picture(len(files))
        sending = asyncio.create_task(publish(channel, files))
        deadline = time.monotonic() + SECONDS
        while not (await look(channel, picture) and sending.done()):
            if time.monotonic() > deadline:
                raise DemoError(f"not all results have arrived within {SECONDS} s")
            await asyncio.sleep(0.25)
        picture.end()
        await sending
        await check_results(channel, files)
        await check_wrong_message(channel)


async def publish(channel: aio_pika.abc.AbstractChannel, files: list[str]) -> None:
    """Send messages with the bytes of files as attachments; the broker confirms each."""
    contents = [
        {"payload": {"name": name, "data": (REPO / name).read_bytes()}, "route": ROUTE}
        for name in files
    ]
    contents.insert(len(contents) // 2, WRONG)
    for number, content in enumerate(contents):
        body = encode(content)
        message = aio_pika.Message(
            body,
            message_id=f"file-{number}",
            content_type=content_type(body),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await channel.default_exchange.publish(message, routing_key="identify", mandatory=True)


async def look(channel: aio_pika.abc.AbstractChannel, picture: Picture) -> bool:
    """Show what the queues hold; whether all messages have arrived."""
    held = {}
    for name in QUEUES:
        queue = await channel.declare_queue(name, passive=True)
        held[name] = queue.declaration_result.message_count or 0
    picture.show(held)
    shelved = sum(held[name] for name in SHELVES)
    return held["results"] >= picture.total <= shelved and held["identify.dead"] >= 1


async def check_results(channel: aio_pika.abc.AbstractChannel, files: list[str]) -> None:
    """Compare the types of all files, and their bytes, with what was sent."""
    headline("What came out of the last queues")
    notes = [decode(message.body)["payload"] for message in await take_all(channel, "results")]
    found = {note["name"]: note["type"] for note in notes}
    counts: dict[str, int] = {}
    for name in files:
        kind = found.get(name, "missing")
        counts[kind] = counts.get(kind, 0) + 1
    print("  " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    wrong = [
        f"{name} is {found.get(name, 'missing')}"
        for name in files
        if found.get(name) != TYPES[PurePath(name).suffix]
    ]
    if wrong:
        raise DemoError(f"{len(wrong)} of {len(files)} types are wrong: " + "; ".join(wrong[:5]))
    for shelf in SHELVES:
        for message in await take_all(channel, shelf):
            file = decode(message.body)["payload"]
            if file["data"] != (REPO / file["name"]).read_bytes():
                raise DemoError(f"the bytes of {file['name']} have changed on their way")


async def check_wrong_message(channel: aio_pika.abc.AbstractChannel) -> None:
    """Print the wrong message and the reason that it came with."""
    headline("The wrong message is in the dead-letter queue, with the reason")
    (letter,) = await take_all(channel, "identify.dead")
    print(f"  {letter.body.decode()}")
    for name, value in letter.headers.items():
        print(f"  {name}: {value}")
    if decode(letter.body) != WRONG or "data is missing" not in str(letter.headers):
        raise DemoError("the dead-letter queue has another message")


async def take_all(channel: aio_pika.abc.AbstractChannel, name: str) -> list[Any]:
    """The messages of a queue, which is empty then."""
    queue = await channel.get_queue(name)
    found = []
    while (message := await queue.get(fail=False, no_ack=True)) is not None:
        found.append(message)
    return found


def demo_queue() -> None:
    """Run all steps."""
    started = time.monotonic()
    images = dict(line.split() for line in os.environ["QUEUE_IMAGES"].splitlines())
    install_broker(images)
    install_chart(images)
    deploy(images)
    with forwarded() as port:
        asyncio.run(send_files(port))
    print("\nTo clean up: `make demo-clean` removes the demos, `make cluster-down` the cluster.")
    print(f"demo: every file's type is right ({time.monotonic() - started:.0f} s)")


def check() -> None:
    """Check the requirements of the demo."""
    demo.check()
    if not os.environ.get("QUEUE_IMAGES"):
        raise MissingError("QUEUE_IMAGES is not set: run `make demo-queue`, which builds them")


def main() -> int:
    """Run the demo; returns the exit status."""
    return demo.run_steps(check, demo_queue, namespace=NAMESPACE)


if __name__ == "__main__":
    sys.exit(main())
