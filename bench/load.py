"""Clients in a closed loop: each sends its next message when it has the reply to the last.

Lean, so that the server is what is measured: requests are built once, and as every reply to a
message has the same length, a reply is complete when that many bytes have come. gRPC is the
exception: it is called by its own client, whose work counts in its figures.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from contenders import FRAMES, GRPC, HTTP

PATIENCE = 60.0  # seconds without a byte; nothing here takes that long


class WrongReply(Exception):  # noqa: N818
    """A server did not answer what it should."""


@dataclass(frozen=True)
class Slice:
    """What happened: seconds from the first message to the last reply, and of each message."""

    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


def message_of(size: int) -> bytes:
    """A JSON message of exactly this many bytes, with one ASCII text in it."""
    frame = json.dumps({"payload": {"text": ""}})
    words = "the quick brown fox jumps over the lazy dog; "
    text = (words * (size // len(words) + 1))[: size - len(frame)]
    return json.dumps({"payload": {"text": text}}).encode()


def request_of(protocol: str, message: bytes) -> bytes:
    """The bytes that a client sends for a message."""
    if protocol == FRAMES:
        return len(message).to_bytes(4, "big") + message
    if protocol == HTTP:
        head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
        return f"{head}{len(message)}\r\n\r\n".encode() + message
    return message


def first_reply(protocol: str, path: str, message: bytes) -> int:
    """Send a message, check the answer to it, and give the length of a reply."""
    if protocol == GRPC:
        with _channel(path) as channel:
            reply = channel.unary_unary("/Actor/Call")(message, timeout=PATIENCE)
        _check(reply, message)
        return len(reply)
    with _connected(path) as connection:
        connection.sendall(request_of(protocol, message))
        with connection.makefile("rb") as stream:
            if protocol == FRAMES:
                prefix = stream.read(4)
                body = stream.read(int.from_bytes(prefix, "big"))
                _check(body, message)
                return 4 + len(body)
            head = [stream.readline()]
            while head[-1] not in (b"\r\n", b""):
                head.append(stream.readline())
            lengths = [line for line in head if line.lower().startswith(b"content-length:")]
            body = stream.read(int(lengths[0].split(b":")[1]) if lengths else 0)
            _check(body, message)
            return sum(map(len, head)) + len(body)


def _check(reply: bytes, message: bytes) -> None:
    expected = {"status": "ok", "result": {"echo": json.loads(message)["payload"]}}
    try:
        if json.loads(reply) == expected:
            return
    except ValueError:
        pass
    raise WrongReply(f"wrong reply: {reply[:200]!r}")


def drive(
    protocol: str,
    path: str,
    request: bytes,
    expected: int,
    *,
    clients: int,
    kept: bool,
    span: float,
) -> Slice:
    """Let `clients` send for `span` seconds, on kept connections or with one per message.

    Every client sends at least one message; what is under way at the end is waited for.
    """
    if protocol == GRPC:
        return _drive_grpc(path, request, clients, kept, span)
    if clients == 1:
        return _drive_one(path, request, expected, kept, span)
    return _drive_many(path, request, expected, clients, kept, span)


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(path)
    return connection


def _drive_one(path: str, request: bytes, expected: int, kept: bool, span: float) -> Slice:
    clock, buffer = time.perf_counter, bytearray(min(expected, 1 << 20))
    latencies: list[float] = []
    connection = _connected(path)
    began = now = clock()
    while not latencies or now - began < span:
        start, got = now, 0
        if not kept:
            connection.close()
            connection = _connected(path)
        connection.sendall(request)
        while got < expected:
            count = connection.recv_into(buffer)
            if not count:
                raise WrongReply("the connection ended inside a reply")
            got += count
        now = clock()
        latencies.append(now - start)
    connection.close()
    return Slice(now - began, latencies)


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    start: float
    sent: int = 0
    got: int = 0


def _drive_many(
    path: str, request: bytes, expected: int, clients: int, kept: bool, span: float
) -> Slice:
    clock, buffer = time.perf_counter, bytearray(min(expected, 1 << 20))
    latencies: list[float] = []
    both, reading = select.EPOLLIN | select.EPOLLOUT, select.EPOLLIN
    whole, rest = len(request), memoryview(request)
    poll = select.epoll()
    talks: dict[int, _Client] = {}

    def send(talk: _Client) -> None:
        """Send what fits; wait to send the rest only where there is one."""
        before = talk.sent
        with contextlib.suppress(BlockingIOError):
            talk.sent += talk.connection.send(rest[before:])
        if talk.sent < whole and not before:
            poll.modify(talk.connection, both)
        elif talk.sent == whole and before:
            poll.modify(talk.connection, reading)

    def open_one(start: float) -> _Client:
        connection = _connected(path)
        connection.setblocking(False)
        poll.register(connection, reading)
        talk = talks[connection.fileno()] = _Client(connection, start)
        return talk

    for _ in range(clients):
        open_one(0.0)
    began = now = clock()
    for talk in talks.values():
        talk.start = began
        send(talk)
    while talks:
        events = poll.poll(PATIENCE)
        if not events:
            raise WrongReply(f"no byte for {PATIENCE:g} s")
        for fd, event in events:
            talk = talks[fd]
            if event & select.EPOLLOUT:
                send(talk)
            if not event & ~select.EPOLLOUT:
                continue
            count = talk.connection.recv_into(buffer)
            if not count:
                raise WrongReply("the connection ended inside a reply")
            talk.got += count
            if talk.got < expected:
                continue
            now = clock()
            latencies.append(now - talk.start)
            if kept and now - began < span:
                talk.start, talk.sent, talk.got = now, 0, 0
                send(talk)
                continue
            del talks[fd]
            talk.connection.close()
            if now - began < span:
                send(open_one(now))
    return Slice(now - began, latencies)


def _channel(path: str) -> Any:
    import grpc  # type: ignore[import-not-found, import-untyped, unused-ignore]

    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    alone = [("grpc.use_local_subchannel_pool", 1)]  # else channels share a connection
    return grpc.insecure_channel(f"unix:{path}", options=limits + alone)


def _drive_grpc(path: str, message: bytes, clients: int, kept: bool, span: float) -> Slice:
    latencies: list[float] = []
    clock, lined_up = time.perf_counter, threading.Barrier(clients + 1)
    ends: list[float] = []

    def client() -> None:
        channel = _channel(path)
        call = channel.unary_unary("/Actor/Call")
        if kept:
            import grpc

            grpc.channel_ready_future(channel).result(PATIENCE)
        lined_up.wait(PATIENCE)
        began = now = clock()
        while now == began or now - began < span:
            start = now
            if not kept:
                channel.close()
                channel = _channel(path)
                call = channel.unary_unary("/Actor/Call")
            call(message, timeout=PATIENCE)
            now = clock()
            latencies.append(now - start)
        ends.append(now)
        channel.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    lined_up.wait(PATIENCE)
    began = clock()
    for thread in threads:
        thread.join(2 * PATIENCE)
    if len(ends) < clients:
        raise WrongReply("a call of gRPC failed")
    return Slice(max(ends) - began, latencies)
