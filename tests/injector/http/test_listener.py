"""Connections: TLS, several requests on one, and the limits on silent, slow and many ones."""

import asyncio
import contextlib
import json
import ssl
from typing import Any

import aiohttp
import pytest
from asya_injector.http import listener as listener_module
from asya_injector.tls.authority import KeyPair
from asya_injector.tls.watcher import CertWatcher

from tests.injector.webhook_server import (
    CANCELLED,
    GATE,
    SLOW,
    Client,
    are_closed,
    is_closed,
    named,
    post,
    review,
    running,
)

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def test_rejects_older_versions_of_tls(client: Client) -> None:
    _, writer = await client.connect()
    writer.close()
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.connect()


async def test_answers_several_reviews_on_one_connection(client: Client) -> None:
    reader, writer = await client.connect()
    body = json.dumps(review()).encode()
    head = "POST /pods?timeout=5s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    one = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    writer.write(one * 3)
    for _ in range(3):
        async with asyncio.timeout(60):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["response"]["allowed"]
    writer.close()


async def test_closes_silent_connections_and_answers_others(
    watcher: CertWatcher, pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_IDLE_SECONDS", 1.0)
    async with asyncio.timeout(200), running(watcher, pair) as (client, _):
        monkeypatch.setattr(listener_module, "_HANDSHAKE_SECONDS", 1.0)
        plain = [await asyncio.open_connection("localhost", client.port) for _ in range(50)]
        silent: list[Streams] = []
        while not silent:  # it is accepted after all of them
            with contextlib.suppress(OSError):
                silent.append(await client.connect())
        monkeypatch.setattr(listener_module, "_HANDSHAKE_SECONDS", 100.0)
        silent += [await client.connect() for _ in range(50)]
        slow = [await client.connect() for _ in range(50)]
        for _, writer in slow:
            writer.write(b"POST /pods HTTP/1.1\r\nHost:")
        assert (await client.post(review()))[0] == 200
        for reader, writer in plain + silent + slow:
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            writer.close()


async def test_stops_answering_a_caller_that_closes_its_connection(client: Client) -> None:
    _, writer = await client.connect()
    writer.write(post(named("forever")))
    assert await asyncio.to_thread(SLOW.wait, 60)
    writer.transport.abort()
    assert await asyncio.to_thread(CANCELLED.wait, 60)


async def test_closes_the_oldest_silent_connections_if_there_are_too_many(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with running(watcher, pair, max_connections=4) as (client, server):
        busy, writer = await client.connect()
        writer.write(post(named("slow")))
        assert await asyncio.to_thread(SLOW.wait, 60)
        silent = [await client.connect() for _ in range(5)]
        assert (await client.post(review()))[0] == 200
        expected = [True, True, True, False, False]
        assert await are_closed([reader for reader, _ in silent], expected) == expected
        GATE.set()
        async with asyncio.timeout(60):
            assert (await busy.readline()).startswith(b"HTTP/1.1 200 ")
        assert len(server._connections) == 4
        for _, each in silent:
            each.transport.abort()


async def test_counts_connections_before_their_handshake(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with running(watcher, pair, max_connections=4) as (client, server):
        plain = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(10)]
        assert (await client.post(review()))[0] == 200
        assert len(server._connections) == 4
        expected = [True] * 7 + [False] * 3
        assert await are_closed([reader for reader, _ in plain], expected) == expected
        for _, writer in plain:
            writer.close()
        while len(server._connections) > 1:
            await asyncio.sleep(0.01)


async def test_closes_the_largest_unfinished_request_if_all_take_too_much_memory(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with running(watcher, pair, max_bytes=1 << 20) as (client, server):
        peers = []
        for size in (500 << 10, 300 << 10, 400 << 10):
            reader, writer = await client.connect()
            writer.write(post(b" " * size, length=8 << 20))
            await writer.drain()
            peers.append((reader, writer))
            async with asyncio.timeout(60):
                while not server._connections.closed_early and server._connections._size < size:
                    await asyncio.sleep(0.01)
        expected = [True, False, False]
        assert await are_closed([reader for reader, _ in peers], expected) == expected
        assert (await client.post(review()))[0] == 200
        for _, writer in peers:
            writer.transport.abort()
        while server._connections._size:
            await asyncio.sleep(0.01)


async def test_closes_connections_whose_first_request_does_not_arrive_in_time(
    watcher: CertWatcher, pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(watcher, pair) as (client, server):
        used = await client.connect()
        used[1].write(post(named("p")))
        async with asyncio.timeout(60):
            assert (await used[0].readline()).startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr(listener_module, "_FIRST_REQUEST_SECONDS", 0.5)
        for begun in (b"", b"POST /pods HTTP/1.1\r\nHost:"):
            with contextlib.suppress(OSError):  # its handshake may take longer than the limit
                reader, writer = await client.connect()
                writer.write(begun)
                assert await is_closed(reader)
                writer.close()
        # The limit of the first connection has ended with its request.
        assert [each._limit for each in server._connections._open] == [None]
        used[1].close()


@pytest.mark.parametrize(("name", "count"), [("huge", 1), ("medium", 200)])
async def test_closes_a_connection_that_does_not_read_its_answers(
    watcher: CertWatcher, pair: KeyPair, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    async with running(watcher, pair) as (client, server):
        status, answer = await client.post(named(name))
        size = (8 << 20) if count == 1 else 60_000
        assert (status, len(answer["response"]["patch"])) == (200, size)
        monkeypatch.setattr(listener_module, "_SEND_SECONDS", 0.3)
        reader, writer = await client.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(post(named(name)) * count)
        async with asyncio.timeout(60):  # only the first connection stays
            while len(server._connections) > 1:
                await asyncio.sleep(0.01)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        received = b""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(60):
                while chunk := await reader.read(1 << 20):
                    received += chunk
        assert received.startswith(b"HTTP/1.1 200 ")
        assert len(received) < 8 << 20
        writer.close()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_does_not_parse_a_body_in_chunks(
    client: Client, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fed: list[int] = []
    feed_data = aiohttp.StreamReader.feed_data

    def count(self: aiohttp.StreamReader, data: bytes, size: int = 0) -> None:
        fed.append(len(data))
        feed_data(self, data)

    monkeypatch.setattr(aiohttp.StreamReader, "feed_data", count)
    reader, writer = await client.connect()
    head = b"%s /pods HTTP/1.1\r\nContent-Type: application/json\r\n" % method.encode()
    writer.write(head + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(OSError):
        async with asyncio.timeout(60):
            assert (await reader.readline()).split()[1] == (b"411" if method == "POST" else b"405")
            writer.write(b"1\r\n{\r\n" * 200_000)
            await writer.drain()
    assert await is_closed(reader)
    assert sum(fed) < 20_000
    writer.close()
    assert (await client.post(review()))[0] == 200


async def test_garbage_is_answered_without_an_error_in_the_log(
    client: Client, records: list[Any]
) -> None:
    for garbage in (
        b"\x16\x03\x01\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"POST /pods HTTP/1.1\r\n" + b"X: %s\r\n" % (b"a" * 10_000),
        b"POST /pods HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(100)),
    ):
        reader, writer = await client.connect()
        writer.write(garbage)
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
        assert await is_closed(reader)
        writer.close()
    assert (await client.post(review()))[0] == 200
    assert [record.levelname for record in records] == ["INFO"]
