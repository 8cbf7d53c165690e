"""`make bench-queue`: the sidecar of examples/queue, with an actor and with a no-op in its place.

Messages of 1 KB wait in a queue of a RabbitMQ server on this machine; an echo handler takes batches
of 32, and the results go to a second queue. Rates are per second of CPU time, of the sidecar and of
the actor together: what one core does. The broker's CPU time is not counted.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aio_pika

from bench.contenders import SERVERS, ServerError
from bench.processes import accepts, cpu_seconds, running, until_interrupted
from bench.results import Goal, Results, describe_run, publish, short
from tests.support.rabbitmq import Server, find_programs
from tests.support.tables import Table

REPO = Path(__file__).parent.parent
SIDECAR = REPO / "examples/queue/sidecar"
BATCH, SIZE, IN_FLIGHT = 32, 1024, 128
SECONDS = 300  # for one measurement


async def fill(server: Server, queue: str, count: int) -> None:
    """Publish messages to a queue, and make a queue for their results."""
    text = b'{"payload": {"text": "%s"}}'
    body = text % (b"x" * (SIZE - len(text) + 2))
    async with await aio_pika.connect(server.url) as connection:
        channel = await connection.channel()
        for name in (queue, f"{queue}.next"):
            await channel.declare_queue(name, durable=True)
        for _ in range(0, count, IN_FLIGHT):
            message = aio_pika.Message(body, delivery_mode=2)
            publications = (
                channel.default_exchange.publish(message, routing_key=queue)
                for _ in range(IN_FLIGHT)
            )
            await asyncio.gather(*publications)


async def wait_for_results(server: Server, queue: str, count: int) -> None:
    """Wait until a queue holds messages."""
    deadline = time.monotonic() + SECONDS
    async with await aio_pika.connect(server.url) as connection:
        channel = await connection.channel()
        while time.monotonic() < deadline:
            declared = await channel.declare_queue(f"{queue}.next", passive=True)
            if (declared.declaration_result.message_count or 0) >= count:
                return
            await asyncio.sleep(0.05)
    raise ServerError(f"not all results within {SECONDS} s")


@contextmanager
def actor(path: str) -> Iterator[int]:
    """The runtime with an echo handler for batches; its process id."""
    environment = {
        "ASYA_HANDLER": "queue_echo.echo",
        "ASYA_SOCKET_PATH": path,
        "ASYA_BATCH_SIZE": str(BATCH),
    }
    command = [sys.executable, str(REPO / "runtime/asya_runtime.py")]
    with running(command, environment, lambda: accepts(path), "the actor") as (pid, _):
        yield pid


def measure(server: Server, kind: str, count: int, directory: Path) -> tuple[float, float]:
    """Messages per second of CPU time, and of wall time."""
    queue = f"bench-{kind}-{os.urandom(3).hex()}"
    asyncio.run(fill(server, queue, count))
    path = str(directory / f"{queue}.sock")
    environment = {
        "AMQP_URL": server.url,
        "QUEUE": queue,
        "NEXT": f"{queue}.next",
        "PREFETCH": str(IN_FLIGHT),
        "METRICS_PORT": "0",
        "ASYA_SOCKET_PATH": path,
        "PYTHONPATH": str(SIDECAR),
    }
    program = ["-m", "asya_queue"] if kind == "actor" else [str(SERVERS / "queue_no_op.py")]
    with ExitStack() as stack:
        pids = [stack.enter_context(actor(path))] if kind == "actor" else []
        before, began = sum(map(cpu_seconds, pids)), time.monotonic()
        command = [sys.executable, *program]
        pids += [stack.enter_context(running(command, environment, lambda: True, kind))[0]]
        asyncio.run(wait_for_results(server, queue, count))
        used = sum(map(cpu_seconds, pids)) - before
        return count / used, count / (time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.queue", description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=20 * 1024, help="for each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", action="store_true", help="also write the documentation")
    options = parser.parse_args()
    introduction = describe_run(f"Python {platform.python_version()}")
    rates: dict[str, list[tuple[float, float]]] = {"actor": [], "no-op": []}
    with tempfile.TemporaryDirectory() as directory:
        server = Server(find_programs(), Path(directory))
        server.configure()
        with server.running():
            for _ in range(options.rounds):
                for kind, found in rates.items():
                    found.append(measure(server, kind, options.messages, Path(directory)))
    header = ["sidecar with", "messages per CPU second", "messages per second"]
    medians = {
        kind: [*map(statistics.median, zip(*found, strict=True))] for kind, found in rates.items()
    }
    rows = [[kind, *map(short, values)] for kind, values in medians.items()]
    ratio = medians["actor"][0] / medians["no-op"][0]
    goal = Goal("with an actor / with a no-op, per core", ratio, 0.8, at_least=True)
    results = Results([Table([header, *rows], "Messages from a queue")], [goal])
    publish("benchmarks-queue", introduction, results, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
