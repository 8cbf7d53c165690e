"""The webhook's server: what reaches kopf, how it is answered, certificates, and shutdown."""

import asyncio
import base64
import contextlib
import datetime as dt
import gc
import json
import ssl
from typing import Any

import pytest
from asya_injector.tls.authority import KeyPair, create
from asya_injector.tls.watcher import CertificatePair, CertWatcher
from asya_injector.webhook import server as server_module
from asya_injector.webhook.admission import HANDLED
from asya_injector.webhook.review import current_review
from asya_injector.webhook.server import Server
from asya_injector.webhook.telemetry import Metrics

from tests.injector.webhook_server import (
    GATE,
    NAMES,
    SLOW,
    Client,
    is_closed,
    kopf_stand_in,
    named,
    post,
    rejection,
    review,
    running,
    serving,
)
from tests.support.ports import free_port

LARGE = 100 << 10


def patch_of(answer: Any) -> Any:
    return json.loads(base64.b64decode(answer["response"]["patch"]))


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
    seen: list[tuple[float, float]] = []
    clock = asyncio.get_running_loop().time

    class Recorder:
        def set(self, review: Any) -> None:
            seen.append((review.deadline - seconds, clock()))
            current_review.set(review)

    monkeypatch.setattr(server_module, "current_review", Recorder())
    sent = clock()
    await client.post(review(), f"/pods?{query}")
    ((began, handled),) = seen  # the review's time began between these two moments
    assert sent <= began <= handled


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
    async with asyncio.timeout(60):
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
            assert await asyncio.to_thread(SLOW.wait, 60)
            asyncio.get_running_loop().call_later(0.1, GATE.set)  # once the closing has begun
        assert (await asked)[0] == 200
        async with asyncio.timeout(60):
            assert await idle.read() == b""
        assert not server.listening
        with pytest.raises(OSError, match="Connect"):
            await asyncio.open_connection("127.0.0.1", port)


@pytest.mark.parametrize(
    ("is_quiet", "levels"),
    [(True, []), (False, ["WARNING"])],
    ids=["until a quiet period", "until the limit"],
)
async def test_while_draining_answers_new_connections_and_closes_them(
    watcher: CertWatcher,
    pair: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
    records: list[Any],
    is_quiet: bool,
    levels: list[str],
) -> None:
    """Endpoints and kube-proxy may learn only after the quiet period that a pod stops."""
    # Hours, which the test lets pass: the times of a busy machine are nothing beside them.
    quiet, limit = 9000.0, 90_000.0
    monkeypatch.setattr(server_module, "_QUIET_SECONDS", quiet)
    monkeypatch.setattr(server_module, "_MAX_DRAIN_SECONDS", limit)
    async with asyncio.timeout(60), running(watcher, pair) as (client, server):
        draining = asyncio.create_task(server.drain())
        listener = server._listener
        assert listener
        for _ in range(4):  # longer in total than the quiet period
            await asyncio.wait([draining], timeout=0.1)
            listener.last_connected -= 4000.0  # as if so much time had passed
            await asyncio.wait([draining], timeout=0.1)
            assert not draining.done()
            async with client.session.post(f"{client.url}/pods", json=review()) as answer:
                assert (answer.status, answer.headers["Connection"]) == (200, "close")
        if is_quiet:
            listener.last_connected -= quiet
        else:
            monkeypatch.setattr(server_module, "_MAX_DRAIN_SECONDS", 0.0)
        await draining
        assert [each.levelname for each in records if each.levelname != "INFO"] == levels


async def test_does_not_drain_if_it_was_never_ready(watcher: CertWatcher) -> None:
    """Without a certificate it is not ready, so it gets no connections."""
    server = Server(port=free_port(), watcher=watcher, handled=HANDLED, metrics=Metrics())
    draining = asyncio.create_task(server.drain())
    await asyncio.wait([draining], timeout=0.5)
    assert draining.done()


async def test_answers_one_large_review_at_a_time_and_small_ones_between(client: Client) -> None:
    first, second, third = [await client.connect() for _ in range(3)]
    first[1].write(post(named("slow", size=LARGE)))
    assert await asyncio.to_thread(SLOW.wait, 60)
    second[1].write(post(named("p", size=LARGE)))
    third[1].write(post(named("p", size=LARGE), timeout=1))
    assert (await client.post(named("p")))[0] == 200
    async with asyncio.timeout(60):
        head = await third[0].readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        text = "too many large reviews at the same time; try again"
        expected = json.dumps(rejection("u-1", 503, text)).encode()
        assert await third[0].readexactly(len(expected)) == expected
    assert not await is_closed(second[0], within=0.2)
    GATE.set()
    for reader, writer in (first, second):
        async with asyncio.timeout(60):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    third[1].close()
    assert gc.isenabled()


async def test_a_large_review_gives_its_turn_away_while_it_waits(client: Client) -> None:
    _, writer = await client.connect()
    writer.write(post(named("waits", size=LARGE)))
    assert await asyncio.to_thread(SLOW.wait, 60)
    async with asyncio.timeout(60):
        status, answer = await client.post(named("p", size=LARGE))
    assert (status, answer["response"]["allowed"]) == (200, True)
    GATE.set()
    writer.close()
