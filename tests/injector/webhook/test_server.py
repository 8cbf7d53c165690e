"""The TLS listener: what reaches kopf, and what everything else is answered."""

import asyncio
import base64
import contextlib
import datetime as dt
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


def refused(uid: str, code: int, message: str) -> dict[str, Any]:
    status = {"code": code, "message": message}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": False, "status": status},
    }


async def kopf_stand_in(head: Any, *, webhook: str) -> Any:
    """Allows, and says what it was shown; or does what the object's name wants."""
    current = current_review.get()
    uid = head["request"]["uid"]
    name = current.object["metadata"].get("name")
    if name == "broken":
        raise ZeroDivisionError("secret detail")
    if name == "slow":
        SLOW.set()
        await asyncio.to_thread(GATE.wait, 10)
    if name == "nobody":  # as if no handler was there for it
        return {"response": {"uid": uid, "allowed": True}}
    if name == "rejected":
        current.reject("no", Reason.ENV_CONFLICT)
        return {"response": {"uid": uid, "allowed": False}}
    current.result = "changed"
    current.patch = [{"op": "add", "path": "/x", "value": head["request"]["object"]}]
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
        """A connection for bytes of the test's own."""
        return await asyncio.open_connection("localhost", self.port, ssl=self.context)


@pytest.fixture(scope="module")
def pair() -> KeyPair:
    return create(NAMES, now=dt.datetime.now(dt.UTC))


@pytest.fixture
async def watcher(tmp_path: Path) -> CertWatcher:
    return CertWatcher(tmp_path, name="localhost")


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
def said() -> Iterator[list[Any]]:
    """What the server logs."""
    records: list[Any] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment]
    logger = logging.getLogger("asya_injector.webhook.server")
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield records
    logger.removeHandler(handler)


async def test_kopf_is_shown_the_head_of_the_object_and_its_answer_gets_our_patch(
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


async def test_a_decision_is_one_log_line_and_one_count(
    client: Client, metrics: Metrics, said: list[Any]
) -> None:
    await client.post(review(object={"metadata": {"name": "rejected"}}, dryRun=True))
    (record,) = said
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
async def test_a_path_that_the_chart_does_not_name_is_refused_not_silently_allowed(
    client: Client, path: str
) -> None:
    assert await client.post(review(), path) == (
        200,
        refused("u-1", 404, "this path is not a webhook; use the chart's webhook configuration"),
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
async def test_what_a_path_has_no_handler_for_is_refused_not_silently_allowed(
    client: Client, path: str, changes: dict[str, Any]
) -> None:
    message = "this webhook does not handle such objects; use the chart's webhook configuration"
    assert await client.post(review(**changes), path) == (200, refused("u-1", 404, message))


@pytest.mark.parametrize("name", ["broken", "nobody"])
async def test_a_fault_becomes_a_refusal_that_tells_nothing_but_the_uid(
    client: Client, metrics: Metrics, said: list[Any], name: str
) -> None:
    message = "the injector failed on this object; search its log for uid u-1 (InternalError)"
    assert await client.post(review(object={"metadata": {"name": name}})) == (
        200,
        refused("u-1", 500, message),
    )
    fault, decision = said
    assert (fault.levelname, fault.uid, decision.reason) == ("ERROR", "u-1", "InternalError")
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
        (b'{"request": {"uid": ""}}', "request.uid is empty"),
    ],
    ids=lambda value: repr(value[:30]),
)
async def test_what_is_no_review_is_a_bad_request_in_one_line(
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
        ("userInfo", None, "request needs userInfo, as an object"),
    ],
)
async def test_a_malformed_review_is_refused_under_its_uid(
    client: Client, field: str, value: Any, text: str
) -> None:
    assert await client.post(review(**{field: value})) == (200, refused("u-1", 400, text))


async def test_nobody_is_talked_to_by_an_older_tls(client: Client) -> None:
    _, writer = await client.connect()
    writer.close()
    client.context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await client.connect()


async def test_the_content_type_must_be_json(client: Client) -> None:
    assert await client.post(review(), content_type="text/plain") == (
        415,
        "asya-injector: the content type is not application/json\n",
    )
    status, _ = await client.post(review(), content_type="application/json; charset=utf-8")
    assert status == 200


async def test_nothing_is_unpacked(client: Client) -> None:
    packed = gzip.compress(json.dumps(review()).encode())
    head = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client.session.post(f"{client.url}/pods", data=packed, headers=head) as answer:
        assert (answer.status, await answer.text()) == (
            400,
            "asya-injector: the body is not JSON\n",
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_told_so(client: Client, method: str) -> None:
    async with client.session.request(method, client.url + "/pods") as answer:
        assert answer.status == 405


@pytest.mark.parametrize(("size", "status"), [(3 << 20, 200), (8 << 20, 200), ((8 << 20) + 1, 413)])
async def test_reviews_as_large_as_the_api_server_sends_are_taken(
    client: Client, size: int, status: int
) -> None:
    body = io.BytesIO(json.dumps(review()).encode().ljust(size))
    head = {"Content-Type": "application/json"}
    async with client.session.post(f"{client.url}/pods", data=body, headers=head) as answer:
        assert answer.status == status


async def test_a_body_that_does_not_come_ends_in_time(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_BODY_SECONDS", 0.2)
    reader, writer = await client.connect()
    writer.write(
        b"POST /pods HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n{"
    )
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await reader.read()  # and the connection is closed
    writer.close()


async def test_connections_that_say_nothing_are_closed_and_others_are_answered_meanwhile(
    watcher: CertWatcher, pair: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_IDLE_SECONDS", 1.0)
    monkeypatch.setattr(server_module, "_HANDSHAKE_SECONDS", 1.0)
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


async def test_a_connection_is_kept_for_the_next_review(client: Client) -> None:
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
    [("timeout=5s", 3.5), ("timeout=10s", 7.0), ("", 3.5), ("timeout=1m0s", 3.5)],
)
async def test_a_review_must_be_answered_before_the_api_server_gives_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, query: str, seconds: float
) -> None:
    seen: list[float] = []

    class Noted:
        def set(self, review: Any) -> None:
            seen.append(review.deadline)
            current_review.set(review)

    monkeypatch.setattr(server_module, "current_review", Noted())
    await client.post(review(), f"/pods?{query}")
    assert seen == pytest.approx([seconds])


async def test_nothing_is_served_before_a_certificate_is_there(watcher: CertWatcher) -> None:
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


async def test_a_new_certificate_is_shown_while_old_connections_live_on(
    client: Client, watcher: CertWatcher, pair: KeyPair
) -> None:
    reader, writer = await client.connect()
    fresh = create(NAMES, now=dt.datetime.now(dt.UTC))
    watcher.load(CertificatePair(fresh.certificate, fresh.key))
    other = Client(client.port, fresh)
    async with other.session:
        assert (await other.post(review()))[0] == 200
    with pytest.raises(ssl.SSLError):  # the old CA knows nobody here any more
        await client.connect()
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")
    writer.close()


async def test_what_has_come_in_is_answered_when_the_server_is_closed(
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
    ("farewell", "longest", "levels"),
    [(0.4, 5.0, []), (5.0, 0.8, ["WARNING"])],
    ids=["until nobody comes", "but not for ever"],
)
async def test_who_is_still_led_here_is_answered_and_not_kept(
    watcher: CertWatcher,
    pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
    said: list[Any],
    farewell: float,
    longest: float,
    levels: list[str],
) -> None:
    """Endpoints and kube-proxy may learn later that a pod leaves than it waits for them."""
    monkeypatch.setattr(server_module, "_QUIET_SECONDS", farewell)
    monkeypatch.setattr(server_module, "_MAX_DRAIN_SECONDS", longest)
    watcher.load(CertificatePair(pair.certificate, pair.key))
    watcher.ready.set()
    port = free_port()
    server = Server(port=port, watcher=watcher, handled=HANDLED, metrics=Metrics())
    client = Client(port, pair)
    async with client.session, serving(server), asyncio.timeout(30):
        leaving = asyncio.create_task(server.drain())
        for _ in range(4):  # longer in all than the first of the two farewells
            await asyncio.wait([leaving], timeout=0.15)
            assert not leaving.done()
            async with client.session.post(f"{client.url}/pods", json=review()) as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
        await leaving
        assert [each.levelname for each in said if each.levelname != "INFO"] == levels


async def test_nobody_is_waited_for_where_nobody_could_have_come(watcher: CertWatcher) -> None:
    """Without a certificate it is not ready, so nobody was led to it."""
    server = Server(port=free_port(), watcher=watcher, handled=HANDLED, metrics=Metrics())
    leaving = asyncio.create_task(server.drain())
    await asyncio.wait([leaving], timeout=0.5)
    assert leaving.done()
