"""The TLS server that answers the API server's admission reviews."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, cast

import aiohttp.web
import kopf

from asya_injector.tls.watcher import CertWatcher
from asya_injector.webhook.review import BadRequestError, Review, build_rejection, current_review
from asya_injector.webhook.telemetry import Metrics

logger = logging.getLogger(__name__)

# An UPDATE carries the object twice, and the API server accepts objects of up to 3 MiB.
_MAX_REVIEW_BYTES = 8 << 20
# The API server does not wait longer for an answer.
_BODY_SECONDS = 5.0
_HANDSHAKE_SECONDS = 5.0
# Longer than the API server keeps an idle connection (90 s), so that it closes first.
_IDLE_SECONDS = 120.0
# Quiet period: long enough for a busy keep-alive connection to be reused and for stale routes to
# show.
_QUIET_SECONDS = 2.0
# Nodes have routed to a pod for more than five seconds after its SIGTERM, because endpoints and
# kube-proxy lag. Together with the next limit and the chart's preStop of three seconds, this stays
# below the pod's grace period.
_MAX_DRAIN_SECONDS = 12.0
# Longer than any review.
_SHUTDOWN_SECONDS = 10.0

Answer = Callable[..., Awaitable[Any]]


class Server:
    """A webhook server that follows kopf's protocol.

    Called with a function that answers reviews, it yields once the port is open, and serves until
    it is closed. https://docs.kopf.dev/en/stable/admission/#custom-servers-tunnels

    kopf's own server has no time limits and too small a size limit. It allows requests to unknown
    paths, discloses exception texts, closes its listener to change a certificate, and cannot drain.
    This server gives each review one answer, one log line and one count.

    handled: for each path, the resources (group, version, plural) that it answers.
    """

    def __init__(
        self,
        *,
        port: int,
        watcher: CertWatcher,
        handled: Mapping[str, Collection[tuple[str, str, str]]],
        metrics: Metrics,
    ) -> None:
        self.listening = False
        self._port = port
        self._watcher = watcher
        self._handled = handled
        self._metrics = metrics
        self._socket: socket.socket | None = None
        self._draining = False
        self._last_connected = 0.0

    def bind(self) -> None:
        """Bind the port at the start, so that a wrong one fails early; raises OSError.

        Connections are refused until a certificate is loaded.
        """
        dual = socket.has_dualstack_ipv6()
        self._socket = socket.socket(socket.AF_INET6 if dual else socket.AF_INET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if dual:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            self._socket.bind(("", self._port))
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"port {self._port}: {error.strerror}") from None

    def unbind(self) -> None:
        """Release the port if it was never served."""
        if self._socket is not None:
            self._socket.close()

    async def __call__(self, fn: Answer) -> AsyncIterator[Any]:
        """Serve once a certificate is loaded; at the end, answer the requests that have arrived."""
        await self._watcher.ready.wait()

        async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
            response = await self._handle(fn, request)
            if self._draining:
                response.force_close()
            return response

        web = aiohttp.web.Server(
            handle,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=1,
        )
        loop = asyncio.get_running_loop()

        def connected() -> asyncio.Protocol:
            self._last_connected = loop.time()
            return web()

        listener = await loop.create_server(
            connected,
            sock=cast(socket.socket, self._socket),
            ssl=self._watcher.context,
            ssl_handshake_timeout=_HANDSHAKE_SECONDS,
            backlog=1024,
        )
        try:
            self.listening = True
            yield kopf.WebhookClientConfig(url=f"https://localhost:{self._port}")
            await asyncio.Event().wait()
        finally:
            self.listening = False
            listener.close()
            web.pre_shutdown()  # closes idle connections only
            await web.shutdown(_SHUTDOWN_SECONDS)

    async def drain(self) -> None:
        """Close each connection after its next answer; return after a quiet period.

        The API server rejects an object whose POST meets a closing connection or a closed port. A
        replica without a connection so far drains too: the API server may have used another
        replica, which is ending as well.
        """
        if not self.listening:
            return
        self._draining = True
        logger.info("draining")
        clock = asyncio.get_running_loop().time
        began = self._last_connected = clock()
        while clock() < self._last_connected + _QUIET_SECONDS:
            if clock() >= began + _MAX_DRAIN_SECONDS:
                logger.warning(
                    "still receiving connections; closing", extra={"seconds": _MAX_DRAIN_SECONDS}
                )
                return
            await asyncio.sleep(0.05)

    async def _handle(
        self, fn: Answer, request: aiohttp.web.BaseRequest
    ) -> aiohttp.web.StreamResponse:
        began = time.perf_counter()
        try:
            review = Review.parse(await _read_body(request))
            path = request.path.strip("/")
            self._check_handled(path, review)
        except BadRequestError as error:
            self._metrics.bad_requests.labels(code=error.code).inc()
            logger.warning(
                "bad request", extra={"uid": error.uid, "code": error.code, "error": str(error)}
            )
            if error.uid:
                return _response(build_rejection(error.uid, str(error), error.code))
            return aiohttp.web.Response(status=error.code, text=f"asya-injector: {error}\n")
        review.deadline = _parse_deadline(request.query.get("timeout", ""))
        answer = await _answer(fn, path, review)
        seconds = time.perf_counter() - began
        resource = review.resource[2]
        self._metrics.duration.observe(seconds)
        self._metrics.admissions.labels(resource, review.result, review.reason).inc()
        logger.info(review.result, extra=review.log_fields() | {"seconds": round(seconds, 4)})
        return _response(answer)

    def _check_handled(self, path: str, review: Review) -> None:
        """Raise BadRequestError for a review that has no handler: kopf would allow it."""
        handled = self._handled.get(path)
        if handled is None:
            raise BadRequestError(
                404,
                "this path is not a webhook; use the chart's webhook configuration",
                uid=review.uid,
            )
        if review.resource not in handled or review.subresource:
            raise BadRequestError(
                404,
                "this webhook does not handle such objects; use the chart's webhook configuration",
                uid=review.uid,
            )


async def _read_body(request: aiohttp.web.BaseRequest) -> Any:
    """The JSON value in the body of a request; raises BadRequestError."""
    if request.method != "POST":
        raise BadRequestError(405, "the method is not POST")
    if request.content_type != "application/json":
        raise BadRequestError(415, "the content type is not application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > _MAX_REVIEW_BYTES:
                    raise BadRequestError(413, f"the body is larger than {_MAX_REVIEW_BYTES} bytes")
    except TimeoutError:
        raise BadRequestError(408, f"the body did not arrive within {_BODY_SECONDS:g} s") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError(400, "the body is not JSON") from None


async def _answer(fn: Answer, path: str, review: Review) -> Any:
    """kopf's answer with the patch added; a rejection if kopf fails."""
    current_review.set(review)
    try:
        answer = await fn(review.for_kopf, webhook=path)
        if not review.result:
            raise RuntimeError("kopf did not call the handler")
    except Exception:
        logger.exception("admission failed", extra={"uid": review.uid})
        return build_rejection(review.uid, review.fail(), 500)
    if review.patch:
        patch = base64.b64encode(json.dumps(review.patch).encode()).decode()
        answer["response"] |= {"patch": patch, "patchType": "JSONPatch"}
    return answer


def _response(answer: Any) -> aiohttp.web.Response:
    return aiohttp.web.Response(body=json.dumps(answer).encode(), content_type="application/json")


def _parse_deadline(timeout: str) -> float:
    """Seconds within which to answer, from the API server's timeout such as `5s`.

    An answer before the timeout explains the problem; after it, users see only "context deadline
    exceeded".
    """
    number = timeout.removesuffix("s")
    seconds = float(number) if number.isascii() and number.isdigit() else 5.0
    return 0.7 * seconds
