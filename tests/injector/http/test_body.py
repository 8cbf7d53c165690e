"""Bodies of requests: what is accepted, and within which limits."""

import asyncio
import gzip
import json

import pytest
from asya_injector.http import body as body_module
from asya_injector.webhook.telemetry import Metrics

from tests.injector.webhook_server import (
    POD,
    Client,
    rejection,
    review,
)


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
    async with asyncio.timeout(60):
        assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        await reader.read()  # and the connection is closed
    writer.close()
