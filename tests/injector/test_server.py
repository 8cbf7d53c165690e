"""The TLS listener and the operations listener, over real sockets."""

import asyncio
import base64
import contextlib
import datetime as dt
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from asya_injector.certificates import KeyPair, created
from asya_injector.server import Metrics, Server, operations
from asya_injector.trust import Trust

NAMES = ["localhost"]
REVIEW: dict[str, Any] = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {
        "uid": "u-1",
        "namespace": "models",
        "object": {"metadata": {"generateName": "p-"}},
    },
}


class StandingTrust(Trust):
    """A trust whose pairs come from the test instead of a cluster."""

    def __init__(self, directory: Path) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ready = asyncio.Event()
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"
        self._loaded = None

    def show(self, pair: KeyPair) -> None:
        self._load(pair)
        self.ready.set()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def echo(review: Any, **_: Any) -> Any:
    """Stands for kopf's handlers: allows, and tells which namespace the object has."""
    request = review["request"]
    if request["uid"] == "broken":
        raise ZeroDivisionError("secret detail")
    namespace = request["object"]["metadata"].get("namespace")
    return {"response": {"uid": request["uid"], "allowed": True, "warnings": [namespace]}}


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[None]:
    opened = asyncio.Event()

    async def run() -> None:
        async for _ in server(echo):
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
        self.url = f"https://localhost:{port}"
        self.context = ssl.create_default_context(cadata=pair.bundle.decode())
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.context))

    async def post(self, body: Any, path: str = "/pods") -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(data)) as answer:
            text = await answer.text()
            with contextlib.suppress(ValueError):
                return answer.status, json.loads(text)
            return answer.status, text


@pytest.fixture
async def trust(tmp_path: Path) -> StandingTrust:
    return StandingTrust(tmp_path)


@pytest.fixture
async def client(trust: StandingTrust) -> AsyncIterator[Client]:
    pair = created(NAMES, now=dt.datetime.now(dt.UTC))
    trust.show(pair)
    port = free_port()
    server = Server(port=port, trust=trust, paths=("pods", "workloads"), metrics=Metrics())
    async with serving(server):
        client = Client(port, pair)
        async with client.session:
            yield client


def refused(uid: str, code: int, message: str) -> dict[str, Any]:
    status = {"code": code, "message": message}
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": False, "status": status},
    }


async def test_a_review_reaches_the_handlers_with_its_namespace_in_the_object(
    client: Client,
) -> None:
    assert await client.post(REVIEW) == (
        200,
        {"response": {"uid": "u-1", "allowed": True, "warnings": ["models"]}},
    )


@pytest.mark.parametrize("path", ["/", "/inject", "/pods/x"])
async def test_a_path_that_the_chart_does_not_name_is_refused_not_silently_allowed(
    client: Client, path: str
) -> None:
    assert await client.post(REVIEW, path) == (
        200,
        refused("u-1", 404, f"asya-injector: no webhook at path {path}; see the chart"),
    )


async def test_a_fault_becomes_a_refusal_that_tells_nothing_but_the_uid(client: Client) -> None:
    review = {**REVIEW, "request": {**REVIEW["request"], "uid": "broken"}}
    message = (
        "asya-injector: the injector failed on this object; its log says why, under uid "
        "broken (InternalError)"
    )
    assert await client.post(review) == (200, refused("broken", 500, message))


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b'{"request": null}', b'{"request": []}', b'"x"'],
    ids=lambda body: body.decode(),
)
async def test_a_malformed_review_is_refused(client: Client, body: bytes) -> None:
    status, answer = await client.post(body)
    assert status == 200
    assert answer["response"]["allowed"] is False
    assert "Traceback" not in json.dumps(answer)


async def test_what_is_no_json_is_a_bad_request(client: Client) -> None:
    assert (await client.post(b"{"))[0] == 400


@pytest.mark.parametrize(("mebibytes", "status"), [(3, 200), (7, 200), (9, 413)])
async def test_reviews_as_large_as_the_api_server_sends_are_taken(
    client: Client, mebibytes: int, status: int
) -> None:
    request: dict[str, Any] = dict(REVIEW["request"])
    request["padding"] = "x" * (mebibytes << 20)
    assert (await client.post({**REVIEW, "request": request}))[0] == status


async def test_nothing_is_served_before_a_certificate_is_there(trust: StandingTrust) -> None:
    port = free_port()
    server = Server(port=port, trust=trust, paths=("pods",), metrics=Metrics())
    task = asyncio.ensure_future(anext(aiter(server(echo))))
    done, _ = await asyncio.wait([task], timeout=0.3)
    assert not done
    assert not server.listening
    with pytest.raises(OSError, match="Connect"):
        await asyncio.open_connection("127.0.0.1", port)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_new_certificate_is_shown_while_old_connections_live_on(
    client: Client, trust: StandingTrust
) -> None:
    assert (await client.post(REVIEW))[0] == 200
    fresh = created(NAMES, now=dt.datetime.now(dt.UTC))
    trust.show(fresh)
    assert (await client.post(REVIEW))[0] == 200  # over the connection that was kept
    port = int(client.url.rsplit(":", 1)[1])
    other = Client(port, fresh)
    async with other.session:
        assert (await other.post(REVIEW))[0] == 200


async def test_readiness_says_what_is_missing_and_metrics_are_exposed() -> None:
    port, missing = free_port(), ["no certificate"]
    metrics = Metrics()
    metrics.admissions.labels(resource="pods", result="refused", reason="EnvConflict").inc()
    async with (
        operations(port, is_ready=lambda: missing[0] if missing else None, metrics=metrics),
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):

        async def get(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        assert await get("/livez") == (200, "ok\n")
        assert await get("/readyz") == (503, "no certificate\n")
        missing.clear()
        assert await get("/readyz") == (200, "ok\n")
        status, text = await get("/metrics")
        assert status == 200
        labels = 'reason="EnvConflict",resource="pods",result="refused"'
        assert f"asya_injector_admissions_total{{{labels}}} 1.0" in text.splitlines()


def test_a_key_on_disk_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    pair = created(NAMES, now=dt.datetime.now(dt.UTC))
    trust = StandingTrust(tmp_path)
    trust.show(pair)
    assert oct(trust.key.stat().st_mode & 0o777) == "0o600"
    assert base64.b64decode(pair.to_secret()["tls.key"]) == trust.key.read_bytes()
