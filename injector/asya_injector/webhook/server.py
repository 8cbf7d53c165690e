"""The TLS listener for the API server's reviews."""

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
from asya_injector.webhook.review import BadRequestError, Review, current_review, refused
from asya_injector.webhook.telemetry import Metrics

logger = logging.getLogger(__name__)

# An UPDATE carries the object twice, and the API server takes objects of up to 3 MiB.
_LARGEST_REVIEW = 8 << 20
# The API server itself waits no longer for an answer.
_BODY_SECONDS = 5.0
_HANDSHAKE_SECONDS = 5.0
# Longer than the API server keeps an idle connection (90 s), so that it is never the one surprised.
_IDLE_SECONDS = 120.0
# In which a connection that is in use is used again, and who is still led here comes again.
_FAREWELL_SECONDS = 2.0
# Nodes have been seen to lead to a pod for over five seconds after it was told to go, as endpoints
# and kube-proxy lag behind. With the next, and the chart's three, less than a pod is given to end.
_LONGEST_FAREWELL_SECONDS = 12.0
# Longer than any review.
_DRAIN_SECONDS = 10.0

Answer = Callable[..., Awaitable[Any]]


class Server:
    """A webhook server by kopf's protocol for such: called with a function that answers reviews, it
    yields once the port is open and serves until it is closed.

    https://docs.kopf.dev/en/stable/admission/#custom-servers-tunnels

    kopf's own has no limits of time, one of size that is too small, allows what comes to an unknown
    path, tells callers the texts of exceptions, closes its listener to change a certificate, and
    cannot be told when to stop. Here each review ends in one answer, one log line and one count.

    handled: for each path the resources (group, version, plural name) that are answered there.
    """

    def __init__(
        self,
        *,
        port: int,
        identity: CertWatcher,
        handled: Mapping[str, Collection[tuple[str, str, str]]],
        metrics: Metrics,
    ) -> None:
        self.listening = False
        self._port = port
        self._identity = identity
        self._handled = handled
        self._metrics = metrics
        self._socket: socket.socket | None = None
        self._leaving = False
        self._last_connected = 0.0

    def bind(self) -> None:
        """Take the port, so that a wrong one is seen at the start; raises OSError.

        Who connects is refused until there is something to show.
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
        """Give the port back, if it was never served."""
        if self._socket is not None:
            self._socket.close()

    async def __call__(self, fn: Answer) -> AsyncIterator[Any]:
        """Serve nothing before there is a certificate; on the way out, answer what has come in."""
        await self._identity.ready.wait()

        async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
            response = await self._handle(fn, request)
            if self._leaving:
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
            ssl=self._identity.context,
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
            web.pre_shutdown()  # what is idle goes, what is being answered stays
            await web.shutdown(_DRAIN_SECONDS)

    async def take_leave(self) -> None:
        """End each connection with its next answer; return when nobody comes any more.

        A POST that was written into a connection that is being closed is not sent again, nor is one
        that finds the port closed: the API server would refuse the object. That nobody has come so
        far says nothing: it may have kept to another replica, which leaves as well.
        """
        if not self.listening:
            return
        self._leaving = True
        logger.info("leaving")
        clock = asyncio.get_running_loop().time
        began = self._last_connected = clock()
        while clock() < self._last_connected + _FAREWELL_SECONDS:
            if clock() >= began + _LONGEST_FAREWELL_SECONDS:
                logger.warning("still called", extra={"seconds": _LONGEST_FAREWELL_SECONDS})
                return
            await asyncio.sleep(0.05)

    async def _handle(
        self, fn: Answer, request: aiohttp.web.BaseRequest
    ) -> aiohttp.web.StreamResponse:
        began = time.perf_counter()
        try:
            review = Review.read(await _sent(request))
            path = request.path.strip("/")
            self._check_handled(path, review)
        except BadRequestError as error:
            self._metrics.bad_requests.labels(code=error.code).inc()
            logger.warning(
                "bad request", extra={"uid": error.uid, "code": error.code, "error": str(error)}
            )
            if error.uid:
                return _response(refused(error.uid, str(error), error.code))
            return aiohttp.web.Response(status=error.code, text=f"asya-injector: {error}\n")
        review.patience = _patience(request.query.get("timeout", ""))
        answer = await _answer(fn, path, review)
        seconds = time.perf_counter() - began
        resource = review.resource[2]
        self._metrics.duration.observe(seconds)
        self._metrics.admissions.labels(resource, review.result, review.reason).inc()
        logger.info(review.result, extra=review.said() | {"seconds": round(seconds, 4)})
        return _response(answer)

    def _check_handled(self, path: str, review: Review) -> None:
        """Raise BadRequestError for what kopf would let pass, because it has no handler for it."""
        handled = self._handled.get(path)
        if handled is None:
            raise BadRequestError(404, "no webhook at this path; see the chart", uid=review.uid)
        if review.resource not in handled or review.subresource:
            raise BadRequestError(
                404, "this webhook does not answer for such objects; see the chart", uid=review.uid
            )


async def _sent(request: aiohttp.web.BaseRequest) -> Any:
    """What a request holds; raises BadRequestError."""
    if request.method != "POST":
        raise BadRequestError(405, "only POST is answered here")
    if request.content_type != "application/json":
        raise BadRequestError(415, "the content type is not application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > _LARGEST_REVIEW:
                    raise BadRequestError(413, f"more than {_LARGEST_REVIEW} bytes")
    except TimeoutError:
        raise BadRequestError(408, f"not all of it came in {_BODY_SECONDS:g} s") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError(400, "it is not JSON") from None


async def _answer(fn: Answer, path: str, review: Review) -> Any:
    """kopf's answer with our patch; a refusal where there is none to be had."""
    current_review.set(review)
    try:
        answer = await fn(review.head, webhook=path)
        if not review.result:
            raise RuntimeError("kopf has not called the handler")
    except Exception:
        logger.exception("failed", extra={"uid": review.uid})
        return refused(review.uid, review.fail(), 500)
    if review.patch:
        patch = base64.b64encode(json.dumps(review.patch).encode()).decode()
        answer["response"] |= {"patch": patch, "patchType": "JSONPatch"}
    return answer


def _response(answer: Any) -> aiohttp.web.Response:
    return aiohttp.web.Response(body=json.dumps(answer).encode(), content_type="application/json")


def _patience(timeout: str) -> float:
    """Seconds until there must be an answer.

    timeout: what the API server says that it waits, such as `5s`. Whoever waits would rather have
    our refusal than its "context deadline exceeded".
    """
    number = timeout.removesuffix("s")
    waits = float(number) if number.isascii() and number.isdigit() else 5.0
    return 0.7 * waits
