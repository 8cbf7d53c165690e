"""The TLS server: what reaches kopf, and how all other requests are answered."""

import asyncio
import base64
import contextlib
import datetime as dt
import gc
import gzip
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
from asya_injector.webhook import server as server_module
from asya_injector.webhook.admission import HANDLED
from asya_injector.webhook.review import current_review
from asya_injector.webhook.server import Server
from asya_injector.webhook.telemetry import Metrics

from tests.support.injector_process import free_port

NAMES = ["localhost"]
# Set once a slow review has arrived; set to have it answered.
SLOW, GATE = threading.Event(), threading.Event()
# Set once the answer to a review has been cancelled.
CANCELLED = threading.Event()
LARGE = 100 << 10
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
        await asyncio.to_thread(GATE.wait, 10)
    if name == "waits":  # its object is dropped first
        current.drop_object()
        SLOW.set()
        await asyncio.to_thread(GATE.wait, 10)
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


def patch_of(answer: Any) -> Any:
    return json.loads(base64.b64decode(answer["response"]["patch"]))


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
        async with asyncio.timeout(10):
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
        self, body: Any, path: str = "/pods", content_type: str = "application/json"
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


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def client(watcher: CertWatcher, pair: KeyPair, metrics: Metrics) -> AsyncIterator[Client]:
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    async with serving(Server(port=port, watcher=watcher, handled=HANDLED, metrics=metrics)):
        client = Client(port, pair)
        async with client.session:
            yield client


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


async def test_kopf_gets_a_stub_of_the_object_and_the_patch_is_added_to_its_answer(
    client: Client,
) -> None:
    status, answer = await client.post(review(oldObject={"metadata": {}}))
    head = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p-", "namespace": "models"},
    }
    assert status == 200
    assert patch_of(answer) == [{"op": "add", "path": "/x", "value": head}]
    assert answer["response"]["uid"] == "u-1"
    assert answer["response"]["warnings"] == ["pods"]
    assert answer["response"]["patchType"] == "JSONPatch"


async def test_a_review_is_one_log_line_and_one_count(
    client: Client, metrics: Metrics, records: list[Any]
) -> None:
    await client.post(review(object={"metadata": {"name": "rejected"}}, dryRun=True))
    (record,) = records
    assert {
        key: getattr(record, key)
        for key in (
            *("uid", "resource", "operation", "namespace", "object", "dryrun"),
            *("reason", "rejection", "levelname"),
        )
    } == {
        "uid": "u-1",
        "resource": "pods",
        "operation": "CREATE",
        "namespace": "models",
        "object": "rejected",
        "dryrun": True,
        "reason": "EnvConflict",
        "rejection": "no",
        "levelname": "INFO",
    }
    labels = {"resource": "pods", "result": "rejected", "reason": "EnvConflict"}
    assert metrics.registry.get_sample_value("asya_injector_admissions_total", labels) == 1
    count = "asya_injector_admission_duration_seconds_count"
    assert metrics.registry.get_sample_value(count) == 1


@pytest.mark.parametrize("path", ["/", "/inject", "/pods/x", "/pod"])
async def test_rejects_a_path_that_the_chart_does_not_use(client: Client, path: str) -> None:
    assert await client.post(review(), path) == (
        200,
        rejection("u-1", 404, "this path is not a webhook; use the chart's webhook configuration"),
    )


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("/workloads", {}),
        ("/pods", {"resource": {"group": "apps", "version": "v1", "resource": "deployments"}}),
        ("/pods", {"resource": {"group": "", "version": "v2", "resource": "pods"}}),
        ("/pods", {"subResource": "eviction"}),
    ],
)
async def test_rejects_an_object_that_the_path_does_not_handle(
    client: Client, path: str, changes: dict[str, Any]
) -> None:
    message = "this webhook does not handle such objects; use the chart's webhook configuration"
    assert await client.post(review(**changes), path) == (200, rejection("u-1", 404, message))


@pytest.mark.parametrize("name", ["broken", "unhandled"])
async def test_an_internal_error_rejects_the_object_and_discloses_only_the_uid(
    client: Client, metrics: Metrics, records: list[Any], name: str
) -> None:
    message = "the injector failed on this object; search its log for uid u-1 (InternalError)"
    assert await client.post(review(object={"metadata": {"name": name}})) == (
        200,
        rejection("u-1", 500, message),
    )
    error, decision = records
    assert (error.levelname, error.uid, decision.reason) == ("ERROR", "u-1", "InternalError")
    labels = {"resource": "pods", "result": "failed", "reason": "InternalError"}
    assert metrics.registry.get_sample_value("asya_injector_admissions_total", labels) == 1


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "the review needs request, as an object"),
        (b'"x"', "the review needs request, as an object"),
        (b"{}", "the review needs request, as an object"),
        (b'{"request": null}', "the review needs request, as an object"),
        (b'{"request": []}', "the review needs request, as an object"),
        (b'{"request": {}}', "request needs uid, as a string"),
        (b'{"request": {"uid": 1}}', "request needs uid, as a string"),
        (b'{"request": {"uid": ""}}', "request.uid is not 1 to 100 characters long"),
        (
            b'{"request": {"uid": "%s"}}' % (b"u" * 101),
            "request.uid is not 1 to 100 characters long",
        ),
    ],
    ids=lambda value: repr(value[:30]),
)
async def test_rejects_a_body_that_is_not_a_review_in_one_line(
    client: Client, metrics: Metrics, body: bytes, text: str
) -> None:
    assert await client.post(body) == (400, f"asya-injector: {text}\n")
    labels = {"code": "400"}
    assert metrics.registry.get_sample_value("asya_injector_bad_requests_total", labels) == 1


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("object", None, "request needs object, as an object"),
        ("object", [], "request needs object, as an object"),
        ("object", {}, "request.object needs metadata, as an object"),
        ("object", {"metadata": []}, "request.object needs metadata, as an object"),
        ("resource", "pods", "request needs resource, as an object"),
        ("resource", {}, "request.resource needs group, as a string"),
        ("operation", 7, "request needs operation, as a string"),
        ("operation", "DELETE", "request.operation is neither CREATE nor UPDATE"),
        ("userInfo", None, "request needs userInfo, as an object"),
        ("namespace", None, "request needs namespace, as a string"),
        ("namespace", "", "request.namespace is not the name of a namespace"),
        ("namespace", "Models", "request.namespace is not the name of a namespace"),
        ("namespace", "models\n", "request.namespace is not the name of a namespace"),
        ("namespace", "../kube-system", "request.namespace is not the name of a namespace"),
        ("namespace", "a" * 64, "request.namespace is not the name of a namespace"),
    ],
)
async def test_rejects_a_malformed_review_with_its_uid(
    client: Client, field: str, value: Any, text: str
) -> None:
    assert await client.post(review(**{field: value})) == (200, rejection("u-1", 400, text))


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease"])
async def test_rejects_system_namespaces(client: Client, namespace: str) -> None:
    """The chart's webhook configuration excludes them, so such a review is forged."""
    assert await client.post(review(namespace=namespace)) == (
        200,
        rejection("u-1", 403, "system namespaces are never injected"),
    )


@pytest.mark.parametrize("namespace", ["a", "0", "a" * 63, "kube-system-2", "a-b"])
async def test_accepts_other_namespaces(client: Client, namespace: str) -> None:
    assert (await client.post(review(namespace=namespace)))[1]["response"]["allowed"]


async def test_rejects_older_versions_of_tls(client: Client) -> None:
    _, writer = await client.connect()
    writer.close()
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.connect()


async def test_accepts_only_json_as_content_type(client: Client) -> None:
    assert await client.post(review(), content_type="text/plain") == (
        415,
        "asya-injector: the content type is not application/json\n",
    )
    status, _ = await client.post(review(), content_type="application/json; charset=utf-8")
    assert status == 200


async def test_does_not_decompress_a_body(client: Client) -> None:
    compressed = gzip.compress(json.dumps(review()).encode())
    head = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client.session.post(f"{client.url}/pods", data=compressed, headers=head) as answer:
        assert (answer.status, await answer.text()) == (
            400,
            "asya-injector: the body is not JSON\n",
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_rejects_other_methods(client: Client, method: str) -> None:
    async with client.session.request(method, client.url + "/pods") as answer:
        assert answer.status == 405


@pytest.mark.parametrize("size", [3 << 20, 8 << 20])
async def test_accepts_reviews_as_large_as_the_api_server_sends(client: Client, size: int) -> None:
    status, answer = await client.post(json.dumps(review()).encode().ljust(size))
    assert (status, answer["response"]["allowed"]) == (200, True)


def too_large(problem: str) -> str:
    return (
        f"this object's review has more than {problem}; make the object smaller, or inject its "
        "manifest with `asya-injector inject` (ReviewTooLarge)"
    )


@pytest.mark.parametrize("size", [(8 << 20) + 1, 24 << 20])
async def test_rejects_a_larger_review_with_its_uid_and_a_readable_text(
    client: Client, metrics: Metrics, size: int
) -> None:
    body = json.dumps(review()).encode().ljust(size)
    text = too_large("8388608 bytes")
    assert await client.post(body) == (200, rejection("u-1", 413, text))
    labels = {"code": "413"}
    assert metrics.registry.get_sample_value("asya_injector_bad_requests_total", labels) == 1


async def test_rejects_a_large_body_without_a_uid(client: Client) -> None:
    assert await client.post(b" " * ((8 << 20) + 1)) == (
        413,
        f"asya-injector: {too_large('8388608 bytes')}\n",
    )


EMPTY = b"{}," * 350_000
DENSE = {
    "mappings": b"[" + EMPTY + b"{}]",
    "after a text with quotes": b'["\\\\","\\"{,",' + EMPTY + b"{}]",
    "lists": b"[" + b"[]," * 350_000 + b"[]]",
    "numbers": b"[" + b"0," * 650_000 + b"0]",
}


@pytest.mark.parametrize("value", DENSE.values(), ids=DENSE)
async def test_rejects_a_review_that_would_take_too_much_memory_when_parsed(
    client: Client, value: bytes
) -> None:
    body = json.dumps(review()).encode().replace(b'"operation"', b'"x": %s, "operation"' % value)
    assert await client.post(body) == (200, rejection("u-1", 413, too_large("600000 values")))


async def test_accepts_texts_that_only_look_like_many_values(client: Client) -> None:
    text = '{"a": [0]}, \\"\\' * 300_000
    metadata = {"name": "p", "annotations": {"a": text, "b": '"'}}
    status, answer = await client.post(review(object=POD | {"metadata": metadata}))
    assert (status, answer["response"]["allowed"]) == (200, True)


async def test_closes_a_connection_whose_body_does_not_arrive(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_module, "_SECONDS", 0.2)
    reader, writer = await client.connect()
    writer.write(
        b"POST /pods HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n{"
    )
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await reader.read()  # and the connection is closed
    writer.close()


async def test_closes_silent_connections_and_answers_others(
    watcher: CertWatcher, pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(listener_module, "_HANDSHAKE_SECONDS", 1.0)
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    async with serving(server), asyncio.timeout(30):
        client = Client(port, pair)
        plain = [await asyncio.open_connection("localhost", port) for _ in range(50)]
        silent = [await client.connect() for _ in range(50)]
        slow = [await client.connect() for _ in range(50)]
        for _, writer in slow:
            writer.write(b"POST /pods HTTP/1.1\r\nHost:")
        async with client.session:
            assert (await client.post(review()))[0] == 200
        for reader, writer in plain + silent + slow:
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
            writer.close()


async def test_answers_several_reviews_on_one_connection(client: Client) -> None:
    reader, writer = await client.connect()
    body = json.dumps(review()).encode()
    head = "POST /pods?timeout=5s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    one = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    writer.write(one * 3)
    for _ in range(3):
        async with asyncio.timeout(10):
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["response"]["allowed"]
    writer.close()


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("timeout=5s", 3.5),
        ("timeout=10s", 7.0),
        ("timeout=30s", 21.0),
        ("", 3.5),
        ("timeout=1m0s", 3.5),
        # The API server sends 1 to 30 s.
        ("timeout=0s", 0.7),
        ("timeout=31s", 21.0),
        ("timeout=999999999s", 21.0),
        (f"timeout={'9' * 400}s", 21.0),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_the_deadline_of_a_review_is_earlier_than_the_api_servers_timeout(
    client: Client, monkeypatch: pytest.MonkeyPatch, query: str, seconds: float
) -> None:
    seen: list[float] = []

    class Recorder:
        def set(self, review: Any) -> None:
            seen.append(review.deadline - asyncio.get_running_loop().time())
            current_review.set(review)

    monkeypatch.setattr(server_module, "current_review", Recorder())
    await client.post(review(), f"/pods?{query}")
    assert seen == pytest.approx([seconds], abs=0.5)


async def test_refuses_connections_until_a_certificate_is_loaded(watcher: CertWatcher) -> None:
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    server.bind()
    task = asyncio.ensure_future(anext(aiter(server(kopf_stand_in))))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    assert not server.listening
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    server.unbind()


async def test_replaces_the_certificate_and_keeps_open_connections(
    client: Client, watcher: CertWatcher, pair: KeyPair
) -> None:
    reader, writer = await client.connect()
    fresh = create(NAMES, now=dt.datetime.now(dt.UTC))
    watcher.load(CertificatePair(fresh.certificate, fresh.key))
    other = Client(client.port, fresh)
    async with other.session:
        assert (await other.post(review()))[0] == 200
    with pytest.raises(ssl.SSLError):  # the old CA did not sign the new certificate
        await client.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
    writer.close()


async def test_answers_pending_reviews_when_it_is_closed(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    client = Client(port, pair)
    async with client.session:
        async with serving(server):
            idle, _ = await client.connect()
            body = review(object={"metadata": {"name": "slow"}})
            asked = asyncio.create_task(client.post(body))
            assert await asyncio.to_thread(SLOW.wait, 10)
            asyncio.get_running_loop().call_later(0.1, GATE.set)  # once the closing has begun
        assert (await asked)[0] == 200
        async with asyncio.timeout(5):
            assert await idle.read() == b""
        assert not server.listening
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    ("quiet", "limit", "levels"),
    [(0.4, 5.0, []), (5.0, 0.8, ["WARNING"])],
    ids=["until a quiet period", "until the limit"],
)
async def test_while_draining_answers_new_connections_and_closes_them(
    watcher: CertWatcher,
    pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
    records: list[Any],
    quiet: float,
    limit: float,
    levels: list[str],
) -> None:
    """Endpoints and kube-proxy may learn only after the quiet period that a pod stops."""
    monkeypatch.setattr(server_module, "_QUIET_SECONDS", quiet)
    monkeypatch.setattr(server_module, "_MAX_DRAIN_SECONDS", limit)
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    client = Client(port, pair)
    async with client.session, serving(server), asyncio.timeout(30):
        draining = asyncio.create_task(server.drain())
        for _ in range(4):  # longer in total than the shorter quiet period
            await asyncio.wait([draining], timeout=0.15)
            assert not draining.done()
            async with client.session.post(f"{client.url}/pods", json=review()) as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
        await draining
        assert [each.levelname for each in records if each.levelname != "INFO"] == levels


async def test_does_not_drain_if_it_was_never_ready(watcher: CertWatcher) -> None:
    """Without a certificate it is not ready, so it gets no connections."""
    server = Server(port=free_port(), watcher=watcher, handled=HANDLED, metrics=Metrics())
    draining = asyncio.create_task(server.drain())
    await asyncio.wait([draining], timeout=0.5)
    assert draining.done()


# --- Limits


def named(name: str, *, size: int = 0) -> bytes:
    """A review of an object whose name selects what kopf's stand-in does."""
    return json.dumps(review(object={"metadata": {"name": name}})).encode().ljust(size)


def post(body: bytes, *, length: int = 0, timeout: int = 5) -> bytes:
    """The bytes of a request. length: what its header says, if that is more."""
    head = (
        f"POST /pods?timeout={timeout}s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    )
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


async def is_closed(reader: asyncio.StreamReader, *, within: float = 10.0) -> bool:
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
async def limited(
    watcher: CertWatcher, pair: KeyPair, **limits: int
) -> AsyncIterator[tuple[Client, Server]]:
    """A server with other limits."""
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    server._connections = Connections(**limits)
    async with serving(server):
        client = Client(port, pair)
        async with client.session:
            yield client, server


async def test_stops_answering_a_caller_that_closes_its_connection(client: Client) -> None:
    _, writer = await client.connect()
    writer.write(post(named("forever")))
    assert await asyncio.to_thread(SLOW.wait, 10)
    writer.transport.abort()
    assert await asyncio.to_thread(CANCELLED.wait, 10)


async def test_closes_the_oldest_silent_connections_if_there_are_too_many(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with limited(watcher, pair, max_connections=4) as (client, server):
        busy, writer = await client.connect()
        writer.write(post(named("slow")))
        assert await asyncio.to_thread(SLOW.wait, 10)
        silent = [await client.connect() for _ in range(5)]
        assert (await client.post(review()))[0] == 200
        closed = [await is_closed(reader, within=0.2) for reader, _ in silent]
        assert closed == [True, True, True, False, False]
        GATE.set()
        async with asyncio.timeout(10):
            assert (await busy.readline()).startswith(b"HTTP/1.1 200 ")
        assert len(server._connections) == 4
        for _, each in silent:
            each.transport.abort()


async def test_counts_connections_before_their_handshake(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with limited(watcher, pair, max_connections=4) as (client, server):
        plain = [await asyncio.open_connection("127.0.0.1", client.port) for _ in range(10)]
        assert (await client.post(review()))[0] == 200
        assert len(server._connections) == 4
        closed = [await is_closed(reader, within=0.2) for reader, _ in plain]
        assert closed == [True] * 7 + [False] * 3
        for _, writer in plain:
            writer.close()
        while len(server._connections) > 1:
            await asyncio.sleep(0.01)


async def test_closes_the_largest_unfinished_request_if_all_take_too_much_memory(
    watcher: CertWatcher, pair: KeyPair
) -> None:
    async with limited(watcher, pair, max_bytes=1 << 20) as (client, server):
        peers = []
        for size in (500 << 10, 300 << 10, 400 << 10):
            reader, writer = await client.connect()
            writer.write(post(b" " * size, length=8 << 20))
            await writer.drain()
            peers.append((reader, writer))
            async with asyncio.timeout(10):
                while not server._connections.closed_early and server._connections._size < size:
                    await asyncio.sleep(0.01)
        closed = [await is_closed(reader, within=0.5) for reader, _ in peers]
        assert closed == [True, False, False]
        assert (await client.post(review()))[0] == 200
        for _, writer in peers:
            writer.transport.abort()
        while server._connections._size:
            await asyncio.sleep(0.01)


async def test_closes_connections_whose_first_request_does_not_arrive_in_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "_FIRST_REQUEST_SECONDS", 0.5)
    used, silent, slow = [await client.connect() for _ in range(3)]
    used[1].write(post(named("p")))
    slow[1].write(b"POST /pods HTTP/1.1\r\nHost:")
    assert await is_closed(silent[0])
    assert await is_closed(slow[0])
    assert not await is_closed(used[0], within=0.5)
    for _, writer in (used, silent, slow):
        writer.close()


@pytest.mark.parametrize(("name", "count"), [("huge", 1), ("medium", 200)])
async def test_closes_a_connection_that_does_not_read_its_answers(
    client: Client, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    status, answer = await client.post(named(name))
    assert (status, len(answer["response"]["patch"])) == (200, (8 << 20) if count == 1 else 60_000)
    monkeypatch.setattr(listener_module, "_SEND_SECONDS", 0.3)
    reader, writer = await client.connect()
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(post(named(name)) * count)
    await asyncio.sleep(2)
    reader._transport.resume_reading()  # type: ignore[attr-defined]
    received = b""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(10):
            while chunk := await reader.read(1 << 20):
                received += chunk
    assert received.startswith(b"HTTP/1.1 200 ")
    assert len(received) < 8 << 20
    writer.close()


async def test_answers_one_large_review_at_a_time_and_small_ones_meanwhile(client: Client) -> None:
    first, second, third = [await client.connect() for _ in range(3)]
    first[1].write(post(named("slow", size=LARGE)))
    assert await asyncio.to_thread(SLOW.wait, 10)
    second[1].write(post(named("p", size=LARGE)))
    third[1].write(post(named("p", size=LARGE), timeout=1))
    assert (await client.post(named("p")))[0] == 200
    async with asyncio.timeout(10):
        head = await third[0].readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        text = "too many large reviews at the same time; try again"
        expected = json.dumps(rejection("u-1", 503, text)).encode()
        assert await third[0].readexactly(len(expected)) == expected
    assert not await is_closed(second[0], within=0.2)
    GATE.set()
    for reader, writer in (first, second):
        async with asyncio.timeout(10):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    third[1].close()
    assert gc.isenabled()


async def test_a_large_review_gives_its_turn_away_while_it_waits(client: Client) -> None:
    _, writer = await client.connect()
    writer.write(post(named("waits", size=LARGE)))
    assert await asyncio.to_thread(SLOW.wait, 10)
    async with asyncio.timeout(10):
        status, answer = await client.post(named("p", size=LARGE))
    assert (status, answer["response"]["allowed"]) == (200, True)
    GATE.set()
    writer.close()


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
        async with asyncio.timeout(10):
            assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
        assert await is_closed(reader)
        writer.close()
    assert (await client.post(review()))[0] == 200
    assert [record.levelname for record in records] == ["INFO"]
