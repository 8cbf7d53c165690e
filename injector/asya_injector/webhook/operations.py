"""The plain listener: probes and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp.web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from asya_injector.webhook.telemetry import Metrics


@contextlib.asynccontextmanager
async def operations(
    port: int, *, is_ready: Callable[[], str | None], metrics: Metrics
) -> AsyncIterator[None]:
    """Serve `/livez`, `/readyz` and `/metrics` over plain HTTP while the context is open.

    is_ready: None when ready, else what is missing.
    """

    async def livez(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text="ok\n")

    async def readyz(_: aiohttp.web.Request) -> aiohttp.web.Response:
        missing = is_ready()
        return aiohttp.web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def expose(_: aiohttp.web.Request) -> aiohttp.web.Response:
        body = generate_latest(metrics.registry)
        return aiohttp.web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = aiohttp.web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", expose)
    runner = aiohttp.web.AppRunner(
        app, access_log=None, handle_signals=False, keepalive_timeout=75, shutdown_timeout=1
    )
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()
