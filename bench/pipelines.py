"""Clients that keep a number of requests in flight, and check every reply."""

import contextlib
import json
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from bench.clients import CLOSED, TIMEOUT
from bench.contenders import HTTP, ServerError

CONNECTIONS = 8  # of a protocol that pipelines
Address = str | tuple[str, int]


def take_frames(received: bytearray) -> list[bytes]:
    """Remove and return the bodies of all complete frames."""
    bodies, start = [], 0
    while len(received) >= start + 4:
        end = start + 4 + int.from_bytes(received[start : start + 4], "big")
        if len(received) < end:
            break
        bodies.append(bytes(received[start + 4 : end]))
        start = end
    del received[:start]
    return bodies


def take_responses(received: bytearray) -> list[bytes]:
    """Remove and return the bodies of all complete HTTP responses; all must be 200."""
    bodies, start = [], 0
    while (head_end := received.find(b"\r\n\r\n", start)) >= 0:
        head = bytes(received[start:head_end])
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        if not head.startswith(b"HTTP/1.1 200 ") or not length:
            raise ServerError(f"unexpected response: {bytes(received[start : start + 500])!r}")
        end = head_end + 4 + int(length[1])
        if len(received) < end:
            break
        bodies.append(bytes(received[head_end + 4 : end]))
        start = end
    del received[:start]
    return bodies


def split_in_flight(protocol: str, in_flight: int) -> list[int]:
    """How many requests each connection has in flight; HTTP has one, so it needs the most."""
    connections = in_flight if protocol == HTTP else min(in_flight, CONNECTIONS)
    return [len(range(n, in_flight, connections)) for n in range(connections)]


class _Client:
    def __init__(self, address: Address, requests: Sequence[bytes], first: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(address)
        self.requests, self.next = requests, first
        self.received = bytearray()
        self.waiting = deque[tuple[float, int]]()  # when each was sent, and which it was

    def send(self, count: int, now: float) -> None:
        numbers = [(self.next + n) % len(self.requests) for n in range(count)]
        self.next += count
        self.waiting += [(now, number) for number in numbers]
        self.socket.sendall(b"".join(self.requests[number] for number in numbers))


def drive(
    protocol: str,
    address: Address,
    requests: Sequence[bytes],
    expected: Sequence[Any],
    depths: Sequence[int],
    span: float,
) -> tuple[float, list[float]]:
    """Send for `span` seconds and wait for all replies: the seconds it took, and all latencies.

    expected: the decoded reply to each request; raises ServerError for another.
    """
    take = take_responses if protocol == HTTP else take_frames
    latencies: list[float] = []
    seen = set[tuple[int, bytes]]()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        clients = [_Client(address, requests, 7 * n) for n in range(len(depths))]
        for client in clients:
            stack.enter_context(client.socket)
            selector.register(client.socket, selectors.EVENT_READ, client)
        began = time.perf_counter()
        for client, depth in zip(clients, depths, strict=True):
            client.send(depth, time.perf_counter())
        while selector.get_map():
            events = selector.select(TIMEOUT)
            if not events:
                raise ServerError(f"no byte within {TIMEOUT:g} s")
            for key, _ in events:
                client = key.data
                chunk = client.socket.recv(1 << 18)
                if not chunk:
                    raise ServerError(CLOSED)
                client.received += chunk
                bodies, now = take(client.received), time.perf_counter()
                for body in bodies:
                    start, number = client.waiting.popleft()
                    latencies.append(now - start)
                    if (number, body) not in seen:
                        if json.loads(body) != expected[number]:
                            raise ServerError(f"wrong reply to request {number}: {body[:200]!r}")
                        seen.add((number, body))
                if bodies and now - began < span:
                    client.send(len(bodies), now)
                elif not client.waiting:
                    selector.unregister(client.socket)
        return time.perf_counter() - began, latencies
