"""Accepts TLS connections within limits, and speaks HTTP on them."""

import asyncio
import logging
import socket
import ssl
from asyncio import sslproto
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiohttp.web

from asya_injector.http.body import is_chunked
from asya_injector.http.limits import Connection, Connections

logger = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 5.0
# From the connection to the first whole request.
_FIRST_REQUEST_SECONDS = 15.0
# Longer than the API server keeps an idle connection (90 s), so that it closes first.
_IDLE_SECONDS = 120.0
_SEND_SECONDS = 5.0
_SHUTDOWN_TLS_SECONDS = 2.0
# asyncio allocates a buffer for each TLS connection: 256 KiB by default. A record has 16 KiB.
_TLS_BUFFER_BYTES = 32 << 10
_READ_BUFFER_BYTES = 16 << 10
_CHUNK_BYTES = 64 << 10

Handler = Callable[[aiohttp.web.BaseRequest, Connection], Awaitable[tuple[int, bytes]]]


class Listener(aiohttp.web.Server):
    """Serves HTTP on the connections to a socket.

    draining: close each connection after its next answer.
    last_connected: when a connection was accepted last, in the event loop's time.
    """

    def __init__(
        self, handler: Handler, *, context: ssl.SSLContext, connections: Connections
    ) -> None:
        """handler: returns HTTP status and body; cancelled if the caller closes its connection."""
        super().__init__(
            self._respond,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_SECONDS,
            lingering_time=2,
            read_bufsize=_READ_BUFFER_BYTES,
            max_line_size=4096,
            max_headers=32,
        )
        sslproto.SSLProtocol.max_size = _TLS_BUFFER_BYTES
        self.draining = False
        self.last_connected = 0.0
        self._handler = handler
        self._context = context
        self._limits = connections
        self._open: dict[Any, Connection] = {}

    async def accept(self, listener: socket.socket) -> None:
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
                self.last_connected = loop.time()
                handshake = asyncio.create_task(self._connect(plain, address[0]))
                handshakes.add(handshake)
                handshake.add_done_callback(handshakes.discard)
        finally:
            for handshake in handshakes:
                handshake.cancel()

    async def _connect(self, plain: socket.socket, address: str) -> None:
        """Serve a connection from its TLS handshake on."""
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[None]", asyncio.current_task())
        connection = Connection(address, close=task.cancel, now=loop.time())
        connection.limit_first_request(_FIRST_REQUEST_SECONDS)
        self._limits.add(connection)
        protocol = self()
        self._open[protocol] = connection
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                plain,
                ssl=self._context,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_SHUTDOWN_TLS_SECONDS,
            )
        except OSError:  # the caller's fault
            self._forget(protocol)
        except asyncio.CancelledError:
            self._forget(protocol)
            raise
        else:
            connection.close = transport.abort

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """Called by the protocol."""
        super().connection_lost(handler, exc)
        self._forget(handler)

    def _forget(self, protocol: Any) -> None:
        if connection := self._open.pop(protocol, None):
            connection.limit_first_request(None)
            self._limits.remove(connection)

    async def _respond(self, request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        connection = self._open[request.protocol]
        try:
            try:
                status, body = await self._handler(request, connection)
            except Exception:
                logger.exception("cannot answer a request")
                status, body = 500, b"asya-injector: internal error; search its log\n"
            self._limits.resize(connection, len(body))
            response = _make_response(status, body)
            if self.draining:
                response.force_close()
            limit = asyncio.get_running_loop().call_later(_SEND_SECONDS, connection.close)
            try:
                await _send(request, response, body)
            except ConnectionError:
                connection.close()
            finally:
                limit.cancel()
            if is_chunked(request):
                connection.close()  # rather than parse the rest
            return response
        finally:
            connection.busy, connection.since = False, asyncio.get_running_loop().time()
            self._limits.resize(connection, 0)


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
