"""The body of a request: read within limits, and parsed."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any

import aiohttp.web

from asya_injector.errors import Reason

# An UPDATE carries the object twice, and the API server accepts objects of up to 3 MiB.
_MAX_BYTES = 8 << 20
# Each comma, colon or bracket in JSON stands for up to 140 bytes of memory. Objects of 3 MiB have
# fewer.
_MAX_VALUES = 600_000
# The API server does not wait longer for an answer.
_SECONDS = 5.0
_CHUNK_BYTES = 64 << 10
# The API server sends this field first.
_UID = re.compile(rb'"request"\s*:\s*\{\s*"uid"\s*:\s*"([-0-9a-zA-Z]{1,100})"')


class BadRequestError(Exception):
    """The request body is not a review that this server can answer.

    The text never quotes the request. `code` is an HTTP status; `uid` is the review's, if it could
    be read.
    """

    def __init__(self, code: int, text: str, *, uid: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.uid = uid


async def read_body(
    request: aiohttp.web.BaseRequest, *, on_growth: Callable[[int], None]
) -> bytearray:
    """The body of a review; raises BadRequestError.

    on_growth: called with the size so far.
    """
    if request.method != "POST":
        raise BadRequestError(405, "the method is not POST")
    if request.content_type != "application/json":
        raise BadRequestError(415, "the content type is not application/json")
    if is_chunked(request):
        raise BadRequestError(411, "the request has no Content-Length")
    body = bytearray()
    if request.content.is_eof():  # a small body arrives together with the headers
        body += request.content.read_nowait()
        on_growth(len(body))
        return body
    try:
        async with asyncio.timeout(_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise _make_too_large(body, f"has more than {_MAX_BYTES} bytes")
                on_growth(len(body))
    except TimeoutError:
        raise BadRequestError(408, f"the body did not arrive within {_SECONDS:g} s") from None
    return body


def is_chunked(request: aiohttp.web.BaseRequest) -> bool:
    """Whether the body comes in chunks, which take seconds to parse if each has a byte.

    The API server sends none.
    """
    return "Transfer-Encoding" in request.headers


def parse_body(body: bytearray) -> Any:
    """The JSON value of a body, which is cleared; raises BadRequestError."""
    _check_values(body)
    try:
        text = body.decode()
        body.clear()
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the body is not JSON") from None


def find_uid(body: bytearray) -> str:
    """The uid of a review that is not parsed; empty if it is not where the API server puts it."""
    found = _UID.search(body, 0, 1000)
    return found[1].decode() if found else ""


def _check_values(body: bytearray) -> None:
    """Raise BadRequestError for a body that would take too much memory when it is parsed."""
    if _count_separators(body) > _MAX_VALUES:
        # Slower, and right: without the contents of strings.
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        count, first = 0, 0
        for start in range(0, len(plain), _CHUNK_BYTES):
            parts = plain[start : start + _CHUNK_BYTES].split(b'"')
            count += _count_separators(b"".join(parts[first::2]))
            first = (first + len(parts) - 1) % 2
            if count > _MAX_VALUES:
                raise _make_too_large(body, f"has more than {_MAX_VALUES} values")


def _count_separators(text: bytes | bytearray) -> int:
    """At least the number of values in JSON."""
    return sum(map(text.count, (b",", b":", b"[", b"{")))


def _make_too_large(body: bytearray, problem: str) -> BadRequestError:
    return BadRequestError(
        413,
        f"this object's review {problem}; make the object smaller, or inject its manifest with "
        f"`asya-injector inject` ({Reason.REVIEW_TOO_LARGE})",
        uid=find_uid(body),
    )
