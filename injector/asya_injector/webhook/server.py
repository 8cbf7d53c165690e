"""The TLS server that answers the API server's admission reviews."""

import asyncio
import gc
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any, cast

import aiohttp.web
import kopf

from asya_injector.http.body import BadRequestError, find_uid, parse_body, read_body
from asya_injector.http.limits import Connection, Connections, Turns
from asya_injector.http.listener import Listener
from asya_injector.tls.watcher import CertWatcher
from asya_injector.webhook.review import Review, build_rejection, current_review
from asya_injector.webhook.telemetry import Metrics

logger = logging.getLogger(__name__)

# Larger reviews are answered one at a time, and take at most half of the time.
_LARGE_REVIEW_BYTES = 64 << 10
# The API server's limits for `timeoutSeconds` of a webhook.
_MIN_TIMEOUT, _MAX_TIMEOUT = 1.0, 30.0
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
        self._listener: Listener | None = None
        self._connections = Connections()
        self._large_reviews = Turns(1)

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
        web = self._listener = Listener(
            lambda request, connection: self._handle(fn, request, connection),
            context=self._watcher.context,
            connections=self._connections,
        )
        listener = cast(socket.socket, self._socket)
        listener.setblocking(False)
        listener.listen(1024)
        accepting = asyncio.create_task(web.accept(listener))
        try:
            self.listening = True
            yield kopf.WebhookClientConfig(url=f"https://localhost:{self._port}")
            await asyncio.Event().wait()
        finally:
            self.listening = False
            accepting.cancel()
            await asyncio.wait([accepting])
            listener.close()
            web.pre_shutdown()  # closes idle connections only
            await web.shutdown(_SHUTDOWN_SECONDS)

    async def drain(self) -> None:
        """Close each connection after its next answer; return after a quiet period.

        The API server rejects an object whose POST meets a closing connection or a closed port. A
        replica without a connection so far drains too: the API server may have used another
        replica, which is ending as well.
        """
        if not self.listening or self._listener is None:
            return
        listener = self._listener
        listener.draining = True
        logger.info("draining")
        clock = asyncio.get_running_loop().time
        began = listener.last_connected = clock()
        while clock() < listener.last_connected + _QUIET_SECONDS:
            if clock() >= began + _MAX_DRAIN_SECONDS:
                logger.warning(
                    "still receiving connections; closing", extra={"seconds": _MAX_DRAIN_SECONDS}
                )
                return
            await asyncio.sleep(0.05)

    async def _handle(
        self, fn: Answer, request: aiohttp.web.BaseRequest, connection: Connection
    ) -> tuple[int, bytes]:
        """HTTP status and body of the answer."""
        began = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + _parse_deadline(request.query)
        path = request.path.strip("/")
        try:
            body = await read_body(
                request, on_growth=lambda size: self._connections.resize(connection, size)
            )
            connection.use()
            is_large = len(body) > _LARGE_REVIEW_BYTES
            end_turn = _do_nothing
            if is_large:
                end_turn = await self._take_turn(body, connection.address, deadline)
            try:
                review = Review.parse(parse_body(body))
                self._check_handled(path, review)

                def drop() -> None:
                    end_turn()
                    self._connections.resize(connection, len(review.patch))

                review.on_drop, review.is_large = drop, is_large
                review.deadline, review.caller = deadline, connection.address
                answer = await _answer(fn, path, review)
            finally:
                end_turn()
        except BadRequestError as error:
            self._metrics.bad_requests.labels(code=error.code).inc()
            logger.warning(
                "bad request", extra={"uid": error.uid, "code": error.code, "error": str(error)}
            )
            if error.uid:
                return 200, _encode(build_rejection(error.uid, str(error), error.code))
            return error.code, f"asya-injector: {error}\n".encode()
        seconds = time.perf_counter() - began
        resource = review.resource[2]
        self._metrics.duration.observe(seconds)
        self._metrics.admissions.labels(resource, review.result, review.reason).inc()
        logger.info(review.result, extra=review.log_fields() | {"seconds": round(seconds, 4)})
        return 200, _encode(answer)

    async def _take_turn(
        self, body: bytearray, address: str, deadline: float
    ) -> Callable[[], None]:
        """Wait for a turn to answer a large review; returns a function that ends the turn.

        Answering a large review blocks the event loop. Between two of them, it has as much time for
        small ones.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                await self._large_reviews.acquire(address)
        except TimeoutError:
            raise BadRequestError(
                503, "too many large reviews at the same time; try again", uid=find_uid(body)
            ) from None
        began = loop.time()
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                gc.enable()
                loop.call_later(loop.time() - began, self._large_reviews.release)

        gc.disable()  # it would scan all the new objects several times
        return end

    def _check_handled(self, path: str, review: Review) -> None:
        """Raise BadRequestError for a review that has no handler: kopf would allow it."""
        problem = ""
        if path not in self._handled:
            problem = "this path is not a webhook"
        elif review.resource not in self._handled[path] or review.subresource:
            problem = "this webhook does not handle such objects"
        if problem:
            fix = "use the chart's webhook configuration"
            raise BadRequestError(404, f"{problem}; {fix}", uid=review.uid)


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
        answer["response"] |= {"patch": review.patch, "patchType": "JSONPatch"}
    return answer


def _do_nothing() -> None:
    """End the turn of a review that needs none."""


def _encode(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def _parse_deadline(query: Mapping[str, str]) -> float:
    """Seconds within which to answer, from the API server's timeout such as `timeout=5s`.

    An answer before the timeout explains the problem; after it, users see only "context deadline
    exceeded".
    """
    number = query.get("timeout", "").removesuffix("s")
    seconds = float(number) if number.isascii() and number.isdigit() else 5.0
    return 0.7 * min(max(seconds, _MIN_TIMEOUT), _MAX_TIMEOUT)
