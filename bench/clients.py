"""Clients in a closed loop: each sends its next message when it has the reply to the last one.

A reply is complete when as many bytes have arrived as the first reply had, so that clients cost
little. gRPC is called by its own client.
"""

import contextlib
import json
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

from bench.contenders import GRPC, HTTP, ServerError

CLOSED = "the connection was closed within a reply"
TIMEOUT = 60.0  # seconds without a byte; nothing here takes that long
# Line breaks and quotation marks are escaped in JSON; characters beyond ASCII take more bytes.
ASCII, PROSE = "", "prose"
_TEXTS = {
    ASCII: "the quick brown fox jumps over the lazy dog; ",
    PROSE: '"What does it cost?" she asked.\nLe modèle coûte 12 € – größer wäre teurer.\n',
}


_channels: dict[tuple[str, int], Any] = {}  # of gRPC, by the path and the number of the client


class Situation(NamedTuple):
    """How many clients there are, whether they keep connections, and share the server's core."""

    label: str
    clients: int
    keep_alive: bool
    pinned: bool


def build_message(size: int, kind: str = ASCII, lead: int = 0) -> bytes:
    """A JSON message of exactly `size` bytes; an id of `lead` characters stands before its text."""

    def encode(text: str) -> bytes:
        message = {"id": "i" * lead, "payload": {"text": text}}
        return json.dumps(message, ensure_ascii=False).encode()

    words, frame = _TEXTS[kind], len(encode(""))
    text = words * ((size - frame) // (len(encode(words)) - frame))
    return encode(text + "x" * (size - len(encode(text))))


def build_request(protocol: str, message: bytes) -> bytes:
    """The bytes that a client sends for a message."""
    if protocol == HTTP:
        return http_post("/", message)
    return message if protocol == GRPC else len(message).to_bytes(4, "big") + message


def http_post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def read_http_reply(stream: BinaryIO) -> tuple[int, bytes]:
    """The number of all bytes of an HTTP response, and its body."""
    head, length = 0, 0
    while line := stream.readline():
        head += len(line)
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
        if line == b"\r\n":
            return head + length, stream.read(length)
    raise ServerError(CLOSED)


def ask(protocol: str, path: str, message: bytes) -> tuple[int, bytes]:
    """Send a message; return the number of all bytes of the reply, and its body."""
    if protocol == GRPC:
        with _open_channel(path) as channel:
            body = _call(channel, message)
        return len(body), body
    with _connect(path) as connection, connection.makefile("rb") as stream:
        connection.sendall(build_request(protocol, message))
        if protocol == HTTP:
            return read_http_reply(stream)
        body = stream.read(int.from_bytes(stream.read(4), "big"))
        return 4 + len(body), body


def exchange(protocol: str, path: str, message: bytes) -> int:
    """Send a message, check the reply, and return the number of its bytes."""
    size, body = ask(protocol, path, message)
    if json.loads(body) != {"status": "ok", "result": {"echo": json.loads(message)["payload"]}}:
        raise ServerError(f"wrong reply: {body[:200]!r}")
    return size


class _Connection(socket.socket):
    start, received, unsent = 0.0, 0, memoryview(b"")


def _connect(path: str) -> _Connection:
    connection = _Connection(socket.AF_UNIX)
    connection.settimeout(TIMEOUT)
    connection.connect(path)
    return connection


def _open_channel(path: str) -> Any:
    import grpc  # type: ignore[import-not-found, import-untyped, unused-ignore]

    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    alone = [("grpc.use_local_subchannel_pool", 1)]  # otherwise channels share a connection
    return grpc.insecure_channel(f"unix:{path}", options=limits + alone)


def _call(channel: Any, message: bytes) -> bytes:
    reply: bytes = channel.unary_unary("/Actor/Call")(message, timeout=TIMEOUT)
    return reply


def _drive_grpc(
    path: str, message: bytes, span: float, situation: Situation
) -> tuple[float, list[float]]:
    def send(number: int) -> list[float]:
        latencies: list[float] = []
        channel = _channels.setdefault((path, number), _open_channel(path))
        now = began
        while not latencies or now - began < span:
            start = now
            if situation.keep_alive:
                _call(channel, message)
            else:
                with _open_channel(path) as fresh:
                    _call(fresh, message)
            now = time.perf_counter()
            latencies.append(now - start)
        return latencies

    with ThreadPoolExecutor(situation.clients) as pool:
        began = time.perf_counter()
        latencies = [each for one in pool.map(send, range(situation.clients)) for each in one]
        return time.perf_counter() - began, latencies


def drive(
    protocol: str, path: str, request: bytes, size: int, span: float, situation: Situation
) -> tuple[float, list[float]]:
    """Let the clients send for `span` seconds; returns the seconds it took and all latencies."""
    if protocol == GRPC:
        return _drive_grpc(path, request, span, situation)
    if situation.clients > 1:
        return _drive_many(path, request, size, span, situation)
    clock, buffer = time.perf_counter, bytearray(min(size, 1 << 20))
    latencies: list[float] = []
    connection = _connect(path)
    began = now = clock()
    while not latencies or now - began < span:
        start, received = now, 0
        if not situation.keep_alive:
            connection.close()
            connection = _connect(path)
        connection.sendall(request)
        while received < size:
            count = connection.recv_into(buffer)
            if not count:
                raise ServerError(CLOSED)
            received += count
        now = clock()
        latencies.append(now - start)
    connection.close()
    return now - began, latencies


def _drive_many(
    path: str, request: bytes, size: int, span: float, situation: Situation
) -> tuple[float, list[float]]:
    clock, buffer = time.perf_counter, bytearray(min(size, 1 << 20))
    latencies: list[float] = []
    poll = select.epoll()
    active: dict[int, _Connection] = {}

    def open_one() -> _Connection:
        connection = _connect(path)
        connection.setblocking(False)
        poll.register(connection, select.EPOLLIN)
        active[connection.fileno()] = connection
        return connection

    def begin(connection: _Connection, now: float) -> None:
        """Send a message; what does not fit into the socket's buffer follows when there is room."""
        connection.start, connection.received, sent = now, 0, 0
        with contextlib.suppress(BlockingIOError):
            sent = connection.send(request)
        if sent < len(request):
            connection.unsent = memoryview(request)[sent:]
            poll.modify(connection, select.EPOLLIN | select.EPOLLOUT)

    for _ in range(situation.clients):
        open_one()
    began = now = clock()
    for connection in active.values():
        begin(connection, began)
    while active:
        events = poll.poll(TIMEOUT)
        if not events:
            raise ServerError(f"no byte within {TIMEOUT:g} s")
        for descriptor, event in events:
            connection = active[descriptor]
            if event & select.EPOLLOUT:
                connection.unsent = connection.unsent[connection.send(connection.unsent) :]
                if not connection.unsent:
                    poll.modify(connection, select.EPOLLIN)
                if event == select.EPOLLOUT:
                    continue
            count = connection.recv_into(buffer)
            if not count:
                raise ServerError(CLOSED)
            connection.received += count
            if connection.received < size:
                continue
            now = clock()
            latencies.append(now - connection.start)
            if situation.keep_alive and now - began < span:
                begin(connection, now)
                continue
            del active[descriptor]
            connection.close()
            if now - began < span:
                begin(open_one(), now)
    poll.close()
    return now - began, latencies
