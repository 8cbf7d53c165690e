"""Clients in a closed loop: each sends its next message when it has the reply to the last.

Lean, so that the server is what is measured: requests are built once, and as every reply to a
message has the same length, a reply is complete when that many bytes have come. gRPC is the
exception: it is called by its own client, whose work counts in its figures.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any

from bench.contenders import FRAMES, GRPC, HTTP

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


# Number of clients, whether they keep their connections, whether they share their server's core
SITUATIONS = {
    (1, True, True): "1 client",
    (1, True, False): "1 client, on any core",
    (1, False, True): "1 client, new connections",
    (16, True, False): "16 clients",
    (16, False, False): "16 clients, new connections",
}
ASCII, PROSE = "ascii", "prose"
# Line breaks and quotation marks are escaped in JSON; what is beyond ASCII is longer in UTF-8.
_WORDS = {
    ASCII: "the quick brown fox jumps over the lazy dog; ",
    PROSE: '"What does it cost?" she asked.\nLe modèle coûte 12 € – größer wäre teurer.\n',
}


def message_of(size: int, kind: str = ASCII, lead: int = 0) -> bytes:
    """A JSON message of exactly this many bytes, with one text of this kind in it.

    An id of `lead` characters, which no server looks at, moves the place where the text begins.
    """

    def encode(text: str) -> bytes:
        message = {"id": "i" * lead, "payload": {"text": text}}
        return json.dumps(message, ensure_ascii=False).encode()

    words, frame = _WORDS[kind], len(encode(""))
    text = words * ((size - frame) // (len(encode(words)) - frame))
    return encode(text + "x" * (size - len(encode(text))))


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


class _Client:
    """One of several: its connection, when its message began, how much went and came of it."""

    __slots__ = ("connection", "got", "receive", "send", "sent", "start")

    def __init__(self, path: str) -> None:
        self.connection = _connected(path)
        self.connection.setblocking(False)
        self.send, self.receive = self.connection.send, self.connection.recv_into
        self.start, self.sent, self.got = 0.0, 0, 0


def _drive_many(
    path: str, request: bytes, expected: int, clients: int, kept: bool, span: float
) -> Slice:
    clock, buffer = time.perf_counter, bytearray(min(expected, 1 << 20))
    latencies: list[float] = []
    both, reading, writable = select.EPOLLIN | select.EPOLLOUT, select.EPOLLIN, select.EPOLLOUT
    whole, rest = len(request), memoryview(request)
    poll = select.epoll()
    talks: dict[int, _Client] = {}

    def begin(talk: _Client, now: float) -> None:
        """Send a message; what does not fit at once goes when there is room."""
        talk.start, talk.got = now, 0
        try:
            talk.sent = talk.send(request)
        except BlockingIOError:
            talk.sent = 0
        if talk.sent < whole:
            poll.modify(talk.connection, both)

    def go_on(talk: _Client) -> None:
        talk.sent += talk.send(rest[talk.sent :])
        if talk.sent == whole:
            poll.modify(talk.connection, reading)

    def open_one() -> _Client:
        talk = _Client(path)
        poll.register(talk.connection, reading)
        talks[talk.connection.fileno()] = talk
        return talk

    for _ in range(clients):
        open_one()
    began = now = clock()
    for talk in talks.values():
        begin(talk, began)
    while talks:
        events = poll.poll(PATIENCE)
        if not events:
            raise WrongReply(f"no byte for {PATIENCE:g} s")
        for fd, event in events:
            talk = talks[fd]
            if event & writable:
                go_on(talk)
                if event == writable:
                    continue
            count = talk.receive(buffer)
            if not count:
                raise WrongReply("the connection ended inside a reply")
            talk.got += count
            if talk.got < expected:
                continue
            now = clock()
            latencies.append(now - talk.start)
            if kept and now - began < span:
                begin(talk, now)
                continue
            del talks[fd]
            talk.connection.close()
            if now - began < span:
                begin(open_one(), now)
    poll.close()
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
