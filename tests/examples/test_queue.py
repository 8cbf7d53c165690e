"""The RabbitMQ sidecar of examples/queue, with a real server, and an actor that tests control."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import pytest_asyncio
from asya_injector.tls import authority
from asya_queue.messages import decode, encode, forward, to_frame

from tests.support.ports import free_port
from tests.support.rabbitmq import Queues, Server, find_programs

REPO = Path(__file__).parents[2]
SIDECAR = REPO / "examples/queue/sidecar"
Reply = dict[str, Any]
Handler = Callable[[Any], Awaitable[Reply | bytes | None]]

# --- What follows from a message and a result ------------------------------------------------

ROUTE = {"actors": ["a", "b"], "current": 0}
AT_B = {"actors": ["a", "b"], "current": 1}


@pytest.mark.parametrize(
    ("message", "result", "last", "expected"),
    [
        pytest.param({}, {"x": 1}, "", [], id="no route and no next queue: the end"),
        pytest.param({}, {"x": 1}, "n", [("n", {"payload": {"x": 1}})], id="next queue"),
        pytest.param(
            {"route": ROUTE, "id": 7},
            {"x": 1},
            "n",
            [("b", {"route": AT_B, "id": 7, "payload": {"x": 1}})],
            id="a route goes before the next queue, and other fields stay",
        ),
        pytest.param(
            {"route": AT_B},
            {"x": 1},
            "n",
            [("n", {"route": {**AT_B, "current": 2}, "payload": {"x": 1}})],
            id="end of the route",
        ),
        pytest.param(
            {},
            [{"x": 1}, {"x": 2}],
            "n",
            [("n", {"payload": {"x": 1}}), ("n", {"payload": {"x": 2}})],
            id="fan-out",
        ),
        pytest.param({}, [], "n", [], id="empty fan-out"),
        pytest.param({}, None, "n", [], id="no result"),
        pytest.param({}, [None, 1], "n", [("n", {"payload": 1})], id="no result in a fan-out"),
        pytest.param(
            {"route": ROUTE},
            {"payload": {"x": 1}, "route": {"actors": ["a", "c"], "current": 0}},
            "",
            [("c", {"payload": {"x": 1}, "route": {"actors": ["a", "c"], "current": 1}})],
            id="a handler changes the route",
        ),
        pytest.param(
            {"id": b"own"},
            [{"image": b"one"}, {"image": b""}, {"image": b"three"}],
            "n",
            [
                ("n", {"id": b"own", "payload": {"image": b"one"}}),
                ("n", {"id": b"own", "payload": {"image": b""}}),
                ("n", {"id": b"own", "payload": {"image": b"three"}}),
            ],
            id="each result takes its attachments along",
        ),
    ],
)
def test_what_follows_from_a_result(
    message: Any, result: Any, last: str, expected: list[tuple[str, Any]]
) -> None:
    request = encode({"payload": {}, **message})
    following = list(forward(request, decode(encode(result)), last))
    assert [(queue, decode(body)) for queue, body in following] == expected


@pytest.mark.parametrize(
    "route",
    [
        {},
        [],
        "a",
        {"actors": ["a"]},
        {"actors": "ab", "current": -2},
        {"actors": ["a", 1], "current": 0},
        {"actors": ["a", "b"], "current": "0"},
        {"actors": ["a", "b"], "current": -1},
        {"actors": 1, "current": 0},
        {"actors": "ab", "current": 0},
        {"actors": {"1": "a"}, "current": 0},
        {"actors": ["a", "b"], "current": True},
        {"actors": ["a", "b"], "current": 0.0},
        {"actors": ["a", ""], "current": 0},
        {"actors": ["a", None], "current": 0},
        {"actors": ["a", "long" * 64], "current": 0},
    ],
    ids=str,
)
def test_a_route_that_cannot_be_followed_says_how_routes_look(route: Any) -> None:
    with pytest.raises(ValueError, match=r'^route: not like \{"actors": '):
        list(forward(encode({"payload": {}, "route": route}), {}, "n"))


@pytest.mark.parametrize(
    ("body", "frame"),
    [
        pytest.param(b'{"payload": {}}', b'{"payload": {}}\0', id="the reply may have bytes"),
        pytest.param(b'{"payload": {}} \0', b'{"payload": {}} \0', id="already so"),
        pytest.param(
            b'{"payload": {"$bytes": 1}}', b'{"payload": {"$bytes": 1}}', id="text, not bytes"
        ),
    ],
)
def test_a_body_becomes_a_frame(body: bytes, frame: bytes) -> None:
    assert to_frame(body) == frame


def test_attachments_start_where_a_vector_can() -> None:
    for size in range(40):
        body = encode({"a" * size: b"bytes"})
        assert (body.index(b"\0") + 1) % 16 == 0


AMQP_URL = (
    "amqp://user:password@host:5672/vhost, or amqps://...; write special characters of the "
    "password as %2F (/), %3F (?), %23 (#), %40 (@)"
)

# --- The sidecar -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(find_programs(), tmp_path_factory.mktemp("rabbitmq"))
    server.configure(authority.create(["localhost"], now=dt.datetime.now(dt.UTC)))
    with server.running():
        yield server


@pytest_asyncio.fixture
async def queues(server: Server, request: pytest.FixtureRequest) -> AsyncIterator[Queues]:
    name = re.sub(r"\W+", "-", request.node.name)[:80] + os.urandom(2).hex()
    async with await aio_pika.connect(server.url) as connection:
        yield Queues(await connection.channel(on_return_raises=True), name)


class Actor:
    """A socket whose replies a coroutine makes; without a reply, it closes the connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handler: Handler = echo
        self.calls: list[Any] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_unix_server(self.serve, self.path)

    async def stop(self) -> None:
        """End as a process does: the socket refuses, and all streams end."""
        if self.server:
            self.server.close()
        for writer in self.writers:
            writer.close()
        self.writers = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))
                message = decode(frame)
                self.calls.append(message)
                reply = await self.handler(message)
                if reply is None:
                    break
                body = reply if isinstance(reply, bytes) else encode(reply)
                writer.write(len(body).to_bytes(4, "big") + body)
        writer.close()


async def echo(message: Any) -> Reply:
    return {"status": "ok", "result": message["payload"]}


class Sidecar:
    """The sidecar's process, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process, self.port = process, port
        self.lines: list[str] = []

    async def until(self, text: str, seconds: float = 100, *, again: bool = False) -> str:
        """The next line with a text."""
        assert self.process.stderr
        if not again and (found := [line for line in self.lines if text in line]):
            return found[0]
        async with asyncio.timeout(seconds):
            while line := (await self.process.stderr.readline()).decode():
                self.lines.append(line)
                if text in line:
                    return line
        raise AssertionError(f"the sidecar ended without {text!r}:\n{''.join(self.lines)}")

    async def end(self, seconds: float = 100) -> int:
        async with asyncio.timeout(seconds):
            assert self.process.stderr
            self.lines += (await self.process.stderr.read()).decode().splitlines()
            return await self.process.wait()

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=100) as page:
            lines = page.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("asya_queue")]
        return {
            name: float(value)
            for name, value in pairs
            if not re.search(r"_created|_seconds_(bucket|sum)", name)
        }


def environment(server: Server, queues: Queues, path: Path, **settings: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SIDECAR),
        "AMQP_URL": server.url,
        "QUEUE": queues.name,
        "ASYA_SOCKET_PATH": str(path),
        "METRICS_PORT": "0",
        **settings,
    }


@contextlib.asynccontextmanager
async def start(environment: dict[str, str], *words: str) -> AsyncIterator[Sidecar]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "asya_queue", *words),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Sidecar(process, int(environment.get("METRICS_PORT", 0)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest_asyncio.fixture
async def actor(tmp_path: Path) -> AsyncIterator[Actor]:
    actor = Actor(tmp_path / "s")
    await actor.start()
    yield actor
    await actor.stop()


def error(severity: str, **fields: Any) -> Reply:
    return {
        "status": "error",
        "error": "processing_error",
        "type": "ValueError",
        "message": "no",
        "severity": severity,
        **fields,
    }


async def test_messages_end_in_the_queues_that_their_replies_say(
    server: Server, queues: Queues, actor: Actor
) -> None:
    """One sidecar and one message of each kind; all queues are compared as a whole."""
    name = queues.name
    attempts: dict[str, int] = {}

    async def handle(message: Any) -> Reply:
        kind = message["payload"].get("kind")
        attempts[kind] = attempts.get(kind, 0) + 1
        if kind == "fatal":
            return error("fatal")
        if kind == "never" or (kind == "second" and attempts[kind] < 2):
            return error("recoverable", retry_after=0.5)
        if kind == "large":
            return {"status": "ok", "result": {"text": "x" * 5000}}
        if kind == "fan":
            return {"status": "ok", "result": [{"part": 1}, {"part": 2, "bytes": b"\0\1"}]}
        return {"status": "ok", "result": {"kind": kind}}

    actor.handler = handle
    messages = [
        {"payload": {"kind": "plain"}},
        {"payload": {"kind": "fan"}, "route": {"actors": [name, f"{name}.b"], "current": 0}},
        {"payload": {"kind": "fatal"}},
        {"payload": {"kind": "second"}},
        {"payload": {"kind": "never"}},
        {"payload": {"kind": "lost"}, "route": {"actors": [name, f"{name}.none"], "current": 0}},
        {"payload": {"kind": "wrong"}, "route": {"actors": 5}},
        {"payload": {"kind": "large"}},
    ]
    for queue in (name, f"{name}.b", f"{name}.next", f"{name}.dead"):
        await queues.declare(queue)
    for number, message in enumerate(messages):
        headers = {"trace": "t", "x-death": "of an earlier queue"}
        await queues.send(
            name, encode(message), message_id=f"id-{number}", headers=headers, priority=3
        )
    port = free_port()
    settings = {
        "NEXT": f"{name}.next",
        "RETRIES": "1",
        "METRICS_PORT": str(port),
        "MAX_SIZE": "4000",
    }
    async with start(environment(server, queues, actor.path, **settings)) as sidecar:
        await queues.until(f"{name}.dead", (5, 0))
        await queues.until(name, (0, 1))
        await queues.until(f"{name}.next", (2, 0))
        expected = {
            'asya_queue_messages_total{outcome="ok"}': 3.0,
            'asya_queue_messages_total{outcome="dead"}': 5.0,
            'asya_queue_messages_total{outcome="retried"}': 3.0,
            "asya_queue_published_total": 4.0,
            "asya_queue_in_flight": 0.0,
            "asya_queue_seconds_count": 11.0,
            'asya_queue_connected{to="actor"}': 1.0,
            'asya_queue_connected{to="broker"}': 1.0,
        }
        deadline = time.monotonic() + 100  # the last acknowledgement may be under way
        while (found_metrics := sidecar.metrics()) != expected and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert found_metrics == expected
        sidecar.process.send_signal(signal.SIGTERM)
        assert await sidecar.end() == 0

    found = {
        queue: [await queues.receive(f"{name}.{queue}") for _ in range(count)]
        for queue, count in (("next", 2), ("b", 2), ("dead", 5))
    }
    for all_ in found.values():  # messages may overtake each other
        all_.sort(key=lambda each: str(each.correlation_id))
    bodies = {queue: [decode(each.body) for each in all_] for queue, all_ in found.items()}
    advanced = {"actors": [name, f"{name}.b"], "current": 1}
    assert bodies == {
        "next": [{"payload": {"kind": "plain"}}, {"payload": {"kind": "second"}}],
        "b": [
            {"payload": {"part": 1}, "route": advanced},
            {"payload": {"part": 2, "bytes": b"\0\1"}, "route": advanced},
        ],
        "dead": [messages[number] for number in (2, 4, 5, 6, 7)],
    }
    results = [*found["next"], *found["b"]]
    assert [(each.headers, each.correlation_id, each.priority) for each in results] == [
        ({"trace": "t"}, f"id-{number}", 3) for number in (0, 3, 1, 1)
    ]
    assert [each.content_type for each in found["b"]] == [
        "application/json",
        "application/x-asya-message",
    ]
    assert len({each.message_id for each in results}) == 4
    dead = [
        {key: value for key, value in each.headers.items() if key.startswith("x-asya-")}
        for each in found["dead"]
    ]
    told = {"x-asya-error": "processing_error", "x-asya-type": "ValueError", "x-asya-message": "no"}
    example = '{"actors": ["queue", "next-queue"], "current": 0}'
    assert dead == [
        {"x-asya-queue": name, "x-asya-attempts": 1, **told},
        {"x-asya-queue": name, "x-asya-attempts": 2, **told},
        {
            "x-asya-queue": name,
            "x-asya-attempts": 2,
            "x-asya-error": "no_queue",
            "x-asya-message": f"the next queue, '{name}.none', does not exist",
        },
        {
            "x-asya-queue": name,
            "x-asya-attempts": 1,
            "x-asya-error": "bad_route",
            "x-asya-message": "the results cannot be sent on: route: not like "
            f'{example}: {{"actors": 5}}',
        },
        {
            "x-asya-queue": name,
            "x-asya-attempts": 1,
            "x-asya-error": "too_large",
            "x-asya-message": "a result of 5025 bytes: more than MAX_SIZE=4000",
        },
    ]
    moved = f"message id-4: moved to '{name}.dead': processing_error (ValueError): no"
    assert moved in "\n".join(sidecar.lines)


async def test_a_reply_of_any_form_ends_its_message(
    server: Server, queues: Queues, actor: Actor
) -> None:
    """No message stays with the sidecar, whatever the actor replies."""
    replies: list[Reply | bytes] = [
        b"",
        b"no JSON",
        b"\xff",
        b"[]",
        b"1",
        b'"status"',
        b"{}",
        b'{"status": "ok"}',
        b'{"status": "error", "error": "e", "message": "m"}',
        b"[" * 100_000,
        b'{"status": "ok", "result": {"$bytes": "x"}}\0x',
        error("fatal") | {"message": "\ud800" + "x" * 1_000_000},
    ]
    actor.handler = reply_in_turn(replies)
    for queue in (queues.name, f"{queues.name}.dead"):
        await queues.declare(queue)
    await queues.send(queues.name, *(encode({"payload": {"n": n}}) for n in range(len(replies))))
    async with start(environment(server, queues, actor.path, PREFETCH="1")):
        letters = [await queues.receive(f"{queues.name}.dead") for _ in replies]
        await queues.until(queues.name, (0, 1))
    *malformed, last = [str(each.headers["x-asya-message"]) for each in letters]
    assert {each.headers["x-asya-error"] for each in letters[:-1]} == {"bad_reply"}
    assert all(text.startswith("the actor's reply is not of the protocol: b") for text in malformed)
    assert last == "\\ud800" + "x" * 1999


def reply_in_turn(replies: list[Reply | bytes]) -> Handler:
    async def reply(message: Any) -> Reply | bytes:
        found = replies[int(message["payload"]["n"])]
        return json.dumps(found).encode() if isinstance(found, dict) else found

    return reply


async def test_a_result_goes_to_reply_to_if_no_queue_is_next(
    server: Server, queues: Queues, actor: Actor
) -> None:
    """A caller's queue is its own; when it is gone, the message is a dead letter."""
    name = queues.name
    await queues.declare(name)
    caller = await queues.channel.declare_queue(f"{name}.caller", exclusive=True)
    properties = {"reply_to": caller.name, "correlation_id": "mine"}
    async with start(environment(server, queues, actor.path, RETRIES="0")):
        await queues.send(name, encode({"payload": {"x": 1}}), **properties)
        reply = await queues.receive(caller.name)
        await caller.delete()
        await queues.send(name, encode({"payload": {"x": 2}}), **properties)
        letter = await queues.receive(f"{name}.dead")
    assert (reply.correlation_id, decode(reply.body)) == ("mine", {"payload": {"x": 1}})
    assert letter.headers["x-asya-message"] == f"the next queue, '{caller.name}', does not exist"


async def test_messages_stay_in_the_queue_while_the_socket_does_not_answer(
    server: Server, queues: Queues, actor: Actor
) -> None:
    name = queues.name
    await queues.declare(name)
    await queues.send(name, *(encode({"payload": {"n": n}}) for n in range(9)))

    async def die(_: Any) -> None:
        await actor.stop()

    actor.handler = die
    settings = {"NEXT": f"{name}.next", "RETRIES": "0", "PREFETCH": "4"}
    async with start(environment(server, queues, actor.path, **settings)) as sidecar:
        for _ in range(3):  # each time with all messages in flight
            await sidecar.until("takes messages", again=True)
            await sidecar.until("takes no more messages: the actor is gone", again=True)
            await queues.until(name, (9, 0))
            await actor.start()
        actor.handler = echo
        await queues.until(f"{name}.next", (9, 0))
        await queues.until(name, (0, 1))
    results = [await queues.receive(f"{name}.next") for _ in range(9)]
    assert sorted(decode(each.body)["payload"]["n"] for each in results) == list(range(9))
    assert not any("x-asya-attempts" in each.headers for each in results)
    assert await queues.state(f"{name}.dead") == (0, 0)


async def test_stop_takes_no_more_messages_and_finishes_those_in_flight(
    server: Server, queues: Queues, actor: Actor, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of this pod's sidecar: another pod may use the network of the node too."""
    name = queues.name
    await queues.declare(name)
    going_on = asyncio.Event()

    async def wait(message: Any) -> Reply:
        await going_on.wait()
        return await echo(message)

    actor.handler = wait
    settings = environment(server, queues, actor.path, NEXT=f"{name}.next", PREFETCH="2")
    neighbour = Actor(tmp_path_factory.mktemp("neighbour") / "s")
    await neighbour.start()
    await queues.declare(f"{name}.other")
    elsewhere = {"ASYA_SOCKET_PATH": str(neighbour.path), "QUEUE": f"{name}.other"}
    async with start(settings | elsewhere) as other, start(settings) as sidecar:
        await queues.send(name, *(encode({"payload": {"n": n}}) for n in range(5)))
        await queues.until(name, (3, 1))
        await other.until("takes messages")
        async with start(settings, "--stop") as stop:
            assert await stop.end() == 0
        await queues.until(name, (3, 0))
        assert await queues.state(f"{name}.next") == (0, 0)
        going_on.set()
        assert await sidecar.end() == 0
        assert other.process.returncode is None
        assert len(other.lines) == 1  # not: --stop does not work
    await neighbour.stop()
    await queues.until(name, (3, 0))
    await queues.until(f"{name}.next", (2, 0))
    async with start(settings, "--stop") as stop:
        assert (await stop.end(), stop.lines) == (0, ["asya-queue: no sidecar is running"])


async def test_a_message_is_acknowledged_only_after_its_results_are_confirmed(
    server: Server, queues: Queues, actor: Actor
) -> None:
    """The next queue is full, and the broker rejects the results until there is room."""
    name = queues.name
    await queues.declare(name)
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await queues.declare(f"{name}.next", **full)
    settings = environment(server, queues, actor.path, NEXT=f"{name}.next", RETRIES="0")
    async with start(settings) as sidecar:
        await queues.send(name, *(encode({"payload": {"n": n}}) for n in range(4)))
        await sidecar.until("the broker rejects what follows")
        numbers = {
            decode((await queues.receive(f"{name}.next")).body)["payload"]["n"] for _ in range(4)
        }
    assert numbers == {0, 1, 2, 3}
    assert await queues.state(f"{name}.dead") == (0, 0)


async def test_a_killed_sidecar_or_broker_loses_no_message(
    server: Server, queues: Queues, actor: Actor, tmp_path: Path
) -> None:
    name = queues.name
    await queues.declare(name)
    blocked = asyncio.Event()

    async def wait(message: Any) -> Reply:
        await blocked.wait()
        return (
            error("recoverable", retry_after=1)
            if message["payload"]["n"] == 3
            else {
                "status": "ok",
                "result": message["payload"],
            }
        )

    actor.handler = wait
    settings = environment(server, queues, actor.path, NEXT=f"{name}.next", RETRIES="1000")
    await queues.send(name, *(encode({"payload": {"n": n}}) for n in range(20)))
    async with start(settings):
        await queues.until(name, (0, 1))
    await queues.until(name, (20, 0))
    async with start(settings) as sidecar:
        await queues.until(name, (0, 1))
        server.kill()
        line = await sidecar.until("trying again in")
        assert line.startswith(f"asya-queue: broker 127.0.0.1:{server.ports[0]}: ")
        await asyncio.to_thread(server.start)
        await sidecar.until("takes messages", again=True)
        blocked.set()
        async with await aio_pika.connect(server.url) as connection:
            again = Queues(await connection.channel(), name)
            results = [await again.receive(f"{name}.next") for _ in range(19)]
            numbers = sorted(decode(each.body)["payload"]["n"] for each in results)
            assert numbers == [n for n in range(20) if n != 3]
            actor.handler = echo
            assert decode((await again.receive(f"{name}.next")).body) == {"payload": {"n": 3}}
            assert await again.state(name) == (0, 1)


async def test_a_deleted_queue_is_declared_again(
    server: Server, queues: Queues, actor: Actor
) -> None:
    async with start(environment(server, queues, actor.path)) as sidecar:
        await sidecar.until("takes messages")
        await queues.channel.queue_delete(queues.name)
        await sidecar.until("the queue was deleted; trying again in 1 s")
        await sidecar.until("takes messages", again=True)
        await queues.until(queues.name, (0, 1))


async def test_the_broker_is_reached_over_tls(server: Server, queues: Queues, actor: Actor) -> None:
    async with start(environment(server, queues, actor.path, AMQP_URL=server.tls_url)) as sidecar:
        await sidecar.until("takes messages")
        assert await queues.state(queues.name) == (0, 1)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("amqp://guest:secret@127.0.0.1:{0}/", "ACCESS_REFUSED"),
        ("amqp://guest:guest@127.0.0.1:{0}/missing", "does the virtual host exist"),
        ("amqp://guest:secret@127.0.0.1:1/", "Connect call failed"),
        ("amqp://guest:secret@no-such-host.invalid/", "broker no-such-host.invalid:5672: "),
        ("amqps://guest:secret@localhost:{1}/", "certificate verify failed"),
    ],
    ids=["password", "virtual host", "port", "host", "unknown CA"],
)
async def test_a_broker_that_cannot_be_used_is_one_line_without_the_password(
    server: Server, queues: Queues, tmp_path: Path, url: str, text: str
) -> None:
    settings = environment(
        server, queues, tmp_path / "s", AMQP_URL=url.format(*map(str, server.ports))
    )
    async with start(settings) as sidecar:
        line = await sidecar.until("trying again in 1 s")
        sidecar.process.terminate()
        assert await sidecar.end() == 0
    assert text in line
    assert sidecar.lines == [line, "asya-queue: stopped"]
    assert "secret" not in line


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"QUEUE": ""}, "QUEUE is not set"),
        ({"AMQP_URL": ""}, "AMQP_URL is not set"),
        *(({"AMQP_URL": url}, f"AMQP_URL is not like {AMQP_URL}")
          for url in (
              "http://x", "b", "amqp://", "amqp:///vhost", "amqp://b:port/", "amqp://b:0/",
              "amqp://b:99999/", "amqp://[::1/", "amqp://u:p/x@b", "amqp://u:1/x@b",
              "amqp://u:1?x@b", "amqp://u:p?x@b", "amqp://u:p#x@b", "amqp://u:1#x@b",
          )),
        ({"AMQP_URL": "amqps://b/?cafile=/missing/ca.crt"},
         "AMQP_URL: cafile=/missing/ca.crt does not exist; mount it in the sidecar"),
        ({"QUEUE": "ä" * 121}, "QUEUE has more than 240 bytes"),
        ({"NEXT": "a" * 241}, "NEXT has more than 240 bytes"),
        ({"PREFETCH": "0"}, "PREFETCH='0' is not a number from 1 to 65535"),
        ({"RETRIES": "-1"}, "RETRIES='-1' is not a number from 0 to 1000"),
        ({"CONNECTIONS": "٣"}, "CONNECTIONS='٣' is not a number from 1 to 64"),
        ({"METRICS_PORT": "1e3"}, "METRICS_PORT='1e3' is not a number from 0 to 65535"),
        ({"ASYA_SOCKET_PATH": ""}, "ASYA_SOCKET_PATH is not set"),
        ({"ASYA_SOCKET_PATH": "/missing/s"},
         "ASYA_SOCKET_PATH=/missing/s: its folder is not mounted"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_setting_is_one_line(setting: dict[str, str], text: str) -> None:
    from asya_queue.__main__ import read_settings

    right = {"QUEUE": "q", "AMQP_URL": "amqp://b", "ASYA_SOCKET_PATH": "/tmp/s"}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        read_settings(right | setting)


@pytest.mark.parametrize(
    "url",
    [
        "amqp://b",
        "amqp://u:p@b:1/v",
        "amqp://[::1]:5672/",
        "amqps://u:p%2F%40%23@b/%2F?heartbeat=9",
    ],
)
def test_settings_are_read_without_space_around_them(url: str) -> None:
    """Secrets and multi-line annotations often end with a newline."""
    from asya_queue.__main__ import read_settings

    plain = {"QUEUE": "q", "AMQP_URL": url, "ASYA_SOCKET_PATH": "/tmp/s", "PREFETCH": "7"}
    spaced = {name: f" {value}\n" for name, value in plain.items()}
    found = read_settings(spaced)
    assert found == read_settings(plain)
    assert (found.url, found.queue, found.prefetch) == (url, "q", 7)


BATCHES = '''
import hashlib

def predict(messages):
    """Size of the batch, and two parts of the bytes."""
    results = []
    for message in messages:
        data = message["payload"]["data"]
        half = len(data) // 2
        parts = [bytes(data[:half]), bytes(data[half:])]
        results.append([{"batch": len(messages), "part": part} for part in parts])
    return results
'''


async def test_messages_with_bytes_reach_a_handler_in_batches(
    server: Server, queues: Queues, tmp_path: Path
) -> None:
    """The real runtime: 64 messages are in fewer calls, and bytes come back as they were."""
    (tmp_path / "halves.py").write_text(BATCHES)
    name, path = queues.name, tmp_path / "s"
    runtime = await asyncio.create_subprocess_exec(
        *(sys.executable, str(REPO / "runtime/asya_runtime.py")),
        cwd=tmp_path,
        env={
            "ASYA_HANDLER": "halves.predict",
            "ASYA_SOCKET_PATH": str(path),
            "ASYA_BATCH_SIZE": "16",
            "ASYA_BATCH_WAIT": "5",
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    sent = [bytes([n]) * (n + 2) * 100 for n in range(64)]
    try:
        await queues.declare(name)
        await queues.declare(f"{name}.next")
        bodies = [encode({"id": n, "payload": {"data": data}}) for n, data in enumerate(sent)]
        await queues.send(name, *bodies)
        async with start(environment(server, queues, path, NEXT=f"{name}.next")):
            results = [await queues.receive(f"{name}.next") for _ in range(128)]
    finally:
        runtime.kill()
        await runtime.wait()
    messages = [decode(each.body) for each in results]
    received = [b""] * 64
    for message in messages:
        received[message["id"]] += message["payload"]["part"]
    assert received == sent
    assert max(message["payload"]["batch"] for message in messages) > 1
