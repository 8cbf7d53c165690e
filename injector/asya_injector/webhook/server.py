"""The TLS server that answers the API server's admission reviews."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import re
import socket
import time
from asyncio import sslproto
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from typing import Any, cast

import aiohttp.web
import kopf

from asya_injector.errors import Reason
from asya_injector.tls.watcher import CertWatcher
from asya_injector.webhook.limits import Connection, Connections, Turns
from asya_injector.webhook.review import BadRequestError, Review, build_rejection, current_review
from asya_injector.webhook.telemetry import Metrics

logger = logging.getLogger(__name__)

# An UPDATE carries the object twice, and the API server accepts objects of up to 3 MiB.
_MAX_REVIEW_BYTES = 8 << 20
# Each comma, colon or bracket in JSON stands for up to 140 bytes of memory. Objects of 3 MiB have
# fewer.
_MAX_REVIEW_VALUES = 600_000
# Larger reviews are answered one at a time, and take at most half of the time.
_LARGE_REVIEW_BYTES = 64 << 10
# The API server does not wait longer for an answer.
_BODY_SECONDS = 5.0
_HANDSHAKE_SECONDS = 5.0
# From the connection to the first whole request.
_FIRST_REQUEST_SECONDS = 15.0
_SEND_SECONDS = 5.0
_SHUTDOWN_TLS_SECONDS = 2.0
# The API server's limits for `timeoutSeconds` of a webhook.
_MIN_TIMEOUT, _MAX_TIMEOUT = 1.0, 30.0
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
# asyncio allocates a buffer for each TLS connection: 256 KiB by default. A record has 16 KiB.
_TLS_BUFFER_BYTES = 32 << 10
_READ_BUFFER_BYTES = 16 << 10
_CHUNK_BYTES = 64 << 10
# The API server sends this field first.
_UID = re.compile(rb'"request"\s*:\s*\{\s*"uid"\s*:\s*"([-0-9a-zA-Z]{1,100})"')

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
        sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES

        async def handle(request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
            with web.use(request.protocol) as connection:
                try:
                    status, body = await self._handle(fn, request, connection)
                except Exception:
                    logger.exception("cannot answer a request")
                    status, body = 500, b"asya-injector: internal error; search its log\n"
                self._connections.resize(connection, len(body))
                response = _make_response(status, body)
                if self._draining:
                    response.force_close()
                try:
                    async with asyncio.timeout(_SEND_SECONDS):
                        await _send(request, response, body)
                except (TimeoutError, ConnectionError):
                    connection.close()
                return response

        web = _Protocols(handle, self._connections)
        listener = cast(socket.socket, self._socket)
        listener.setblocking(False)
        listener.listen(1024)
        accepting = asyncio.create_task(self._accept(listener, web))
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

    async def _accept(self, listener: socket.socket, web: _Protocols) -> None:
        """Accept connections until cancelled."""
        loop = asyncio.get_running_loop()
        handshakes: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    plain, address = await loop.sock_accept(listener)
                except OSError as error:  # such as too many open files
                    logger.warning("cannot accept a connection", extra={"error": str(error)})
                    await asyncio.sleep(0.1)
                    continue
                self._last_connected = loop.time()
                handshake = asyncio.create_task(self._shake_hands(plain, address[0], web))
                handshakes.add(handshake)
                handshake.add_done_callback(handshakes.discard)
        finally:
            for handshake in handshakes:
                handshake.cancel()

    async def _shake_hands(self, plain: socket.socket, address: str, web: _Protocols) -> None:
        """Serve a connection from its TLS handshake on."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        connection = Connection(address, close=task.cancel, now=loop.time())
        self._connections.add(connection)
        protocol = web.open(connection)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                plain,
                ssl=self._watcher.context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_SHUTDOWN_TLS_SECONDS,
            )
        except OSError:  # the caller's fault
            web.forget(protocol)
        except asyncio.CancelledError:
            web.forget(protocol)
            raise
        else:
            connection.close = transport.abort
            connection.limit_first_request(_FIRST_REQUEST_SECONDS)

    async def _handle(
        self, fn: Answer, request: aiohttp.web.BaseRequest, connection: Connection
    ) -> tuple[int, bytes]:
        """HTTP status and body of the answer."""
        began = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + _parse_deadline(request.query)
        path = request.path.strip("/")
        body = bytearray()
        try:
            await self._read_body(request, connection, body)
            connection.use()
            size = len(body)
            async with self._turn(body, connection.address, deadline) as end_turn:
                _check_values(body)
                review = Review.parse(_parse_json(body))
                self._check_handled(path, review)
                review.deadline, review.caller = deadline, connection.address

                def drop() -> None:
                    end_turn()
                    self._connections.resize(connection, len(review.patch))

                review.on_drop = drop
                review.is_large = size > _LARGE_REVIEW_BYTES
                answer = await _answer(fn, path, review)
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

    async def _read_body(
        self, request: aiohttp.web.BaseRequest, connection: Connection, body: bytearray
    ) -> None:
        """Append the body of a request; raises BadRequestError."""
        if request.method != "POST":
            raise BadRequestError(405, "the method is not POST")
        if request.content_type != "application/json":
            raise BadRequestError(415, "the content type is not application/json")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for chunk in request.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_REVIEW_BYTES:
                        raise _make_too_large(body, f"has more than {_MAX_REVIEW_BYTES} bytes")
                    self._connections.resize(connection, len(body))
        except TimeoutError:
            raise BadRequestError(
                408, f"the body did not arrive within {_BODY_SECONDS:g} s"
            ) from None

    @contextlib.asynccontextmanager
    async def _turn(
        self, body: bytearray, address: str, deadline: float
    ) -> AsyncIterator[Callable[[], None]]:
        """A turn to answer a review; yields a function that ends it early.

        Answering a large review blocks the event loop. Between two of them, it has as much time for
        small ones.
        """
        if len(body) <= _LARGE_REVIEW_BYTES:
            yield lambda: None
            return
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                await self._large_reviews.acquire(address)
        except TimeoutError:
            raise BadRequestError(
                503, "too many large reviews at the same time; try again", uid=_find_uid(body)
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
        try:
            yield end
        finally:
            end()

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


class _Protocols(aiohttp.web.Server):
    """Makes aiohttp's protocols, and knows which connection each of them serves.

    A handler ends with its connection, because the caller no longer waits for the answer.
    """

    def __init__(self, handler: Any, connections: Connections) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=2,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=4096,
            max_headers=32,
        )
        self._limits = connections
        self._open: dict[Any, Connection] = {}

    def open(self, connection: Connection) -> Any:
        """A protocol for this connection; `forget` it if its handshake fails."""
        protocol = self()
        self._open[protocol] = connection
        return protocol

    def forget(self, protocol: Any) -> None:
        """The connection of this protocol is closed."""
        if connection := self._open.pop(protocol, None):
            connection.limit_first_request(None)
            self._limits.remove(connection)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Called by the protocol."""
        super().connection_lost(handler, exc)
        self.forget(handler)

    @contextlib.contextmanager
    def use(self, protocol: Any) -> Iterator[Connection]:
        """The connection of this protocol, while a request on it is answered."""
        connection = self._open[protocol]
        try:
            yield connection
        finally:
            connection.busy, connection.since = False, asyncio.get_running_loop().time()
            self._limits.resize(connection, 0)


def _check_values(body: bytearray) -> None:
    """Raise BadRequestError for a body that would take too much memory when it is parsed."""
    if _count_separators(body) > _MAX_REVIEW_VALUES:
        # Slower, and right: without the contents of strings.
        plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
        count, first = 0, 0
        for start in range(0, len(plain), _CHUNK_BYTES):
            parts = plain[start : start + _CHUNK_BYTES].split(b'"')
            count += _count_separators(b"".join(parts[first::2]))
            first = (first + len(parts) - 1) % 2
        if count > _MAX_REVIEW_VALUES:
            raise _make_too_large(body, f"has more than {_MAX_REVIEW_VALUES} values")


def _count_separators(text: bytes | bytearray) -> int:
    """At least the number of values in JSON."""
    return sum(map(text.count, (b",", b":", b"[", b"{")))


def _make_too_large(body: bytearray, problem: str) -> BadRequestError:
    return BadRequestError(
        413,
        f"this object's review {problem}; make the object smaller, or inject its manifest with "
        f"`asya-injector inject` ({Reason.REVIEW_TOO_LARGE})",
        uid=_find_uid(body),
    )


def _find_uid(body: bytearray) -> str:
    """The uid of a review that is not parsed; empty if it is not where the API server puts it."""
    found = _UID.search(body, 0, 1000)
    return found[1].decode() if found else ""


def _parse_json(body: bytearray) -> Any:
    """The value of a JSON text, which is cleared; raises BadRequestError."""
    try:
        text = body.decode()
        body.clear()
        return json.loads(text)
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
        answer["response"] |= {"patch": review.patch, "patchType": "JSONPatch"}
    return answer


def _encode(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def _make_response(status: int, body: bytes) -> aiohttp.web.StreamResponse:
    content_type = "application/json" if status == 200 else "text/plain"
    if len(body) <= _CHUNK_BYTES:
        return aiohttp.web.Response(body=body, status=status, content_type=content_type)
    response = aiohttp.web.StreamResponse(status=status)
    response.content_type, response.content_length = content_type, len(body)
    return response


async def _send(
    request: aiohttp.web.BaseRequest, response: aiohttp.web.StreamResponse, body: bytes
) -> None:
    """Send a response, as fast as the caller reads it."""
    await response.prepare(request)
    if not isinstance(response, aiohttp.web.Response):
        for start in range(0, len(body), _CHUNK_BYTES):
            await response.write(body[start : start + _CHUNK_BYTES])
    await response.write_eof()


def _parse_deadline(query: Mapping[str, str]) -> float:
    """Seconds within which to answer, from the API server's timeout such as `timeout=5s`.

    An answer before the timeout explains the problem; after it, users see only "context deadline
    exceeded".
    """
    number = query.get("timeout", "").removesuffix("s")
    seconds = float(number) if number.isascii() and number.isdigit() else 5.0
    return 0.7 * min(max(seconds, _MIN_TIMEOUT), _MAX_TIMEOUT)
