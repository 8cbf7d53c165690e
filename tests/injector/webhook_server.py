"""The webhook's server with a stand-in for kopf, and a client that sends it reviews."""

import asyncio
import contextlib
import datetime as dt
import io
import json
import logging
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from asya_injector.errors import Reason
from asya_injector.http import body as body_module
from asya_injector.http import listener as listener_module
from asya_injector.http.limits import Connections
from asya_injector.tls.authority import KeyPair, create
from asya_injector.tls.watcher import CertificatePair, CertWatcher
from asya_injector.webhook.admission import HANDLED
from asya_injector.webhook.review import current_review
from asya_injector.webhook.server import Server
from asya_injector.webhook.telemetry import Metrics

from tests.support.ports import free_port

NAMES = ["localhost"]
# Set once a slow review has arrived; set to have it answered.
SLOW, GATE = threading.Event(), threading.Event()
# Set once the answer to a review has been cancelled.
CANCELLED = threading.Event()
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "p-", "uid": "of-the-pod"}}
REQUEST: dict[str, Any] = {
    "uid": "u-1",
    "resource": {"group": "", "version": "v1", "resource": "pods"},
    "operation": "CREATE",
    "namespace": "models",
    "userInfo": {"username": "somebody"},
    "object": POD,
}


def review(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": REQUEST | changes,
    }


def rejection(uid: str, code: int, message: str) -> dict[str, Any]:
    status = {"code": code, "message": message}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": False, "status": status},
    }


async def kopf_stand_in(head: Any, *, webhook: str) -> Any:
    """Allows, and returns the review that it got; the object's name selects another behaviour."""
    current = current_review.get()
    uid = head["request"]["uid"]
    name = current.object["metadata"].get("name")
    if name == "broken":
        raise ZeroDivisionError("secret detail")
    if name == "slow":
        SLOW.set()
        await asyncio.to_thread(GATE.wait, 60)
    if name == "waits":  # its object is dropped first
        current.drop_object()
        SLOW.set()
        await asyncio.to_thread(GATE.wait, 60)
    if name == "forever":
        try:
            SLOW.set()
            await asyncio.Event().wait()
        finally:
            CANCELLED.set()
    if name in {"huge", "medium"}:
        current.result = "changed"
        current.patch = "A" * ((8 << 20) if name == "huge" else 60_000)
        return {"response": {"uid": uid, "allowed": True}}
    if name == "unhandled":  # as if no handler matched
        return {"response": {"uid": uid, "allowed": True}}
    if name == "rejected":
        current.reject("no", Reason.ENV_CONFLICT)
        return {"response": {"uid": uid, "allowed": False}}
    current.result = "changed"
    current.admit(current.object | {"x": head["request"]["object"]})
    return {"response": {"uid": uid, "allowed": True, "warnings": [webhook]}}


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[None]:
    opened = asyncio.Event()
    server.bind()

    async def run() -> None:
        async with contextlib.aclosing(server(kopf_stand_in)) as configs:  # type: ignore[type-var]
            async for _ in configs:
                opened.set()

    task = asyncio.create_task(run())
    try:
        async with asyncio.timeout(60):
            await opened.wait()
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Client:
    def __init__(self, port: int, pair: KeyPair) -> None:
        self.port = port
        self.url = f"https://localhost:{port}"
        self.context = ssl.create_default_context(cadata=pair.bundle.decode())
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.context))

    async def post(
        self, body: Any, path: str = "/pods?timeout=30s", content_type: str = "application/json"
    ) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": content_type}
        async with self.session.post(self.url + path, data=io.BytesIO(data), headers=headers) as it:
            text = await it.text()
            with contextlib.suppress(ValueError):
                return it.status, json.loads(text)
            return it.status, text

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to send raw bytes."""
        return await asyncio.open_connection("localhost", self.port, ssl=self.context)


@pytest.fixture(scope="module")
def pair() -> KeyPair:
    return create(NAMES, now=dt.datetime.now(dt.UTC))


@pytest.fixture
async def watcher(tmp_path: Path) -> CertWatcher:
    return CertWatcher(tmp_path, name="localhost")


@pytest.fixture(autouse=True)
def events() -> None:
    for event in (SLOW, GATE, CANCELLED):
        event.clear()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time limits that no busy machine exceeds; a test of one of them sets that one."""
    for name in ("_HANDSHAKE_SECONDS", "_FIRST_REQUEST_SECONDS", "_SEND_SECONDS"):
        monkeypatch.setattr(listener_module, name, 100.0)
    monkeypatch.setattr(body_module, "_SECONDS", 100.0)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def records() -> Iterator[list[Any]]:
    """The records that the server logs."""
    records: list[Any] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment]
    logger = logging.getLogger("asya_injector.webhook.server")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield records
    logger.removeHandler(handler)


def named(name: str, *, size: int = 0) -> bytes:
    """A review of an object whose name selects what kopf's stand-in does."""
    return json.dumps(review(object={"metadata": {"name": name}})).encode().ljust(size)


def post(body: bytes, *, length: int = 0, timeout: int = 30) -> bytes:
    """The bytes of a request. length: what its header says, if that is more."""
    head = (
        f"POST /pods?timeout={timeout}s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


async def are_closed(readers: list[asyncio.StreamReader], expected: list[bool]) -> list[bool]:
    """Whether each connection is closed; those that are expected to be get much time for it."""
    return [
        await is_closed(reader, within=60.0 if closed else 0.2)
        for reader, closed in zip(readers, expected, strict=True)
    ]


async def is_closed(reader: asyncio.StreamReader, *, within: float = 60.0) -> bool:
    try:
        async with asyncio.timeout(within):
            while await reader.read(1 << 20):
                pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@contextlib.asynccontextmanager
async def running(
    watcher: CertWatcher, pair: KeyPair, metrics: Metrics | None = None, **limits: int
) -> AsyncIterator[tuple[Client, Server]]:
    """A server that is ready, and a client of it."""
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=metrics or Metrics())
    if limits:
        server._connections = Connections(**limits)
    async with serving(server):
        client = Client(port, pair)
        async with client.session:
            yield client, server


@pytest.fixture
async def client(watcher: CertWatcher, pair: KeyPair, metrics: Metrics) -> AsyncIterator[Client]:
    async with running(watcher, pair, metrics) as (client, _):
        yield client
