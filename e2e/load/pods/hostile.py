"""Fifty hostile callers of the injector, of all kinds, each at a bounded rate.

    hostile.py SECONDS NAMESPACE ADDRESS...

NAMESPACE: where genuine pods are created. ADDRESS: of the injector's pods. Prints `started`, and at
the end a line of JSON: for each kind of caller, how often each answer came.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

PORT = 9443
LARGEST = 8 << 20
SECONDS, NAMESPACE, ADDRESSES = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
UNVERIFIED = ssl._create_unverified_context()
numbers = itertools.count()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def build_review(namespace: str, *, sidecars: int = 0, dry_run: bool = False) -> bytes:
    """A forged review of an annotated pod."""
    names = [f"c{number}" for number in range(sidecars)]
    annotations = {"asya.sh/handler": "my_app.handler.predict"}
    if names:
        annotations["asya.sh/sidecars"] = ",".join(names)
    containers = [{"name": "model", "command": ["serve"]}, *({"name": name} for name in names)]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "forged", "annotations": annotations},
        "spec": {"containers": containers},
    }
    request = {
        "uid": f"forged-{next(numbers)}",
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "operation": "CREATE",
        "namespace": namespace,
        "userInfo": {},
        "dryRun": dry_run,
        "object": pod,
    }
    return json.dumps({"request": request}).encode()


def build_head(length: int, timeout: str = "5s") -> bytes:
    lines = [
        f"POST /pods?timeout={timeout} HTTP/1.1",
        "Host: injector",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


DENSE = b'{"request":{"uid":"u","x":[' + b"{}," * 299_000 + b"{}]}}"
LONG = b'{"request":{"uid":"u","x":"' + b"x" * (LARGEST - 100) + b'"}}'
SIDECARS = build_review(NAMESPACE, sidecars=7000, dry_run=True)


async def connect(address: str) -> Streams:
    return await asyncio.open_connection(address, PORT, ssl=UNVERIFIED)


async def read_status(reader: asyncio.StreamReader) -> str:
    """The HTTP status of the answer; `closed` if there is none."""
    line = await reader.readline()
    return line.decode().split(" ")[1] if line else "closed"


async def send(address: str, body: bytes, timeout: str = "5s") -> str:
    reader, writer = await connect(address)
    try:
        writer.write(build_head(len(body), timeout) + body)
        await writer.drain()
        return await read_status(reader)
    finally:
        writer.transport.abort()


async def leave(address: str) -> str:
    """Ask for the work of a thousand years, and do not wait for it."""
    body = build_review(f"configmaps-{next(numbers)}")
    _, writer = await connect(address)
    writer.write(build_head(len(body), "999999999s") + body)
    await writer.drain()
    writer.transport.abort()
    return "left"


async def hurry(address: str) -> str:
    """Wait with genuine pods of the same namespace, for no time at all."""
    return await send(address, build_review(NAMESPACE), "0s")


async def stop_in_the_body(address: str) -> str:
    reader, writer = await connect(address)
    try:
        writer.write(build_head(LARGEST) + b" " * (LARGEST // 2))
        return await read_status(reader)
    finally:
        writer.transport.abort()


async def send_slow_headers(address: str) -> str:
    reader, writer = await connect(address)
    try:
        writer.write(b"POST /pods HTTP/1.1\r\nX-Slow: ")
        reading = asyncio.create_task(reader.read(1))
        while not reading.done():
            writer.write(b"x")
            await asyncio.wait([reading], timeout=0.3)
        return "closed"
    finally:
        writer.transport.abort()


async def send_small_chunks(address: str) -> str:
    reader, writer = await connect(address)
    try:
        head = build_head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        writer.write(head + b"1\r\n{\r\n" * 200_000)
        return await read_status(reader)
    finally:
        writer.transport.abort()


async def forge(address: str) -> str:
    return await send(address, build_review(f"forged-{next(numbers)}"))


async def send_garbage(address: str) -> str:
    """Bytes that are not TLS, or not HTTP inside of TLS."""
    secure = random.random() < 0.5
    reader, writer = await asyncio.open_connection(
        address, PORT, ssl=UNVERIFIED if secure else None
    )
    try:
        writer.write(os.urandom(1000) + b"\r\n\r\n")
        await writer.drain()
        await reader.read(1)
        return "read"
    finally:
        writer.transport.abort()


# The number of callers of each kind, and the seconds between two attempts of a caller.
KINDS: dict[str, tuple[Callable[[str], Awaitable[str]], int, float]] = {
    "closed at once": (leave, 8, 0.25),
    "without time": (hurry, 6, 0.25),
    "unfinished bodies": (stop_in_the_body, 8, 0.1),
    "slow headers": (send_slow_headers, 6, 0.1),
    "600,000 values": (lambda address: send(address, DENSE), 5, 1.0),
    "8 MiB": (lambda address: send(address, LONG), 3, 1.0),
    "small chunks": (send_small_chunks, 2, 0.25),
    "7,000 sidecars": (lambda address: send(address, SIDECARS), 5, 1.0),
    "forged namespaces": (forge, 4, 0.25),
    "garbage": (send_garbage, 3, 0.25),
}


async def repeat(
    attempt: Callable[[str], Awaitable[str]], pause: float, addresses: list[str], end: float
) -> Counter[str]:
    """Attempt at the addresses in turn until the end."""
    answers: Counter[str] = Counter()
    await asyncio.sleep(random.random() * pause)
    for address in itertools.cycle(addresses):
        if time.monotonic() > end:
            return answers
        try:
            async with asyncio.timeout(end + 1 - time.monotonic()):
                answers[await attempt(address)] += 1
        except (OSError, TimeoutError, ValueError) as error:
            answers[type(error).__name__] += 1
        await asyncio.sleep(pause)
    raise AssertionError("no address")


async def main() -> None:
    end = time.monotonic() + SECONDS
    print("started", flush=True)
    kinds = [kind for kind, (_, count, _) in KINDS.items() for _ in range(count)]
    results = await asyncio.gather(
        *(
            repeat(KINDS[kind][0], KINDS[kind][2], random.sample(ADDRESSES, len(ADDRESSES)), end)
            for kind in kinds
        )
    )
    answers: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for kind, result in zip(kinds, results, strict=True):
        answers[kind] += result
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main())
